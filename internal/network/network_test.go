package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

func TestOutbound(t *testing.T) {
	p := newPool(t, nil)
	l := acquire(t, p)
	seen, err := dial(t, l, labAddr+":"+labPort)
	if err != nil || seen != hostAddr {
		t.Fatalf("the lab saw %q: %v", seen, err)
	}
	in, out, err := l.Counters(t.Context())
	if err != nil || in < 100 || out < 100 {
		t.Fatalf("counters: %d in, %d out, %v", in, out, err)
	}
	// 1 MB out and back is counted on both sides.
	const size = 1 << 20
	if err := echo(t, l, size); err != nil {
		t.Fatal(err)
	}
	in2, out2, err := l.Counters(t.Context())
	if err != nil || in2-in < size || out2-out < size || in2-in > size*5/4 || out2-out > size*5/4 {
		t.Fatalf("%d bytes echoed counted as %d in and %d out, %v", size, in2-in, out2-out, err)
	}
}

// echo sends size bytes to the lab and reads them back.
func echo(t *testing.T, l *Lease, size int) error {
	return inside(t, l.NetNSPath(), func() error {
		fd, err := blockingDial(labAddr+":"+labPort, patience)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "lab")
		defer f.Close()
		r := bufio.NewReader(f)
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
		buf := make([]byte, 16<<10)
		for sent := 0; sent < size; sent += len(buf) {
			if _, err := f.Write(buf); err != nil {
				return err
			}
			if _, err := io.ReadFull(r, buf); err != nil {
				return err
			}
		}
		return nil
	})
}

// listen takes TCP connections on every address of a namespace, "" for the
// host's, and answers with a line.
func listen(t *testing.T, ns, network string) {
	t.Helper()
	var l net.Listener
	open := func() (err error) {
		l, err = net.Listen(network, ":"+labPort)
		return err
	}
	var err error
	if ns == "" {
		err = open()
	} else {
		err = inside(t, ns, open)
	}
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() { serveLab(l) })
	t.Cleanup(func() { l.Close(); group.Wait() })
}

func TestForbidden(t *testing.T) {
	listen(t, "", "tcp4")
	for _, a := range labAddrs {
		if _, err := blockingProbe(a + ":" + labPort); err != nil {
			t.Fatalf("the lab is not there for the host itself: %v", err)
		}
	}
	p := newPool(t, nil)
	l, other := acquire(t, p), acquire(t, p)
	listen(t, other.NetNSPath(), "tcp4")
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Fatal(err)
	}
	targets := map[string]string{
		"the host":                  hostAddr,
		"the host's end":            l.host.String(),
		"another's host end":        other.host.String(),
		"another sandbox":           other.Address().String(),
		"metadata":                  "169.254.169.254",
		"metadata of Alibaba Cloud": "100.100.100.200",
		"host agent of Azure":       "168.63.129.16",
		"broadcast of the uplink":   "198.51.100.255",
		"multicast":                 "224.0.0.1",
		"an unused sandbox address": "10.201.99.1",
	}
	for name, addr := range targets {
		t.Run(name, func(t *testing.T) {
			if seen, err := tryDial(t, l, addr+":"+labPort); err == nil {
				t.Errorf("reached %s as %q", addr, seen)
			}
		})
	}
	// The sandbox's own kernel would keep 127.0.0.1 to itself: a hostile one
	// sends it out.
	t.Run("loopback", func(t *testing.T) {
		mustDrop(t, l, "127.0.0.1", func() error { return sendRaw(l, l.sandbox, netip.MustParseAddr("127.0.0.1")) })
	})
}

func blockingProbe(target string) (int, error) {
	fd, err := blockingDial(target, impatience)
	if err == nil {
		unix.Close(fd)
	}
	return fd, err
}

// mustDrop sends a packet from a lease and wants it to reach neither the
// host's sockets nor the lab. After it, it sends one that is allowed and waits
// for the lab's answer: by then the first would have arrived too.
func mustDrop(t *testing.T, l *Lease, what string, send func() error) {
	t.Helper()
	before := arrived(t)
	err := inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(answerTimeout))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: rawPort}); err != nil {
			return err
		}
		if err := errors.Join(send(), sendRaw(l, l.sandbox, netip.MustParseAddr(labAddr))); err != nil {
			return err
		}
		if _, _, err := unix.Recvfrom(fd, make([]byte, 64), 0); err != nil {
			return fmt.Errorf("no answer to the allowed packet: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if n := arrived(t) - before; n != 1 {
		t.Errorf("%s: %d packets arrived where only the allowed one should", what, n)
	}
}

// rawPort is the source of raw frames; answerTimeout is long even on a busy
// machine.
const (
	rawPort       = 8081
	answerTimeout = 5 * time.Second
)

// arrived counts UDP datagrams, of both IP versions, that the host's and the
// lab's kernels were given, whether or not a socket took them.
func arrived(t *testing.T) (n int) {
	t.Helper()
	count := func() error {
		b4, err4 := os.ReadFile("/proc/thread-self/net/snmp")
		b6, err6 := os.ReadFile("/proc/thread-self/net/snmp6")
		if err := errors.Join(err4, err6); err != nil {
			return err
		}
		for line := range strings.Lines(string(b4)) {
			var in, noPorts, errs int
			if k, _ := fmt.Sscanf(line, "Udp: %d %d %d", &in, &noPorts, &errs); k == 3 {
				n += in + noPorts + errs
			}
		}
		for line := range strings.Lines(string(b6)) {
			switch f := strings.Fields(line); f[0] {
			case "Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors":
				v, err := strconv.Atoi(f[1])
				if err != nil {
					return err
				}
				n += v
			}
		}
		return nil
	}
	if err := errors.Join(count(), inside(t, labNS, count)); err != nil {
		t.Fatal(err)
	}
	return n
}

// sendRaw sends a UDP datagram to the lab's port as a raw frame on eth0, as a
// sandbox's kernel does.
func sendRaw(l *Lease, src, dst netip.Addr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := append(append([]byte{}, macOf(l.host)...), macOf(l.sandbox)...)
	if dst.Is6() {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64)
		frame = append(append(frame, src.AsSlice()...), dst.AsSlice()...)
	} else {
		head := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		head = append(append(head, src.AsSlice()...), dst.AsSlice()...)
		sum := uint32(0)
		for i := 0; i < len(head); i += 2 {
			sum += uint32(head[i])<<8 | uint32(head[i+1])
		}
		sum = ^(sum&0xffff + sum>>16)
		head[10], head[11] = byte(sum>>8), byte(sum)
		frame = append(append(frame, 0x08, 0), head...)
	}
	// From rawPort to the lab's port, without data and checksum.
	frame = append(frame, rawPort>>8, rawPort&0xff, 0x1f, 0x90, 0, 8, 0, 0)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
}

func TestSpoofedSource(t *testing.T) {
	p := newPool(t, nil)
	l, other := acquire(t, p), acquire(t, p)
	// Without the kernel's own check, which would hide a hole in the rules.
	if err := sysctl("ipv4", l.ifName(), "rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{other.Address().String(), l.host.String(), hostAddr, "203.0.113.9", "127.0.0.1", "0.0.0.0"} {
		mustDrop(t, l, "source "+src, func() error {
			return sendRaw(l, netip.MustParseAddr(src), netip.MustParseAddr(labAddr))
		})
	}
}

// TestSettings reads what the kernel holds of both ends.
func TestSettings(t *testing.T) {
	l := acquire(t, newPool(t, nil))
	is := func(want, family, iface, name string) error {
		got, err := os.ReadFile(filepath.Join("/proc/sys/net", family, "conf", iface, name))
		if err == nil && strings.TrimSpace(string(got)) != want {
			err = fmt.Errorf("%s %s of %s is %s", family, name, iface, got)
		}
		return err
	}
	if err := errors.Join(is("1", "ipv6", l.ifName(), "disable_ipv6"), is("1", "ipv4", l.ifName(), "forwarding"),
		is("1", "ipv4", l.ifName(), "arp_ignore"), is("1", "ipv4", l.ifName(), "rp_filter")); err != nil {
		t.Error(err)
	}
	err := inside(t, l.NetNSPath(), func() error {
		return errors.Join(is("1", "ipv6", "eth0", "disable_ipv6"), is("1", "ipv6", "lo", "disable_ipv6"),
			is("1", "ipv6", "default", "disable_ipv6"), is("0", "ipv4", "eth0", "forwarding"))
	})
	if err != nil {
		t.Error(err)
	}
}

func TestIPv6(t *testing.T) {
	listen(t, "", "tcp6")
	p := newPool(t, nil)
	l := acquire(t, p)
	for _, ns := range []string{"", l.NetNSPath()} {
		name, list := "eth0", func(name string) (n int, err error) {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return 0, err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			return len(addrs), err
		}
		var n int
		var err error
		if ns == "" {
			n, err = list(l.ifName())
		} else {
			err = inside(t, ns, func() (err error) { n, err = list(name); return err })
		}
		if n != 0 || err != nil {
			t.Errorf("namespace %q has %d IPv6 addresses: %v", ns, n, err)
		}
	}
	if seen, err := tryDial(t, l, "[2001:db8::1]:"+labPort); err == nil {
		t.Errorf("reached the host over IPv6 as %q", seen)
	}
	// Nothing gets through even with IPv6 turned on again on the host's end and
	// a host that forwards it.
	for _, set := range [][3]string{{l.ifName(), "disable_ipv6", "0"}, {"all", "forwarding", "1"}} {
		if err := sysctl("ipv6", set[0], set[1], set[2]); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := sysctl("ipv6", "all", "forwarding", "0"); err != nil {
			t.Error(err)
		}
	}()
	// So that the host knows the lab's hardware address and would not wait.
	if _, err := blockingProbe("[2001:db8::2]:" + labPort); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatal(err)
	}
	for _, dst := range []string{"2001:db8::1", "2001:db8::2"} {
		mustDrop(t, l, "IPv6", func() error {
			return sendRaw(l, netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr(dst))
		})
	}
}

// TestUninvited has the lab send to a sandbox by way of the host.
func TestUninvited(t *testing.T) {
	p := newPool(t, nil)
	l := acquire(t, p)
	listen(t, l.NetNSPath(), "tcp4")
	err := inside(t, labNS, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		gw := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(hostAddr),
			Dst: &net.IPNet{IP: p.prefix.Addr().AsSlice(), Mask: net.CIDRMask(p.prefix.Bits(), 32)}}
		if err := netlink.RouteAdd(gw); err != nil {
			return err
		}
		defer netlink.RouteDel(gw)
		_, err = blockingProbe(l.Address().String() + ":" + labPort)
		return err
	})
	if !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EAGAIN) {
		t.Errorf("connecting to a sandbox from outside: %v", err)
	}
}

func TestNoOutbound(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Outbound = false })
	l := acquire(t, p)
	if seen, err := tryDial(t, l, labAddr+":"+labPort); err == nil {
		t.Errorf("reached the lab as %q", seen)
	}
}

// TestRulesDoNotGrow also looks at how the kernel understood the rules.
func TestRulesDoNotGrow(t *testing.T) {
	p := newPool(t, nil)
	list := func() string {
		out, err := exec.Command("nft", "list", "table", "inet", tablePrefix+p.mark).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		return string(out)
	}
	// Lines of rules; those of elements are left out.
	count := func() (n int) {
		inSet := false
		for line := range strings.Lines(list()) {
			line = strings.TrimSpace(line)
			inSet = strings.HasPrefix(line, "set ") || inSet && line != "}"
			if !inSet {
				n++
			}
		}
		return n
	}
	before := count()
	for range 5 {
		setPolicy(t, acquire(t, p), custom([]string{"198.51.100.0/24"}, []string{"198.51.100.7/32"}))
	}
	after := list()
	t.Log(after)
	if n := count(); n != before || before < 30 {
		t.Errorf("%d lines became %d", before, n)
	}
	for _, want := range []string{
		`iifname != "sky` + p.mark + `*" accept`, `iifname . ip saddr != @leases drop`, `ip daddr 127.0.0.0/8 goto tell-forbidden`,
		`ip daddr 10.201.0.0/16 goto tell-forbidden`, `fib daddr type != unicast goto tell-forbidden`, `meta nfproto != ipv4 drop`,
		`ip saddr @open return`, `ip saddr != @custom goto tell-denied`, `ip saddr . ip daddr @denied goto tell-denied`, `ip saddr . ip daddr @allowed return`,
		`ip daddr @open return`, `ip daddr != @custom goto refuse-in`, `ip daddr . ip saddr @denied goto refuse-in`, `ip daddr . ip saddr @allowed return`,
		`ip daddr 169.254.0.0/16 goto tell-forbidden`, `ip daddr 224.0.0.0/4 goto tell-forbidden`, `ip daddr 10.0.0.0/8 goto tell-private`, `"uplink"`,
	} {
		if !strings.Contains(after, want) {
			t.Errorf("no %q in the rules", want)
		}
	}
}

// TestShareOfConnections fills one sandbox's share of the host's connection
// table.
func TestShareOfConnections(t *testing.T) {
	const share = 5
	p := newPool(t, func(c *Config) { c.connections = share })
	greedy, other := acquire(t, p), acquire(t, p)
	opened := 0
	err := inside(t, greedy.NetNSPath(), func() error {
		for range share + 3 {
			timeout := patience
			if opened >= share {
				timeout = impatience
			}
			fd, err := blockingDial(labAddr+":"+labPort, timeout)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			opened++
		}
		return nil
	})
	if !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("beyond the share: %v", err)
	}
	if opened != share {
		t.Errorf("%d connections opened, want %d", opened, share)
	}
	if _, err := dial(t, other, labAddr+":"+labPort); err != nil {
		t.Errorf("another sandbox: %v", err)
	}
}

// TestHostBecomesRouter has something else turn the host into a router while
// sandboxes are served: that is neither hindered nor undone.
func TestHostBecomesRouter(t *testing.T) {
	all := func(value string) {
		if err := sysctl("ipv4", "all", "forwarding", value); err != nil {
			t.Fatal(err)
		}
	}
	p := newPool(t, nil)
	l := acquire(t, p)
	all("1")
	defer all("0")
	if err := p.rules.install(p.elements(), map[netip.Addr]verdicts{l.Address(): l.verdicts}); err != nil { // as a restart does
		t.Fatal(err)
	}
	if opened, _, err := openedInterfaces(p.rules.table().Name); err != nil || len(opened) > 0 {
		t.Errorf("kept from forwarding elsewhere: %v %v", opened, err)
	}
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Error(err)
	}
	if err := errors.Join(l.Release(t.Context()), p.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/uplink/forwarding")
	if err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("forwarding is %q: %v", b, err)
	}
}

// TestReadyNetworks has more networks taken than are prepared: the others are made
// then.
func TestReadyNetworks(t *testing.T) {
	const ready = 3
	p := newPool(t, func(c *Config) { c.Ready = ready })
	exist := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.leases)
	}
	var taken []*Lease
	for _, n := range []int{0, 1, 2 * ready} {
		for range n {
			taken = append(taken, acquire(t, p))
		}
		eventually(t, "networks to be prepared", func() bool { return len(p.ready) == cap(p.ready) && exist() == len(taken)+ready })
	}
	for _, l := range taken {
		if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
			t.Error(err)
		}
	}
	if n := exist(); n != len(taken)+ready {
		t.Errorf("%d networks exist beside the %d that are taken", n-len(taken), len(taken))
	}
}

// TestConnectionShare has tables of several sizes, the smallest too.
func TestConnectionShare(t *testing.T) {
	for size, want := range map[int]uint32{0: minShare, 32 * 1024: 1024, 32*1024 + 32: 1025, 262144: 8192, 1 << 20: 32768} {
		if got := shareOf(size); got != want {
			t.Errorf("of a table of %d connections a sandbox has %d, want %d", size, got, want)
		}
	}
}

func TestConcurrentAcquire(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Ready = 4 })
	const n = 30
	leases := make([]*Lease, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			l, err := p.Acquire(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			leases[i] = l
			if err := l.SetPolicy(t.Context(), skerry.AllowAll()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := map[netip.Addr]bool{}
	for _, l := range leases {
		if l == nil {
			continue
		}
		if seen[l.Address()] {
			t.Errorf("%s given twice", l.Address())
		}
		seen[l.Address()] = true
		if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
			t.Error(err)
		}
		group.Go(func() {
			if err := l.Release(context.Background()); err != nil {
				t.Error(err)
			}
			if err := l.Release(context.Background()); err != nil {
				t.Errorf("second release: %v", err)
			}
		})
	}
	group.Wait()
}

func TestAllInUse(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Prefix = "10.202.0.0/28" })
	var list []*Lease
	for range 3 { // one is the gateway's
		list = append(list, acquire(t, p))
	}
	if l, err := p.Acquire(t.Context()); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Fatalf("a fourth address for sandboxes in a /28: %+v, %v", l, err)
	}
	if err := list[2].Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := acquire(t, p); l.Address() != list[2].Address() || l.ID() == list[2].ID() {
		t.Fatalf("lease %s at %s after %s at %s", l.ID(), l.Address(), list[2].ID(), list[2].Address())
	}
}

func TestPrefixOfTheHost(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if p, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: "198.51.100.0/25", Log: log}); err == nil {
		p.Close()
		t.Fatal("took addresses that the host has a route to")
	} else if !strings.Contains(err.Error(), "198.51.100.0/24") {
		t.Errorf("the error does not name the route: %v", err)
	}
	if err := route("10.201.7.7", "uplink"); err != nil {
		t.Fatal(err)
	}
	unroute := sync.OnceFunc(func() {
		link, _ := netlink.LinkByName("uplink")
		netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: net.IP{10, 201, 7, 7}, Mask: net.CIDRMask(32, 32)}})
	})
	defer unroute()
	p := newPool(t, func(c *Config) { c.Prefix = "" })
	if p.prefix.String() != "10.202.0.0/16" {
		t.Errorf("chose %s", p.prefix)
	}
	// The sandboxes of an earlier process keep their range when an earlier one
	// becomes free.
	acquire(t, p)
	if chosen, err := choosePrefix("", p.ifPrefix()); err != nil || chosen != p.prefix {
		t.Errorf("while the first range is taken, a later process chose %s: %v", chosen, err)
	}
	unroute()
	if chosen, err := choosePrefix("", p.ifPrefix()); err != nil || chosen != p.prefix {
		t.Errorf("a later process chose %s: %v", chosen, err)
	}
	if chosen, err := choosePrefix("", "skyother"); err != nil || chosen.String() != "10.201.0.0/16" {
		t.Errorf("another installation chose %s: %v", chosen, err)
	}
	for _, bad := range []string{"10.0.0.0/8", "10.201.0.1/16", "fd00::/64", "here"} {
		if p, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: bad, Log: log}); err == nil {
			p.Close()
			t.Errorf("prefix %q was accepted", bad)
		}
	}
}

// TestTwoInstallations closes one of two that share an uplink.
func TestTwoInstallations(t *testing.T) {
	a := newPool(t, nil)
	b, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: "10.203.0.0/16", Outbound: true, Private: labNets, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	la, lb := acquire(t, a), acquire(t, b)
	listen(t, la.NetNSPath(), "tcp4")
	for _, l := range []*Lease{la, lb} {
		if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
			t.Error(err)
		}
	}
	if seen, err := tryDial(t, lb, la.Address().String()+":"+labPort); err == nil {
		t.Errorf("reached a sandbox of the other installation as %q", seen)
	}
	if err := errors.Join(lb.Release(t.Context()), b.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, la, labAddr+":"+labPort); err != nil {
		t.Errorf("after the other installation closed: %v", err)
	}
	if err := la.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestProxiesOfTwoInstallations: the rules of one whose private networks are
// closed do not judge what the other's proxy opens.
func TestProxiesOfTwoInstallations(t *testing.T) {
	defaultRoute(t, privateAddrs[0])
	closed := newPool(t, func(c *Config) { c.Private, c.Proxy = nil, true })
	open, err := New(t.Context(), Config{
		Dir: t.TempDir(), Prefix: "10.203.0.0/16", Outbound: true, Proxy: true, Private: []netip.Prefix{netip.MustParsePrefix(privateAddrs[0] + "/32")}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := open.Close(); err != nil {
			t.Error(err)
		}
	}()
	if seen, err := markedDial(privateAddrs[0]+":"+labPort, closed.Gateway().Mark); err == nil {
		t.Errorf("the proxy of the closed one reaches a private address as %q", seen)
	}
	if _, err := markedDial(privateAddrs[0]+":"+labPort, open.Gateway().Mark); err != nil {
		t.Errorf("the proxy of the open one: %v", err)
	}
}

// acquireAndHang is a child process of TestRecoverAfterKill: it acquires three
// leases, names them and waits for its end.
func acquireAndHang(dir string) {
	p, err := New(context.Background(), Config{Dir: dir, Outbound: true, Private: labNets, Prefix: DefaultPrefix, Ready: 2, Log: slog.New(slog.DiscardHandler)})
	for range 3 {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var l *Lease
		if l, err = p.Acquire(context.Background()); err == nil {
			if err := l.SetPolicy(context.Background(), skerry.AllowAll()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(l.ID())
		}
	}
	io.Copy(io.Discard, os.Stdin)
}

func TestRecoverAfterKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), recoverEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for lines := bufio.NewScanner(stdout); len(ids) < 3 && lines.Scan(); {
		ids = append(ids, lines.Text())
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	if len(ids) != 3 {
		t.Fatalf("the child acquired %v", ids)
	}
	p := newPool(t, func(c *Config) { c.Dir = dir; c.Ready = 2 })
	early := acquire(t, p) // before Recover: it must not have a survivor's address
	if err := p.Recover(t.Context(), ids[:1]); err != nil {
		t.Fatal(err)
	}
	survivor, err := p.Adopt(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Lease{early, survivor} {
		if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
			t.Error(err)
		}
	}
	if early.Address() == survivor.Address() {
		t.Error("a survivor's address was given again")
	}
	for _, id := range []string{ids[0], ids[1], "ffff0000", "../../x", ""} {
		if _, err := p.Adopt(t.Context(), id); err == nil {
			t.Errorf("adopted %q", id)
		}
	}
	if _, err := os.Stat(dir + "/" + ids[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a stray namespace is left: %v", err)
	}
	if err := survivor.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestCloseLeavesLeasesInUse closes a pool whose lease is in use.
func TestCloseLeavesLeasesInUse(t *testing.T) {
	var dir string
	first, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: DefaultPrefix, Outbound: true, Private: labNets, Ready: 3, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	dir = first.cfg.Dir
	l, err := first.Acquire(t.Context())
	if err == nil {
		err = l.SetPolicy(t.Context(), skerry.AllowAll())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Acquire(t.Context()); err == nil {
		t.Error("a closed pool gives leases")
	}
	if links, err := interfaces(first.ifPrefix()); err != nil || len(links) != 1 {
		t.Errorf("interfaces after Close: %d, %v", len(links), err)
	}
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Error(err)
	}
	if _, err := tryDial(t, l, hostAddr+":"+labPort); err == nil {
		t.Error("the rules went with the pool")
	}
	second := newPool(t, func(c *Config) { c.Dir = dir })
	if err := second.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkAcquire(b *testing.B) {
	for _, ready := range []int{0, 32} {
		b.Run(fmt.Sprintf("ready=%d", ready), func(b *testing.B) {
			p := newPool(b, func(c *Config) { c.Ready, c.Proxy = ready, true })
			for range b.N {
				l, err := p.Acquire(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := l.Release(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkRelease(b *testing.B) {
	p := newPool(b, nil)
	for range b.N {
		b.StopTimer()
		l, err := p.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := l.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
