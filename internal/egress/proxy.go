package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/policy"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/share"
)

// Config says what a Proxy works with.
type Config struct {
	// Resolver finds the addresses of allowed names, for the proxy and for
	// sandboxes.
	Resolver *dns.Resolver
	// Forbidden tells why no policy opens an address, in the words of an event's
	// reason, or "" for one that policies can open: the host's own, loopback,
	// link-local, metadata, other sandboxes, private networks. Addresses that are
	// not IPv4 unicast are forbidden anyway. It is called for every connection
	// and must be quick.
	Forbidden func(netip.Addr) string
	// CA signs the certificates that sandboxes see for domains with rules.
	// Without one, connections to these fail.
	CA *ca.Authority
	// Tokens signs the tokens of forwarded requests. Without one, these are
	// answered with 502.
	Tokens *issuer.Issuer
	// Roots verify upstream certificates; nil means the host's.
	Roots *x509.CertPool
	// OnEvent, if set, is called with every decision, from many goroutines. It
	// must not block.
	OnEvent func(Event)
	// Mark, if not zero, is set on the proxy's own connections (SO_MARK), for
	// the host's routing and firewall.
	Mark   int
	Limits Limits
	Log    *slog.Logger
}

// MaxConnections is how many connections a proxy takes that has the files for them.
const MaxConnections = 16384

// The defaults of Limits.
const (
	connectionsPerSandbox = 2048
	helloTime             = 10 * time.Second
	connectTime           = 15 * time.Second
	idleTime              = time.Hour
	keepAlive             = 2 * time.Minute
	queriesPerSecond      = 200
	eventsPerSecond       = 100
)

// Limits bound what sandboxes can take of the proxy. A zero field means the
// default.
type Limits struct {
	// Connections in all; default MaxConnections. Each takes two files and up to two
	// goroutines of memory.
	Connections int
	// ConnectionsPerSandbox; default 2048. A sandbox with connections gets more
	// only while four times as many as it has are free. Those beyond are reset.
	ConnectionsPerSandbox int
	// Hello is how long a connection may take to say its name, or the headers
	// of its first request; default 10 s.
	Hello time.Duration
	// Connect is how long resolving and connecting upstream may take; default
	// 15 s.
	Connect time.Duration
	// Idle is how long a connection may carry nothing; default 1 h.
	Idle time.Duration
	// KeepAlive is how long an HTTP connection may carry nothing between
	// requests; default 2 min, and no more than Idle.
	KeepAlive time.Duration
	// QueriesPerSecond to the DNS server, of one sandbox, with bursts of twice
	// that; default 200.
	QueriesPerSecond int
	// EventsPerSecond of one sandbox, with bursts of ten times that; default 100.
	EventsPerSecond int
}

// Sandbox is what the proxy knows of one.
type Sandbox struct {
	// ID is what events and tokens name it by.
	ID     string
	Policy *policy.Compiled
	// Claims are what tokens of forwarded requests say of it.
	Claims issuer.Sandbox
	// Box, if known, is the id of what lasts longer than ID; for events alone.
	Box string
	// Meter, if set, counts its bytes.
	Meter *Meter
}

// Proxy serves all sandboxes of a host. It is safe for concurrent use.
type Proxy struct {
	cfg Config
	dns *dns.Server
	// open are the connections, by the sandbox's address.
	open *share.Slots[netip.Addr]

	// Requests of all connections are served by one server, which gets them
	// from feed.
	server  *http.Server
	feed    *feed
	forward *http.Transport

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.RWMutex
	boxes  map[netip.Addr]*box
	closed bool

	// originalDestination is replaced where there is no redirection.
	originalDestination func(*net.TCPConn) (netip.AddrPort, error)
}

// New returns a proxy that knows no sandbox.
func New(cfg Config) (*Proxy, error) {
	if cfg.Resolver == nil || cfg.Forbidden == nil || cfg.Log == nil {
		return nil, errors.New("egress: a resolver, forbidden addresses and a log must be set")
	}
	cfg.Limits = cfg.Limits.orDefault()
	p := &Proxy{cfg: cfg, open: share.New[netip.Addr](cfg.Limits.Connections, cfg.Limits.ConnectionsPerSandbox), boxes: map[netip.Addr]*box{}, feed: newFeed(), originalDestination: originalDestination}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.dns = &dns.Server{Resolver: cfg.Resolver, Client: p.dnsClient, Normalize: policy.Normalize}
	p.server, p.forward = p.newServer(), p.newForwardTransport()
	p.running.Go(func() { p.server.Serve(p.feed) })
	p.running.Go(p.closeIdle)
	return p, nil
}

func (l Limits) orDefault() Limits {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.Connections, MaxConnections)
	set(&l.ConnectionsPerSandbox, connectionsPerSandbox)
	set(&l.QueriesPerSecond, queriesPerSecond)
	set(&l.EventsPerSecond, eventsPerSecond)
	wait(&l.Hello, helloTime)
	wait(&l.Connect, connectTime)
	wait(&l.Idle, idleTime)
	wait(&l.KeepAlive, keepAlive)
	l.KeepAlive = min(l.KeepAlive, l.Idle)
	return l
}

// Set makes a sandbox known by its address, or changes its policy. When it
// returns, the connections that the new policy forbids are closed (reset), and
// so are those passed through to a domain whose TLS must now be ended; requests
// that are under way to a domain that stays allowed go on.
func (p *Proxy) Set(addr netip.Addr, s Sandbox) error {
	if !addr.Is4() || s.ID == "" || s.Policy == nil {
		return fmt.Errorf("egress: a sandbox has an IPv4 address (not %v), an id and a policy", addr)
	}
	if s.Meter == nil {
		s.Meter = &Meter{}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errClosed
	}
	b := p.boxes[addr]
	if b == nil {
		p.boxes[addr] = p.newBox(s)
		p.mu.Unlock()
		return nil
	}
	p.mu.Unlock()
	b.set(s)
	return nil
}

var errClosed = errors.New("egress: the proxy is closed")

// Remove forgets a sandbox and closes its connections. What comes from an
// unknown address is reset, or not answered (DNS).
func (p *Proxy) Remove(addr netip.Addr) {
	p.mu.Lock()
	b := p.boxes[addr]
	delete(p.boxes, addr)
	p.mu.Unlock()
	if b != nil {
		b.remove()
	}
}

func (p *Proxy) box(addr netip.Addr) *box {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.boxes[addr.Unmap()]
}

// ServeTCP takes connections that were redirected to l until ctx ends or the
// proxy is closed; then it returns nil. It closes l.
func (p *Proxy) ServeTCP(ctx context.Context, l *net.TCPListener) error {
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer done()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		tcp, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				reset(tcp)
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("egress: %w", err)
		case err != nil: // out of files: connections must end first
			p.cfg.Log.Warn("cannot take a sandbox's connection", "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			p.accept(tcp)
		}
	}
}

// begin makes something of the caller a part of what Close waits for.
func (p *Proxy) begin(ctx context.Context) (context.Context, func(), error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil, nil, errClosed
	}
	p.running.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.ctx, cancel)
	return ctx, func() { stop(); cancel(); p.running.Done() }, nil
}

// ServeDNS answers the queries of sandboxes that come to conn and, over TCP, to
// l until ctx ends or the proxy is closed; then it returns nil. It closes both.
func (p *Proxy) ServeDNS(ctx context.Context, conn *net.UDPConn, l *net.TCPListener) error {
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return errors.Join(err, conn.Close(), l.Close())
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tcp := make(chan error, 1)
	p.running.Go(func() {
		defer cancel()
		tcp <- p.dns.ServeTCP(ctx, l)
	})
	err = p.dns.ServeUDP(ctx, conn)
	cancel()
	return errors.Join(err, <-tcp)
}

// Close ends all connections and waits for everything that the proxy started.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	boxes := p.boxes
	p.boxes = map[netip.Addr]*box{}
	p.mu.Unlock()
	p.cancel()
	for _, b := range boxes {
		b.remove()
	}
	p.feed.Close()
	err := p.server.Close()
	p.forward.CloseIdleConnections()
	p.running.Wait()
	return err
}

// closeIdle ends the connections that carry nothing.
func (p *Proxy) closeIdle() {
	tick := time.NewTicker(max(p.cfg.Limits.Idle/8, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.RLock()
		boxes := make([]*box, 0, len(p.boxes))
		for _, b := range p.boxes {
			boxes = append(boxes, b)
		}
		p.mu.RUnlock()
		for _, b := range boxes {
			b.closeIdle(time.Now().Add(-p.cfg.Limits.Idle))
		}
	}
}
