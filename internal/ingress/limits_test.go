package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// keptOpen asks once at a URL and keeps the connection.
func keptOpen(t *testing.T, url string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

// wantClosed waits until the other side has closed a connection.
func wantClosed(t *testing.T, what string, c net.Conn, r io.Reader) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	var late net.Error
	if n, err := io.Copy(io.Discard, r); n > 0 || errors.As(err, &late) && late.Timeout() {
		t.Errorf("%s is not closed: %d bytes, %v", what, n, err)
	}
}

// TestAllConnections has two routes take all connections that there may be.
func TestAllConnections(t *testing.T) {
	i, _, url := start(t, running(t, hello), func(c *Config) { c.MaxConnections, c.readHeaderTimeout = 2, time.Hour })
	ports := []skerry.PublishedPort{{Port: 3000, Subdomain: "second"}, {Port: 3000, Subdomain: "third"}}
	if err := i.Publish("box_2", ports); err != nil {
		t.Fatal(err)
	}
	keptOpen(t, url)
	keptOpen(t, i.URL(ports[0]))
	c, err := net.Dial("tcp", strings.TrimPrefix(i.URL(ports[1]), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantClosed(t, "a third connection", c, c)
}

// TestGreedyClient has the connections from one address leave room for those from
// another, where all come to one listener.
func TestGreedyClient(t *testing.T) {
	i, ports, addr, trust := startDomain(t, running(t, hello), func(c *Config) { c.MaxConnections, c.readHeaderTimeout = 20, time.Hour })
	greedy := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var last net.Conn
	for range 40 {
		c, err := greedy.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		last = c
	}
	wantClosed(t, "the last connection of many", last, last)
	res, err := browser(addr, trust, true).Get(i.URL(ports[0]))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

func TestLongHeaders(t *testing.T) {
	_, _, url := start(t, running(t, hello), nil)
	for size, want := range map[int]int{maxHeaderBytes - 1<<10: http.StatusOK, maxHeaderBytes + 8<<10: http.StatusRequestHeaderFieldsTooLarge} {
		head := "GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + strings.Repeat("x", size)
		if status, _ := rawRequest(t, strings.TrimPrefix(url, "http://"), head); status != want {
			t.Errorf("%d bytes: %d, want %d", size, status, want)
		}
	}
}

func TestIdleClient(t *testing.T) {
	_, _, url := start(t, running(t, hello), func(c *Config) { c.idleTimeout = 100 * time.Millisecond })
	c, r := keptOpen(t, url)
	wantClosed(t, "an idle connection", c, r)
}

// TestSlowAnswer: what is not answered in time is not asked again, over however
// old a connection it went.
func TestSlowAnswer(t *testing.T) {
	var asked atomic.Int64
	s := running(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			asked.Add(1)
			<-r.Context().Done()
		}
	})
	_, _, url := start(t, s, func(c *Config) { c.answerTimeout = 200 * time.Millisecond })
	ask(t, request(t, "GET", url, nil))
	res, text := ask(t, request(t, "GET", url+"/slow", nil))
	if res.StatusCode != http.StatusGatewayTimeout || res.Header.Get("X-Skerry-Error") != "upstream_timeout" {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

// TestCloseIsBounded: a request that is under way does not hold up the end for long.
func TestCloseIsBounded(t *testing.T) {
	arrived := make(chan struct{})
	s := running(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	i, _, url := start(t, s, func(c *Config) { c.closeGrace = 100 * time.Millisecond })
	failed := make(chan error, 1)
	go func() {
		res, err := http.Get(url)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		if err == nil && res.StatusCode == http.StatusBadGateway {
			err = errors.New(res.Status) // the sandbox's connection was closed first
		}
		failed <- err
	}()
	<-arrived
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("the request was answered")
	}
}

// TestManyRequestsOnOneConnection: what is more than an HTTP/2 connection has at
// once waits in the client.
func TestManyRequestsOnOneConnection(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	var inside atomic.Int64
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/last" {
			fmt.Fprint(w, inside.Load())
			return
		}
		inside.Add(1)
		arrived <- struct{}{}
		<-release
		inside.Add(-1)
	})
	i, ports, addr, trust := startDomain(t, s)
	client := browser(addr, trust, true)
	transport := client.Transport.(*http.Transport)
	transport.DisableKeepAlives = false
	transport.HTTP2 = &http.HTTP2Config{StrictMaxConcurrentRequests: true} // no second connection
	defer transport.CloseIdleConnections()
	get := func(path string) string {
		res, err := client.Get(i.URL(ports[0]) + path)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	var group sync.WaitGroup
	for range maxStreams {
		group.Go(func() { get("/") })
		<-arrived
	}
	last := make(chan string, 1)
	group.Go(func() { last <- get("/last") })
	select {
	case n := <-last:
		t.Errorf("one more was answered while %s were under way", n)
	case <-time.After(200 * time.Millisecond):
		release <- struct{}{}
		if n := <-last; n != fmt.Sprint(maxStreams-1) {
			t.Errorf("one more was answered while %s were under way", n)
		}
	}
	close(release)
	group.Wait()
}

// TestKeptConnections: no more connections to sandboxes than there may be are
// kept for the next request, and not for long.
func TestKeptConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, maxIdle+2*maxIdleEach)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		ln.Close()
		for c := range accepted {
			c.Close()
		}
	}()
	s := upstreams{keep: time.Hour, dial: func(ctx context.Context, _ peer, _ netip.Addr) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}}
	defer s.close()
	closed := map[int]int{}
	for port := range maxIdle/maxIdleEach + 1 {
		for range maxIdleEach + 1 {
			u, err := s.open(t.Context(), peer{"sbx_1", port}, netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			if s.put(u); errors.Is(u.SetDeadline(time.Time{}), net.ErrClosed) {
				closed[port]++
			}
		}
	}
	for port, n := range closed {
		if want := map[bool]int{true: 1, false: maxIdleEach + 1}[port < maxIdle/maxIdleEach]; n != want {
			t.Errorf("%d connections to port %d were closed, want %d", n, port, want)
		}
	}
	s.mu.Lock()
	s.keep = 0
	s.mu.Unlock()
	first := <-accepted
	defer first.Close()
	wantClosed(t, "a connection that nobody used", first, first)
}

// shared is a connection that one client may have and another may not.
type shared struct {
	net.Conn
	client netip.Addr
	wanted bool
}

func (c *shared) Wanted() bool { return c.wanted }

func (c *shared) ChargeTo(client netip.Addr) bool {
	if client == netip.IPv4Unspecified() {
		return false
	}
	c.client = client
	return true
}

func (c *shared) SyscallConn() (syscall.RawConn, error) { return c.Conn.(syscall.Conn).SyscallConn() }

// TestReusedConnectionIsCharged: a connection that is kept counts against the client
// whose request it carries, and a client whose share is used up does not get it. It
// is not kept while others wait for its place.
func TestReusedConnectionIsCharged(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := upstreams{keep: time.Hour, dial: func(ctx context.Context, _ peer, client netip.Addr) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		return &shared{Conn: c, client: client}, err
	}}
	defer s.close()
	p, one, two, none := peer{"sbx_1", 80}, clientAt("192.0.2.1:1"), clientAt("192.0.2.2:1"), netip.IPv4Unspecified()
	u, err := s.open(t.Context(), p, one)
	if err != nil {
		t.Fatal(err)
	}
	s.put(u)
	if got := s.take(p, two); got != u || u.Conn.(*shared).client != two {
		t.Errorf("another client got %v, which is %v's", got, u.Conn.(*shared).client)
	}
	s.put(u)
	if got := s.take(p, none); got != nil {
		t.Error("a client whose share is used up got it")
	}
	if u, err = s.open(t.Context(), p, one); err != nil {
		t.Fatal(err)
	}
	u.Conn.(*shared).wanted = true
	s.put(u)
	if got := s.take(p, one); got != nil {
		t.Error("a connection is kept while others wait for its place")
	}
}
