package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// A session or a token that has as many streams open as it may is told to wait,
// other calls, sessions and tokens go on, and a stream that ends makes room.
func TestOpenCallsAreBounded(t *testing.T) {
	started := make(chan struct{})
	svc := &stub{wait: func(ctx context.Context) (*skerry.Command, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	const most = 40
	h := serve(t, svc, func(o *Options) { o.MaxOpen = most })
	const waiting = "/v2/sandboxes/sessions/s/cmd/c?wait=true"
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan struct{})
	go func() {
		defer close(first)
		resp, err := http.DefaultClient.Do(h.request("GET", waiting, "").WithContext(ctx))
		if err == nil {
			resp.Body.Close()
		}
	}()
	<-started
	var leave []func()
	fill := func(token, session string, n int) {
		t.Helper()
		for range n {
			l, err := h.srv.open.enter(accessIn(token), session, func() {})
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		if _, err := h.srv.open.enter(accessIn(token), session, func() {}); skerry.CodeOf(err) != skerry.CodeRateLimited {
			t.Errorf("one more of token %s and session %s: %v", token, session, err)
		}
	}
	fill(testIdentity.TokenID, "s", most/4-1) // the call above is one
	for _, call := range []string{"GET " + waiting, "POST /v2/sandboxes/sessions/s/cmd", "GET /v2/sandboxes/sessions/s/cmd/c/logs",
		"POST /v2/sandboxes/sessions/s/fs/write", "POST /v2/sandboxes/sessions/s/fs/read"} {
		method, path, _ := strings.Cut(call, " ")
		a := h.call(method, path, map[bool]string{true: `{"command":"x","path":"x"}`}[method == "POST"])
		if e := a.error(t); a.status != 429 || e.Code != skerry.CodeRateLimited || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %+v", call, a.status, e)
		}
	}
	svc.err = skerry.Errorf(skerry.CodeNotFound, "no such command")
	h.refused("POST", "/v2/sandboxes/sessions/s/cmd/c/kill", `{"signal":9}`, 404, skerry.CodeNotFound, "")
	full := func(what, token, session, says string) {
		t.Helper()
		if _, err := h.srv.open.enter(accessIn(token), session, func() {}); skerry.CodeOf(err) != skerry.CodeRateLimited || !strings.Contains(err.Error(), says) {
			t.Errorf("one more of %s: %v", what, err)
		}
	}
	fill(testIdentity.TokenID, "other", most/4)
	full("a token", testIdentity.TokenID, "a session with none", "with this access token: at most 20")
	fill("another", "third", most/4)
	fill("another", "fourth", most/4)
	full("anybody", "a token with none", "a session with none", "on this server: at most 40")
	for _, l := range leave {
		l()
	}
	h.refused("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"x"}`, 404, skerry.CodeNotFound, "")
	cancel()
	<-first
	h.srv.open.mu.Lock()
	defer h.srv.open.mu.Unlock()
	if len(h.srv.open.perToken) > 1 || len(h.srv.open.perSession) > 1 {
		t.Errorf("left open: %v, %v", h.srv.open.perToken, h.srv.open.perSession)
	}
}

// accessIn is with a token, whose team is all before its first slash.
func accessIn(token string) skerry.Access {
	team, _, _ := strings.Cut(token, "/")
	return skerry.Access{TokenID: token, Scope: skerry.Scope{TeamID: team}}
}

// TestOpenCallsOfATeamAreBounded has a team use many tokens. Others get through.
func TestOpenCallsOfATeamAreBounded(t *testing.T) {
	const most = 40
	o := newOpenCalls(oneAccount{}, slog.New(slog.DiscardHandler), most)
	o.every = time.Hour
	for i := range most * 3 / 4 {
		if _, err := o.enter(accessIn(fmt.Sprint("red/", i)), "", func() {}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.enter(accessIn("red/more"), "", func() {}); skerry.CodeOf(err) != skerry.CodeRateLimited || !strings.Contains(err.Error(), "at most 30") {
		t.Errorf("one more of the team: %v", err)
	}
	leave, err := o.enter(accessIn("blue/1"), "", func() {})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if n := o.perTeam["blue"]; n != 0 {
		t.Errorf("%d are open", n)
	}
}

// revocable is an account whose token can be revoked.
type revocable struct {
	oneAccount
	gone atomic.Bool
}

func (a *revocable) Ended(_ context.Context, all []skerry.Access) ([]skerry.Access, error) {
	if a.gone.Load() {
		return all, nil
	}
	return nil, nil
}

// TestRevocationEndsWhatIsOpen: streams, terminals, transfers and tickets of a
// token do not outlive it, whatever the client does or does not.
func TestRevocationEndsWhatIsOpen(t *testing.T) {
	account := &revocable{}
	h := serve(t, controllertest.New(t), func(o *Options) { o.Accounts = account })
	h.srv.open.every = 20 * time.Millisecond
	s := h.session()
	sleeping := ok[commandResponse](h, "POST", s+"/cmd", `{"command":"sleep","args":["1000"]}`).Command.ID
	begin := func(method, path, body string) *http.Response {
		t.Helper()
		resp, err := http.DefaultClient.Do(h.request(method, path, body))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	streams := map[string]*http.Response{
		"run":  begin("POST", s+"/cmd", `{"command":"sleep","args":["1000"],"wait":true,"logs":true}`),
		"logs": begin("GET", s+"/cmd/"+sleeping+"/logs", ""),
	}
	conn := h.dial(s)
	sendText(t, conn, `{"type":"start","command":"cat"}`)
	unused := ok[interactiveResponse](h, "POST", s+"/interactive", ``)
	waited := make(chan *answer, 1)
	go func() { waited <- h.call("GET", s+"/cmd/"+sleeping+"?wait=true", "") }()
	// An upload that never ends, and a download that nobody takes.
	upload := h.raw(s+"/fs/write", 1000, "xx")
	download := h.stalledDownload(s)
	for h.srv.open.count() < 6 {
		runtime.Gosched()
	}

	account.gone.Store(true)
	for name, resp := range streams {
		all, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Contains(all, []byte(`"code":"unauthorized"`)) {
			t.Errorf("%s: %q, %v", name, all, err)
		}
	}
	if a := <-waited; a.status != 401 || a.error(t).Code != skerry.CodeUnauthorized {
		t.Errorf("wait: %d %s", a.status, a.body)
	}
	for told := false; ; {
		_, data, err := conn.Read(t.Context())
		if err != nil {
			if !told {
				t.Errorf("the terminal was not told why it ends: %v", err)
			}
			break
		}
		told = told || bytes.Contains(data, []byte(`"unauthorized"`))
	}
	for name, conn := range map[string]net.Conn{"upload": upload, "download": download} {
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, resp, err := websocket.Dial(t.Context(), unused.URL+"?token="+unused.Token, nil)
	if err == nil || resp.StatusCode != 401 {
		t.Errorf("a ticket of the revoked token: %v", err)
	}
	for h.srv.open.count() > 0 {
		runtime.Gosched()
	}
}

func (o *openCalls) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.calls)
}

// stalledDownload begins to read a large file and stops.
func (h *harness) stalledDownload(session string) net.Conn {
	h.Helper()
	root := h.srv.service.(*controllertest.Service).Node.Root(path.Base(session))
	if err := os.WriteFile(filepath.Join(root, skerry.WorkDir, "large"), make([]byte, 64<<20), 0o644); err != nil {
		h.Fatal(err)
	}
	const body = `{"path":"large"}`
	conn := h.raw(session+"/fs/read", len(body), body)
	if _, err := io.ReadFull(conn, make([]byte, 1024)); err != nil {
		h.Fatal(err)
	}
	return conn
}

// raw makes a POST request of a length, sends a part of its body, and leaves
// the rest to the caller.
func (h *harness) raw(path string, length int, body string) net.Conn {
	h.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", path, testToken, length, body)
	// The test fails, rather than hangs, if the server does not cut it.
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		h.Fatal(err)
	}
	return conn
}
