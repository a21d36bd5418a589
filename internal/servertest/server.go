// Package servertest starts a server for the tests of what talks to one: the real
// API, controller and database, on a loopback address, over a node whose commands are
// plain processes of this machine, without any isolation (see package processnode).
package servertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/api"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// Server is a server on a loopback address.
type Server struct {
	*controllertest.Service
	URL string
	// Token is an owner's of the project [controllertest.Project].
	Token    string
	Accounts *auth.Auth
	// Started is when the server started.
	Started time.Time
	// Intercept, set before the first request that it concerns, may answer a
	// request itself and return true.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	conns *connections
	calls sync.WaitGroup

	mu       sync.Mutex
	requests []request
	// aliases are what ids are called in masked texts, counts how many there are.
	aliases map[string]string
	counts  map[string]int
	// last is the millisecond in which the last call that may create something
	// ended.
	last skerry.Time
}

type request struct{ line, body string }

// New starts a server that ends with the test. change changes the configuration of
// its controller.
func New(t testing.TB, change ...func(*controller.Config)) *Server {
	t.Helper()
	s, stop, err := Start(t.TempDir(), change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Start starts a server that keeps everything in a folder.
func Start(dir string, change ...func(*controller.Config)) (s *Server, stop func() error, err error) {
	ctx := context.Background()
	service, err := controllertest.Start(ctx, dir, change...)
	if err != nil {
		return nil, nil, err
	}
	s = &Server{Service: service, Started: time.Now()}
	accounts := auth.New(service.Store)
	s.Accounts = accounts
	s.Token, _, err = accounts.CreateToken(ctx, skerry.TokenParams{
		Name: "test", TeamID: controllertest.Team.ID, ProjectID: controllertest.Project.ID, Role: skerry.RoleOwner,
	})
	if err != nil {
		return nil, nil, errors.Join(err, service.Close())
	}
	handler, err := api.New(api.Options{Service: service, Accounts: accounts, Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		return nil, nil, errors.Join(err, service.Close())
	}
	hs := httptest.NewUnstartedServer(s.front(handler))
	s.conns = &connections{Listener: hs.Listener, open: map[net.Conn]bool{}}
	hs.Listener = s.conns
	if err := accounts.OpenIssuer(ctx, "http://"+hs.Listener.Addr().String(), slog.New(slog.DiscardHandler)); err != nil {
		return nil, nil, errors.Join(err, hs.Listener.Close(), service.Close())
	}
	hs.Start()
	s.URL = hs.URL
	return s, func() error {
		_ = hs.Listener.Close() // hs.Close closes it again
		s.CutConnections()
		hs.Close()
		s.calls.Wait()
		return service.Close()
	}, nil
}

// front records requests and lets the test step in.
func (s *Server) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		s.record(r)
		if s.Intercept != nil && s.Intercept(w, r) {
			return
		}
		if r.Method == http.MethodPost {
			s.awaitClock()
			defer s.noteClock()
		}
		next.ServeHTTP(w, r)
	})
}

// awaitClock waits for the millisecond after that of the last call. So things that
// are created one after the other have different times, and a listing has their
// order.
func (s *Server) awaitClock() {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	for now := time.Now(); !skerry.At(now).After(last.Time); now = time.Now() {
		time.Sleep(now.Truncate(time.Millisecond).Add(time.Millisecond).Sub(now))
	}
}

func (s *Server) noteClock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = skerry.At(time.Now())
}

// record keeps a request with its body, if that is JSON.
func (s *Server) record(r *http.Request) {
	body := ""
	if r.Header.Get("Content-Type") == "application/json" {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		body = string(b)
		rest := io.MultiReader(bytes.NewReader(b), r.Body)
		if err != nil {
			rest = io.MultiReader(bytes.NewReader(b), failing{err})
		}
		r.Body = struct {
			io.Reader
			io.Closer
		}{rest, r.Body}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, request{r.Method + " " + r.URL.RequestURI(), body})
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Requests returns the method and target of every request so far that begins with
// prefix.
func (s *Server) Requests(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.requests {
		if strings.HasPrefix(r.line, prefix) {
			out = append(out, r.line)
		}
	}
	return out
}

// LastBody returns the JSON body of the last request that begins with prefix.
func (s *Server) LastBody(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.requests) - 1; i >= 0; i-- {
		if strings.HasPrefix(s.requests[i].line, prefix) {
			return s.requests[i].body
		}
	}
	return ""
}

// CutConnections breaks every open connection.
func (s *Server) CutConnections() { s.conns.cut() }

// connections is a listener that knows the connections it has accepted.
type connections struct {
	net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
}

func (c *connections) Accept() (net.Conn, error) {
	raw, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &connection{raw, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[conn] = true
	return conn, nil
}

func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.(*connection).Conn.Close() // one that is closed already is cut, too
	}
}

type connection struct {
	net.Conn
	of *connections
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// Refuse answers with an error in the form of the API.
func Refuse(w http.ResponseWriter, status int, code skerry.Code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": &skerry.Error{Code: code, Message: message}}) // or the client has gone
}

// Create creates a sandbox. Two never have the same time.
func (s *Server) Create(t testing.TB, p skerry.CreateParams) *skerry.Run {
	t.Helper()
	s.awaitClock()
	defer s.noteClock()
	run, err := s.CreateSandbox(t.Context(), controllertest.Scope, p)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// Add creates a sandbox that runs. It is not persistent.
func (s *Server) Add(t testing.TB, name string) *skerry.Run {
	t.Helper()
	return s.Create(t, skerry.CreateParams{Name: name, Persistent: new(bool)})
}

// AddStopped creates a sandbox that has stopped. It is not persistent.
func (s *Server) AddStopped(t testing.TB, name string) {
	t.Helper()
	s.Stop(t, s.Add(t, name).Session.ID)
}

// Stop stops a session.
func (s *Server) Stop(t testing.TB, session string) *skerry.Run {
	t.Helper()
	run, err := s.StopSession(t.Context(), controllertest.Scope, session, skerry.StopParams{})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// WorkDir returns where the working directory of a sandbox that runs is on this
// machine.
func (s *Server) WorkDir(t testing.TB, sandbox string) string {
	t.Helper()
	run, err := s.GetSandbox(t.Context(), controllertest.Scope, sandbox, false)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(s.Node.Root(run.Session.ID), skerry.WorkDir)
}
