package ingress

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/skerry-dev/skerry/internal/share"
)

// listener bounds how many connections there are. Those beyond are closed at
// once: left to wait, they would keep others waiting behind them.
type listener struct {
	net.Listener
	place *place
	// slots are those of all listeners. In port mode a listener is a holder of
	// some, otherwise a client's address is.
	slots *share.Slots[holder]
}

// holder is who has connections.
type holder struct {
	port   int
	client netip.Addr
}

func (l *listener) holderOf(c net.Conn) holder {
	if l.place != nil {
		return holder{port: l.place.port}
	}
	return holder{client: clientAt(c.RemoteAddr().String())}
}

// clientAt returns the client at an address with a port.
func clientAt(address string) netip.Addr {
	peer, _ := netip.ParseAddrPort(address)
	return clientOf(peer.Addr())
}

// clientOf is the network that counts as one client: of IPv6 a whole /64, which
// one machine has.
func clientOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if h := l.holderOf(c); l.slots.Take(h) {
			return &clientConn{Conn: c, of: l, holder: h}, nil
		}
		_ = c.Close()
	}
}

// clientConn is a connection that is counted.
type clientConn struct {
	net.Conn
	of     *listener
	holder holder
	once   sync.Once
	// spent says that no further request is taken from it.
	spent atomic.Bool
}

// Close implements net.Conn.
func (c *clientConn) Close() error {
	c.once.Do(func() { c.of.slots.Give(c.holder) })
	return c.Conn.Close()
}
