package nodeapi

import (
	"context"
	"net"
	"net/netip"

	"github.com/skerry-dev/skerry"
)

// Networks provides a network for each session.
type Networks interface {
	Acquire(ctx context.Context) (Lease, error)
	// Adopt returns the lease that an earlier process acquired.
	Adopt(ctx context.Context, id string) (Lease, error)
	// Recover removes every lease that is not in use.
	Recover(ctx context.Context, inUse []string) error
	// Resolvers returns the DNS servers for sandboxes.
	Resolvers() []string
	// Authority returns the certificate, in PEM, that a sandbox must trust if the
	// proxy terminates its TLS connections.
	Authority() []byte
	// Events returns the newest decisions about a session, oldest first, also after
	// the session's end.
	Events(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error)
	// Traffic returns how many packets each lease has carried, by its id.
	Traffic(ctx context.Context) (map[string]uint64, error)
	// Connected returns the addresses of the sandboxes that have open TCP connections
	// to the outside.
	Connected(ctx context.Context) (map[netip.Addr]bool, error)
}

// Lease is the network of a session for the session's whole life.
type Lease interface {
	ID() string
	// Interface returns the session's interface.
	Interface() Interface
	// Counters returns the bytes received and sent by the sandbox.
	Counters(ctx context.Context) (ingress, egress int64, err error)
	// Dial connects to a TCP port of the session.
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	// SetNetwork enforces a policy. Before the first call the session reaches
	// nothing. Connections that the policy forbids are closed. If SetNetwork fails,
	// the previous policy stays in force.
	SetNetwork(ctx context.Context, sessionID string, network NetworkSpec) error
	// Renew configures the interface again, which the kernel of a machine that has ended
	// took over.
	Renew(ctx context.Context) error
	Release(ctx context.Context) error
}

// Interface is one end of a pair of interfaces. It is configured and up.
type Interface struct {
	// NetNS is the path of the network namespace that holds nothing but the
	// interface, and Name its name there; "" is no network.
	NetNS string
	Name  string
	// Address is the session's, and Gateway that of its packets.
	Address netip.Prefix
	Gateway netip.Addr
}
