package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// apiPrefix is the second place where every route is served: the public
// clients put it before every path.
const apiPrefix = "/api"

// Defaults of Options.
const (
	// DefaultMaxUpload is how many bytes one fs/write may unpack to.
	DefaultMaxUpload = 10 << 30
	// DefaultStallTimeout is how long a client may take neither what it is
	// sent nor send what it announced. A command that prints nothing is not
	// a stalled client.
	DefaultStallTimeout = 10 * time.Minute
)

// Options is what a Server is made of.
type Options struct {
	Service  Service  // required
	Accounts Accounts // required
	// Log gets failures, and every request at debug level. Required.
	Log *slog.Logger
	// PublicURL is how clients reach the server, such as
	// "https://sandbox.example.com"; by default what their requests say.
	PublicURL string
	// TrustForwarded takes X-Forwarded-Proto and -Host at their word, for a
	// server that only a proxy can reach.
	TrustForwarded bool
	// MaxUpload is DefaultMaxUpload when zero, StallTimeout
	// DefaultStallTimeout.
	MaxUpload    int64
	StallTimeout time.Duration
	// Version of the server, for the OpenAPI document.
	Version string
	// Discovery, if set, serves /.well-known/jwks and
	// /.well-known/openid-configuration, to everybody.
	Discovery http.Handler
}

// Server serves the API. It is an http.Handler; Serve runs it on a listener
// with the limits that a server open to strangers needs.
type Server struct {
	service        Service
	discovery      http.Handler
	accounts       Accounts
	log            *slog.Logger
	publicURL      *url.URL
	trustForwarded bool
	maxUpload      int64
	stall          time.Duration
	bodyTimeout    time.Duration // the constant, but in tests
	strayTimeout   time.Duration // the constant, but in tests

	mux      *http.ServeMux
	document []byte
	tickets  ticketOffice
	open     openCalls

	// draining ends the streams and terminals, which could otherwise keep a
	// server that is asked to end for hours.
	draining context.Context
	drain    context.CancelFunc
	// terminals counts the WebSockets, which http.Server forgets.
	terminals sync.WaitGroup
}

// New returns a server over the given service.
func New(o Options) (*Server, error) {
	if o.Service == nil || o.Accounts == nil || o.Log == nil {
		return nil, errors.New("api: Service, Accounts and Log are required")
	}
	s := &Server{
		service: o.Service, discovery: o.Discovery, accounts: o.Accounts, log: o.Log,
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
	if o.PublicURL != "" {
		u, err := url.Parse(o.PublicURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("api: the public URL %q is not an http or https URL", o.PublicURL)
		}
		s.publicURL = u
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	routes := s.routes()
	document, err := describe(routes, o.Version, s.maxUpload)
	if err != nil {
		return nil, fmt.Errorf("describing the API: %w", err)
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

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mux.ServeHTTP(w, r)
}

// Limits of the HTTP server itself.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	// shutdownGrace is what calls in progress get to finish once the server
	// was asked to end.
	shutdownGrace = 10 * time.Second
)

// Serve answers requests from ln until ctx ends, then lets those in progress
// finish for ten seconds; streams and terminals are ended at once. It returns
// nil when it ended because ctx did.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	hs := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	go func() { stopped <- hs.Serve(ln) }()
	select {
	case err := <-stopped:
		s.drain()
		s.terminals.Wait()
		return fmt.Errorf("serving the API: %w", err)
	case <-ctx.Done():
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

// handler wraps a route's handler in what every request goes through.
func (s *Server) handler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		c := &call{
			w: newResponse(w, s.stall), r: r, srv: s,
			requestID: skerry.NewID("req_"),
		}
		c.log = s.log.With("request", c.requestID, "method", r.Method, "route", rt.path)
		h := w.Header()
		h.Set("X-Request-Id", c.requestID)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if r.ProtoMajor == 1 {
			// What is left in a connection's buffer goes out after the
			// handler; the next request on it starts without a deadline.
			_ = c.w.deadline(time.Time{})
			defer func() { _ = c.w.deadline(time.Now().Add(s.stall)) }()
		}
		if r.Body != nil && r.Body != http.NoBody {
			// Holds unless the handler reads the body, under a deadline
			// of its own: without it a client that has no token could
			// keep a connection for ever by announcing a body.
			c.w.readWithin(s.strayTimeout)
		}
		defer func() { s.logAccess(c, rt, started) }()
		defer c.recover()
		if err := s.dispatch(c, rt); err != nil {
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
			return skerry.Invalid("", "the query is malformed")
		}
		if err := c.checkScope(q); err != nil {
			return err
		}
	}
	for _, name := range rt.pathNames() {
		if v := c.path(name); !validText(v) || len(v) > skerry.MaxNameLength {
			return skerry.Invalid(name, "is not valid or longer than %d bytes", skerry.MaxNameLength)
		}
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
	if skerry.CodeOf(err) == skerry.CodeUnauthorized {
		return unauthorized
	}
	if err != nil {
		return fmt.Errorf("authenticating: %w", err)
	}
	c.identity, c.scope = id, id.Scope()
	return nil
}

// fail answers with an error, or cuts the connection when the answer has begun
// and cannot be taken back.
func (c *call) fail(err error) {
	if c.w.begun() {
		logFailure(c.r.Context(), c.log, err, http.StatusInternalServerError)
		panic(http.ErrAbortHandler)
	}
	writeError(c.r.Context(), c.w, c.log, c.requestID, err)
}

// recover turns a panic into an internal error. http.ErrAbortHandler is how a
// handler cuts a connection, and goes on to http.Server.
func (c *call) recover() {
	switch p := recover(); {
	case p == nil:
	case p == http.ErrAbortHandler:
		panic(p)
	default:
		c.fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
}

// logAccess never names the query, which may hold a terminal's token.
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

// noRoute answers what no route matches.
func (s *Server) noRoute(c *call) error {
	path := strings.TrimPrefix(c.r.URL.Path, apiPrefix)
	for prefix, what := range unbuiltTrees {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return skerry.NotImplemented("", what)
		}
	}
	var allowed []string
	probe := *c.r
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe.Method = method
		_, pattern := s.mux.Handler(&probe)
		if pattern != "/" && pattern != "" && !strings.HasSuffix(pattern, anyAction) {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		return skerry.Errorf(skerry.CodeNotFound, "this server has no such endpoint; it speaks versions 2 and 3 of the API")
	}
	c.w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeJSON(c.w, http.StatusMethodNotAllowed, errorResponse{Error: errorBody{
		Code: skerry.CodeBadRequest, Message: "this endpoint takes " + strings.Join(allowed, ", "),
	}})
	return nil
}
