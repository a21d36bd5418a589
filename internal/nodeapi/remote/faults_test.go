package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// script is a node whose calls do what a test says.
type script struct {
	nodeapi.Node // nil: other calls panic
	events       func(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error)
	stop         func(ctx context.Context, id string) (nodeapi.Usage, error)
	start        func(ctx context.Context, spec nodeapi.SessionSpec) error
	exec         func(ctx context.Context, spec nodeapi.CommandSpec, attach bool) (skerry.OutputReader, error)
	read         func(ctx context.Context, path string) (io.ReadCloser, error)
	write        func(ctx context.Context, tar io.Reader) error
	dial         func(ctx context.Context) (net.Conn, error)
	terminal     func(ctx context.Context) (skerry.Terminal, error)
}

func (n *script) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	return n.events(ctx, after)
}
func (n *script) Stop(ctx context.Context, id string) (nodeapi.Usage, error) { return n.stop(ctx, id) }
func (n *script) Start(ctx context.Context, spec nodeapi.SessionSpec) error {
	return n.start(ctx, spec)
}
func (n *script) Exec(ctx context.Context, _ string, spec nodeapi.CommandSpec, attach bool) (skerry.OutputReader, error) {
	return n.exec(ctx, spec, attach)
}
func (n *script) ReadFile(ctx context.Context, _, _, path string) (io.ReadCloser, error) {
	return n.read(ctx, path)
}
func (n *script) WriteFiles(ctx context.Context, _, _ string, tar io.Reader) error {
	return n.write(ctx, tar)
}
func (n *script) Dial(ctx context.Context, _ string, _ int, _ netip.Addr) (net.Conn, error) {
	return n.dial(ctx)
}
func (n *script) Terminal(ctx context.Context, _ string, _ skerry.TerminalParams) (skerry.Terminal, error) {
	return n.terminal(ctx)
}

// endless is output, a file and a terminal without end. Nothing comes of it once it
// is closed.
type endless struct {
	once   sync.Once
	closed chan struct{}
	// silent has it say nothing after the first piece.
	silent bool
	said   bool
}

func newEndless(silent bool) *endless { return &endless{closed: make(chan struct{}), silent: silent} }

func (e *endless) Read(p []byte) (int, error) {
	if e.silent && e.said {
		<-e.closed
	}
	e.said = true
	select {
	case <-e.closed:
		return 0, io.ErrClosedPipe
	default:
		return len(p), nil
	}
}

func (e *endless) Next() (skerry.Output, error) {
	b := make([]byte, 32<<10)
	n, err := e.Read(b)
	return skerry.Output{Stream: skerry.Stdout, Data: b[:n]}, err
}

func (e *endless) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

func (e *endless) Write(p []byte) (int, error) { return len(p), nil }
func (e *endless) Resize(_, _ uint16) error    { return nil }
func (e *endless) Wait() (int, error)          { <-e.closed; return 0, io.ErrClosedPipe }

// wires are the connections of a client, which a test cuts.
type wires struct {
	path string
	// through, if set, wraps new connections.
	through func(net.Conn) net.Conn

	mu    sync.Mutex
	conns []net.Conn
}

func (w *wires) dial(ctx context.Context) (net.Conn, error) {
	conn, err := DialUnix(w.path)(ctx)
	if err != nil {
		return nil, err
	}
	if w.through != nil {
		conn = w.through(conn)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, conn)
	return conn, nil
}

func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// listening starts a server at a path, and returns what ends it.
func listening(t testing.TB, path string, cfg ServerConfig) (end func()) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	server := NewServer(cfg)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	return sync.OnceFunc(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func unreachable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, nodeapi.ErrUnreachable) {
		t.Errorf("%s: %v, want an unreachable node", what, err)
	}
}

// TestCut cuts the connection in the middle of each kind of call. The node's side of
// the call ends, and the next call works.
func TestCut(t *testing.T) {
	before := runtime.NumGoroutine()
	entered, left := make(chan struct{}, 1), make(chan struct{}, 1)
	blocked := func(ctx context.Context) error {
		entered <- struct{}{}
		<-ctx.Done()
		left <- struct{}{}
		return ctx.Err()
	}
	var open *endless
	begin := func(silent bool) *endless { open = newEndless(silent); entered <- struct{}{}; return open }
	n := &script{
		events: func(ctx context.Context, id nodeapi.Cursor) (nodeapi.Batch, error) {
			if id == "quick" {
				return nodeapi.Batch{Next: "3"}, nil
			}
			return nodeapi.Batch{}, blocked(ctx)
		},
		stop:  func(ctx context.Context, _ string) (nodeapi.Usage, error) { return nodeapi.Usage{}, blocked(ctx) },
		start: func(ctx context.Context, _ nodeapi.SessionSpec) error { return blocked(ctx) },
		exec: func(_ context.Context, _ nodeapi.CommandSpec, _ bool) (skerry.OutputReader, error) {
			return begin(true), nil
		},
		read:     func(context.Context, string) (io.ReadCloser, error) { return begin(false), nil },
		terminal: func(context.Context) (skerry.Terminal, error) { return begin(true), nil },
		write: func(ctx context.Context, tar io.Reader) error {
			entered <- struct{}{}
			_, err := io.Copy(io.Discard, tar)
			left <- struct{}{}
			return err
		},
		dial: func(context.Context) (net.Conn, error) {
			open = nil
			near, far := net.Pipe()
			entered <- struct{}{}
			go func() {
				_, _ = io.Copy(io.Discard, far)
				far.Close()
				left <- struct{}{}
			}()
			return near, nil
		},
	}
	path := filepath.Join(t.TempDir(), "node.sock")
	end := listening(t, path, ServerConfig{Node: n})
	w := &wires{path: path}
	c := NewClient(ClientConfig{Dial: w.dial})
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Events": func() error { _, err := c.Events(ctx, ""); return err },
		"Stop":   func() error { _, err := c.Stop(ctx, ""); return err },
		"Start":  func() error { return c.Start(ctx, nodeapi.SessionSpec{}) },
		"Exec": func() error {
			r, err := c.Exec(ctx, "", nodeapi.CommandSpec{}, true)
			if err != nil {
				return err
			}
			for err == nil {
				_, err = r.Next()
			}
			return errors.Join(err, r.Close())
		},
		"ReadFile": func() error {
			r, err := c.ReadFile(ctx, "", "", "")
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return errors.Join(err, r.Close())
		},
		"WriteFiles": func() error { return c.WriteFiles(ctx, "", "", newEndless(false)) },
		"Terminal": func() error {
			term, err := c.Terminal(ctx, "", skerry.TerminalParams{})
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, term)
			if _, werr := term.Wait(); !errors.Is(werr, nodeapi.ErrUnreachable) {
				t.Errorf("Wait of a terminal that was cut off: %v", werr)
			}
			return errors.Join(err, term.Close())
		},
		"Dial": func() error {
			conn, err := c.Dial(ctx, "", 1, netip.Addr{})
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err = io.Copy(io.Discard, conn); errors.Is(err, unix.ECONNRESET) {
				err = nodeapi.Unreachable(err)
			}
			return err
		},
	} {
		for range 3 {
			done := make(chan error, 1)
			go func() { done <- call() }()
			<-entered
			w.cut()
			unreachable(t, name, <-done)
			if open != nil {
				<-open.closed
				open = nil
			} else {
				<-left
			}
			if batch, err := c.Events(ctx, "quick"); batch.Next != "3" || err != nil {
				t.Errorf("after %s, a call says %+v, %v", name, batch, err)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, err := c.Events(ctx, "quick")
	unreachable(t, "a closed client", err)
	end()
	settled(t, before)
}

// settled waits until no more goroutines run than before.
func settled(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, there were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

// TestRestart ends the server during a call, and starts another.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.sock")
	entered := make(chan struct{})
	var cause error
	first := &script{events: func(ctx context.Context, _ nodeapi.Cursor) (nodeapi.Batch, error) {
		close(entered)
		<-ctx.Done()
		cause = ctx.Err()
		return nodeapi.Batch{}, ctx.Err()
	}}
	end := listening(t, path, ServerConfig{Node: first, Hello: Hello{Version: "one"}})
	c := NewClient(ClientConfig{Dial: DialUnix(path)})
	defer c.Close()
	if h, err := c.Hello(t.Context()); err != nil || h.Version != "one" {
		t.Fatalf("%+v, %v", h, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Events(t.Context(), "")
		done <- err
	}()
	<-entered
	end()
	unreachable(t, "a call of a server that ended", <-done)
	if cause == nil {
		t.Error("Close returned before the call had ended")
	}
	_, err := c.Hello(t.Context())
	unreachable(t, "no server", err)
	end = listening(t, path, ServerConfig{Node: first, Hello: Hello{Version: "two"}})
	defer end()
	if h, err := c.Hello(t.Context()); err != nil || h.Version != "two" {
		t.Errorf("after the restart: %+v, %v", h, err)
	}
}

// TestErrorsCross: each error is the same on the other side.
func TestErrorsCross(t *testing.T) {
	written := int64(17)
	var fail error
	c := serve(t, ServerConfig{Node: &script{stop: func(context.Context, string) (nodeapi.Usage, error) {
		return nodeapi.Usage{ActiveCPU: 5}, fail
	}}})
	for _, want := range []*skerry.Error{
		{Code: skerry.CodeNotFound, Message: "no such thing"},
		{Code: skerry.CodeBadRequest, Field: "mounts[0].path", Message: "\xff is wrong"[1:]},
		{Code: skerry.CodeStdinTimeout, Message: "it does not read", BytesWritten: &written},
		{Code: "a code of a later version", Message: ""},
	} {
		for _, fail = range []error{want, fmt.Errorf("stop it: %w", want)} {
			usage, err := c.Stop(t.Context(), "")
			got, ok := errors.AsType[*skerry.Error](err)
			if !ok || got.Code != want.Code || got.Message != want.Message || got.Field != want.Field || !reflect.DeepEqual(got.BytesWritten, want.BytesWritten) {
				t.Errorf("%#v became %#v", want, err)
			}
			if usage.ActiveCPU != 5 {
				t.Errorf("with an error comes %+v", usage)
			}
			if fail != error(want) && !strings.Contains(err.Error(), "stop it") {
				t.Errorf("the cause is lost: %v", err)
			}
		}
	}
	fail = nodeapi.Unreachable(errors.New("a node behind the node"))
	_, err := c.Stop(t.Context(), "")
	unreachable(t, "an unreachable node behind the server", err)
	fail = errors.New("what nobody foresaw")
	if _, err := c.Stop(t.Context(), ""); skerry.CodeOf(err) != skerry.CodeInternal || !strings.Contains(err.Error(), "nobody foresaw") || errors.Is(err, nodeapi.ErrUnreachable) {
		t.Errorf("an unforeseen error became %v", err)
	}
	fail = context.DeadlineExceeded // one of the node's own
	if _, err := c.Stop(t.Context(), ""); skerry.CodeOf(err) != skerry.CodeUnavailable || errors.Is(err, nodeapi.ErrUnreachable) {
		t.Errorf("a deadline of the node became %v", err)
	}
}

// TestContextsCross: deadlines and cancellation reach the node, and the caller hears
// what the node says.
func TestContextsCross(t *testing.T) {
	ended := make(chan error, 1)
	n := &script{stop: func(ctx context.Context, id string) (nodeapi.Usage, error) {
		if id == "deadline" {
			d, ok := ctx.Deadline()
			if left := time.Until(d); !ok || left < time.Minute || left > 2*time.Hour {
				return nodeapi.Usage{}, fmt.Errorf("%v are left", left)
			}
			return nodeapi.Usage{}, nil
		}
		<-ctx.Done()
		ended <- ctx.Err()
		if id == "late success" {
			return nodeapi.Usage{ActiveCPU: 7}, nil
		}
		return nodeapi.Usage{}, ctx.Err()
	}}
	c := serve(t, ServerConfig{Node: n})
	long, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := c.Stop(long, "deadline"); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Stop(short, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	<-ended
	for _, id := range []string{"", "late success"} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		usage, err := c.Stop(ctx, id)
		if cause := <-ended; !errors.Is(cause, context.Canceled) {
			t.Errorf("the node's context ended with %v", cause)
		}
		if id == "" && !errors.Is(err, context.Canceled) || id != "" && (err != nil || usage.ActiveCPU != 7) {
			t.Errorf("%q: a call that was cancelled says %+v, %v", id, usage, err)
		}
	}
}

// stuck is a reader that waits for a test to end.
func stuck(end <-chan struct{}) func(context.Context, io.Reader) error {
	return func(context.Context, io.Reader) error { <-end; return nil }
}

// TestStalledStreams: streams that nobody reads hold up no other call, in either
// direction, and calls have no bound below that of many connections.
func TestStalledStreams(t *testing.T) {
	end := make(chan struct{})
	n := &script{
		exec: func(context.Context, nodeapi.CommandSpec, bool) (skerry.OutputReader, error) {
			return newEndless(false), nil
		},
		events: func(ctx context.Context, id nodeapi.Cursor) (nodeapi.Batch, error) {
			if id == "quick" {
				return nodeapi.Batch{Next: "3"}, nil
			}
			<-ctx.Done()
			return nodeapi.Batch{}, ctx.Err()
		},
		write: stuck(end),
		read: func(context.Context, string) (io.ReadCloser, error) {
			return io.NopCloser(io.LimitReader(newEndless(false), 4<<20)), nil
		},
	}
	c := serve(t, ServerConfig{Node: n})
	ctx, cancel := context.WithCancel(t.Context())
	var uploads sync.WaitGroup
	var outputs []skerry.OutputReader
	const stalled = 150
	sources := make(chan struct{}, stalled)
	for range stalled {
		r, err := c.Exec(t.Context(), "", nodeapi.CommandSpec{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		outputs = append(outputs, r)
		src := &counted{at: streamWindow / 2, reached: sources}
		uploads.Go(func() { _ = c.WriteFiles(ctx, "", "", src) })
	}
	for range stalled { // each upload fills its window
		<-sources
	}
	var waits sync.WaitGroup
	for range maxStreams + maxStreams/2 {
		waits.Go(func() { _, _ = c.Events(ctx, "") })
	}
	for range 100 {
		if batch, err := c.Events(t.Context(), "quick"); batch.Next != "3" || err != nil {
			t.Fatalf("beside stalled streams: %+v, %v", batch, err)
		}
	}
	r, err := c.ReadFile(t.Context(), "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, r); got != 4<<20 || err != nil {
		t.Errorf("beside stalled streams, %d bytes of a file, %v", got, err)
	}
	r.Close()
	for _, r := range outputs {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	waits.Wait()
	close(end)
	uploads.Wait()
}

// counted is a source without end that tells when so much was read.
type counted struct {
	at, read int
	reached  chan<- struct{}
}

func (c *counted) Read(p []byte) (int, error) {
	if c.read < c.at && c.read+len(p) >= c.at {
		c.reached <- struct{}{}
	}
	c.read += len(p)
	return len(p), nil
}

// silent is a connection that passes nothing on any more, as if the machine at its
// other end had lost power.
type silent struct {
	net.Conn
	mu  *sync.Mutex
	off *bool
}

func (s silent) Write(p []byte) (int, error) {
	s.mu.Lock()
	off := *s.off
	s.mu.Unlock()
	if off {
		return len(p), nil
	}
	return s.Conn.Write(p)
}

// TestSilence: a peer that says nothing any more is unreachable, on both sides.
func TestSilence(t *testing.T) {
	patience := timing{pingAfter: 100 * time.Millisecond, pingWait: 2 * time.Second, writeWait: 10 * time.Second}
	left := make(chan struct{}, 1)
	entered := make(chan struct{}, 1)
	n := &script{events: func(ctx context.Context, _ nodeapi.Cursor) (nodeapi.Batch, error) {
		entered <- struct{}{}
		<-ctx.Done()
		left <- struct{}{}
		return nodeapi.Batch{}, ctx.Err()
	}}
	path := filepath.Join(t.TempDir(), "node.sock")
	end := listening(t, path, ServerConfig{Node: n, timing: patience})
	defer end()
	var mu sync.Mutex
	off := false
	w := &wires{path: path, through: func(c net.Conn) net.Conn { return silent{c, &mu, &off} }}
	c := NewClient(ClientConfig{Dial: w.dial, timing: patience})
	defer c.Close()
	done := make(chan error, 1)
	go func() {
		_, err := c.Events(t.Context(), "")
		done <- err
	}()
	<-entered
	select {
	case err := <-done:
		t.Fatalf("a silent call on a living connection ended: %v", err)
	case <-time.After(500 * time.Millisecond): // several signs of life
	}
	mu.Lock()
	off = true
	mu.Unlock()
	unreachable(t, "a silent server", <-done)
	<-left
}

// TestHostileClient: a server refuses what no client sends, and goes on.
func TestHostileClient(t *testing.T) {
	n := &script{
		events: func(context.Context, nodeapi.Cursor) (nodeapi.Batch, error) { return nodeapi.Batch{Next: "3"}, nil },
		write:  func(_ context.Context, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
	}
	path := filepath.Join(t.TempDir(), "node.sock")
	defer listening(t, path, ServerConfig{Node: n})()
	transport := &http.Transport{
		Protocols: http2Only(), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return DialUnix(path)(ctx) },
	}
	defer transport.CloseIdleConnections()
	post := func(name string, body io.Reader, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node"+name, body)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	for _, path := range []string{"/", "/v2/hello", "/v1/", "/v1/nothing"} {
		if status, _ := post(path, nil); status != http.StatusNotFound {
			t.Errorf("%s: status %d", path, status)
		}
	}
	if status, _ := post("/v1/events", strings.NewReader("{}"), headerTimeout, "soon"); status != http.StatusBadRequest {
		t.Errorf("a timeout that is no number: status %d", status)
	}
	huge := appendFrame(nil, frameHead, 1<<31-1)
	args, _ := jsonFrame(frameHead, pathArgs{}, maxHead)
	for what, c := range map[string]struct {
		path, want string
		body       io.Reader
	}{
		"no JSON":                 {"/v1/events", "internal_error", strings.NewReader("{")},
		"long arguments":          {"/v1/events", "payload_too_large", io.LimitReader(newEndless(false), maxHead+1)},
		"no arguments":            {"/v1/write", "internal_error", nil},
		"a huge head":             {"/v1/write", "internal_error", bytes.NewReader(huge)},
		"data first":              {"/v1/write", "internal_error", bytes.NewReader(appendFrame(nil, frameData, 0))},
		"a frame of no kind":      {"/v1/write", "internal_error", bytes.NewReader(append(args[:len(args):len(args)], 'x', 0, 0, 0, 0))},
		"data that is cut off":    {"/v1/write", "internal_error", bytes.NewReader(appendFrame(args[:len(args):len(args)], frameData, 100))},
		"more data than a frame":  {"/v1/write", "internal_error", bytes.NewReader(appendFrame(args[:len(args):len(args)], frameData, maxData+outputHeader+1))},
		"an end that is no JSON":  {"/v1/write", "internal_error", bytes.NewReader(append(appendFrame(args[:len(args):len(args)], frameEnd, 1), '{'))},
		"an address that is none": {"/v1/dial", "bad_request", framed(t, dialArgs{Client: "nobody"})},
	} {
		status, got := post(c.path, c.body)
		if status != http.StatusOK || !strings.Contains(got, c.want) {
			t.Errorf("%s: status %d, %q; want %q", what, status, got, c.want)
		}
	}
	if status, got := post("/v1/events", strings.NewReader("{}")); status != http.StatusOK || !strings.Contains(got, "3") {
		t.Errorf("afterwards: status %d, %q", status, got)
	}
}

func framed(t *testing.T, v any) io.Reader {
	frame, err := jsonFrame(frameHead, v, maxHead)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(frame)
}

// TestHostileServer: a client takes what no server sends for a node that it cannot
// reach, and holds to its bounds.
func TestHostileServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var body []byte
	var status int
	server := &http.Server{Protocols: http2Only(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})}
	go server.Serve(ln)
	defer server.Close()
	c := NewClient(ClientConfig{Dial: DialUnix(path)})
	defer c.Close()
	ctx := t.Context()
	good, _ := jsonFrame(frameAnswer, answer[nothing]{}, maxAnswer)
	after := func(b ...byte) []byte { return append(good[:len(good):len(good)], b...) }
	announced := binary.BigEndian.AppendUint32([]byte{frameAnswer}, maxAnswer)
	for what, says := range map[string]struct {
		status int
		body   []byte
	}{
		"another protocol": {404, []byte("who are you?")}, "no JSON": {200, []byte("{")}, "nothing": {200, nil},
		"half a frame": {200, []byte("a\x00\x00")}, "a huge frame": {200, []byte("a\xff\xff\xff\xff")}, "no answer": {200, []byte("d\x00\x00\x00\x00")},
		"an answer that is announced only": {200, announced}, "an answer that is no JSON": {200, []byte("a\x00\x00\x00\x01{")},
		"no end": {200, good}, "output too short": {200, after('o', 0, 0, 0, 1, 1)}, "output of no stream": {200, after('o', 0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0)},
		"a frame of no kind": {200, after('x', 0, 0, 0, 0)}, "an end that is no JSON": {200, after('e', 0, 0, 0, 1, '{')},
	} {
		status, body = says.status, says.body
		_, err := c.Events(ctx, "")
		if err == nil {
			t.Errorf("%s: a call succeeds", what)
		} else if err != nil {
			unreachable(t, what, err)
		}
		r, err := c.Exec(ctx, "", nodeapi.CommandSpec{}, true)
		for err == nil {
			_, err = r.Next()
		}
		unreachable(t, what, err)
		if r != nil {
			r.Close()
		}
		f, err := c.ReadFile(ctx, "", "", "")
		if err == nil {
			_, err = io.Copy(io.Discard, f)
			f.Close()
		}
		unreachable(t, what, err)
	}
	// What is too large does not leave the client.
	long := nodeapi.CommandSpec{CommandParams: skerry.CommandParams{Args: []string{strings.Repeat("x", maxHead)}}}
	for _, attach := range []bool{false, true} {
		if _, err := c.Exec(ctx, "", long, attach); skerry.CodeOf(err) != skerry.CodeTooLarge {
			t.Errorf("arguments beyond the bound: %v", err)
		}
	}
}

// TestValuesCross: what is passed arrives as it was, nil or empty, text or not.
func TestValuesCross(t *testing.T) {
	var got []any
	n := &script{
		start: func(_ context.Context, spec nodeapi.SessionSpec) error { got = append(got, spec); return nil },
		exec: func(_ context.Context, spec nodeapi.CommandSpec, _ bool) (skerry.OutputReader, error) {
			got = append(got, spec)
			return nil, nil
		},
	}
	c := serve(t, ServerConfig{Node: n})
	body := "text"
	specs := []nodeapi.SessionSpec{{}, {
		ID: "id", Hostname: "host", ImageDigest: "sha256:1", Snapshot: "s", Memory: true, ForkOf: "f", Capture: "c", Runtime: "r", VCPUs: 4, MemoryMB: 8,
		Env: map[string]string{"A": "\xff", "B": ""}, Mounts: []nodeapi.DriveMount{{Path: "/data", DriveID: "d", Frozen: true}},
		Network: nodeapi.NetworkSpec{Owner: nodeapi.Owner{TeamID: "t", ProjectID: "p", SandboxID: "s", SandboxName: "n"}, Policy: &skerry.NetworkPolicy{
			Mode: skerry.NetworkCustom, Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			Domains: []skerry.DomainRules{{Domain: "x.test", Rules: []skerry.NetworkRule{{Transform: []skerry.HeaderTransform{}}, {Response: &skerry.RuleResponse{StatusCode: 418, Body: &body}}}}},
		}},
	}}
	commands := []nodeapi.CommandSpec{{}, {ID: "id", CommandParams: skerry.CommandParams{
		Name: "\xfe", Args: []string{"", "\x00\xff", "ü"}, Cwd: "/\x80", Env: map[string]string{"E": "\xc0"}, Sudo: true, Timeout: skerry.Duration(1234567), Stdin: true,
	}}, {CommandParams: skerry.CommandParams{Args: []string{}, Env: map[string]string{}}}}
	var want []any
	for _, s := range specs {
		want = append(want, s)
		if err := c.Start(t.Context(), s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range commands {
		want = append(want, s)
		if _, err := c.Exec(t.Context(), "", s, false); err != nil {
			t.Error(err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("arrived:\n%+v\nwant:\n%+v", got, want)
	}
}
