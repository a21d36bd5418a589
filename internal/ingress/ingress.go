// Package ingress is how ports of sandboxes are reached from outside: a
// reverse proxy in one of two modes.
//
// In port mode each route has a port of the machine. In domain mode all have
// one listener with TLS, and each a host name of its own below a domain.
// Either way a request goes to the sandbox that its route is of and nowhere
// else: what the client says chooses a route at the most, never an address,
// and the connection is opened by whoever holds the sandbox's network.
//
// Both sides are hostile. A client can send no headers slowly or without end,
// open so many connections that others have none, or forge what the proxy
// says of it; a sandbox can answer slowly, endlessly or never. Messages are
// parsed by net/http and written anew on both sides, so neither can smuggle
// one past the proxy.
//
// Requests are written to sandboxes by this package (head.go, exchange.go) and
// not by httputil.ReverseProxy: see BenchmarkProxy and bench/ingress for what
// that saves. FuzzAnswers and FuzzRequests hold it to what ReverseProxy does.
package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/share"
)

// Backend is where requests go.
type Backend interface {
	// Ready returns the session that takes a sandbox's requests at once, "" if
	// there is none.
	Ready(sandboxID string) (sessionID string)
	// Reach returns the session that takes a sandbox's requests. With resume it
	// starts one, if the sandbox is one that is started again, and waits.
	Reach(ctx context.Context, sandboxID string, resume bool) (sessionID string, err error)
	// Dial connects to a port of a session for a client. That nothing listens
	// there is CodeUnavailable. A connection of which a client may have only some
	// is a Chargeable.
	Dial(ctx context.Context, sessionID string, port int, client netip.Addr) (net.Conn, error)
}

// Config says how routes are reached. Zero fields mean the defaults.
type Config struct {
	Log *slog.Logger
	// Address is what is listened at in port mode; FirstPort and LastPort are
	// the ports that routes get.
	Address             string
	FirstPort, LastPort int
	// Host is what URLs name in port mode; empty is Address.
	Host string
	// Domain turns on domain mode: routes are at SUBDOMAIN.Domain.
	Domain string
	// Listener is listened at in domain mode. URLPort is the port in URLs; 0 is
	// the listener's own.
	Listener net.Listener
	URLPort  int
	// TLS has the certificates, in domain mode.
	TLS *tls.Config
	// NoResume has requests to stopped sandboxes fail.
	NoResume bool
	// RewriteHost has sandboxes see localhost and the route's port as the Host:
	// development servers refuse names that they do not know.
	RewriteHost bool
	// ResumeWait bounds how long a request waits for a sandbox to start.
	ResumeWait time.Duration
	// MaxConnections bounds the connections of clients, RouteConnections those
	// to one route in port mode; a route, or in domain mode a client's address,
	// gets more only while four times as many as it has are free. RouteRequests bounds the requests of one route that
	// are under way.
	MaxConnections, RouteConnections, RouteRequests int

	// The times of proxy.go, and closeGrace, which tests shorten.
	readHeaderTimeout, idleTimeout, answerTimeout, keepIdle, closeGrace time.Duration
}

// Defaults of Config.
const (
	DefaultAddress   = "127.0.0.1"
	DefaultFirstPort = 20000
	DefaultLastPort  = 29999 // below what Linux takes for outgoing connections

	DefaultResumeWait       = time.Minute
	DefaultMaxConnections   = 16384
	DefaultRouteConnections = 2048
	DefaultRouteRequests    = 1024
)

// Ingress has the routes.
type Ingress struct {
	cfg     Config
	urlPort string
	server  *http.Server
	// upstreams are connections to sandboxes, for the next request.
	upstreams upstreams
	// connections are those of clients.
	connections *share.Slots[holder]

	// ctx ends when the ingress closes; work counts what ends by then.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	// ready is closed when there is a backend.
	ready   chan struct{}
	backend Backend

	mu     sync.RWMutex
	closed bool
	// routes are all, by sandbox; bySubdomain the same by name.
	routes      map[string][]*route
	bySubdomain map[string]*route
	// places are the ports of the machine that are taken, in port mode.
	places map[int]*place
}

// New returns an ingress without routes. Start lets requests in.
func New(cfg Config) (*Ingress, error) {
	cfg.fill()
	i := &Ingress{
		cfg: cfg, ready: make(chan struct{}),
		routes: map[string][]*route{}, bySubdomain: map[string]*route{}, places: map[int]*place{},
	}
	most := cfg.RouteConnections
	if cfg.Domain != "" { // one address may be many clients': those behind another proxy
		most = cfg.MaxConnections
	}
	i.connections = share.New[holder](cfg.MaxConnections, most)
	switch {
	case cfg.Log == nil:
		return nil, errors.New("ingress: no log is set")
	case cfg.Domain == "" && (cfg.FirstPort < 1 || cfg.LastPort > skerry.MaxPort || cfg.FirstPort > cfg.LastPort):
		return nil, fmt.Errorf("ingress: %d-%d is no range of ports", cfg.FirstPort, cfg.LastPort)
	case cfg.Domain != "" && (cfg.Listener == nil || cfg.TLS == nil):
		return nil, errors.New("ingress: a domain needs a listener and certificates")
	}
	if cfg.Domain != "" {
		if err := CheckDomain(cfg.Domain); err != nil {
			return nil, err
		}
		i.urlPort = i.portInURLs()
	}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	i.upstreams.keep = cfg.keepIdle
	i.upstreams.dial = func(ctx context.Context, p peer, client netip.Addr) (net.Conn, error) {
		return i.backend.Dial(ctx, p.session, p.port, client)
	}
	i.server = i.newServer()
	return i, nil
}

func (c *Config) fill() {
	if c.Address == "" {
		c.Address = DefaultAddress
	}
	if c.Host == "" && c.Address == DefaultAddress {
		c.Host = localhost
	}
	if c.Host == "" {
		c.Host = c.Address
	}
	if c.FirstPort == 0 && c.LastPort == 0 {
		c.FirstPort, c.LastPort = DefaultFirstPort, DefaultLastPort
	}
	if c.ResumeWait == 0 {
		c.ResumeWait = DefaultResumeWait
	}
	c.readHeaderTimeout = cmp.Or(c.readHeaderTimeout, readHeaderTimeout)
	c.idleTimeout = cmp.Or(c.idleTimeout, idleTimeout)
	c.answerTimeout = cmp.Or(c.answerTimeout, answerTimeout)
	c.keepIdle = cmp.Or(c.keepIdle, keepIdle)
	c.closeGrace = cmp.Or(c.closeGrace, closeGrace)
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.RouteConnections == 0 {
		c.RouteConnections = DefaultRouteConnections
	}
	if c.RouteRequests == 0 {
		c.RouteRequests = DefaultRouteRequests
	}
}

// Start lets requests in, to the backend. It is called once.
func (i *Ingress) Start(backend Backend) {
	i.backend = backend
	close(i.ready)
	if i.cfg.Domain != "" {
		i.work.Go(func() {
			ln := &listener{Listener: i.cfg.Listener, slots: i.connections}
			i.serve(tls.NewListener(ln, i.cfg.TLS))
		})
	}
}

// closeGrace is what requests that are under way get to finish.
const closeGrace = 5 * time.Second

// Close lets requests that are under way finish for five seconds, and then
// ends everything. Routes stay routes: the next process has them again.
func (i *Ingress) Close() error {
	i.mu.Lock()
	before := i.closed
	i.closed = true
	i.mu.Unlock()
	if before {
		return nil
	}
	grace, done := context.WithTimeout(context.Background(), i.cfg.closeGrace)
	defer done()
	err := i.server.Shutdown(grace)
	i.cancel() // streams and WebSockets too
	if errors.Is(err, context.DeadlineExceeded) {
		err = i.server.Close()
	}
	if errors.Is(err, net.ErrClosed) {
		err = nil // a listener that a route has just given back
	}
	i.mu.Lock()
	for _, p := range i.places {
		p.close()
	}
	i.mu.Unlock()
	if i.cfg.Listener != nil {
		_ = i.cfg.Listener.Close() // the server has done so, if it was started
	}
	i.upstreams.close()
	i.work.Wait()
	return err
}

// URL is where a route is reached.
func (i *Ingress) URL(p skerry.PublishedPort) string {
	if i.cfg.Domain != "" {
		return "https://" + p.Subdomain + "." + i.cfg.Domain + i.urlPort
	}
	return "http://" + net.JoinHostPort(i.cfg.Host, strconv.Itoa(p.HostPort))
}

// Token returns a token that opens a private route until then.
func (i *Ingress) Token(p skerry.PublishedPort, expires time.Time) string {
	return signToken(p.Key, expires)
}
