package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// memory is a listener whose connections are in memory, so that in a bubble of
// synctest the server's times pass at once.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
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

func (m *memory) dial() *peer {
	mine, theirs := net.Pipe()
	m.conns <- theirs
	return &peer{mine, bufio.NewReader(mine)}
}

// terminal opens a terminal's WebSocket.
func (m *memory) terminal(t *testing.T) (_ *websocket.Conn, under net.Conn) {
	t.Helper()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		under = m.dial().Conn
		return under, nil
	}}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport}
	req, err := http.NewRequest("POST", "http://x/v2/sandboxes/sessions/s/interactive", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var ticket interactiveResponse
	if err := json.NewDecoder(resp.Body).Decode(&ticket); err != nil {
		t.Fatal(err)
	}
	conn, _, err := websocket.Dial(t.Context(), ticket.URL+"?token="+ticket.Token, &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	return conn, under
}

// serveInMemory serves until end is called, which returns when the server has
// ended.
func serveInMemory(t *testing.T, svc Service) (ln *memory, end func()) {
	t.Helper()
	ln = &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := quietServer(t, svc)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, guard(ln, DefaultMaxConnections), nil) }()
	return ln, func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// lasts waits for the end of a connection and checks how long that took.
func (p *peer) lasts(t *testing.T, what string, since time.Time, want time.Duration) {
	t.Helper()
	if b, err := p.r.ReadByte(); err != io.EOF {
		t.Errorf("%s: %q, %v, want the end", what, b, err)
	}
	if got := time.Since(since); got != want {
		t.Errorf("%s was closed after %s, want %s", what, got, want)
	}
}

// TestConnectionsThatDoNothing are closed: soon without a token, later with
// one.
func TestConnectionsThatDoNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, end := serveInMemory(t, &stub{})
		defer end()
		known, stranger, silent, slow := ln.dial(), ln.dial(), ln.dial(), ln.dial()
		start := time.Now()
		if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
			t.Fatal(status, err)
		}
		if status, err := stranger.ask(t, "/health", ""); status != 200 || err != nil {
			t.Fatal(status, err)
		}
		fmt.Fprint(slow, "GET /health HTTP/1.1\r\nHo")
		stranger.lasts(t, "a stranger", start, strangerIdle)
		silent.lasts(t, "one that says nothing", start, readHeaderTimeout)
		answer, err := io.ReadAll(slow.r) // net/http says what it thinks of it
		if took := time.Since(start); err != nil || took != readHeaderTimeout {
			t.Errorf("one without the end of its headers: %q, %v after %s", answer, err, took)
		}
		known.lasts(t, "one with a token", start, idleTimeout)
	})
}

// TestShutdownCutsCalls that do not end by themselves.
func TestShutdownCutsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln, end := serveInMemory(t, &stub{write: func(_ string, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		}})
		upload := ln.dial()
		fmt.Fprintf(upload, "POST /v2/sandboxes/sessions/s/fs/write HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\nsome tar", testToken)
		synctest.Wait() // it has been read
		start := time.Now()
		var ended sync.WaitGroup
		ended.Go(end)
		upload.lasts(t, "an upload in progress", start, shutdownGrace)
		ended.Wait()
	})
}

// lateStop is a service whose stops fail late.
type lateStop struct {
	*stub
	late func(context.Context) error
}

func (s lateStop) StopSession(ctx context.Context, _ skerry.Scope, _ string, _ skerry.StopParams) (*skerry.Run, error) {
	return nil, s.late(ctx)
}

// TestHeartbeatTimes: when the first byte of an answer that waits comes, and
// those after it.
func TestHeartbeatTimes(t *testing.T) {
	const (
		stop   = "POST /v2/sandboxes/sessions/s/stop"
		wait   = "GET /v2/sandboxes/sessions/s/cmd/c?wait=true"
		stream = "POST /v2/sandboxes/sessions/s/cmd"
	)
	for _, c := range []struct {
		what, call, header, body string
		first                    time.Duration
	}{
		{"a document", stop, "", "", 3 * DefaultHeartbeat},
		{"a document for who knows heartbeats", stop, headerHeartbeat + ": 1\r\n", "", DefaultHeartbeat},
		{"a command's end", wait, "", "", DefaultHeartbeat},
		{"a stream", stream, "", runWithLogs, DefaultHeartbeat},
	} {
		synctest.Test(t, func(t *testing.T) {
			enough := make(chan struct{})
			late := func(ctx context.Context) error {
				select {
				case <-enough:
					return skerry.Errorf(skerry.CodeDiskFull, "no room")
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			svc := running(func(ctx context.Context) skerry.OutputReader { return script(ctx) }, nil)
			svc.wait = func(ctx context.Context) (*skerry.Command, error) { return nil, late(ctx) }
			ln, end := serveInMemory(t, lateStop{svc, late})
			defer end()
			p := ln.dial()
			start := time.Now()
			fmt.Fprintf(p, "%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n%s", c.call, testToken, c.header, len(c.body), c.body)
			resp, err := http.ReadResponse(p.r, nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			body := bufio.NewReader(resp.Body)
			if c.call == stream {
				if line, err := body.ReadString('\n'); err != nil || line == "\n" || time.Since(start) != 0 {
					t.Errorf("%s begins with %q after %s: %v", c.what, line, time.Since(start), err)
				}
			}
			for i := range 3 {
				line, err := body.ReadString('\n')
				if want := c.first + time.Duration(i)*DefaultHeartbeat; err != nil || line != "\n" || time.Since(start) != want {
					t.Errorf("%s: %q after %s: %v, want a blank line after %s", c.what, line, time.Since(start), err, want)
				}
			}
			close(enough)
			if c.call != stream { // its status has been sent
				var got errorResponse
				if err := json.NewDecoder(body).Decode(&got); err != nil || got.Error.Status != 422 || got.Error.Code != skerry.CodeDiskFull {
					t.Errorf("%s: an error that comes late is %+v, %v", c.what, got, err)
				}
			}
			p.Close()
		})
	}
}

// oneTerminal is a service with a terminal.
type oneTerminal struct {
	*stub
	term *silentTerminal
}

func (s oneTerminal) OpenTerminal(context.Context, skerry.Scope, string, skerry.TerminalParams) (skerry.Terminal, error) {
	return s.term, nil
}

// TestSilentTerminals: a client that starts nothing, and one that answers no
// ping, lose their connection.
func TestSilentTerminals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := oneTerminal{&stub{}, &silentTerminal{closed: make(chan struct{})}}
		ln, end := serveInMemory(t, svc)
		defer end()
		conn, _ := ln.terminal(t)
		start := time.Now()
		if _, _, err := conn.Read(t.Context()); err == nil || time.Since(start) != startTimeout {
			t.Errorf("a terminal that is not started: %v after %s", err, time.Since(start))
		}
		_ = conn.CloseNow()

		conn, under := ln.terminal(t)
		start = time.Now()
		sendText(t, conn, `{"type":"start","command":"c"}`)
		var pings sync.WaitGroup
		pings.Go(func() { _, _ = io.Copy(io.Discard, under) }) // they arrive, and nobody answers
		<-svc.term.closed
		defer pings.Wait()
		if took := time.Since(start); took != pingEvery+pongWithin {
			t.Errorf("a terminal whose client is gone was hung up after %s", took)
		}
		_ = conn.CloseNow()
	})
}
