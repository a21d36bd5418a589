package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/egress/hello"
	"github.com/skerry-dev/skerry/internal/egress/policy"
)

const (
	portHTTP  = 80
	portHTTPS = 443
)

// forbidden returns why no policy opens an address, or "".
func (p *Proxy) forbidden(a netip.Addr) string {
	a = a.Unmap()
	if !a.Is4() || !a.IsGlobalUnicast() || a.As4()[0] == 0 {
		return reasonForbidden
	}
	return p.cfg.Forbidden(a)
}

// forbiddenError means that no address of a name may be reached by anyone.
type forbiddenError struct{ reason string }

func (e *forbiddenError) Error() string { return "every address of the name is a " + e.reason }

// handle judges a connection and carries what it carries.
func (p *Proxy) handle(c *conn) {
	if reason := p.forbidden(c.dest.Addr()); reason != "" {
		p.deny(c, ProtocolTCP, reason, "")
		return
	}
	switch c.judgeAddress() {
	case policy.Denied:
		p.deny(c, ProtocolTCP, reasonDenied, "")
	case policy.Allowed:
		p.pass(c, ProtocolTCP, reasonAddress, "")
	default:
		switch c.dest.Port() {
		case portHTTPS:
			p.handleTLS(c)
		case portHTTP:
			c.transport = p.newTransport(c, nil, nil)
			p.feed.put(p.ctx, c)
		default:
			p.deny(c, ProtocolTCP, reasonPort, "")
		}
	}
}

// deny resets a connection.
func (p *Proxy) deny(c *conn, protocol, reason, name string) {
	c.abort()
	c.box.tell(Event{Protocol: protocol, Reason: reason, Domain: name, Destination: c.dest})
}

// TLS alerts (RFC 8446, 6.2).
const (
	alertBadCertificate     = 42
	alertCertificateExpired = 45
	alertUnknownCA          = 48
	alertAccessDenied       = 49
	alertInternalError      = 80
)

// denyTLS says so in the words of TLS, which clients show to their users. There
// is no encryption yet.
func (p *Proxy) denyTLS(c *conn, alert byte, reason, name string) {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write([]byte{21, 3, 3, 0, 2, 2, alert})
	c.CloseWrite()
	c.Close()
	c.box.tell(Event{Protocol: ProtocolTLS, Reason: reason, Domain: name, Destination: c.dest})
}

func (p *Proxy) handleTLS(c *conn) {
	h, err := c.readHello(p.cfg.Limits.Hello)
	switch {
	case errors.Is(err, hello.ErrNotTLS):
		p.deny(c, ProtocolTCP, reasonNotTLS, "")
		return
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.deny(c, ProtocolTLS, reasonTimeout, "")
		return
	case err != nil:
		p.deny(c, ProtocolTLS, reasonHello, "")
		return
	case h.ECH:
		p.denyTLS(c, alertAccessDenied, reasonECH, "")
		return
	case h.ServerName == "":
		p.denyTLS(c, alertAccessDenied, reasonNoName, "")
		return
	}
	name, err := policy.Normalize(h.ServerName)
	if err != nil || len(name) != len(h.ServerName) { // no Unicode, no final dot: RFC 6066
		p.denyTLS(c, alertAccessDenied, reasonBadName, "")
		return
	}
	site := c.judgeName(name)
	switch {
	case site == nil:
		p.denyTLS(c, alertAccessDenied, reasonDomain, name)
	case site.HasRules():
		p.endTLS(c, name, site, h.ALPN)
	default:
		p.pass(c, ProtocolTLS, reasonDomain, name)
	}
}

// readHello reads until there is a whole ClientHello, and leaves it in replay.
func (c *conn) readHello(timeout time.Duration) (*hello.Hello, error) {
	c.SetReadDeadline(time.Now().Add(timeout))
	defer c.SetReadDeadline(time.Time{})
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, len(buf))
		}
		n, err := c.tcp.Read(buf[len(buf):min(cap(buf), hello.MaxBytes)])
		c.sent(n)
		buf = buf[:len(buf)+n]
		if n > 0 {
			h, perr := hello.Parse(buf)
			if !errors.Is(perr, hello.ErrIncomplete) {
				c.replay = buf
				return h, perr
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// pass carries a connection untouched.
func (p *Proxy) pass(c *conn, protocol, reason, name string) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.Limits.Connect)
	up, err := p.connect(ctx, c, name)
	cancel()
	if err != nil {
		p.cfg.Log.Debug("cannot connect for a sandbox", "sandbox", c.box.sandbox().ID, "domain", name, "destination", c.dest, "error", err)
		p.deny(c, protocol, reasonOf(err), name)
		return
	}
	defer c.Close()
	remote, _ := netip.ParseAddrPort(up.RemoteAddr().String())
	e := Event{Allowed: true, Protocol: protocol, Reason: reason, Domain: name, Destination: c.dest, Upstream: remote}
	c.box.tell(e)
	if c.join(up) != nil {
		c.abort()
	}
	e.End, e.BytesIn, e.BytesOut, e.Duration = true, c.in.Load(), c.out.Load(), time.Since(c.started)
	c.box.tell(e)
}

func reasonOf(err error) string {
	var invalid *certificateError
	var forbidden *forbiddenError
	switch {
	case errors.As(err, &forbidden):
		return forbidden.reason
	case errors.As(err, &invalid):
		return reasonCertificate
	}
	return reasonUpstream
}

// maxTries is how many addresses of a name are tried.
const maxTries = 3

// connect connects to a name, or with an empty one to just where the sandbox
// wanted to.
func (p *Proxy) connect(ctx context.Context, c *conn, name string) (*upstream, error) {
	addrs := []netip.Addr{c.dest.Addr()}
	if name != "" {
		var err error
		if addrs, err = p.addresses(ctx, c, name); err != nil {
			return nil, err
		}
	}
	var errs []error
	for _, a := range addrs[:min(len(addrs), maxTries)] {
		tcp, err := p.dial(ctx, netip.AddrPortFrom(a, c.dest.Port()))
		if err == nil {
			return c.addUpstream(tcp, a)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// addresses returns those of a name that the sandbox may be connected to, the
// one first that it chose itself.
func (p *Proxy) addresses(ctx context.Context, c *conn, name string) ([]netip.Addr, error) {
	all, _, err := p.cfg.Resolver.Lookup(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	pol := c.box.policy()
	var good []netip.Addr
	why := reasonDenied
	for _, a := range all {
		if reason := p.forbidden(a); reason != "" {
			why = reason
		} else if pol.Address(a) != policy.Denied {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return nil, &forbiddenError{why}
	}
	if i := slices.Index(good, c.dest.Addr()); i > 0 {
		good[0], good[i] = good[i], good[0]
	}
	return good, nil
}

func (p *Proxy) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if p.cfg.Mark == 0 {
			return nil
		}
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, p.cfg.Mark) })
		return errors.Join(cerr, err)
	}}
	conn, err := d.DialContext(ctx, "tcp4", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
