package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/skerry-dev/skerry"
)

// Limits of the connections to clients and to sandboxes.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
	// maxAnswerHeader bounds what a sandbox sends before a body.
	maxAnswerHeader = 256 << 10
	// answerTimeout is how long a sandbox may think before it answers.
	answerTimeout = 10 * time.Minute
	// keepIdle is how long a connection to a sandbox is kept for the next
	// request: less than servers do, Node.js closes after 5 seconds, as a request
	// that meets a close is lost.
	keepIdle    = 4 * time.Second
	maxIdle     = 1024
	maxIdleEach = 64
	// maxStreams is how many requests an HTTP/2 connection has at once.
	maxStreams = 128
	// startRest is how long requests do not start a sandbox again that has just
	// failed to start.
	startRest = 3 * time.Second
)

func (i *Ingress) newServer() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(i.handle),
		ReadHeaderTimeout: i.cfg.readHeaderTimeout,
		IdleTimeout:       i.cfg.idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		BaseContext:       func(net.Listener) context.Context { return i.ctx },
		ConnContext:       withConn,
		ConnState:         closeSpent,
		ErrorLog:          slog.NewLogLogger(i.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// serve serves a listener until that is closed.
func (i *Ingress) serve(ln net.Listener) {
	if err := i.server.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		i.cfg.Log.Error("the ingress has stopped listening", "address", ln.Addr().String(), "error", err)
	}
}

type connKey struct{}

// withConn has requests know by which connection they came.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if cc := counted(c); cc != nil {
		return context.WithValue(ctx, connKey{}, cc)
	}
	return ctx
}

func counted(c net.Conn) *clientConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	cc, _ := c.(*clientConn)
	return cc
}

func connOf(r *http.Request) *clientConn {
	cc, _ := r.Context().Value(connKey{}).(*clientConn)
	return cc
}

// closeSpent ends a connection that is to take no further request.
func closeSpent(c net.Conn, state http.ConnState) {
	if cc := counted(c); state == http.StateIdle && cc != nil && cc.spent.Load() {
		_ = c.Close()
	}
}

// routeOf finds whose request it is, nil if nobody's.
func (i *Ingress) routeOf(r *http.Request) *route {
	if i.cfg.Domain == "" {
		cc := connOf(r)
		if cc == nil || cc.of.place == nil {
			return nil
		}
		return cc.of.place.route.Load()
	}
	name, ok := subdomainOf(r.Host, i.cfg.Domain)
	if !ok {
		return nil
	}
	return i.routeBySubdomain(name)
}

// handle answers one request.
func (i *Ingress) handle(w http.ResponseWriter, r *http.Request) {
	if cc := connOf(r); cc != nil && cc.spent.Load() {
		panic(http.ErrAbortHandler) // what looks like a request is the rest of one
	}
	rt := i.routeOf(r)
	if rt == nil {
		if i.cfg.Domain == "" {
			w.Header().Set("Connection", "close") // its port is nobody's any more
		}
		i.refuse(w, r, nil, noRoute)
		return
	}
	if r.Method == http.MethodConnect {
		i.refuse(w, r, rt, noTunnels)
		return
	}
	defer rt.requests.Add(-1)
	if rt.requests.Add(1) > int64(i.cfg.RouteRequests) {
		i.refuse(w, r, rt, tooMany)
		return
	}
	if rt.Private() && !i.admit(w, r, rt) {
		return
	}
	if r.ProtoMajor == 1 && r.Body != http.NoBody {
		body := duplex(w, r)
		defer body.settle(connOf(r))
	}
	session := i.backend.Ready(rt.sandboxID)
	if session == "" {
		ctx, done := joined(r, rt)
		defer done()
		var err error
		if session, err = i.reach(ctx, rt); err != nil {
			i.refuse(w, r, rt, unreachable(err))
			return
		}
	}
	i.forward(w, r, rt, session)
}

// joined returns a context that ends with a request and with its route.
func joined(r *http.Request, rt *route) (context.Context, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(rt.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// admit lets a request to a private route through if it has a token. A page
// whose URL has one gets a cookie in its place, and is loaded again without.
func (i *Ingress) admit(w http.ResponseWriter, r *http.Request, rt *route) bool {
	tokens, inQuery := offered(r, i.cookieName(rt.PublishedPort))
	for _, token := range tokens {
		expires, ok := verifyToken(rt.Key, token, time.Now())
		if !ok {
			continue
		}
		if token != inQuery || !wantsPage(r) {
			return true
		}
		http.SetCookie(w, i.cookie(rt.PublishedPort, token, expires))
		u := *r.URL
		u.Scheme, u.Host, u.User = "http", r.Host, nil
		if r.TLS != nil {
			u.Scheme = "https"
		}
		u.RawQuery = withoutTokens(u.RawQuery)
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Location", u.String())
		w.WriteHeader(http.StatusSeeOther)
		return false
	}
	i.refuse(w, r, rt, noToken)
	return false
}

// reach returns the session that takes a route's requests.
func (i *Ingress) reach(ctx context.Context, rt *route) (string, error) {
	if f := rt.failed.Load(); f != nil && time.Now().Before(f.until) {
		return "", f.err
	}
	ctx, cancel := context.WithTimeout(ctx, i.cfg.ResumeWait)
	defer cancel()
	session, err := i.backend.Reach(ctx, rt.sandboxID, !i.cfg.NoResume)
	if err != nil && ctx.Err() == nil && skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		i.cfg.Log.Warn("a request cannot reach its sandbox", "sandbox", rt.sandboxID, "port", rt.Port, "error", err)
		rt.failed.Store(&failure{until: time.Now().Add(startRest), err: err})
	}
	return session, err
}

// failed answers a request that got no answer.
func (i *Ingress) failed(w http.ResponseWriter, r *http.Request, rt *route, err error) {
	if r.Context().Err() == nil {
		i.cfg.Log.Debug("a request failed", "sandbox", rt.sandboxID, "port", rt.Port, "error", err)
	}
	i.refuse(w, r, rt, unanswered(err))
}
