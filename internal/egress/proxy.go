package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/oidc"
	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// Config says what a Proxy works with.
type Config struct {
	// Resolver finds the addresses of allowed names, for the proxy and for
	// sandboxes.
	Resolver *dns.Resolver
	// Forbidden tells the addresses that no policy opens: the host's own,
	// loopback, link-local, metadata, other sandboxes. Addresses that are not
	// IPv4 unicast are forbidden anyway. It is called for every connection and
	// must be quick.
	Forbidden func(netip.Addr) bool
	// CA signs the certificates that sandboxes see for domains with rules.
	// Without one, connections to these fail.
	CA *ca.Authority
	// Tokens signs the tokens of forwarded requests. Without one, these are
	// answered with 502.
	Tokens *oidc.Signer
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

// Limits bound what sandboxes can take of the proxy. A zero field means the
// default.
type Limits struct {
	// Connections in all; default 16384. Each takes two files and up to two
	// goroutines of memory.
	Connections int
	// ConnectionsPerSandbox; default 2048. Those beyond are reset.
	ConnectionsPerSandbox int
	// Hello is how long a connection may take to say its name, or the headers
	// of its first request; default 10 s.
	Hello time.Duration
	// Connect is how long resolving and connecting upstream may take; default
	// 15 s.
	Connect time.Duration
	// Idle is how long a connection may carry nothing; default 1 h. HTTP
	// connections between requests: at the most 2 min.
	Idle time.Duration
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
	Claims oidc.Claims
	// Meter, if set, counts its bytes.
	Meter *Meter
}

// Proxy serves all sandboxes of a host. It is safe for concurrent use.
type Proxy struct{}

var errTODO = errors.New("egress: not there yet")

// New returns a proxy that knows no sandbox.
func New(cfg Config) (*Proxy, error) { return nil, errTODO }

// Set makes a sandbox known by its address, or changes its policy. When it
// returns, the connections that the new policy forbids are closed (reset), and
// so are those passed through to a domain whose TLS must now be ended; requests
// that are under way to a domain that stays allowed go on.
func (p *Proxy) Set(addr netip.Addr, s Sandbox) {}

// Remove forgets a sandbox and closes its connections. What comes from an
// unknown address is reset, or not answered (DNS).
func (p *Proxy) Remove(addr netip.Addr) {}

// ServeTCP takes connections that were redirected to l until ctx ends or the
// proxy is closed; then it returns nil. It closes l.
func (p *Proxy) ServeTCP(ctx context.Context, l *net.TCPListener) error { return errTODO }

// ServeDNS answers the queries of sandboxes that come to conn and, over TCP, to
// l until ctx ends or the proxy is closed; then it returns nil. It closes both.
func (p *Proxy) ServeDNS(ctx context.Context, conn *net.UDPConn, l *net.TCPListener) error {
	return errTODO
}

// Close ends all connections and waits for everything that the proxy started.
func (p *Proxy) Close() error { return nil }
