package ingress

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/share"
)

func TestRedirect(t *testing.T) {
	i, _, addr, _ := startDomain(t, running(t, func(http.ResponseWriter, *http.Request) {}))
	_, port, _ := net.SplitHostPort(addr)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := i.Redirect(ln, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/proof" {
			return false
		}
		w.WriteHeader(http.StatusTeapot)
		return true
	})
	d.Start()
	t.Cleanup(func() { _ = d.Close() })
	name := "abc." + domain
	to := "https://" + name + ":" + port
	for _, c := range []struct {
		head, location string
		status         int
	}{
		{"GET /a/b?c=d&e HTTP/1.1\r\nHost: " + name, to + "/a/b?c=d&e", 308},
		{"GET / HTTP/1.1\r\nHost: ABC.Sandboxes.example.com:80", to + "/", 308},
		{"GET //evil.org/x HTTP/1.1\r\nHost: " + name, to + "//evil.org/x", 308},
		{"GET /%2F%2e%0d%0aA:b HTTP/1.1\r\nHost: " + name, to + "/%2F%2e%0d%0aA:b", 308},
		{"GET /\\evil.org HTTP/1.1\r\nHost: " + name, to + "/%5Cevil.org", 308},
		{"GET http://" + name + "/x HTTP/1.1\r\nHost: evil.org", to + "/x", 308},
		{"GET http://evil.org/x HTTP/1.1\r\nHost: " + name, "", 404},
		{"GET http://user@" + name + " HTTP/1.1\r\nHost: " + name, to + "/", 308},
		{"POST /x HTTP/1.1\r\nContent-Length: 1000000000\r\nHost: " + name, to + "/x", 308},
		{"GET / HTTP/1.1\r\nHost: evil.org", "", 404},
		{"GET / HTTP/1.1\r\nHost: " + domain, "", 404},
		{"GET / HTTP/1.1\r\nHost: a.b." + domain, "", 404},
		{"GET / HTTP/1.1\r\nHost: evil.org#." + domain, "", 400},
		{"GET / HTTP/1.1\r\nHost: evil.org@x." + domain, "", 400},
		{"GET / HTTP/1.1\r\nHost: " + name + ".evil.org", "", 404},
		{"GET / HTTP/1.1\r\nHost: " + name + ":80@evil.org", "", 400},
		{"GET / HTTP/1.1\r\nHost: " + name + ":99999", "", 404},
		{"GET / HTTP/1.1\r\nHost: ", "", 404},
		{"GET / HTTP/1.1\r\nHost: a.org\r\nHost: " + name, "", 400},
		{"GET / HTTP/1.1", "", 400},
		{"CONNECT " + name + ":80 HTTP/1.1\r\nHost: " + name, "", 404},
		{"OPTIONS * HTTP/1.1\r\nHost: " + name, "", 404},
		{"GET /proof HTTP/1.1\r\nHost: evil.org", "", 418},
		{"GET / HTTP/1.1\r\nHost: " + name + "\r\nX: " + strings.Repeat("x", 64<<10), "", 431},
	} {
		status, location := rawRequest(t, ln.Addr().String(), c.head)
		if status != c.status || location != c.location {
			t.Errorf("%.80q: %d %q, want %d %q", c.head, status, location, c.status, c.location)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("it listens still")
	}
}

// TestRedirectBounds: clients of plain HTTP are let go that are too many, or slow.
func TestRedirectBounds(t *testing.T) {
	i, _, _, _ := startDomain(t, running(t, hello))
	for what, slow := range map[string]bool{"one more than may be": false, "a connection without a request": true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d := i.Redirect(ln, nil)
		d.connections = share.New[holder](2, 2) // one address gets no second one
		if slow {
			d.server.ReadHeaderTimeout, d.server.ReadTimeout = d.server.ReadHeaderTimeout/100, d.server.ReadTimeout/100
		} else {
			d.server.ReadHeaderTimeout, d.server.ReadTimeout = time.Hour, time.Hour
		}
		d.Start()
		defer d.Close()
		var last net.Conn
		for range 2 {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if !slow || last == nil {
				last = c
			}
		}
		wantClosed(t, what, last, last)
	}
}

// rawRequest sends a head as it is.
func rawRequest(t *testing.T, addr, head string) (status int, location string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprintf(conn, "%s\r\n\r\n", head)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.80q: %v", head, err)
	}
	defer res.Body.Close()
	return res.StatusCode, res.Header.Get("Location")
}
