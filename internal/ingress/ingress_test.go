package ingress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

const boxID = "box_1"

// sandbox is a backend whose sessions are servers of the test.
type sandbox struct {
	addr    atomic.Pointer[string] // nil: nothing listens
	session atomic.Pointer[string] // nil: stopped
	resumes atomic.Int64
	dials   atomic.Int64
	reach   func(ctx context.Context) error
}

func (s *sandbox) Ready(id string) string {
	if session := s.session.Load(); session != nil && id == boxID {
		return *session
	}
	return ""
}

func (s *sandbox) Reach(ctx context.Context, id string, resume bool) (string, error) {
	if id != boxID {
		return "", skerry.Errorf(skerry.CodeNotFound, "no such sandbox")
	}
	if session := s.session.Load(); session != nil {
		return *session, nil
	}
	if !resume {
		return "", skerry.Errorf(skerry.CodeSandboxStopped, "stopped")
	}
	s.resumes.Add(1)
	if s.reach != nil {
		if err := s.reach(ctx); err != nil {
			return "", err
		}
	}
	session := "sbx_2"
	s.session.Store(&session)
	return session, nil
}

func (s *sandbox) Dial(ctx context.Context, session string, port int, _ netip.Addr) (net.Conn, error) {
	s.dials.Add(1)
	if port != 3000 || !strings.HasPrefix(session, "sbx_") {
		return nil, fmt.Errorf("asked for %s:%d", session, port)
	}
	addr := s.addr.Load()
	if addr == nil {
		return nil, skerry.Errorf(skerry.CodeUnavailable, "nothing listens")
	}
	return new(net.Dialer).DialContext(ctx, "tcp", *addr)
}

// running returns a sandbox in which h serves.
func running(t testing.TB, h http.HandlerFunc) *sandbox {
	t.Helper()
	s := &sandbox{}
	session := "sbx_1"
	s.session.Store(&session)
	if h != nil {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		addr := srv.Listener.Addr().String()
		s.addr.Store(&addr)
	}
	return s
}

// start makes an ingress in port mode and returns the URL of the sandbox's
// port 3000.
func start(t testing.TB, s *sandbox, change func(*Config)) (*Ingress, []skerry.PublishedPort, string) {
	t.Helper()
	cfg := Config{Log: slog.New(slog.DiscardHandler), FirstPort: 21000, LastPort: 29999}
	if change != nil {
		change(&cfg)
	}
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		if n := i.connections.Used(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	i.Start(s)
	ports := []skerry.PublishedPort{{Port: 3000, Subdomain: "aaaaaaaaaabbbbbbbbbbcccccc"}}
	if err := i.Publish(boxID, ports); err != nil {
		t.Fatal(err)
	}
	return i, ports, i.URL(ports[0])
}

// ask makes a request and returns the answer with its body.
func ask(t *testing.T, r *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := (&http.Client{
		Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true},
	}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func request(t *testing.T, method, url string, body io.Reader, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(headers); n += 2 {
		r.Header.Add(headers[n], headers[n+1])
	}
	return r
}

func TestHeaders(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "X-Gone")
		w.Header().Set("X-Gone", "1")
		w.Header().Add("Set-Cookie", "skerry_route_aaaaaaaaaa=stolen")
		w.Header().Add("Set-Cookie", "own=1")
		fmt.Fprintf(w, "%s %s host=%s for=%q proto=%q fhost=%q real=%q port=%q forwarded=%q hop=%q ua=%q",
			r.Method, r.RequestURI, r.Host, r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Host"],
			r.Header["X-Real-Ip"], r.Header["X-Forwarded-Port"], r.Header["Forwarded"], r.Header["X-Hop"], r.Header["User-Agent"])
	})
	_, _, url := start(t, s, nil)
	r := request(t, "GET", url+"/a%2Fb/../c;x?q=a;b&c=%zz", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https",
		"X-Forwarded-Host", "evil", "X-Real-Ip", "6.6.6.6", "X-Forwarded-Port", "1", "Forwarded", "for=6.6.6.6", "Connection", "X-Hop", "X-Hop", "1")
	r.Host = "preview.example:81"
	r.Header["User-Agent"] = nil
	res, got := ask(t, r)
	want := `GET /a%2Fb/../c;x?q=a;b&c=%zz host=preview.example:81 for=["127.0.0.1"] proto=["http"] fhost=["preview.example:81"] ` +
		`real=["127.0.0.1"] port=[] forwarded=[] hop=[] ua=[]`
	if got != want {
		t.Errorf("the sandbox saw\n%s\nwant\n%s", got, want)
	}
	if res.Header.Get("X-Gone") != "" || fmt.Sprint(res.Header["Set-Cookie"]) != "[own=1]" {
		t.Errorf("the client saw %v", res.Header)
	}
}

// TestRewriteHost: development servers refuse names that they do not know, so the
// sandbox may see localhost as the Host, of ports and of names. The outside name
// is in X-Forwarded-Host.
func TestRewriteHost(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %q", r.Host, r.Header["X-Forwarded-Host"])
	})
	for _, rewrite := range []bool{true, false} {
		rewritten := func(c *Config) { c.RewriteHost = rewrite }
		want := func(outside string) string {
			if rewrite {
				return fmt.Sprintf("localhost:3000 [%q]", outside)
			}
			return fmt.Sprintf("%s [%q]", outside, outside)
		}
		_, _, url := start(t, s, func(c *Config) { rewritten(c); c.Host = "preview.example" })
		url = strings.Replace(url, "preview.example", "127.0.0.1", 1)
		for _, host := range []string{"preview.example:81", "Preview.example", "localhost:9", "127.0.0.1:9", "[::1]:9", "[::1]"} {
			r := request(t, "GET", url, nil, "X-Forwarded-Host", "evil")
			r.Host = host
			if _, got := ask(t, r); got != want(host) {
				t.Errorf("rewrite %t: at a port the sandbox saw %s", rewrite, got)
			}
		}
		// A stranger's name for this machine stays for the program to refuse.
		for _, host := range []string{"evil.example:81", "localhost.evil.example"} {
			r := request(t, "GET", url, nil)
			r.Host = host
			if _, got := ask(t, r); got != fmt.Sprintf("%s [%q]", host, host) {
				t.Errorf("rewrite %t: of a stranger's name the sandbox saw %s", rewrite, got)
			}
		}
		i, ports, addr, trust := startDomain(t, s, rewritten)
		for _, h2 := range []bool{false, true} {
			res, err := browser(addr, trust, h2).Get(i.URL(ports[0]))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if host := strings.TrimPrefix(i.URL(ports[0]), "https://"); err != nil || string(b) != want(host) {
				t.Errorf("rewrite %t: at a name over %s the sandbox saw %s %v", rewrite, res.Proto, b, err)
			}
		}
	}
}

func TestStreams(t *testing.T) {
	next := make(chan string)
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		for text := range next {
			fmt.Fprintf(w, "data: %s\n\n", text)
			_ = http.NewResponseController(w).Flush()
		}
	})
	_, _, url := start(t, s, nil)
	res, err := http.DefaultClient.Do(request(t, "GET", url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for n := range 3 {
		next <- fmt.Sprint(n) // the next is sent when this one has come through
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", n) {
			t.Fatalf("event %d: %q %v", n, lines.Text(), lines.Err())
		}
		lines.Scan()
	}
	close(next)
}

func TestLargeBodies(t *testing.T) {
	const size = 64 << 20
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		n, err := io.Copy(w, r.Body) // echoed as it comes
		if err != nil || n != size {
			panic(http.ErrAbortHandler)
		}
	})
	_, _, url := start(t, s, nil)
	res, err := http.DefaultClient.Do(request(t, "POST", url, io.LimitReader(zeros{}, size)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Fatalf("echoed %d bytes: %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestWebSocket(t *testing.T) {
	ended := make(chan struct{})
	s := running(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	i, _, url := start(t, s, nil)
	c, _, err := websocket.Dial(t.Context(), url+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
	// It ends with the route.
	i.Withdraw(boxID)
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the WebSocket outlived its route")
	}
	<-ended
}

func TestNothingListens(t *testing.T) {
	s := running(t, nil)
	_, _, url := start(t, s, nil)
	res, page := ask(t, request(t, "GET", url, nil, "Accept", "text/html,*/*"))
	if res.StatusCode != 502 || !strings.Contains(page, `http-equiv="refresh"`) || !strings.Contains(page, "no program in it accepts connections on port 3000.") {
		t.Errorf("%d %s", res.StatusCode, page)
	}
	res, text := ask(t, request(t, "GET", url, nil, "Accept", "application/json"))
	if res.StatusCode != 502 || !strings.Contains(text, `"code":"port_not_listening"`) {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	res, text = ask(t, request(t, "POST", url, strings.NewReader("x")))
	if res.StatusCode != 502 || strings.Contains(text, "<") || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}

func TestBrokenAnswers(t *testing.T) {
	for name, bytes := range map[string]string{
		"nothing": "", "no HTTP": "SSH-2.0-OpenSSH\r\n", "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"endless header": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHeader+1),
		"unasked switch": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = http.ReadRequest(bufio.NewReader(c))
					_, _ = io.WriteString(c, bytes)
					_ = c.Close()
				}
			}()
			s := running(t, nil)
			addr := ln.Addr().String()
			s.addr.Store(&addr)
			_, _, url := start(t, s, nil)
			if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 502 || res.Header.Get("X-Skerry-Error") != "upstream_failed" {
				t.Errorf("%d %s", res.StatusCode, text)
			}
		})
	}
}

func TestResume(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up") })
	s.session.Store(nil)
	_, _, url := start(t, s, nil)
	if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 200 || text != "up" || s.resumes.Load() != 1 {
		t.Errorf("%d %s after %d resumes", res.StatusCode, text, s.resumes.Load())
	}
}

func TestResumeOff(t *testing.T) {
	s := running(t, nil)
	s.session.Store(nil)
	_, _, url := start(t, s, func(c *Config) { c.NoResume = true })
	if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 503 || res.Header.Get("X-Skerry-Error") != "sandbox_stopped" || s.resumes.Load() != 0 {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}

// TestResumeFails: the page says so, and requests do not start it over and over.
func TestResumeFails(t *testing.T) {
	s := running(t, nil)
	s.session.Store(nil)
	s.reach = func(context.Context) error { return skerry.Errorf(skerry.CodeSnapshotNotFound, "its snapshot is gone") }
	_, _, url := start(t, s, nil)
	for range 20 {
		if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 503 || res.Header.Get("X-Skerry-Error") != "sandbox_unavailable" {
			t.Fatalf("%d %s", res.StatusCode, text)
		}
	}
	if n := s.resumes.Load(); n != 1 {
		t.Errorf("20 requests started it %d times", n)
	}
}

func TestResumeIsBounded(t *testing.T) {
	s := running(t, nil)
	s.session.Store(nil)
	s.reach = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	_, _, url := start(t, s, func(c *Config) { c.ResumeWait = 50 * time.Millisecond })
	if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 503 || res.Header.Get("X-Skerry-Error") != "sandbox_starting" {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}

func TestTooManyRequests(t *testing.T) {
	release := make(chan struct{})
	inside := make(chan struct{})
	s := running(t, func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-release })
	_, _, url := start(t, s, func(c *Config) { c.RouteRequests = 1 })
	done := make(chan struct{})
	go func() { defer close(done); _, _ = http.Get(url) }()
	<-inside
	if res, text := ask(t, request(t, "GET", url, nil)); res.StatusCode != 503 || res.Header.Get("X-Skerry-Error") != "too_many_requests" {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	close(release)
	<-done
}

func TestTooManyConnections(t *testing.T) {
	s := running(t, func(w http.ResponseWriter, _ *http.Request) {})
	_, _, url := start(t, s, func(c *Config) { c.RouteConnections = 2 })
	addr := strings.TrimPrefix(url, "http://")
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("a third connection was let in")
	}
	open[0].Close()
	deadline := time.Now().Add(10 * time.Second)
	for { // the server sees the close when it gets round to it
		if res, err := http.Get(url); err == nil {
			res.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was given back is not there")
		}
	}
}

func TestSlowHeaders(t *testing.T) {
	s := running(t, func(http.ResponseWriter, *http.Request) {})
	_, _, url := start(t, s, func(c *Config) { c.readHeaderTimeout = 100 * time.Millisecond })
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection was not ended: %v", err)
	}
	if s.dials.Load() != 0 {
		t.Error("it got to the sandbox")
	}
}
