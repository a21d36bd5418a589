package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// A public address that the lab has, and a public network that is attached to
// the host by another interface than that of the default route.
const (
	publicAddr = "45.0.0.9"
	sideHost   = "46.0.0.1"
	sideAddr   = "46.0.0.2"
)

// defaultRoute gives the lab addresses, and the host a default route to it.
func defaultRoute(t *testing.T, addrs ...string) {
	t.Helper()
	addLabAddrs(t, addrs...)
	uplink, err := netlink.LinkByName("uplink")
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.ParseIP(labAddr)}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.RouteDel(r) })
}

func addLabAddrs(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(a).To4(), Mask: net.CIDRMask(32, 32)}}
		err := inside(t, labNS, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.AddrAdd(link, ip)
		})
		if err != nil {
			t.Fatalf("add %s to the lab: %v", a, err)
		}
		t.Cleanup(func() {
			inside(t, labNS, func() error {
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.AddrDel(link, ip)
			})
		})
	}
}

// attach gives the host another interface, with a network that the lab has an
// address in.
func attach(t *testing.T) {
	t.Helper()
	ns, err := unix.Open(labNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "side", TxQLen: -1}, PeerName: "eth1", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(veth) })
	if err := errors.Join(addAddr("side", sideHost), inside(t, labNS, func() error { return addAddr("eth1", sideAddr) })); err != nil {
		t.Fatal(err)
	}
	// Whether or not the side is an uplink, the host lets through what comes back.
	if err := sysctl("ipv4", "side", "forwarding", "1"); err != nil {
		t.Fatal(err)
	}
}

var privateAddrs = []string{
	"10.9.9.9", "100.64.9.9", "172.31.9.9", "192.0.0.9", "192.0.2.9", "192.88.99.9", "192.168.9.9", "198.18.9.9", "198.51.100.9", "203.0.113.9", "240.0.0.9",
}

// TestPrivateNetworksAreClosed has a sandbox that may reach everything look for
// the operator's own networks.
func TestPrivateNetworksAreClosed(t *testing.T) {
	const nameServer = "10.9.9.53"
	defaultRoute(t, append([]string{publicAddr, nameServer}, privateAddrs...)...)
	serveNames(t, nameServer, privateAddrs[0])
	p := newPool(t, func(c *Config) { c.Private, c.Resolvers, c.Proxy = nil, []string{nameServer}, true })
	told := deniedOf(t, p)
	l, custom := acquire(t, p), acquireClosed(t, p)
	setPolicy(t, custom, customPolicy(append(privateAddrs, publicAddr)))
	attach(t) // after the rules were made
	for _, l := range []*Lease{l, custom} {
		if _, err := dial(t, l, publicAddr+":"+labPort); err != nil {
			t.Errorf("the public address: %v", err)
		}
		for _, a := range append(privateAddrs, sideAddr) {
			// Refused, not lost: a program that tries need not wait.
			if _, err := dial(t, l, a+":"+labPort); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v", a, err)
			}
			want := Denied{l.Address(), "tcp", netip.MustParseAddrPort(a + ":" + labPort), ReasonPrivate}
			if got := next(t, told); got != want {
				t.Errorf("told of %+v, want %+v", got, want)
			}
			if reason := p.Forbidden(netip.MustParseAddr(a)); reason != ReasonPrivate {
				t.Errorf("%s is forbidden to the proxy as %q", a, reason)
			}
			if seen, err := markedDial(a+":"+labPort, p.Gateway().Mark); err == nil {
				t.Errorf("the proxy reaches %s as %q", a, seen)
			}
		}
	}
	if seen, err := markedDial(publicAddr+":"+labPort, p.Gateway().Mark); err != nil || seen != hostAddr {
		t.Errorf("the proxy at the public address: %q, %v", seen, err)
	}
	// The name server is the exception, at its port alone.
	if err := udpTo(t, l, nameServer+":53"); err != nil {
		t.Errorf("the name server: %v", err)
	}
	if _, err := dial(t, l, nameServer+":53"); err != nil {
		t.Errorf("the name server over TCP: %v", err)
	}
	if _, err := dial(t, l, nameServer+":"+labPort); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("another port of the name server: %v", err)
	}
	if err := udpTo(t, l, privateAddrs[0]+":53"); err == nil {
		t.Error("another name server answers")
	}
}

// serveNames has the lab echo at port 53 of its addresses.
func serveNames(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		err := inside(t, labNS, func() error {
			udp, err := net.ListenPacket("udp4", a+":53")
			if err != nil {
				return err
			}
			tcp, err := net.Listen("tcp4", a+":53")
			if err != nil {
				return errors.Join(err, udp.Close())
			}
			t.Cleanup(func() { udp.Close(); tcp.Close() })
			go echoLab(udp)
			go serveLab(tcp)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func customPolicy(addrs []string) *skerry.NetworkPolicy {
	var nets []string
	for _, a := range addrs {
		nets = append(nets, a+"/32")
	}
	return custom(nets, nil)
}

// TestOpenedNetworks opens some.
func TestOpenedNetworks(t *testing.T) {
	defaultRoute(t, "10.9.9.9", "10.9.8.9", "192.168.9.9")
	attach(t)
	p := newPool(t, func(c *Config) {
		c.Private = prefixes([]string{"10.9.9.0/24", "46.0.0.0/24", "10.9.9.9/32", "0.0.0.0/7", "10.200.0.0/15"})
	})
	l, other := acquire(t, p), acquireClosed(t, p)
	setPolicy(t, other, customPolicy([]string{"10.9.9.9"}))
	listen(t, other.NetNSPath(), "tcp4")
	for _, c := range []struct {
		l    *Lease
		addr string
		open bool
	}{
		{l, "10.9.9.9", true}, {l, sideAddr, true}, {l, "10.9.8.9", false}, {l, "192.168.9.9", false},
		{other, "10.9.9.9", true}, {other, sideAddr, false},
	} {
		_, err := dial(t, c.l, c.addr+":"+labPort)
		if c.open && err != nil || !c.open && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", c.addr, err)
		}
		if got := p.Forbidden(netip.MustParseAddr(c.addr)); c.l == l && (got == "") != c.open {
			t.Errorf("%s is forbidden to the proxy as %q", c.addr, got)
		}
	}
	// Never what no sandbox may reach.
	for _, a := range []string{other.Address().String(), sideHost, hostAddr, l.host.String()} {
		if seen, err := tryDial(t, l, a+":"+labPort); err == nil {
			t.Errorf("reached %s as %q", a, seen)
		}
	}
}

// TestMakingAnewOpensNothing has the rules made anew again and again, while a sandbox
// that may reach everything tries what no sandbox may.
func TestMakingAnewOpensNothing(t *testing.T) {
	defaultRoute(t, "10.9.9.9")
	p := newPool(t, func(c *Config) { c.Private, c.unguarded = nil, true })
	l := acquire(t, p)
	var remade atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for remade.Load() < 50 {
			if err := p.rules.remake(); err != nil {
				t.Error(err)
				remade.Store(50)
			}
			remade.Add(1)
		}
	}()
	tries := 0
	for remade.Load() < 50 {
		for _, addr := range []string{"169.254.169.254", "10.9.9.9"} {
			tries++
			if seen, err := tryDial(t, l, addr+":"+labPort); err == nil {
				t.Errorf("reached %s as %s", addr, seen)
			}
		}
	}
	<-done
	t.Logf("%d tries", tries)
}

// onThreadThatEnds calls f on a thread that ends afterwards, and returns its id. The
// process's main thread does not end, so it is kept busy meanwhile.
func onThreadThatEnds(t *testing.T, f func() error) (thread int) {
	t.Helper()
	finished := make(chan struct{})
	defer close(finished)
	for {
		isMain, done := make(chan bool), make(chan error)
		go func() {
			runtime.LockOSThread() // and so it ends with the goroutine
			if thread = unix.Gettid(); thread == unix.Getpid() {
				isMain <- true
				<-finished
				runtime.UnlockOSThread()
				return
			}
			isMain <- false
			done <- f()
		}()
		if <-isMain {
			continue
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return thread
	}
}

// TestThreadThatHasEnded has the rules changed by a thread that has ended when the
// change is reported. It is no other program's.
func TestThreadThatHasEnded(t *testing.T) {
	p := newPool(t, func(c *Config) { c.unguarded = true })
	l := acquireClosed(t, p)
	w, err := watch(unix.NETLINK_NETFILTER, nfGroupNFTables)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	thread := onThreadThatEnds(t, func() error { return l.SetPolicy(t.Context(), skerry.AllowAll()) })
	for by := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread)); err != nil {
			break
		}
		if time.Now().After(by) {
			t.Fatal("the thread does not end")
		}
	}
	byOthers, byAnybody := p.rules.touchedByOthers(false), p.rules.touchedByOthers(true)
	for told := false; !told; {
		messages, err := w.conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if byOthers(m) {
				t.Error("an own change is taken for another program's")
			}
			told = byAnybody(m) || told
		}
	}
}

// TestDefaultRouteMoves has the way out become another interface's.
func TestDefaultRouteMoves(t *testing.T) {
	defaultRoute(t, publicAddr)
	p := newPool(t, func(c *Config) { c.Private = nil })
	l := acquire(t, p)
	attach(t)
	if _, err := dial(t, l, publicAddr+":"+labPort); err != nil {
		t.Fatal(err)
	}
	err := netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(sideAddr)})
	if err != nil {
		t.Fatal(err)
	}
	by := time.Now().Add(patience)
	for {
		// By the interface that has it now, and by no other.
		_, err := dial(t, l, publicAddr+":"+labPort)
		if err == nil {
			break
		}
		if time.Now().After(by) {
			t.Fatal(err)
		}
	}
	if _, err := dial(t, l, labAddr+":"+labPort); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the network of the former default route: %v", err)
	}
}

func TestCheckPrivate(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.0/8": "", "192.168.1.1/32": "", "0.0.0.0/0": "", "240.0.0.0/4": "",
		"fd00::/8": "IPv4", "10.1.2.3/8": "10.0.0.0/8", "127.0.0.0/8": "127.0.0.0/8", "169.254.169.254/32": "169.254.0.0/16", "224.1.0.0/16": "224.0.0.0/4",
	} {
		err := CheckPrivate(netip.MustParsePrefix(s))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
	if err := CheckPrivate(netip.Prefix{}); err == nil {
		t.Error("no network is taken for one")
	}
	_, err := New(t.Context(), Config{Dir: t.TempDir(), Private: prefixes([]string{"127.0.0.0/8"}), Log: quiet})
	if err == nil || !strings.Contains(fmt.Sprint(err), "127.0.0.0/8") {
		t.Errorf("loopback was opened: %v", err)
	}
}
