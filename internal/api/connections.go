package api

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// DefaultMaxConnections limits the connections to the API.
	DefaultMaxConnections = 16384
	// strangersPart limits the connections of an address that has not sent a token yet,
	// as a part of all. A client that opens many connections sends a token soon.
	strangersPart = 32
	// leastStrangers is the number of connections that any address may have.
	leastStrangers = 16
	// strangerIdle is how long a connection without a token may be idle.
	strangerIdle = 5 * time.Second
	// maxStreams limits the requests at once on an HTTP/2 connection. net/http ends a
	// connection that opens and resets streams faster than they can be handled.
	maxStreams = 128
	// maxFrameRead limits a frame of HTTP/2. net/http keeps a buffer of that size for
	// each connection that has sent such a frame, also without a token.
	maxFrameRead = 64 << 10
	// prefix6 is the length of the IPv6 prefix that counts as one address, because a
	// client usually has all addresses of it.
	prefix6 = 64
)

// connections limits the connections of a listener: all of them, and those of each
// address that have not sent a token yet. At the limit, an idle connection is closed
// for the new one. If none is idle, the new one is closed.
type connections struct {
	net.Listener
	most, strangers int
	idleAfter       time.Duration // strangerIdle, except in tests

	mu     sync.Mutex
	open   map[*guardedConn]struct{}
	nobody map[netip.Prefix]int // connections without a token, by address
}

func guard(ln net.Listener, most int) *connections {
	return &connections{
		Listener: ln, most: most, strangers: max(most/strangersPart, leastStrangers), idleAfter: strangerIdle,
		open: map[*guardedConn]struct{}{}, nobody: map[netip.Prefix]int{},
	}
}

// guardedConn is a connection of connections. The owner's lock guards its fields.
type guardedConn struct {
	net.Conn
	owner *connections
	from  netip.Prefix
	known bool        // a token was sent
	gone  bool        // closed
	idle  time.Time   // since when it is idle; zero if it may not be closed
	timer *time.Timer // closes an idle connection without a token
}

func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := c.admit(conn); g != nil {
			return g, nil
		}
		_ = conn.Close() // an error has no consequences
	}
}

// admit counts a connection, or returns nil if the limit is reached.
func (c *connections) admit(conn net.Conn) *guardedConn {
	g := &guardedConn{Conn: conn, owner: c, from: source(conn.RemoteAddr()), idle: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nobody[g.from] >= c.strangers && !c.evict(func(o *guardedConn) bool { return !o.known && o.from == g.from }) {
		return nil
	}
	if len(c.open) >= c.most &&
		!c.evict(func(o *guardedConn) bool { return !o.known }) && !c.evict(func(*guardedConn) bool { return true }) {
		return nil
	}
	c.open[g] = struct{}{}
	c.nobody[g.from]++
	return g
}

// evict closes the matching connection that has been idle for the longest time.
func (c *connections) evict(matches func(*guardedConn) bool) bool {
	var oldest *guardedConn
	for o := range c.open {
		if !o.idle.IsZero() && matches(o) && (oldest == nil || o.idle.Before(oldest.idle)) {
			oldest = o
		}
	}
	if oldest == nil {
		return false
	}
	oldest.drop()
	_ = oldest.Conn.Close()
	return true
}

// source returns the address that a connection counts for.
func source(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = prefix6
	}
	p, _ := ip.WithZone("").Prefix(bits)
	return p
}

// drop removes a connection. The caller holds the owner's lock.
func (g *guardedConn) drop() {
	if g.gone {
		return
	}
	g.gone = true
	if g.timer != nil {
		g.timer.Stop()
	}
	delete(g.owner.open, g)
	if !g.known {
		g.owner.forgetStranger(g.from)
	}
}

func (c *connections) forgetStranger(from netip.Prefix) {
	if c.nobody[from]--; c.nobody[from] <= 0 {
		delete(c.nobody, from)
	}
}

func (g *guardedConn) Close() error {
	g.owner.mu.Lock()
	g.drop()
	g.owner.mu.Unlock()
	return g.Conn.Close()
}

// introduce records that a token was sent on the connection.
func (g *guardedConn) introduce() {
	g.owner.mu.Lock()
	defer g.owner.mu.Unlock()
	if g.known || g.gone {
		return
	}
	g.known, g.idle = true, time.Time{}
	g.owner.forgetStranger(g.from)
}

// state tracks whether a connection has a request.
func (g *guardedConn) state(s http.ConnState) {
	g.owner.mu.Lock()
	defer g.owner.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	switch {
	case g.gone:
	case s == http.StateActive, s == http.StateHijacked:
		// Without a token, a connection with an incomplete request counts as idle.
		if g.known {
			g.idle = time.Time{}
		}
	case s == http.StateIdle:
		g.idle = time.Now()
		if !g.known {
			g.timer = time.AfterFunc(g.owner.idleAfter, func() { _ = g.Close() })
		}
	}
}

// guarded returns the guardedConn inside conn, nil if there is none.
func guarded(conn net.Conn) *guardedConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	g, _ := conn.(*guardedConn)
	return g
}

// http2 returns the limits of HTTP/2. A connection whose client reads nothing is closed
// with its streams.
func (s *Server) http2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrameRead, WriteByteTimeout: s.stall}
}

type connKey struct{}

// followConnections tracks the state of a server's connections, and adds its
// connection to the context of each request.
func followConnections(hs *http.Server) {
	hs.ConnState = func(conn net.Conn, s http.ConnState) {
		if g := guarded(conn); g != nil {
			g.state(s)
		}
	}
	hs.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if g := guarded(conn); g != nil {
			ctx = context.WithValue(ctx, connKey{}, g)
		}
		return ctx
	}
}

// introduced records that a request had a valid token.
func introduced(ctx context.Context) {
	if g, ok := ctx.Value(connKey{}).(*guardedConn); ok {
		g.introduce()
	}
}
