package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// memory is a listener whose connections are in memory, so that in a bubble of
// synctest the client's times pass at once.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	down  atomic.Bool // connections are refused
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case conn := <-m.conns:
		return conn, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) dial(context.Context, string, string) (net.Conn, error) {
	if m.down.Load() {
		return nil, syscall.ECONNREFUSED
	}
	mine, theirs := net.Pipe()
	m.conns <- theirs
	return mine, nil
}

// inMemory returns a sandbox of a server that knows no more than to create it
// and what commands does.
func inMemory(t *testing.T, commands http.HandlerFunc) (*Sandbox, *memory) {
	t.Helper()
	ln := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v3/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(runBody{Session: skerry.Session{ID: "sbx_1"}})
	})
	mux.HandleFunc("/", commands)
	hs := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(ln) }()
	c, err := New(Options{URL: "http://server", HTTPClient: &http.Client{Transport: &http.Transport{DialContext: ln.dial}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := hs.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	sb, err := c.CreateSandbox(t.Context(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return sb, ln
}

const heartbeatOfServer = 15 * time.Second

// begin answers with the first line of a command that runs.
func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set(headerHeartbeat, "15000")
	_, _ = io.WriteString(w, `{"command":{"id":"cmd_1","sessionId":"sbx_1","exitCode":null}}`+"\n")
	_ = http.NewResponseController(w).Flush()
}

// TestSilentServer: a connection on which heartbeats are missing is given up,
// and the command is attached to again.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sb, _ := inMemory(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost: // says nothing after a heartbeat
				begin(w)
				time.Sleep(heartbeatOfServer)
				_, _ = io.WriteString(w, "\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			case strings.HasSuffix(r.URL.Path, "/logs"):
				w.Header().Set("Content-Type", "application/x-ndjson")
				_, _ = io.WriteString(w, `{"stream":"stdout","data":"late","offset":0,"next":4}`+"\n")
			default:
				_, _ = io.WriteString(w, `{"command":{"id":"cmd_1","sessionId":"sbx_1","exitCode":0}}`)
			}
		})
		cmd := sb.Command(t.Context(), "x")
		start := time.Now()
		var broke time.Duration
		cmd.Reconnect = func(err error) {
			if err != nil {
				broke = time.Since(start)
			}
		}
		out, err := cmd.Output()
		if string(out) != "late" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
		if want := heartbeatOfServer + 75*time.Second; broke != want {
			t.Errorf("given up after %s, want %s", broke, want)
		}
	})
}

// TestReattachEnds: a command whose server has gone is lost after a time, and
// not before.
func TestReattachEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sb, ln := inMemory(t, func(w http.ResponseWriter, _ *http.Request) {
			begin(w)
			panic(http.ErrAbortHandler)
		})
		cmd := sb.Command(t.Context(), "x")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ln.down.Store(true)
		start := time.Now()
		err := cmd.Wait()
		if _, lost := errors.AsType[*LostError](err); !lost {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took < DefaultReattach || took > DefaultReattach+2*maxPause {
			t.Errorf("lost after %s, want %s", took, DefaultReattach)
		}
	})
}

// TestErrorKeepsTheEndOfStandardError, and no more.
func TestErrorKeepsTheEndOfStandardError(t *testing.T) {
	s := servertest.New(t)
	c, err := New(Options{URL: s.URL, Token: s.Token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	sb, err := c.CreateSandbox(t.Context(), CreateOptions{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = sb.Command(t.Context(), "sh", "-c", `printf "%100000s" end >&2; exit 3`).Output()
	exit, _ := errors.AsType[*ExitError](err)
	if exit == nil || len(exit.Stderr) != maxErrorOutput || !strings.HasSuffix(string(exit.Stderr), " end") {
		t.Errorf("%+v, %v", exit, err)
	}
}

// TestCollectedOutputIsBounded: as much as may be is returned, and one byte
// more is an error.
func TestCollectedOutputIsBounded(t *testing.T) {
	s := servertest.New(t)
	c, err := New(Options{URL: s.URL, Token: s.Token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.maxOutput = 1000
	ctx := t.Context()
	sb, err := c.CreateSandbox(ctx, CreateOptions{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"1000", "1001"} {
		const print = `printf "%${0}s" x > file; cat file`
		out, runErr := sb.Command(ctx, "sh", "-c", print, n).Output()
		both, bothErr := sb.Command(ctx, "sh", "-c", print, n).CombinedOutput()
		file, fileErr := sb.ReadFile(ctx, "file")
		for what, got := range map[string]struct {
			b   []byte
			err error
		}{"Output": {out, runErr}, "CombinedOutput": {both, bothErr}, "ReadFile": {file, fileErr}} {
			if fits := n == "1000"; fits != (got.err == nil) || fits && len(got.b) != 1000 || !fits && !strings.Contains(got.err.Error(), "than 1000 bytes") {
				t.Errorf("%s of %s bytes: %d, %v", what, n, len(got.b), got.err)
			}
		}
	}
}
