package api

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

// A project that has as many streams open as it may is told to wait, other
// calls and other projects go on, and a stream that ends makes room.
func TestOpenCallsAreBounded(t *testing.T) {
	started := make(chan struct{})
	svc := &stub{wait: func(ctx context.Context) (*skerry.Command, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	h := serve(t, svc)
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
	for range maxOpenEach - 1 {
		l, err := h.srv.open.enter(testIdentity.Project.ID)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
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
	other, err := h.srv.open.enter("another")
	if err != nil {
		t.Error(err)
	}
	for _, l := range append(leave, other) {
		l()
	}
	h.refused("POST", "/v2/sandboxes/sessions/s/fs/read", `{"path":"x"}`, 404, skerry.CodeNotFound, "")
	cancel()
	<-first
	h.srv.open.mu.Lock()
	defer h.srv.open.mu.Unlock()
	if len(h.srv.open.each) > 1 {
		t.Errorf("left open: %v", h.srv.open.each)
	}
}
