package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// kind is how a connection was judged.
type kind int

const (
	pending   kind = iota
	byAddress      // by its destination alone
	passed         // TLS, by its name
	ended          // TLS that is ended here, by its name
	requests       // HTTP, each request by its host
)

// conn is a connection from a sandbox. Reading and writing it counts.
type conn struct {
	net.Conn // tcp; by this name it has no ReadFrom, which would not count
	tcp      *net.TCPConn
	p        *Proxy
	box      *box
	from     netip.Addr // the sandbox's
	dest     netip.AddrPort
	started  time.Time
	// replay was read already, to judge by it.
	replay []byte
	// transport makes this connection's requests; they share no upstream
	// connection with those of other connections.
	transport *http.Transport
	// serverName is the one of TLS that is ended here.
	serverName string

	in, out atomic.Int64
	last    atomic.Int64 // when something was carried, in ns since 1970
	meter   *Meter

	// The rest is guarded by box.mu.

	kind kind
	// names are what it was judged by: the one of TLS, or those of the requests
	// under way and how many there are.
	names     map[string]int
	upstreams map[*upstream]netip.Addr
	// forwarded are the requests under way that a rule forwards, with what ends
	// them.
	forwarded map[*exchange]context.CancelFunc
	closed    bool
}

// upstream is a connection that was made for a conn.
type upstream struct {
	*net.TCPConn
	c *conn
}

func (u *upstream) Close() error {
	u.c.box.mu.Lock()
	delete(u.c.upstreams, u)
	u.c.box.mu.Unlock()
	return u.TCPConn.Close()
}

var (
	errCut     = errors.New("the policy has changed")
	errTooMany = errors.New("too many upstream connections")
)

// maxUpstreams is for one connection: requests to many hosts, one after the
// other, leave idle ones behind.
const maxUpstreams = 8

// addUpstream takes tcp over, unless the policy has come to forbid it.
func (c *conn) addUpstream(tcp *net.TCPConn, a netip.Addr) (*upstream, error) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	u := &upstream{tcp, c}
	err := errTooMany
	if len(c.upstreams) < maxUpstreams {
		c.upstreams[u] = a
		if err = errCut; !c.closed && c.permitted(c.box.s.Policy) {
			return u, nil
		}
		delete(c.upstreams, u)
	}
	tcp.Close()
	return nil, err
}

func (p *Proxy) accept(tcp *net.TCPConn) {
	from, _ := netip.ParseAddrPort(tcp.RemoteAddr().String())
	b := p.box(from.Addr())
	if b == nil {
		reset(tcp)
		return
	}
	dest, err := p.originalDestination(tcp)
	if err != nil || dest.String() == tcp.LocalAddr().String() { // not redirected
		reset(tcp)
		return
	}
	c := &conn{
		Conn: tcp, tcp: tcp, p: p, box: b, dest: dest, started: time.Now(), meter: b.sandbox().Meter,
		names: map[string]int{}, upstreams: map[*upstream]netip.Addr{}, forwarded: map[*exchange]context.CancelFunc{},
	}
	c.last.Store(c.started.UnixNano())
	c.from = from.Addr().Unmap()
	taken := p.open.Take(c.from)
	if !taken {
		taken = p.yield(c.from) && p.open.Take(c.from)
	}
	if !taken || !b.admit(c) {
		if taken {
			p.open.Give(c.from)
		}
		reset(tcp)
		b.tell(Event{Protocol: ProtocolTCP, Reason: reasonTooMany, Destination: dest})
		return
	}
	p.running.Add(1) // for Close
	p.running.Go(func() { p.handle(c) })
}

// yield ends the connection of the greediest sandbox that has carried nothing for
// longest, if another needs its place more.
func (p *Proxy) yield(to netip.Addr) bool {
	from, ok := p.open.Yield(to)
	if !ok {
		return false
	}
	b := p.box(from)
	return b != nil && b.endIdlest()
}

// originalDestination returns where a redirected connection was going to.
func originalDestination(tcp *net.TCPConn) (netip.AddrPort, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var sa *unix.IPv6Mreq // the call that fills enough bytes for a sockaddr_in
	var serr error
	err = raw.Control(func(fd uintptr) {
		sa, serr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST)
	})
	if err = errors.Join(err, serr); err != nil {
		return netip.AddrPort{}, err
	}
	port := binary.BigEndian.Uint16(sa.Multiaddr[2:])
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa.Multiaddr[4:8])), port), nil
}

// reset closes a connection at once, without waiting for what is not sent yet.
func reset(tcp *net.TCPConn) {
	tcp.SetLinger(0)
	tcp.Close()
}

// Close ends the connection and all that was made for it.
func (c *conn) Close() error { return c.close(false) }

func (c *conn) abort() { c.close(true) }

func (c *conn) close(hard bool) error {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	return c.closeLocked(hard)
}

func (c *conn) abortLocked() { c.closeLocked(true) }

func (c *conn) closeLocked(hard bool) error {
	if c.closed {
		return nil
	}
	c.closed = true
	if hard {
		c.tcp.SetLinger(0)
	}
	err := c.tcp.Close()
	for u := range c.upstreams {
		if hard {
			u.SetLinger(0)
		}
		u.TCPConn.Close()
	}
	delete(c.box.conns, c)
	c.p.open.Give(c.from)
	c.p.running.Done()
	return err
}

func (c *conn) Read(b []byte) (int, error) {
	if len(c.replay) > 0 {
		n := copy(b, c.replay)
		c.replay = c.replay[n:]
		return n, nil
	}
	n, err := c.tcp.Read(b)
	c.sent(n)
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.tcp.Write(b)
	c.received(n)
	return n, err
}

// CloseWrite tells the sandbox that nothing more comes.
func (c *conn) CloseWrite() error { return c.tcp.CloseWrite() }

// sent counts what came from the sandbox.
func (c *conn) sent(n int) {
	if n > 0 {
		c.out.Add(int64(n))
		c.meter.out.Add(int64(n))
		c.last.Store(time.Now().UnixNano())
	}
}

// received counts what went to the sandbox.
func (c *conn) received(n int) {
	if n > 0 {
		c.in.Add(int64(n))
		c.meter.in.Add(int64(n))
		c.last.Store(time.Now().UnixNano())
	}
}

// judgeAddress judges by the destination alone.
func (c *conn) judgeAddress() policy.Verdict {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	v := c.box.s.Policy.Address(c.dest.Addr())
	switch {
	case c.closed:
		return policy.Denied
	case v == policy.Allowed:
		c.kind = byAddress
	case v == policy.ByName && c.dest.Port() == portHTTP:
		c.kind = requests
	}
	return v
}

// judgeName judges a connection by its one name, for good.
func (c *conn) judgeName(name string) *policy.Site {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	pol := c.box.s.Policy
	site := pol.Site(name)
	if c.closed || site == nil || pol.Address(c.dest.Addr()) != policy.ByName {
		return nil
	}
	c.kind = passed
	if site.HasRules() {
		c.kind = ended
	}
	c.names[name] = 1
	return site
}

// beginRequest judges one request and, if it is allowed, remembers its name
// until endRequest.
func (c *conn) beginRequest(name string) (*policy.Site, Sandbox) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	site := c.box.s.Policy.Site(name)
	if c.closed || site == nil || c.box.s.Policy.Address(c.dest.Addr()) == policy.Denied {
		return nil, c.box.s
	}
	c.names[name]++
	return site, c.box.s
}

func (c *conn) endRequest(name string) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	if c.names[name]--; c.names[name] <= 0 {
		delete(c.names, name)
	}
}

// forwarding remembers a request that a rule forwards, until the function that it
// returns is called. A policy without the rule, of now or later, ends it.
func (c *conn) forwarding(x *exchange, cancel context.CancelFunc) (done func()) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	c.forwarded[x] = cancel
	c.endForwarded(c.box.s.Policy)
	return func() {
		c.box.mu.Lock()
		defer c.box.mu.Unlock()
		delete(c.forwarded, x)
	}
}

// endForwarded ends the requests that a policy does not forward where they are
// forwarded. The box is locked.
func (c *conn) endForwarded(pol *policy.Compiled) {
	for x, cancel := range c.forwarded {
		if site := pol.Site(x.name); site == nil || !site.ForwardsTo(x.action.ForwardURL) {
			cancel()
		}
	}
}
