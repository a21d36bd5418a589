package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/share"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// apiPrefix is a prefix under which every route is served too. The public clients put
// it before every path.
const apiPrefix = "/api"

// Defaults of Options.
const (
	// DefaultMaxUpload is the maximum unpacked size of an upload.
	DefaultMaxUpload = 10 << 30
	// DefaultStallTimeout is how long a client may read nothing of what is sent, or send
	// nothing of the body that it announced. A command without output does not count.
	DefaultStallTimeout = 10 * time.Minute
)

// Options are the options of a Server.
type Options struct {
	Service  Service  // required
	Accounts Accounts // required
	// Log gets errors, and every request at debug level. Required.
	Log *slog.Logger
	// PublicURL is the URL by which clients reach the server, such as
	// "https://sandbox.example.com". By default it is taken from their requests.
	PublicURL string
	// TrustForwarded uses X-Forwarded-Proto and X-Forwarded-Host. Set it only if clients
	// cannot reach the server except through a proxy.
	TrustForwarded bool
	// Loopback says that the server listens at a loopback address. Without a PublicURL
	// it then refuses requests whose host is not a loopback name (DNS rebinding).
	Loopback bool
	// AllowedHosts are names and addresses of the server besides that of PublicURL and
	// the loopback ones. With either, requests by other hosts are refused.
	AllowedHosts []string
	// CORSOrigins are the origins whose pages may use the API with a token.
	CORSOrigins []string
	// MaxUpload and StallTimeout default to DefaultMaxUpload and DefaultStallTimeout.
	MaxUpload    int64
	StallTimeout time.Duration
	// Heartbeat is the interval of heartbeats in a response that waits;
	// DefaultHeartbeat by default.
	Heartbeat time.Duration
	// MaxOpen limits the open streams, terminals and transfers; DefaultMaxOpen by
	// default.
	MaxOpen int
	// Limits are the limits of the installation, for the OpenAPI document. The Service
	// enforces them.
	Limits skerry.Limits
	// Version is the version of the server, for the OpenAPI document.
	Version string
	// Observe, if set, is told of each request: its operation, the status of the
	// response, the code of its error ("" without one), and how long it took.
	Observe func(operation string, status int, code skerry.Code, took time.Duration)
	// Tracer makes a trace of each request; nil for none.
	Tracer *tracing.Tracer
	// Audit, if set, gets a record of each change, of each call that shows the content of
	// a sandbox, and of each refused one. AuditReads records other calls too.
	// AuditRequired refuses changes while the log cannot be written.
	Audit                     Audit
	AuditReads, AuditRequired bool
	// Discovery, if set, serves /.well-known/jwks and
	// /.well-known/openid-configuration, without authentication.
	Discovery http.Handler
}

// Server serves the API. It is an http.Handler. Serve runs it on a listener, with the
// limits that a public server needs.
type Server struct {
	service        Service
	discovery      http.Handler
	observe        func(operation string, status int, code skerry.Code, took time.Duration)
	tracer         *tracing.Tracer
	audit          Audit
	auditReads     bool
	auditRequired  bool
	auditNames     sessionNames
	accounts       Accounts
	log            *slog.Logger
	publicURL      *url.URL
	door           *door
	trustForwarded bool
	maxUpload      int64
	stall          time.Duration
	heartbeat      time.Duration
	bodyTimeout    time.Duration // the constant, except in tests
	strayTimeout   time.Duration // the constant, except in tests

	mux      *http.ServeMux
	document []byte
	tickets  ticketOffice
	requests share.Rates[string]
	open     *openCalls

	// draining ends the streams and terminals when the server stops. They could take
	// hours.
	draining context.Context
	drain    context.CancelFunc
	// terminals counts the WebSockets, which http.Server does not track.
	terminals sync.WaitGroup
}

// New returns a server for a service.
func New(o Options) (*Server, error) {
	if o.Service == nil || o.Accounts == nil || o.Log == nil {
		return nil, errors.New("api: Service, Accounts and Log are required")
	}
	s := &Server{
		service: o.Service, discovery: o.Discovery, observe: o.Observe, tracer: o.Tracer, accounts: o.Accounts, log: o.Log,
		audit: o.Audit, auditReads: o.AuditReads, auditRequired: o.AuditRequired,
		trustForwarded: o.TrustForwarded, maxUpload: o.MaxUpload, stall: o.StallTimeout,
		bodyTimeout: bodyTimeout, strayTimeout: strayTimeout,
		mux: http.NewServeMux(),
	}
	if s.maxUpload == 0 {
		s.maxUpload = DefaultMaxUpload
	}
	if s.stall == 0 {
		s.stall = DefaultStallTimeout
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = DefaultMaxOpen
	}
	s.open = newOpenCalls(o.Accounts, o.Log, o.MaxOpen)
	if s.heartbeat = o.Heartbeat; s.heartbeat <= 0 {
		s.heartbeat = DefaultHeartbeat
	}
	if o.PublicURL != "" {
		u, err := url.Parse(o.PublicURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("api: the public URL %q is not an http or https URL", o.PublicURL)
		}
		s.publicURL = u
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	routes := s.routes()
	var err error
	if s.door, err = newDoor(&o, s.publicURL, routes); err != nil {
		return nil, err
	}
	document, err := describe(routes, o.Version, s.maxUpload, o.MaxOpen, s.heartbeat, o.Limits)
	if err != nil {
		return nil, fmt.Errorf("generate the OpenAPI document: %w", err)
	}
	s.document = document
	for _, rt := range routes {
		h := s.handler(rt)
		s.mux.Handle(rt.method+" "+rt.muxPath(), h)
		s.mux.Handle(rt.method+" "+apiPrefix+rt.muxPath(), h)
	}
	s.mux.Handle("/", s.handler(route{path: "(none)", public: true, handle: s.noRoute}))
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.setHeaders(w.Header(), r)
	s.mux.ServeHTTP(w, r)
}

// Limits of the HTTP server itself.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	// shutdownGrace is the time that calls in progress have when the server stops.
	shutdownGrace = 10 * time.Second
	// lastWords is the time for clients that follow a command to ask for its end, after
	// the sandboxes have stopped.
	lastWords = time.Second
)

// Serve serves requests from ln until ctx ends. Then requests in progress have ten
// seconds to finish. Streams and terminals are closed at once, except those of ended
// sessions, which end by themselves. Serve returns nil if it ended because ctx did.
//
// If before is not nil, it is called when ctx has ended. It stops the sandboxes, and
// reports whether it did. All requests are served meanwhile.
func (s *Server) Serve(ctx context.Context, ln net.Listener, before func() (stopped bool)) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	hs := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             s.http2(),
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	followConnections(hs)
	stopped := make(chan error, 1)
	go func() { stopped <- hs.Serve(ln) }()
	select {
	case err := <-stopped:
		s.drain()
		s.terminals.Wait()
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	followed := s.open.any()
	if before != nil && before() && followed {
		select {
		case <-time.After(lastWords):
		case err := <-stopped:
			stopped <- err
		}
	}
	s.drain()
	grace, done := context.WithTimeout(base, shutdownGrace)
	defer done()
	if err := hs.Shutdown(grace); err != nil {
		cancel()
		if err := hs.Close(); err != nil {
			s.log.Debug("closing connections", "err", err)
		}
	}
	<-stopped
	s.terminals.Wait()
	return nil
}

// handler wraps the handler of a route with the steps of every request.
func (s *Server) handler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		c := &call{
			w: newResponse(w, s.stall), r: r, srv: s,
			requestID: skerry.NewID("req_"),
		}
		c.log = s.log.With("request", c.requestID, "method", r.Method, "route", rt.path)
		defer s.trace(c, rt)()
		w.Header().Set("X-Request-Id", c.requestID)
		if r.ProtoMajor == 1 {
			// net/http flushes its buffer after the handler. The next request on the
			// connection starts without a deadline.
			_ = c.w.deadline(time.Time{})
			defer func() { _ = c.w.deadline(time.Now().Add(s.stall)) }()
		}
		if r.Body != nil && r.Body != http.NoBody {
			// The deadline is for bodies that no handler reads. Without it, a client
			// without a token could keep a connection open for ever by announcing a
			// body.
			c.w.readWithin(s.strayTimeout)
		}
		defer func() { s.logAccess(c, rt, started) }()
		c.act = s.newAct(c, &rt, started)
		defer c.act.end()
		if s.observe != nil {
			defer func() { s.observe(cmp.Or(rt.id, "none"), c.w.status, c.code, time.Since(started)) }()
		}
		defer c.w.quiet()
		defer c.recover()
		if err := s.receive(c, rt); err != nil {
			c.fail(err)
		}
	})
}

func (s *Server) dispatch(c *call, rt route) error {
	if !rt.public {
		if err := s.authenticate(c); err != nil {
			return err
		}
		q, err := url.ParseQuery(c.r.URL.RawQuery)
		if err != nil {
			return skerry.Invalid("", "the query string is not valid")
		}
		if err := c.enter(&rt, q); err != nil {
			return err
		}
		if err := c.count(); err != nil {
			return err
		}
	}
	if rt.shadowed(c) {
		return s.noRoute(c)
	}
	for _, name := range rt.pathNames() {
		if v := c.path(name); !validText(v) || utf8.RuneCountInString(v) > skerry.MaxNameLength {
			return skerry.Invalid(name, "must be valid UTF-8 without NUL characters, and have at most %d characters", skerry.MaxNameLength)
		}
	}
	if err := c.act.admit(); err != nil {
		return err
	}
	if rt.answersDocument() {
		first := patience * s.heartbeat
		if c.r.Header.Get(headerHeartbeat) != "" {
			first = s.heartbeat
		}
		c.w.beatDocument(first, s.heartbeat)
	}
	return rt.handle(c)
}

func (s *Server) authenticate(c *call) error {
	unauthorized := skerry.Errorf(skerry.CodeUnauthorized, "the access token is missing or not valid")
	scheme, token, ok := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return unauthorized
	}
	id, err := s.accounts.Authenticate(c.r.Context(), strings.TrimSpace(token))
	if err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	c.identity = id
	introduced(c.r.Context())
	return nil
}

// trace begins the span of a request. The function that it returns ends it.
func (s *Server) trace(c *call, rt route) (end func()) {
	ctx, span := s.tracer.Request(c.r.Context(), cmp.Or(rt.id, "none"), c.r.Header.Get(tracing.Header))
	if span == (tracing.Span{}) {
		return func() {}
	}
	span.Request(c.requestID, c.r.Method, rt.path)
	c.span, c.r = span, c.r.WithContext(ctx)
	return func() {
		span.Status(c.w.status)
		if c.code != "" {
			span.Failed(c.code)
		}
		span.End(nil)
	}
}

// codeCanceled is what Options.Observe is told of a request whose client has gone.
const codeCanceled = "canceled"

// fail sends an error, or cuts the connection if the response has begun. After a
// heartbeat, the body of the error has its status.
func (c *call) fail(err error) {
	c.w.quiet()
	if c.code = skerry.CodeOf(err); c.r.Context().Err() != nil {
		c.code = codeCanceled
	}
	if c.w.begun() {
		logFailure(c.r.Context(), c.log, err, http.StatusInternalServerError)
		panic(http.ErrAbortHandler)
	}
	writeError(c.r.Context(), c.w, c.log, c.requestID, err)
}

// recover turns a panic into an internal error. A handler cuts the connection by
// http.ErrAbortHandler, which is passed on to http.Server.
func (c *call) recover() {
	switch p := recover(); {
	case p == nil:
	case p == http.ErrAbortHandler:
		panic(p)
	default:
		c.fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
}

// logAccess logs a request. It leaves out the query, which may contain the token of a
// terminal.
func (s *Server) logAccess(c *call, rt route, started time.Time) {
	ctx := context.WithoutCancel(c.r.Context())
	if !s.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.Int("status", c.w.status),
		slog.Int64("bytes", c.w.bytes),
		slog.Duration("duration", time.Since(started)),
	}
	for _, name := range rt.pathNames() {
		attrs = append(attrs, slog.String(name, shorten(c.path(name))))
	}
	if c.identity != nil {
		attrs = append(attrs, slog.String("project", c.scope.ProjectID), slog.String("token", c.identity.TokenID))
	}
	c.log.LogAttrs(ctx, slog.LevelDebug, "request", attrs...)
}

// noRoute answers requests that no route matches.
func (s *Server) noRoute(c *call) error {
	path := strings.TrimPrefix(c.r.URL.Path, apiPrefix)
	allowed := s.allowed(c.r)
	// TRACE is never supported: its response would show credentials.
	if len(allowed) == 0 && c.r.Method != http.MethodTrace {
		for prefix, what := range unbuiltTrees {
			if path == prefix || strings.HasPrefix(path, prefix+"/") {
				return skerry.NotImplemented("", what)
			}
		}
		return skerry.Errorf(skerry.CodeNotFound, "there is no such endpoint; this server implements versions 2 and 3 of the API")
	}
	c.w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeJSON(c.w, http.StatusMethodNotAllowed, errorResponse{Error: errorBody{
		Code: skerry.CodeBadRequest, Message: "this endpoint takes " + cmp.Or(strings.Join(allowed, ", "), "no such method"),
	}})
	return nil
}

// allowed returns the methods that the path of a request supports. Of several patterns
// that match, the one with the fewest names is used.
func (s *Server) allowed(r *http.Request) []string {
	var methods []string
	fewest := math.MaxInt
	probe := *r
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe.Method = method
		_, pattern := s.mux.Handler(&probe)
		if pattern == "/" || pattern == "" || strings.HasSuffix(pattern, anyAction) && !strings.HasSuffix(r.URL.Path, "/fork") {
			continue
		}
		switch names := strings.Count(pattern, "{"); {
		case names < fewest:
			methods, fewest = []string{method}, names
		case names == fewest:
			methods = append(methods, method)
		}
	}
	return methods
}

// shadowed reports whether the name in a request's path is a word of another route.
func (rt *route) shadowed(c *call) bool {
	switch {
	case rt.path == sandboxPath:
		return slices.Contains(skerry.ReservedNames, c.path("name"))
	case rt.path == snapshotsPath+"/{snapshot}":
		return c.path("snapshot") == "tree"
	}
	return false
}
