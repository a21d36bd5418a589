// Package clienttest is a stand-in for a Skerry server, for the tests of what
// talks to one: it speaks the same API over real HTTP on loopback, but its
// sandboxes isolate nothing. Commands run on this machine, in a directory of
// the test.
package clienttest

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// Token is the only one that the server accepts.
const Token = "skerry_test_token"

// Epoch is when everything is created; the listings of tests stay the same.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Server is the stand-in.
type Server struct {
	URL string
	// Dir is the working directory of every sandbox.
	Dir string
	// Intercept, when set before the first request, may answer a request
	// itself and return true.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	sandboxes map[string]*skerry.Sandbox
	sessions  []*skerry.Session
	commands  map[string]*command
	requests  []string
	bodies    []string
	terminals []*websocket.Conn
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	s, stop := Start(t.TempDir())
	t.Cleanup(stop)
	return s
}

// Start starts a server whose sandboxes work in dir.
func Start(dir string) (s *Server, stop func()) {
	s = &Server{Dir: dir, sandboxes: map[string]*skerry.Sandbox{}, commands: map[string]*command{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/sandboxes", s.create)
	mux.HandleFunc("POST /v3/sandboxes", s.create)
	mux.HandleFunc("GET /v2/sandboxes", s.list)
	mux.HandleFunc("GET /v2/sandboxes/sessions", s.listSessions)
	mux.HandleFunc("GET /v2/sandboxes/{name}", s.get)
	mux.HandleFunc("PATCH /v2/sandboxes/{name}", s.update)
	mux.HandleFunc("DELETE /v2/sandboxes/{name}", s.delete)
	const session = "/v2/sandboxes/sessions/{id}"
	mux.HandleFunc("POST "+session+"/stop", s.stop)
	mux.HandleFunc("POST "+session+"/extend-timeout", s.live(s.extend))
	mux.HandleFunc("POST "+session+"/cmd", s.live(s.run))
	mux.HandleFunc("GET "+session+"/cmd/{cmd}", s.command)
	mux.HandleFunc("GET "+session+"/cmd/{cmd}/logs", s.logs)
	mux.HandleFunc("POST "+session+"/cmd/{cmd}/kill", s.kill)
	mux.HandleFunc("POST "+session+"/fs/write", s.live(s.write))
	mux.HandleFunc("POST "+session+"/fs/read", s.live(s.read))
	mux.HandleFunc("POST "+session+"/fs/mkdir", s.live(s.mkdir))
	mux.HandleFunc("POST "+session+"/interactive", s.live(s.interactive))
	mux.HandleFunc("GET /terminal", s.terminal)
	hs := httptest.NewServer(s.front(mux))
	s.URL = hs.URL
	return s, func() {
		s.killAll()
		hs.CloseClientConnections()
		hs.Close()
	}
}

// front records requests, checks the token and lets the test intervene.
func (s *Server) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := ""
		if r.Header.Get("Content-Type") == "application/json" {
			b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			body = string(b)
			r.Body = io.NopCloser(strings.NewReader(body))
		}
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
		s.bodies = append(s.bodies, body)
		s.mu.Unlock()
		w.Header().Set("X-Request-Id", "req_test")
		if s.Intercept != nil && s.Intercept(w, r) {
			return
		}
		if r.URL.Path != "/terminal" && r.Header.Get("Authorization") != "Bearer "+Token {
			Refuse(w, http.StatusUnauthorized, skerry.CodeUnauthorized, "the token is not valid")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Requests returns the method and target of every request so far that begins
// with prefix.
func (s *Server) Requests(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			out = append(out, r)
		}
	}
	return out
}

// LastBody returns the JSON body of the last request that begins with prefix.
func (s *Server) LastBody(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.requests) - 1; i >= 0; i-- {
		if strings.HasPrefix(s.requests[i], prefix) {
			return s.bodies[i]
		}
	}
	return ""
}

// Refuse answers with an error in the form of the API.
func Refuse(w http.ResponseWriter, status int, code skerry.Code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": &skerry.Error{Code: code, Message: message}})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// Add puts a sandbox there, with a session in the given state. Sandboxes are
// created a minute apart.
func (s *Server) Add(name string, status skerry.SessionStatus) *skerry.Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := time.Duration(len(s.sandboxes))
	created := skerry.At(Epoch.Add(n * time.Minute))
	sb := &skerry.Sandbox{
		Name: name, VCPUs: 2, MemoryMB: 4096, Runtime: "node24", Region: skerry.Region, Timeout: skerry.Duration(skerry.DefaultTimeout),
		CreatedAt: created, UpdatedAt: created, Cwd: s.Dir,
	}
	s.sandboxes[name] = sb
	s.start(sb, status)
	return sb
}

// start gives a sandbox a session; s.mu is held.
func (s *Server) start(sb *skerry.Sandbox, status skerry.SessionStatus) *skerry.Session {
	session := &skerry.Session{
		ID: fmt.Sprintf("sbx_%024d", len(s.sessions)+1), SandboxName: sb.Name, VCPUs: sb.VCPUs, MemoryMB: sb.MemoryMB, Runtime: sb.Runtime,
		Region: skerry.Region, Timeout: sb.Timeout, Cwd: s.Dir, Status: status,
		RequestedAt: sb.CreatedAt, StartedAt: sb.CreatedAt, CreatedAt: sb.CreatedAt, UpdatedAt: sb.CreatedAt,
	}
	s.sessions = append(s.sessions, session)
	sb.CurrentSessionID, sb.Status = session.ID, status
	sb.ExpiresAt = session.ExpiresAt()
	return session
}

func (s *Server) session(id string) *skerry.Session {
	for _, session := range s.sessions {
		if session.ID == id {
			return session
		}
	}
	return nil
}

type runBody struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session skerry.Session `json:"session"`
	Routes  []skerry.Route `json:"routes"`
	Resumed bool           `json:"resumed,omitempty"`
}

func (s *Server) runOf(sb *skerry.Sandbox) runBody {
	return runBody{Sandbox: *sb, Session: *s.session(sb.CurrentSessionID), Routes: []skerry.Route{}}
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name    string            `json:"name"`
		Ports   []int             `json:"ports"`
		Timeout skerry.Duration   `json:"timeout"`
		Tags    map[string]string `json:"tags"`
		Persist bool              `json:"persistent"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	if len(body.Ports) > 0 || body.Persist {
		e := skerry.NotImplemented("", "Publishing ports or keeping files")
		Refuse(w, http.StatusNotImplemented, e.Code, e.Message)
		return
	}
	s.mu.Lock()
	taken := s.sandboxes[body.Name] != nil
	if body.Name == "" {
		body.Name = fmt.Sprintf("made-up-%d", len(s.sandboxes)+1)
	}
	s.mu.Unlock()
	if taken {
		Refuse(w, http.StatusConflict, skerry.CodeConflict, "the name is taken")
		return
	}
	sb := s.Add(body.Name, skerry.StatusRunning)
	s.mu.Lock()
	defer s.mu.Unlock()
	sb.Tags = body.Tags
	answer(w, s.runOf(sb))
}

// find answers 404 and returns nil if there is no such sandbox; s.mu is held.
func (s *Server) find(w http.ResponseWriter, r *http.Request) *skerry.Sandbox {
	sb := s.sandboxes[r.PathValue("name")]
	if sb == nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no sandbox "+strconv.Quote(r.PathValue("name")))
	}
	return sb
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.find(w, r)
	if sb == nil {
		return
	}
	resume := r.URL.Query().Get("resume") == "true" && sb.Status != skerry.StatusRunning
	if resume {
		s.start(sb, skerry.StatusRunning)
	}
	run := s.runOf(sb)
	run.Resumed = resume
	answer(w, run)
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Timeout   *skerry.Duration  `json:"timeout"`
		Tags      map[string]string `json:"tags"`
		Resources struct {
			VCPUs int `json:"vcpus"`
		} `json:"resources"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	sb := s.find(w, r)
	if sb == nil {
		return
	}
	if body.Timeout != nil {
		sb.Timeout = *body.Timeout
	}
	if body.Tags != nil {
		sb.Tags = body.Tags
	}
	if body.Resources.VCPUs > 0 {
		sb.VCPUs = body.Resources.VCPUs
	}
	answer(w, map[string]any{"sandbox": sb})
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb := s.find(w, r); sb != nil {
		delete(s.sandboxes, sb.Name)
		answer(w, map[string]any{"sandbox": sb})
	}
}

// page cuts a list at limit and cursor, which is the index to start from.
func page[T any](r *http.Request, list []T) ([]T, map[string]any) {
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	p := skerry.Page{Limit: limit}
	end := min(from+p.Size(), len(list))
	pagination := map[string]any{"count": end - from, "next": nil}
	if end < len(list) {
		pagination["next"] = strconv.Itoa(end)
	}
	return list[from:end], pagination
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*skerry.Sandbox{}
	for _, sb := range s.sandboxes {
		if strings.HasPrefix(sb.Name, r.URL.Query().Get("namePrefix")) {
			all = append(all, sb)
		}
	}
	slices.SortFunc(all, func(a, b *skerry.Sandbox) int {
		if r.URL.Query().Get("sortBy") == "name" {
			return strings.Compare(a.Name, b.Name)
		}
		return b.CreatedAt.Compare(a.CreatedAt.Time)
	})
	items, pagination := page(r, all)
	answer(w, map[string]any{"sandboxes": items, "pagination": pagination})
}

func (s *Server) listSessions(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []*skerry.Session{}
	for _, session := range slices.Backward(s.sessions) {
		if name := r.URL.Query().Get("name"); name == "" || session.SandboxName == name {
			all = append(all, session)
		}
	}
	items, pagination := page(r, all)
	answer(w, map[string]any{"sessions": items, "pagination": pagination})
}

// live lets only calls on a running session through.
func (s *Server) live(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		session := s.session(r.PathValue("id"))
		status := skerry.SessionStatus("")
		if session != nil {
			status = session.Status
		}
		s.mu.Unlock()
		switch status {
		case skerry.StatusRunning:
			next(w, r)
		case skerry.StatusStopping:
			Refuse(w, http.StatusUnprocessableEntity, skerry.CodeSandboxStopping, "the session is stopping")
		case "":
			Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such session")
		default:
			Refuse(w, http.StatusGone, skerry.CodeSandboxStopped, "the session has stopped")
		}
	}
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	if session == nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such session")
		return
	}
	session.Status, session.Duration, session.ActiveCPU = skerry.StatusStopped, skerry.Duration(90*time.Second), skerry.Duration(1500*time.Millisecond)
	session.Network = &skerry.NetworkTransfer{Ingress: 5 << 20, Egress: 2048}
	sb := s.sandboxes[session.SandboxName]
	sb.Status = session.Status
	answer(w, map[string]any{"session": session, "sandbox": sb})
}

func (s *Server) extend(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Duration skerry.Duration `json:"duration"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.session(r.PathValue("id"))
	session.Timeout += body.Duration
	answer(w, map[string]any{"session": session})
}

// write extracts into Dir, wherever in the host's tree the entry's name is.
func (s *Server) write(w http.ResponseWriter, r *http.Request) {
	if err := s.extract(r.Header.Get("X-Cwd"), r.Body); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	answer(w, struct{}{})
}

func (s *Server) extract(dir string, body io.Reader) error {
	zr, err := gzip.NewReader(body)
	if err != nil {
		return err
	}
	tr := tar.NewReader(zr)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, hdr.Name)
		if !strings.HasPrefix(path, s.Dir) {
			return fmt.Errorf("%s is outside the writable area", path)
		}
		err = os.MkdirAll(filepath.Dir(path), 0o755)
		switch hdr.Typeflag {
		case tar.TypeDir:
			err = errors.Join(err, os.MkdirAll(path, hdr.FileInfo().Mode().Perm()))
		case tar.TypeSymlink:
			err = errors.Join(err, os.Symlink(hdr.Linkname, path))
		default:
			b, readErr := io.ReadAll(tr)
			err = errors.Join(err, readErr, os.WriteFile(path, b, hdr.FileInfo().Mode().Perm()))
		}
		if err != nil {
			return err
		}
	}
}

func (s *Server) pathOf(r *http.Request) string {
	var body struct {
		Path string `json:"path"`
	}
	json.NewDecoder(r.Body).Decode(&body)
	if filepath.IsAbs(body.Path) {
		return body.Path
	}
	return filepath.Join(s.Dir, body.Path)
}

func (s *Server) read(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(s.pathOf(r))
	if err != nil {
		Refuse(w, http.StatusNotFound, skerry.CodeNotFound, "there is no such file")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	io.Copy(w, f)
}

func (s *Server) mkdir(w http.ResponseWriter, r *http.Request) {
	if err := os.Mkdir(s.pathOf(r), 0o755); err != nil {
		Refuse(w, http.StatusBadRequest, skerry.CodeBadRequest, err.Error())
		return
	}
	answer(w, struct{}{})
}

// waitCtx waits for done or the end of ctx.
func waitCtx(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
