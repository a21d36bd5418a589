package api

import (
	"cmp"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry"
)

// TestHosts: by which names requests are accepted.
func TestHosts(t *testing.T) {
	local := func(o *Options) { o.Loopback = true }
	public := func(o *Options) { o.PublicURL = "https://api.example.com:8443/skerry" }
	allowed := func(o *Options) { o.AllowedHosts = []string{"inner.example.com", "192.0.2.7", "[2001:db8::7]"} }
	trusting := func(o *Options) { o.TrustForwarded = true }
	for _, c := range []struct {
		what          string
		options       []func(*Options)
		good, refused []string
		// forwarded are values of X-Forwarded-Host, with which the request's own host
		// is one of the loopback names.
		forwarded, refusedForwarded []string
	}{
		{
			"a loopback address", []func(*Options){local},
			[]string{
				"localhost", "localhost:7700", "LOCALHOST:1", "localhost.", "a.localhost:7700", "127.0.0.1", "127.0.0.1:7700", "127.9.9.9:1",
				"[::1]:7700", "[::1]", "[::ffff:127.0.0.1]:1",
			},
			[]string{
				"evil.example", "evil.example:7700", "localhost.evil.example", "localhost.evil.example:7700", "127.0.0.1.evil.example", "evillocalhost",
				"0.0.0.0:7700", "192.168.1.2:7700", "[::]:7700", "[2001:db8::1]:7700", "127.0.0.1:x", "localhost:evil", "169.254.169.254", "xn--localhost", ".",
			},
			[]string{"evil.example"}, nil, // the header is nothing without trust
		},
		{
			"a public URL", []func(*Options){local, public},
			[]string{"api.example.com", "api.example.com:8443", "API.example.com:443", "api.example.com.", "localhost:7700", "127.0.0.1:7700"},
			[]string{"evil.example", "api.example.com.evil.example", "example.com", "x.api.example.com", "192.0.2.7"},
			nil, nil,
		},
		{
			"a public URL, beyond loopback", []func(*Options){public},
			[]string{"api.example.com:8443", "localhost:7700"}, []string{"evil.example", "192.0.2.7"}, nil, nil,
		},
		{
			"allowed hosts", []func(*Options){local, allowed},
			[]string{"inner.example.com:7700", "192.0.2.7", "192.0.2.7:80", "[2001:db8::7]:80", "[2001:db8:0::7]", "localhost"},
			[]string{"evil.example", "192.0.2.8", "[2001:db8::8]:80"}, nil, nil,
		},
		{"allowed hosts, beyond loopback", []func(*Options){allowed}, []string{"inner.example.com"}, []string{"evil.example"}, nil, nil},
		{"any address", nil, []string{"evil.example", "192.0.2.8:80", "localhost"}, nil, nil, nil},
		{
			"a trusted proxy", []func(*Options){local, public, trusting},
			[]string{"api.example.com", "localhost"}, []string{"evil.example"},
			[]string{"api.example.com", "api.example.com:8443", "api.example.com, inner", "localhost"}, []string{"evil.example", "evil.example, api.example.com"},
		},
	} {
		h := serve(t, &stub{}, c.options...)
		ask := func(path, host, forwarded string) *answer {
			req := h.request("GET", path, "")
			req.Host = host
			if forwarded != "" {
				req.Header.Set("X-Forwarded-Host", forwarded)
			}
			return h.send(req)
		}
		for _, host := range c.good {
			if a := ask("/v2/user", host, ""); a.status != 200 {
				t.Errorf("%s: %q: %d %s", c.what, host, a.status, a.body)
			}
		}
		for _, host := range c.refused {
			a := ask("/api/v2/user", host, "")
			if e := a.error(t); a.status != 403 || e.Code != skerry.CodeForbidden || !strings.Contains(e.Message, "--allowed-host") || !strings.Contains(e.Message, "--public-url") {
				t.Errorf("%s: %q: %d %s", c.what, host, a.status, a.body)
			}
			for _, path := range []string{"/openapi.json", "/nowhere"} {
				if a := ask(path, host, ""); a.status != 403 {
					t.Errorf("%s: %s of %q: %d", c.what, path, host, a.status)
				}
			}
			if a := ask("/health", host, ""); a.status != 200 {
				t.Errorf("%s: a load balancer is answered %d", c.what, a.status)
			}
		}
		for _, host := range c.forwarded {
			if a := ask("/v2/user", "127.0.0.1:7700", host); a.status != 200 {
				t.Errorf("%s: forwarded %q: %d %s", c.what, host, a.status, a.body)
			}
		}
		for _, host := range c.refusedForwarded {
			if a := ask("/v2/user", "127.0.0.1:7700", host); a.status != 403 {
				t.Errorf("%s: forwarded %q: %d", c.what, host, a.status)
			}
		}
	}
	// A host is repeated in the error, but not at any length.
	h := serve(t, &stub{}, local)
	req := h.request("GET", "/v2/user", "")
	req.Host = strings.Repeat("x", 10000)
	if a := h.send(req); a.status != 403 || len(a.body) > 1000 {
		t.Errorf("a long host: %d, %d bytes", a.status, len(a.body))
	}
	// HTTP/1.0 knows no host.
	_, addr := guardedServer(t, 100)
	if _, err := connectTo(t, addr).Write([]byte("GET /health HTTP/1.0\r\n\r\n")); err != nil {
		t.Error(err)
	}
}

// TestOnLoopback: what has no tokens is for this machine, by its own names.
func TestOnLoopback(t *testing.T) {
	srv := httptest.NewServer(OnLoopback(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	defer srv.Close()
	for host, want := range map[string]int{"": 200, "localhost:1": 200, "evil.example": 403, "localhost.evil.example:7703": 403} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/debug/pprof/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: %d", host, resp.StatusCode)
		}
	}
}

// FuzzHosts: what counts as a loopback name leads to this machine in a URL too.
func FuzzHosts(f *testing.F) {
	for _, host := range []string{"localhost", "localhost:80", "a.localhost", "127.0.0.1:7700", "[::1]:7700", "[::ffff:127.0.0.1]", "evil.example", "localhost:x", "u@localhost", "localhost#.evil"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !isLoopback(hostName(host)) {
			return
		}
		u, err := url.Parse("http://" + host + "/")
		if err != nil || u.Host == "" {
			return // no browser has been there
		}
		name := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		addr, err := netip.ParseAddr(name)
		if name != "localhost" && !strings.HasSuffix(name, ".localhost") && (err != nil || !addr.Unmap().IsLoopback()) {
			t.Errorf("%q leads to %q", host, name)
		}
	})
}

// TestOrigins: which pages may change something, or open a terminal.
func TestOrigins(t *testing.T) {
	const session = "/v2/sandboxes/sessions/s"
	plain := func(*Options) {}
	public := func(o *Options) { o.PublicURL = "https://api.example.com:443" }
	cors := func(o *Options) { o.CORSOrigins = []string{"https://app.example.com", "http://localhost:3000"} }
	trusting := func(o *Options) { o.TrustForwarded = true }
	for _, c := range []struct {
		what    string
		option  func(*Options)
		headers string // "Name: value" by lines; HOST is the server
		good    bool
	}{
		{"a client that is no browser", plain, "", true},
		{"fetch of Node.js", plain, "Sec-Fetch-Mode: cors", true},
		{"the same origin", plain, "Origin: http://HOST\nSec-Fetch-Site: same-origin", true},
		{"the same origin in an old browser", plain, "Origin: http://HOST", true},
		{"the address bar", plain, "Sec-Fetch-Site: none", true},
		{"the same host behind a proxy that says nothing of TLS", plain, "Origin: https://HOST", true},
		{"another site", plain, "Origin: https://evil.example\nSec-Fetch-Site: cross-site", false},
		{"another site in an old browser", plain, "Origin: https://evil.example", false},
		{"another site without an origin", plain, "Sec-Fetch-Site: cross-site", false},
		{"a sibling", plain, "Origin: http://a.localhost\nSec-Fetch-Site: same-site", false},
		{"another port", plain, "Origin: http://127.0.0.1:1\nSec-Fetch-Site: same-site", false},
		{"another port in an old browser", plain, "Origin: http://127.0.0.1:1", false},
		{"another scheme", plain, "Origin: ftp://HOST", false},
		{"a file, or a sandboxed frame", plain, "Origin: null", false},
		{"a file with what it wants to be", plain, "Origin: null\nSec-Fetch-Site: same-origin", false},
		{"no origin at all", plain, "Origin: evil", false},
		{"a name that begins like the host", plain, "Origin: http://HOST.evil.example", false},
		{"a host within the user", plain, "Origin: http://HOST@evil.example", false},
		{"two origins", plain, "Origin: http://HOST\nOrigin: https://evil.example", false},
		{"a redirect by another site", plain, "Origin: http://HOST\nSec-Fetch-Site: cross-site", false},
		{"an extension", plain, "Origin: chrome-extension://abc\nSec-Fetch-Site: none", false},
		{"the public URL", public, "Origin: https://api.example.com\nSec-Fetch-Site: same-origin", true},
		{"the public URL behind a proxy that changes the host", public, "Origin: https://api.example.com\nSec-Fetch-Site: cross-site", true},
		{"the public URL without TLS", public, "Origin: http://api.example.com", false},
		{"below the public URL", public, "Origin: https://x.api.example.com", false},
		{"an allowed origin", cors, "Origin: https://app.example.com\nSec-Fetch-Site: cross-site", true},
		{"an allowed origin with a port", cors, "Origin: http://localhost:3000\nSec-Fetch-Site: same-site", true},
		{"an allowed host without TLS", cors, "Origin: http://app.example.com\nSec-Fetch-Site: cross-site", false},
		{"below an allowed one", cors, "Origin: https://x.app.example.com", false},
		{"one that is not allowed", cors, "Origin: https://evil.example", false},
		{"a proxy's host", trusting, "X-Forwarded-Host: api.example.com\nX-Forwarded-Proto: https\nOrigin: https://api.example.com", true},
		{"a proxy's host without TLS", trusting, "X-Forwarded-Host: api.example.com\nX-Forwarded-Proto: https\nOrigin: http://api.example.com", false},
		{"a proxy's host with its port", trusting, "X-Forwarded-Host: api.example.com:443\nX-Forwarded-Proto: https\nOrigin: https://api.example.com", true},
		{"a rebound name that plays a proxy", trusting, "X-Forwarded-Host: localhost\nOrigin: http://HOST\nSec-Fetch-Site: same-origin", false},
		{"a header of a proxy that is not trusted", plain, "X-Forwarded-Host: evil.example\nOrigin: https://evil.example", false},
	} {
		h := serve(t, &stub{}, c.option)
		want := map[bool]int{true: 200, false: 403}[c.good]
		header := http.Header{}
		for line := range strings.Lines(strings.ReplaceAll(c.headers, "HOST", strings.TrimPrefix(h.url, "http://"))) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			header.Add(name, value)
		}
		ask := func(method, path string) *answer {
			req := h.request(method, path, "")
			for name, values := range header {
				req.Header[name] = values
			}
			return h.send(req)
		}
		if a := ask("POST", session+"/interactive"); a.status != want {
			t.Errorf("%s: %d %s, want %d", c.what, a.status, a.body, want)
		} else if !c.good && a.error(t).Code != skerry.CodeForbidden {
			t.Errorf("%s: %s", c.what, a.body)
		}
		for _, method := range []string{"PATCH", "DELETE", "PUT"} { // no such endpoint, but for who may ask
			if a := ask(method, "/v2/user"); (a.status == 403) == c.good {
				t.Errorf("%s: %s is answered %d %s", c.what, method, a.status, a.body)
			}
		}
		// Nothing changes by reading, and the page does not see the answer.
		if a := ask("GET", "/v2/user"); a.status != 200 || (a.header.Get("Access-Control-Allow-Origin") != "") != (c.good && strings.Contains(c.what, "an allowed origin")) {
			t.Errorf("%s: reading is answered %d %v", c.what, a.status, a.header)
		}
		_, resp, err := websocket.Dial(t.Context(), h.url+session+"/interactive?token=x", &websocket.DialOptions{HTTPHeader: header})
		want = map[bool]int{true: 401, false: 403}[c.good] // it has no ticket
		if err == nil || resp == nil || resp.StatusCode != want {
			t.Errorf("%s: a terminal: %v, want %d", c.what, err, want)
		}
	}
}

func TestBadOriginsAndHosts(t *testing.T) {
	for _, origin := range []string{
		"", "*", "null", "app.example.com", "https://", "https://app.example.com/", "https://app.example.com/x", "https://*.example.com", "https://App.example.com",
		"https://u@app.example.com", "https://app.example.com:443", "http://app.example.com:80", "https://app.example.com:0", "https://app.example.com:", "https://app.example.com:x",
		"https://app.example.com:65536", "ftp://app.example.com", "https://app.example.com?x", "https://app.example.com#x", "https://a b", "chrome-extension://abc", "https:app.example.com",
		"https://bücher.example", "HTTPS://app.example.com",
	} {
		if CheckOrigin(origin) == nil {
			t.Errorf("the origin %q is accepted", origin)
		}
		if _, err := New(Options{Service: &stub{}, Accounts: oneAccount{}, Log: slog.New(slog.DiscardHandler), CORSOrigins: []string{origin}}); err == nil {
			t.Errorf("a server allows %q", origin)
		}
	}
	for _, origin := range []string{"https://app.example.com", "http://localhost:3000", "https://app.example.com:8443", "http://127.0.0.1:1", "https://[2001:db8::1]:8443", "https://[2001:db8::1]"} {
		if err := CheckOrigin(origin); err != nil {
			t.Errorf("%s: %v", origin, err)
		}
	}
	for host, good := range map[string]bool{
		"a": true, "a.example.com": true, "A.example.com": true, "a_b": true, "192.0.2.1": true, "2001:db8::1": true, "[2001:db8::1]": true,
		"": false, "*": false, "*.example.com": false, "a:80": false, "192.0.2.1:80": false, "[::1]:80": false, "https://a": false, "a..b": false, "a/b": false, "a b": false,
	} {
		if err := CheckHost(host); (err == nil) != good {
			t.Errorf("the host %q: %v", host, err)
		}
	}
	if _, err := New(Options{Service: &stub{}, Accounts: oneAccount{}, Log: slog.New(slog.DiscardHandler), AllowedHosts: []string{"a:80"}}); err == nil {
		t.Error("a server has a host with a port")
	}
}

// TestCORS: an allowed origin gets what it needs, and others get nothing of it.
func TestCORS(t *testing.T) {
	const app = "https://app.example.com"
	h := serve(t, &stub{}, func(o *Options) { o.CORSOrigins = []string{app, "https://other.example.com"} })
	off := serve(t, &stub{})
	type row struct {
		what                          string
		h                             *harness
		method, path, origin, request string
		status                        int
		allowed                       bool
	}
	for _, c := range []row{
		{"a preflight", h, "OPTIONS", "/v3/sandboxes", app, "POST", 204, true},
		{"a preflight below the prefix", h, "OPTIONS", "/api/v2/sandboxes/a", "https://other.example.com", "DELETE", 204, true},
		{"a preflight of another origin", h, "OPTIONS", "/v3/sandboxes", "https://evil.example", "POST", 405, false},
		{"a preflight of none", h, "OPTIONS", "/v3/sandboxes", "null", "POST", 405, false},
		{"a preflight without CORS", off, "OPTIONS", "/v3/sandboxes", app, "POST", 405, false},
		{"no preflight", h, "OPTIONS", "/v3/sandboxes", app, "", 405, true},
		{"a call", h, "GET", "/v2/user", app, "", 200, true},
		{"an error", h, "GET", "/nowhere", app, "", 404, true},
		{"a call of another origin", h, "GET", "/v2/user", "https://evil.example", "", 200, false},
		{"a call of no page", h, "GET", "/v2/user", "", "", 200, false},
		{"a call without CORS", off, "GET", "/v2/user", app, "", 200, false},
	} {
		req := c.h.request(c.method, c.path, "")
		if c.method == "OPTIONS" {
			req.Header.Del("Authorization") // no browser sends it
			req.Header.Set("Access-Control-Request-Headers", "authorization,content-type")
		}
		for name, value := range map[string]string{"Origin": c.origin, "Access-Control-Request-Method": c.request} {
			if value != "" {
				req.Header.Set(name, value)
			}
		}
		a := c.h.send(req)
		got := a.header.Get("Access-Control-Allow-Origin")
		if a.status != c.status || got != map[bool]string{true: c.origin}[c.allowed] {
			t.Errorf("%s: %d, allowed is %q", c.what, a.status, got)
		}
		if vary := a.header.Get("Vary"); (vary == "Origin") != (c.h == h) {
			t.Errorf("%s: varies by %q", c.what, vary)
		}
		if a.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: cookies are allowed", c.what)
		}
		preflight := c.status == 204
		for name, want := range map[string]string{
			"Access-Control-Allow-Methods": "DELETE, GET, PATCH, POST", "Access-Control-Max-Age": "600",
			"Access-Control-Allow-Headers": "authorization, content-type, skerry-heartbeat, traceparent, user-agent, x-cwd",
		} {
			if got := a.header.Get(name); got != map[bool]string{true: want}[preflight] {
				t.Errorf("%s: %s: %q", c.what, name, got)
			}
		}
		if got := a.header.Get("Access-Control-Expose-Headers"); c.allowed != (got == "Retry-After, Skerry-Heartbeat, X-Request-Id") {
			t.Errorf("%s: exposed are %q", c.what, got)
		}
	}
}

// TestSecureHeaders are on every answer.
func TestSecureHeaders(t *testing.T) {
	overBoth(t, func(t *testing.T, serve serveFunc) {
		h := serve(t, &stub{}, func(o *Options) { o.TrustForwarded = true })
		secure := strings.HasPrefix(h.url, "https:")
		client := *h.client
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, c := range []struct {
			method, path, host, proto string
			status                    int
			hsts                      bool
		}{
			{"GET", "/v2/user", "api.example.com", "", 200, secure},
			{"GET", "/nowhere", "api.example.com", "", 404, secure},
			{"GET", "//v2/user", "api.example.com", "", 307, secure}, // by http.ServeMux
			{"PUT", "/v2/user", "api.example.com", "", 405, secure},
			{"GET", "/openapi.json", "api.example.com", "", 200, secure},
			{"GET", "/v2/user", "api.example.com", "https", 200, true},
			{"GET", "/v2/user", "api.example.com", "http", 200, secure},
			{"GET", "/v2/user", "localhost:7700", "https", 200, false},
			{"GET", "/v2/user", "", "https", 200, false},
		} {
			req := h.request(c.method, c.path, "")
			req.Host = cmp.Or(c.host, req.URL.Host)
			if c.proto != "" {
				req.Header.Set("X-Forwarded-Proto", c.proto)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("%+v: %d", c, resp.StatusCode)
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
				"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cross-Origin-Resource-Policy": "same-origin",
				"Strict-Transport-Security": map[bool]string{true: "max-age=31536000"}[c.hsts], "Access-Control-Allow-Origin": "", "Vary": "",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%+v: %s: %q, want %q", c, name, got, want)
				}
			}
		}
	})
}

// TestLongURLs: what is as long as it may be is taken.
func TestLongURLs(t *testing.T) {
	h := serve(t, &stub{})
	for _, path := range []string{"/v2/user?x=", "/api/v2/user?x=", "/health?x=", "/nowhere/"} {
		long := path + strings.Repeat("x", maxURL-len(path))
		if a := h.call("GET", long, ""); a.status == 400 {
			t.Errorf("%s… of %d bytes: %d %s", path, len(long), a.status, a.body)
		}
		if a := h.call("GET", long+"x", ""); a.status != 400 || !strings.Contains(a.error(t).Message, "16384 bytes") {
			t.Errorf("%s… of %d bytes: %d %s", path, len(long)+1, a.status, a.body)
		}
	}
	most := "/v2/sandboxes?" + strings.Repeat("x=&", maxQueryParams-1) + "x"
	if a := h.call("GET", most, ""); a.status != 200 {
		t.Errorf("%d parameters: %d %s", maxQueryParams, a.status, a.body)
	}
	if a := h.call("GET", most+"&x", ""); a.status != 400 || !strings.Contains(a.error(t).Message, "128 parameters") {
		t.Errorf("%d parameters: %d %s", maxQueryParams+1, a.status, a.body)
	}
}
