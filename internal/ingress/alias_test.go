package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestAliasesOfOurHeaders sends headers that a program behind CGI variables, as
// WSGI and PHP are, takes for those that the proxy sets.
func TestAliasesOfOurHeaders(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		var names []string
		for name := range r.Header {
			names = append(names, strings.ToLower(name))
		}
		for name := range r.Trailer {
			names = append(names, "trailer "+strings.ToLower(name))
		}
		slices.Sort(names)
		fmt.Fprint(w, strings.Join(names, " "))
	})
	_, _, url := start(t, s, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	forged := []string{
		"X_Forwarded_For", "X-Forwarded_For", "x_forwarded-for", "X_FORWARDED_PROTO", "X.Forwarded.Host", "X_Forwarded_Anything", "X_Real_IP", "X-Real_IP",
		"x.real.ip", "X_forwarded-By", "X_Skerry_Token", "Content_Length", "Transfer_Encoding", "Proxy_Authorization",
	}
	request := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X_Real_IP, Kept\r\n"
	for _, name := range forged {
		request += name + ": 6.6.6.6\r\n"
	}
	request += "X_Own: 1\r\nX-Forwards: 1\r\n\r\n0\r\nX_Real_IP: 6.6.6.6\r\nKept: 1\r\n\r\n"
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = "trailer kept x-forwarded-for x-forwarded-host x-forwarded-proto x-forwards x-real-ip x_own"
	if string(got) != want {
		t.Errorf("the sandbox saw %q, want %q", got, want)
	}
}

// TestGreedyRoute has the connections to one route leave room for those to
// another.
func TestGreedyRoute(t *testing.T) {
	s := running(t, func(http.ResponseWriter, *http.Request) {})
	i, ports, url := start(t, s, func(c *Config) { c.MaxConnections = 20 })
	ports = append(ports, skerry.PublishedPort{Port: 3000, Subdomain: "ddddddddddeeeeeeeeeeffffff"})
	if err := i.Publish("box_other", ports[1:]); err != nil {
		t.Fatal(err)
	}
	other := i.URL(ports[1])
	for range 40 {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	res, err := http.Get(other)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}
