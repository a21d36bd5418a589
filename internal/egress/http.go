package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry/internal/cgivar"
	"github.com/skerry-dev/skerry/internal/egress/policy"
)

const (
	maxHeaderBytes  = 64 << 10
	maxAnswerHeader = 256 << 10
	maxStreams      = 250
	copyBuffer      = 64 << 10
)

type connKey struct{}

// newServer returns the server of all requests that are judged one by one. It
// is a whole HTTP implementation on purpose: what goes upstream is written anew
// from what was understood, so that nobody further on understands a request
// differently (smuggling).
func (p *Proxy) newServer() *http.Server {
	s := &http.Server{
		Handler:           http.HandlerFunc(p.serveHTTP),
		ReadHeaderTimeout: p.cfg.Limits.Hello,
		IdleTimeout:       p.cfg.Limits.KeepAlive,
		MaxHeaderBytes:    maxHeaderBytes,
		// Clients of a hostile sandbox break every rule; that is no news.
		ErrorLog:  log.New(io.Discard, "", 0),
		Protocols: new(http.Protocols),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
		DisableGeneralOptionsHandler: true,
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	return s
}

// newTransport makes upstream connections for one from a sandbox. first may be
// one that is there already.
func (p *Proxy) newTransport(c *conn, first *tls.Conn, alpn []string) *http.Transport {
	f := &once{conn: first}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return p.connectHost(ctx, c, addr)
		},
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if conn := f.take(); conn != nil {
				return conn, nil
			}
			ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.Connect)
			defer cancel()
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			conn, err := p.dialTLS(ctx, c, host, alpn)
			if err != nil { // not a nil *tls.Conn in an interface
				return nil, err
			}
			return conn, nil
		},
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
		MaxIdleConns:       maxUpstreams / 2,
		// Requests beyond wait: many streams to a site that has no HTTP/2.
		MaxConnsPerHost:        maxUpstreams - 2,
		IdleConnTimeout:        keepAlive,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
	return t
}

func (p *Proxy) connectHost(ctx context.Context, c *conn, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limits.Connect)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	up, err := p.connect(ctx, c, host)
	if err != nil {
		return nil, err
	}
	return up, nil
}

// exchange is one request and its answer.
type exchange struct {
	p       *Proxy
	c       *conn
	name    string
	tls     bool
	sandbox Sandbox
	action  *policy.Action
	in, out atomic.Int64
}

func (p *Proxy) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	x := &exchange{p: p, c: c, tls: r.TLS != nil}
	name, reason := x.judgeHost(r)
	if reason != "" {
		x.refuse(w, http.StatusMisdirectedRequest, reason, "the request is for another host or port than the connection")
		return
	}
	x.name = name
	var site *policy.Site
	if site, x.sandbox = c.beginRequest(name); site == nil {
		x.refuse(w, http.StatusForbidden, reasonDomain, "the sandbox's network policy does not allow "+name)
		return
	}
	defer c.endRequest(name)
	switch {
	case r.Method == http.MethodConnect:
		x.refuse(w, http.StatusMethodNotAllowed, reasonMethod, "CONNECT is for proxies that were asked for")
		return
	case site.Echoes(r.Method):
		x.refuse(w, http.StatusMethodNotAllowed, reasonMethod, "with "+r.Method+" a server would show the headers that a rule sets")
		return
	}
	r.Header.Del("Host") // HTTP/2 lets through a second one
	for _, name := range site.Overrides() {
		dropAliases(r.Header, name)
	}
	var ok bool
	if x.action, ok = c.box.choose(site, r); !ok {
		x.refuse(w, http.StatusBadRequest, reasonPath, `servers may understand the path or the query differently ("//", ";", "\\", "..", "%2F" and the like), and a rule depends on it`)
		return
	}
	if x.forwards() {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer c.forwarding(x, cancel)()
		r = r.WithContext(ctx)
	}
	x.serve(w, r)
}

// judgeHost returns the name that a request is for.
func (x *exchange) judgeHost(r *http.Request) (name, reason string) {
	host, want, scheme := r.Host, "80", "http"
	if x.tls {
		want, scheme = "443", "https"
	}
	if h, port, err := net.SplitHostPort(r.Host); err == nil {
		if port != want {
			return "", reasonHost
		}
		host = h
	}
	if r.URL.Scheme != "" && !strings.EqualFold(r.URL.Scheme, scheme) {
		return "", reasonHost
	}
	name, err := policy.Normalize(host)
	if err != nil {
		return "", reasonBadName
	}
	if x.tls && !x.c.isFor(name) {
		return "", reasonHost
	}
	return name, ""
}

// isFor reports whether a connection's one name is this.
func (c *conn) isFor(name string) bool { return c.serverName == name }

func (x *exchange) event(allowed bool, reason string) Event {
	protocol := ProtocolHTTP
	if x.tls {
		protocol = ProtocolHTTPS
	}
	return Event{Allowed: allowed, Protocol: protocol, Reason: reason, Domain: x.name, Destination: x.c.dest}
}

func (x *exchange) refuse(w http.ResponseWriter, code int, reason, text string) {
	w.Header().Set("Connection", "close")
	plainText(w, code, text)
	x.c.box.tell(x.event(false, reason))
}

func plainText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	fmt.Fprintf(w, "egress: %s\n", text)
}

func (x *exchange) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	e := x.event(true, reasonDomain)
	switch a := x.action; {
	case a == nil:
	case a.SetHeaders != nil && !x.tls:
		e.Reason = reasonPlain
	default:
		e.Reason = reasonRule
	}
	x.c.box.tell(e)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = countedBody{r.Body, &x.out, x.c}
	}
	defer func() { // also when the copying was broken off, which is a panic
		e.End, e.BytesIn, e.BytesOut, e.Duration = true, x.in.Load(), x.out.Load(), time.Since(start)
		x.c.box.tell(e)
	}()
	if a := x.action; a != nil && a.Response != nil {
		x.respond(w, a.Response)
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		// Such as h2c, in which later requests would be seen by nobody.
		r.Header.Del("Upgrade")
	}
	r.Header.Del("Http2-Settings")
	proxy := &httputil.ReverseProxy{
		Rewrite:       x.rewrite,
		Transport:     x.transport(),
		FlushInterval: -1,
		BufferPool:    &buffers,
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler:  x.failed,
	}
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.ContentLength == 0 {
			// Flushed before the end, the headers of HTTP/2 do not say that they
			// are all, and gRPC does not take the status in them for its end.
			proxy.FlushInterval = 0
		}
		return x.count(r)
	}
	proxy.ServeHTTP(w, r)
}

func (x *exchange) respond(w http.ResponseWriter, a *policy.Response) {
	for k, v := range a.Headers {
		w.Header().Set(k, v)
	}
	if a.ContentType != "" {
		w.Header().Set("Content-Type", a.ContentType)
	}
	w.WriteHeader(a.StatusCode)
	n, _ := io.WriteString(w, a.Body)
	x.in.Add(int64(n))
}

func (x *exchange) forwards() bool { return x.action != nil && x.action.ForwardURL != nil }

func (x *exchange) transport() http.RoundTripper {
	if x.forwards() {
		return forwarder{x}
	}
	return x.c.transport
}

// kept are the headers that ReverseProxy takes away as a proxy that hides
// itself must not.
var kept = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	for _, k := range kept {
		if v := pr.In.Header[k]; v != nil {
			pr.Out.Header[k] = v
		}
	}
	pr.Out.Trailer = pr.In.Trailer // filled when the body has ended
	if x.forwards() {
		return // see forwarder, which can fail
	}
	pr.Out.URL = x.target(pr.In.URL)
	// As it was sent, but for a port that says nothing.
	pr.Out.Host = x.name
	if x.action != nil && x.tls {
		for k, v := range x.action.SetHeaders {
			dropAliases(pr.Out.Header, k)
			dropAliases(pr.Out.Trailer, k) // that it will come
			pr.Out.Header[k] = []string{v}
		}
		if len(x.action.SetHeaders) > 0 && pr.Out.Trailer != nil {
			pr.Out.Body = trailerGuard{pr.Out.Body, pr.Out.Trailer, x.action.SetHeaders}
		}
	}
}

// trailerGuard keeps what a rule sets out of a request's trailer, which some servers
// add to the headers. The trailer is there when the body has ended.
type trailerGuard struct {
	io.ReadCloser
	trailer http.Header
	set     map[string]string
}

func (g trailerGuard) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if err != nil {
		for k := range g.set {
			dropAliases(g.trailer, k)
		}
	}
	return n, err
}

// dropAliases removes a header, whichever way a server may understand its name.
func dropAliases(h http.Header, name string) {
	for k := range h {
		if cgivar.Same(k, name) {
			delete(h, k)
		}
	}
}

// target is where a request goes by itself.
func (x *exchange) target(in *url.URL) *url.URL {
	u := &url.URL{Scheme: "http", Host: x.name, Path: in.Path, RawPath: in.RawPath, RawQuery: in.RawQuery, ForceQuery: in.ForceQuery}
	if x.tls {
		u.Scheme = "https"
	}
	return u
}

// count counts the body of an answer, or both ways of an upgraded connection.
func (x *exchange) count(r *http.Response) error {
	if upgraded, ok := r.Body.(io.ReadWriteCloser); ok && r.StatusCode == http.StatusSwitchingProtocols {
		r.Body = countedStream{upgraded, &x.in, &x.out}
	} else {
		r.Body = countedBody{r.Body, &x.in, x.c}
	}
	return nil
}

type countedStream struct {
	io.ReadWriteCloser
	in, out *atomic.Int64
}

func (s countedStream) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.in.Add(int64(n))
	return n, err
}

func (s countedStream) Write(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Write(p)
	s.out.Add(int64(n))
	return n, err
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
	c *conn
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

func (x *exchange) failed(w http.ResponseWriter, r *http.Request, err error) {
	x.p.cfg.Log.Debug("a sandbox's request failed", "sandbox", x.sandbox.ID, "domain", x.name, "error", err)
	text := x.name + " could not be reached"
	switch reason := reasonOf(err); {
	case x.forwards():
		text = "the request could not be forwarded"
	case reason == reasonCertificate:
		text = "the certificate of " + x.name + " is not valid"
	case errors.As(err, new(*forbiddenError)):
		x.c.box.tell(x.event(false, reason))
		text = "every address of " + x.name + " is a " + reason
	}
	plainText(w, http.StatusBadGateway, text)
}

// buffers are for copying bodies.
var buffers = bufferPool{sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}}

type bufferPool struct{ p sync.Pool }

func (b *bufferPool) Get() []byte  { return *b.p.Get().(*[]byte) }
func (b *bufferPool) Put(s []byte) { b.p.Put(&s) }
