package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// idleProxy is a TCP proxy in front of a server that cuts connections on which
// nothing was sent for a time, as many do.
type idleProxy struct {
	ln     net.Listener
	target string
	idle   time.Duration

	mu    sync.Mutex
	conns map[net.Conn]bool
	cut   int // connections that were cut for being idle
	work  sync.WaitGroup
}

func newIdleProxy(t *testing.T, target string, idle time.Duration) *idleProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &idleProxy{ln: ln, target: target[strings.LastIndex(target, "/")+1:], idle: idle, conns: map[net.Conn]bool{}}
	p.work.Go(p.accept)
	t.Cleanup(func() { ln.Close(); p.cutAll(); p.work.Wait() })
	return p
}

func (p *idleProxy) accept() {
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.work.Go(func() { p.carry(conn) })
	}
}

func (p *idleProxy) carry(conn net.Conn) {
	defer conn.Close()
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	p.conns[conn], p.conns[up] = true, true
	p.mu.Unlock()
	idle := time.AfterFunc(p.idle, func() {
		p.mu.Lock()
		p.cut++
		p.mu.Unlock()
		conn.Close()
		up.Close()
	})
	defer idle.Stop()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{conn, up}, {up, conn}} {
		p.work.Go(func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buf)
				idle.Reset(p.idle)
				if _, werr := way[1].Write(buf[:n]); err != nil || werr != nil {
					return
				}
			}
		})
	}
	<-done
}

// cutAll breaks every connection, in the middle of whatever is on it.
func (p *idleProxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// through returns a sandbox of the harness behind a proxy.
func (h *harness) through(p *idleProxy, opts client.Options) *client.Sandbox {
	h.Helper()
	scheme, _, _ := strings.Cut(h.url, "://")
	opts.URL, opts.Token = scheme+"://"+p.ln.Addr().String(), testToken
	transport := &http.Transport{}
	if trusting, ok := h.client.Transport.(*http.Transport); ok {
		transport = trusting.Clone()
	}
	opts.HTTPClient = &http.Client{Transport: transport}
	c, err := client.New(opts)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(c.Close)
	sb, err := c.CreateSandbox(h.Context(), client.CreateOptions{})
	if err != nil {
		h.Fatal(err)
	}
	return sb
}

const (
	// The proxy is patient for many heartbeats, so that a busy machine makes
	// no difference, and the command silent for longer.
	testBeat   = 20 * time.Millisecond
	testIdle   = time.Second
	testSilent = "sleep 2.5"
)

func beating(o *Options) { o.Heartbeat = testBeat }

// TestSilentAnswersStayOpen: whatever waits says so often enough for a proxy
// that cuts idle connections.
func TestSilentAnswersStayOpen(t *testing.T) { overBoth(t, testSilentAnswersStayOpen) }

func testSilentAnswersStayOpen(t *testing.T, serve serveFunc) {
	svc := controllertest.New(t)
	svc.Node.On(processnode.Save, func(context.Context, string) error { // the files of a machine take time
		time.Sleep(2 * testIdle)
		return nil
	})
	slow := &slowService{svc}
	h := serve(t, slow, beating)
	proxy := newIdleProxy(t, h.url, testIdle)
	sb, other := h.through(proxy, client.Options{Reattach: -1}), h.through(proxy, client.Options{Reattach: -1})
	ctx := t.Context()
	calls := map[string]func() error{
		"run": func() error {
			out, err := sb.Command(ctx, "sh", "-c", testSilent+"; echo over").Output()
			if string(out) != "over\n" {
				err = errors.Join(err, fmt.Errorf("output %q", out))
			}
			return err
		},
		"run without logs": func() error { return sb.Command(ctx, "sh", "-c", testSilent).Run() },
		"logs and wait": func() error {
			cmd := sb.Command(ctx, "sh", "-c", testSilent+"; echo over")
			cmd.Detached = true
			var out bytes.Buffer
			cmd.Stdout = &out
			err := cmd.Run()
			if out.String() != "over\n" {
				err = errors.Join(err, fmt.Errorf("output %q", &out))
			}
			return err
		},
		"wait": func() error {
			cmd := sb.Command(ctx, "sh", "-c", testSilent)
			cmd.Detached = true
			return cmd.Run()
		},
		"stop": func() error {
			stopped, err := other.Stop(ctx)
			if err == nil && stopped.Session.Status != skerry.StatusStopped {
				err = fmt.Errorf("status %s", stopped.Session.Status)
			}
			return err
		},
		"an error that comes late": func() error {
			err := sb.ExtendTimeout(ctx, time.Minute)
			if client.CodeOf(err) != skerry.CodeDiskFull || !errors.Is(err, &client.Error{Code: skerry.CodeDiskFull, Status: 422}) {
				return fmt.Errorf("error %v, want disk_full with 422", err)
			}
			return nil
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			if err := call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

// slowService takes its time to refuse more time.
type slowService struct{ *controllertest.Service }

func (s *slowService) ExtendTimeout(context.Context, skerry.Scope, string, skerry.Duration) (*skerry.Session, error) {
	time.Sleep(2 * testIdle)
	return nil, skerry.Errorf(skerry.CodeDiskFull, "no room")
}

// TestReattach: a command whose connection breaks again and again is passed on
// whole and in order, and ends with its own exit code.
func TestReattach(t *testing.T) { overBoth(t, testReattach) }

func testReattach(t *testing.T, serve serveFunc) {
	h := serve(t, controllertest.New(t))
	proxy := newIdleProxy(t, h.url, time.Hour)
	sb := h.through(proxy, client.Options{})
	// Characters of several bytes, and bytes that are none, on both streams.
	script := `i=0; until [ -e "$0" ]; do i=$((i+1)); printf 'o%dä€😀\377\n' $i; printf 'e%d\n' $i >&2; done; exit 9`
	enough := t.TempDir() + "/enough"
	cmd := sb.Command(t.Context(), "sh", "-c", script, enough)
	var stderr bytes.Buffer
	stdout := &cuttingWriter{t: t, proxy: proxy, enough: enough}
	broke := 0
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	cmd.Reconnect = func(err error) {
		if err != nil {
			broke++
		}
	}
	var exit *client.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.Code != 9 {
		t.Fatalf("error %v, want exit code 9", err)
	}
	if broke == 0 {
		t.Error("the connection never broke")
	}
	lines := func(got, format string) int {
		all := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		for i, line := range all {
			if want := fmt.Sprintf(format, i+1); line != want {
				t.Fatalf("line %d of %d is %q, want %q", i, len(all), line, want)
			}
		}
		return len(all)
	}
	if out, err := lines(stdout.String(), "o%dä€😀\ufffd"), lines(stderr.String(), "e%d"); out != err {
		t.Errorf("%d lines on standard output, %d on standard error", out, err)
	}
}

// cuttingWriter cuts the connection some times while it is written to.
type cuttingWriter struct {
	bytes.Buffer
	t      *testing.T
	proxy  *idleProxy
	enough string
	cuts   int
}

func (w *cuttingWriter) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if w.Len() > (w.cuts+1)*2000 {
		if w.cuts++; w.cuts <= 5 {
			w.proxy.cutAll()
		} else if w.cuts == 6 {
			touch(w.t, w.enough)
		}
	}
	return n, err
}

// TestLostCommand: a server that cannot be reached any more is said to be, and
// nothing is killed for it; only the caller does that.
func TestLostCommand(t *testing.T) {
	svc := controllertest.New(t)
	h := serve(t, svc)
	proxy := newIdleProxy(t, h.url, time.Hour)
	sb := h.through(proxy, client.Options{Reattach: -1})
	cmd := sb.Command(t.Context(), "sh", "-c", "echo begun; exec sleep 1000")
	cmd.Stdout = writerFunc(func([]byte) { proxy.ln.Close(); proxy.cutAll() })
	err := cmd.Run()
	var lost *client.LostError
	if !errors.As(err, &lost) || lost.Command.ID != cmd.ID() {
		t.Fatalf("error %v", err)
	}
	if c, err := svc.GetCommand(t.Context(), controllertest.Scope, cmd.Info().SessionID, cmd.ID()); err != nil || c.Finished() {
		t.Errorf("the command: %+v, %v", c, err)
	}

	other := newIdleProxy(t, h.url, time.Hour)
	sb = h.through(other, client.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cmd = sb.Command(ctx, "sh", "-c", "echo begun; exec sleep 1000")
	cmd.Stdout = writerFunc(func([]byte) { cancel() })
	if err := cmd.Run(); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if c, err := svc.WaitCommand(t.Context(), controllertest.Scope, cmd.Info().SessionID, cmd.ID()); err != nil || *c.ExitCode != 137 {
		t.Errorf("the command of the caller who gave up: %+v, %v", c, err)
	}
}

// TestOutputOffsets: lines say where they are in their stream, and a reader
// can begin at any place that a line has ended at.
func TestOutputOffsets(t *testing.T) {
	h := serve(t, controllertest.New(t))
	base := h.session()
	want := "a€b\xffc\n"
	body, _ := json.Marshal(map[string]any{"command": "printf", "args": []string{`a€b\377c\n`}})
	run := ok[commandResponse](h, "POST", base+"/cmd", string(body))
	ok[commandResponse](h, "GET", base+"/cmd/"+run.Command.ID+"?wait=true", "")
	read := func(from int) (text string, next int64) {
		t.Helper()
		q := url.Values{"offsets": {"true"}, "stdoutOffset": {fmt.Sprint(from)}}
		a := h.call("GET", base+"/cmd/"+run.Command.ID+"/logs?"+q.Encode(), "")
		next = int64(from)
		for line := range bytes.Lines(a.body) {
			var l logLine
			if err := json.Unmarshal(line, &l); err != nil || l.Offset == nil || l.Next == nil || *l.Offset != next {
				t.Fatalf("from %d: line %s, want it at %d (%v)", from, line, next, err)
			}
			text, next = text+l.Data, *l.Next
		}
		return text, next
	}
	for from := range len(want) + 1 {
		text, next := read(from)
		if expect := strings.ToValidUTF8(want[from:], "\ufffd"); from != 2 && from != 3 && text != expect || next != int64(len(want)) {
			t.Errorf("from %d: %q up to %d, want %q", from, text, next, expect)
		}
	}
	if text, _ := read(1000); text != "" {
		t.Errorf("from beyond the end: %q", text)
	}
	h.refused("GET", base+"/cmd/"+run.Command.ID+"/logs?stdoutOffset=-1", "", 400, skerry.CodeBadRequest, "stdoutOffset")
}

// TestHeartbeatsOfADocument: a client that does not know of them gets its
// status, unless the answer takes very long.
func TestHeartbeatsOfADocument(t *testing.T) { overBoth(t, testHeartbeatsOfADocument) }

func testHeartbeatsOfADocument(t *testing.T, serve serveFunc) {
	begin := make(chan struct{})
	svc := &stub{wait: func(ctx context.Context) (*skerry.Command, error) {
		<-begin
		code := 0
		return &skerry.Command{ID: "cmd_1", Args: []string{}, ExitCode: &code}, nil
	}}
	h := serve(t, svc, beating)
	resp, err := h.client.Do(h.request("GET", "/v2/sandboxes/sessions/s/cmd/c?wait=true", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	beat := make([]byte, 2)
	if _, err := io.ReadFull(resp.Body, beat); err != nil || string(beat) != "\n\n" {
		t.Fatalf("the answer begins with %q, %v", beat, err)
	}
	close(begin)
	var done commandResponse
	if err := json.NewDecoder(resp.Body).Decode(&done); err != nil || done.Command.ID != "cmd_1" {
		t.Errorf("%+v, %v", done, err)
	}
	// A quick answer is as it always was.
	if a := h.call("GET", "/v2/sandboxes/sessions/s/cmd/c?wait=true", ""); a.body[0] != '{' || a.header.Get("Content-Length") == "" {
		t.Errorf("%v %q", a.header, a.body)
	}
}

// TestHeartbeatMeetsTheAnswer has the first heartbeat of a document and its answer come
// at the same time, for the race detector to look at.
func TestHeartbeatMeetsTheAnswer(t *testing.T) { overBoth(t, testHeartbeatMeetsTheAnswer) }

func testHeartbeatMeetsTheAnswer(t *testing.T, serve serveFunc) {
	for i := range 40 {
		rec := httptest.NewRecorder()
		w := newResponse(rec, time.Minute)
		w.beatDocument(0, time.Microsecond)
		for range 10 * i { // without a lock, which would order the two
			runtime.Gosched()
		}
		writeJSON(w, http.StatusConflict, emptyResponse{})
		w.quiet()
		if got := strings.TrimSpace(rec.Body.String()); got != "{}" || rec.Code != http.StatusConflict && rec.Code != http.StatusOK {
			t.Fatalf("%d %q", rec.Code, got)
		}
	}
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
