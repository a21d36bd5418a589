package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestReady has checks that fail: the answer says which, and nothing of the inside.
func TestReady(t *testing.T) {
	w := httptest.NewRecorder()
	ready{
		"a": func(context.Context) error { return nil },
		"b": func(context.Context) error { return errors.New("dial postgres://user@db.internal: refused") },
		"c": func(context.Context) error {
			return fmt.Errorf("look: %w", &skerry.Error{Code: skerry.CodeDiskFull, Message: "the disk is full", Err: errors.New("/var/lib")})
		},
	}.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if want := "a: ok\nb: it does not answer\nc: the disk is full\n"; w.Code != http.StatusServiceUnavailable || w.Body.String() != want {
		t.Errorf("it answers %d, %q", w.Code, w.Body)
	}
}

// TestObserversAreBounded opens as many connections as there may be, and one more.
func TestObserversAreBounded(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	stop, err := serveAt("metrics", addr, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	ask := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: skerry\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	answers := func(conn net.Conn, within time.Duration) error {
		_ = conn.SetReadDeadline(time.Now().Add(within)) // a connection has deadlines
		_, err := bufio.NewReader(conn).ReadString('\n')
		return err
	}
	var first net.Conn
	for i := range maxObservers {
		conn := ask()
		if err := answers(conn, 30*time.Second); err != nil {
			t.Fatal(i, err)
		}
		if first == nil {
			first = conn
		}
	}
	late := ask()
	if err := answers(late, 200*time.Millisecond); err == nil {
		t.Error("a connection beyond the limit is answered")
	}
	first.Close()
	if err := answers(late, 30*time.Second); err != nil {
		t.Errorf("after another has ended: %v", err)
	}
}
