package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/controller/controllertest"
)

// guardedServer serves on a listener that bears few connections.
func guardedServer(t *testing.T, most int) (*connections, string) {
	t.Helper()
	h := serve(t, controllertest.New(t))
	ln, err := ListenConfig{Addr: "127.0.0.1:0", MaxConnections: most}.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := ln.(*connections)
	c.strangers = 4
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.srv.Serve(ctx, ln, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, ln.Addr().String()
}

// peer is a connection of a client.
type peer struct {
	net.Conn
	r *bufio.Reader
}

func connectTo(t *testing.T, addr string) *peer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &peer{conn, bufio.NewReader(conn)}
}

// ask makes a request and returns its status.
func (p *peer) ask(t *testing.T, path, token string) (int, error) {
	t.Helper()
	fmt.Fprintf(p, "GET %s HTTP/1.1\r\nHost: x\r\n", path)
	if token != "" {
		fmt.Fprintf(p, "Authorization: Bearer %s\r\n", token)
	}
	fmt.Fprint(p, "\r\n")
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// closed waits for the end of a connection.
func (p *peer) closed(t *testing.T, what string) {
	t.Helper()
	if _, err := p.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: not closed: %v", what, err)
	}
}

// TestStrangersAreBounded: connections without a token make room for each
// other, and take none from those with one.
func TestStrangersAreBounded(t *testing.T) {
	guard, addr := guardedServer(t, 100)
	known := connectTo(t, addr)
	if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	silent := connectTo(t, addr)
	asked := connectTo(t, addr)
	if status, err := asked.ask(t, "/v2/user", "wrong"); status != 401 || err != nil {
		t.Fatal(status, err)
	}
	slow := connectTo(t, addr)
	fmt.Fprint(slow, "GET /health HTTP/1.1\r\nHo")
	for range guard.strangers {
		if status, err := connectTo(t, addr).ask(t, "/health", ""); status != 200 || err != nil {
			t.Fatal(status, err)
		}
	}
	silent.closed(t, "one that says nothing")
	slow.closed(t, "one in the middle of a request")
	asked.closed(t, "one with a wrong token")
	if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Errorf("the one with a token: %d, %v", status, err)
	}
}

// TestIdleStrangersAreClosed, who would otherwise stay for minutes.
func TestIdleStrangersAreClosed(t *testing.T) {
	guard, addr := guardedServer(t, 100)
	guard.idleAfter = time.Millisecond
	stranger, known := connectTo(t, addr), connectTo(t, addr)
	if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	if status, err := stranger.ask(t, "/health", ""); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	stranger.closed(t, "the stranger")
	if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Errorf("the one with a token: %d, %v", status, err)
	}
}

// TestConnectionsAreBounded: beyond the most that there may be, those that
// idle make room, and busy ones are left alone.
func TestConnectionsAreBounded(t *testing.T) {
	guard, addr := guardedServer(t, 3)
	idle := connectTo(t, addr)
	if status, err := idle.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	busy := connectTo(t, addr)
	h := &harness{T: t, url: "http://" + addr}
	s := h.sessionOver(busy)
	begin := func(p *peer) {
		t.Helper()
		const body = `{"command":"sleep","args":["1000"],"wait":true}`
		fmt.Fprintf(p, "POST %s/cmd HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", s, testToken, len(body), body)
		if line, err := p.r.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatal(line, err)
		}
	}
	begin(busy)
	another := connectTo(t, addr)
	begin(another)
	third := connectTo(t, addr) // in the place of the idle one
	begin(third)
	idle.closed(t, "the idle one")
	connectTo(t, addr).closed(t, "one for which there is no room")
	third.Close()
	deadline := time.Now().Add(time.Minute)
	for { // its end is noticed soon
		if status, err := connectTo(t, addr).ask(t, "/health", ""); err == nil && status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room after one was closed")
		}
	}
	guard.mu.Lock()
	defer guard.mu.Unlock()
	if len(guard.open) > 3 {
		t.Errorf("%d are open", len(guard.open))
	}
}

// TestStrangersMakeRoomFirst, however long those with a token have idled.
func TestStrangersMakeRoomFirst(t *testing.T) {
	_, addr := guardedServer(t, 2)
	known, stranger := connectTo(t, addr), connectTo(t, addr)
	if status, err := known.ask(t, "/v2/user", testToken); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	if status, err := stranger.ask(t, "/health", ""); status != 200 || err != nil {
		t.Fatal(status, err)
	}
	another := connectTo(t, addr)
	stranger.closed(t, "the stranger")
	for _, p := range []*peer{known, another} {
		if status, err := p.ask(t, "/v2/user", testToken); status != 200 || err != nil {
			t.Errorf("%d, %v", status, err)
		}
	}
}

// TestSharesOfConnections: how many one address may have without a token, and
// what one address is.
func TestSharesOfConnections(t *testing.T) {
	for most, want := range map[int]int{DefaultMaxConnections: 512, 100: 16} {
		if got := guard(nil, most).strangers; got != want {
			t.Errorf("of %d connections strangers have %d, want %d", most, got, want)
		}
	}
	for _, c := range []struct {
		one, other string
		same       bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"[2001:db8:0:1::1]:1", "[2001:db8:0:1:2::3]:1", true},
		{"[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1", false},
	} {
		one, other := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.one)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.other))
		if got := source(one) == source(other); got != c.same {
			t.Errorf("%s and %s count as one: %v", c.one, c.other, got)
		}
	}
}

// TestHeadersAreBounded: what is as large as it may be is taken. net/http
// gives headers a few KiB more.
func TestHeadersAreBounded(t *testing.T) {
	_, addr := guardedServer(t, 100)
	for size, want := range map[int]int{maxHeaderBytes - 1<<10: 200, maxHeaderBytes + 8<<10: 431} {
		// What follows the status is lost if the rest of the headers is on its
		// way when the connection is closed.
		if status, err := connectTo(t, addr).ask(t, "/health", strings.Repeat("x", size)); status != want {
			t.Errorf("%d bytes of headers: %d, %v, want %d", size, status, err, want)
		}
	}
}

// sessionOver creates a sandbox over a connection and returns the path of its
// session.
func (h *harness) sessionOver(p *peer) string {
	h.Helper()
	fmt.Fprintf(p, "POST /v3/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{}", testToken)
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	return "/v2/sandboxes/sessions/" + decode[runResponse](h, resp.Body).Session.ID
}

func decode[T any](h *harness, r io.Reader) (v T) {
	h.Helper()
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		h.Fatal(err)
	}
	return v
}
