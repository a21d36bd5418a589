package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// serveGateway has a gateway tell who came and where they wanted to go.
func serveGateway(t *testing.T, g *Gateway) {
	t.Helper()
	for name, l := range map[string]*net.TCPListener{"web": g.Web, "dns": g.DNSTCP} {
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				raw, err := c.SyscallConn()
				if err != nil {
					t.Error(err)
					return
				}
				raw.Control(func(fd uintptr) {
					to, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, 80) // SO_ORIGINAL_DST
					if err != nil {
						t.Error(err)
						return
					}
					a := netip.AddrFrom4([4]byte(to.Multiaddr[4:8]))
					fmt.Fprintf(c, "%s %s>%s:%d\n", name, c.RemoteAddr().(*net.TCPAddr).IP, a, int(to.Multiaddr[2])<<8|int(to.Multiaddr[3]))
				})
				c.Close()
			}
		}()
	}
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := g.DNS.ReadFrom(buf)
			if err != nil {
				return
			}
			g.DNS.WriteTo(buf[:n], from)
		}
	}()
}

func TestGateway(t *testing.T) {
	addOtherAddr(t)
	p := newPool(t, func(c *Config) { c.Proxy = true })
	g := p.Gateway()
	serveGateway(t, g)
	l, neighbour := acquireClosed(t, p), acquireClosed(t, p)
	setPolicy(t, l, custom([]string{labAddr + "/32"}, []string{otherAddr + "/32"}))
	setPolicy(t, neighbour, denyAll)
	for target, want := range map[string]string{
		"203.0.113.5:80":  "web " + l.Address().String() + ">203.0.113.5:80",
		"203.0.113.5:443": "web " + l.Address().String() + ">203.0.113.5:443",
		"203.0.113.5:53":  "dns " + l.Address().String() + ">203.0.113.5:53",
		"203.0.113.5:22":  "", labAddr + ":8080": hostAddr, labAddr + ":80": "", otherAddr + ":443": "", otherAddr + ":53": "",
		g.Web.Addr().String(): "", g.DNSTCP.Addr().String(): "", "169.254.169.254:80": "", hostAddr + ":443": "",
		neighbour.Address().String() + ":443": "", l.host.String() + ":80": "",
	} {
		seen, err := tryDial(t, l, target)
		if seen != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", target, seen, err, want)
		}
	}
	for _, target := range []string{"203.0.113.5:443", "203.0.113.5:53", g.Web.Addr().String()} {
		if seen, err := tryDial(t, neighbour, target); err == nil {
			t.Errorf("with deny-all, %s: %q", target, seen)
		}
	}
	// Nobody else gets at it: neither a program of the host nor the outside.
	if fd, err := blockingDial(g.Web.Addr().String(), impatience); err == nil {
		unix.Close(fd)
		t.Error("a program of the host reaches the proxy")
	}
	err := inside(t, labNS, func() error {
		if err := route(g.addr.String(), "eth0"); err != nil {
			return err
		}
		fd, err := blockingDial(g.Web.Addr().String(), impatience)
		if err == nil {
			unix.Close(fd)
			return fmt.Errorf("the outside reaches the proxy")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if !dnsEcho(t, l, "203.0.113.5:53") {
		t.Error("a query is not redirected")
	}
	if dnsEcho(t, neighbour, "203.0.113.5:53") || dnsEcho(t, l, otherAddr+":53") {
		t.Error("a query is redirected against the policy")
	}
}

func dnsEcho(t *testing.T, l *Lease, target string) bool {
	t.Helper()
	return udpTo(t, l, target) == nil
}

// TestForbiddenWhenInDoubt asks while no file can be opened: the kernel, which
// knows the answer, cannot be asked.
func TestForbiddenWhenInDoubt(t *testing.T) {
	p := newPool(t, nil)
	open := netip.MustParseAddr(labAddr)
	if p.Forbidden(open) != "" {
		t.Fatal("the lab is forbidden")
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	forbidden := p.Forbidden(open)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if forbidden == "" || p.Forbidden(open) != "" {
		t.Error("an address is open when the kernel cannot be asked, or forbidden after that")
	}
}

// TestProxyIsHeldToTheRules opens connections as the proxy does.
func TestProxyIsHeldToTheRules(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Proxy = true })
	l := acquire(t, p)
	listen(t, l.NetNSPath(), "tcp4")
	listen(t, "", "tcp4")
	for target, want := range map[string]bool{
		labAddr: true, labAddrs[1]: false, labAddrs[2]: false, hostAddr: false, "127.0.0.1": false, l.Address().String(): false, l.host.String(): false,
	} {
		_, err := markedDial(target+":"+labPort, p.Gateway().Mark)
		if (err == nil) != want {
			t.Errorf("the proxy reaches %s: %v", target, err)
		}
	}
	for a, want := range map[string]string{
		"169.254.169.254": ReasonForbidden, l.Address().String(): ReasonForbidden, "::1": ReasonForbidden, hostAddr: ReasonForbidden,
		"198.51.100.255": ReasonForbidden, labAddr: "", "10.1.2.3": ReasonPrivate, "192.168.1.1": ReasonPrivate, "240.0.0.1": ReasonPrivate,
	} {
		if got := p.Forbidden(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is forbidden as %q, want %q", a, got, want)
		}
	}
}

func markedDial(target string, as uint32) (string, error) {
	mark := func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(as)) })
		return errors.Join(err, cerr)
	}
	d := net.Dialer{Timeout: impatience, Control: mark}
	c, err := d.Dial("tcp4", target)
	if err != nil {
		return "", err
	}
	defer c.Close()
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}
