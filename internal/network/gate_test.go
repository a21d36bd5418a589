package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

func nft(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
		t.Fatalf("nft %v: %s: %v", args, out, err)
	}
}

// barrier waits until what the lease has sent before has been dealt with: the
// host answers an ARP request after it. It is called in the lease's namespace.
func barrier(l *Lease) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	const arp = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, arp)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if err := unix.Sendto(fd, arpFrame(l, 1, macOf(l.sandbox), l.sandbox, l.host), 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		return err
	}
	buf := make([]byte, 128)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("the host does not answer ARP: %w", err)
		}
		if n >= 42 && buf[21] == 2 { // a reply
			return nil
		}
	}
}

func arpFrame(l *Lease, operation byte, from []byte, sender, target netip.Addr) []byte {
	f := append(bytes.Repeat([]byte{0xff}, 6), macOf(l.sandbox)...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, operation)
	f = append(append(f, from...), sender.AsSlice()...)
	return append(append(f, make([]byte, 6)...), target.AsSlice()...)
}

// arrivedAll counts the datagrams that the host, the lab and other sandboxes were
// given.
func arrivedAll(t *testing.T, others ...*Lease) (n int) {
	t.Helper()
	n = arrived(t)
	for _, l := range others {
		err := inside(t, l.NetNSPath(), func() error {
			b, err := os.ReadFile("/proc/thread-self/net/snmp")
			for line := range strings.Lines(string(b)) {
				if f := strings.Fields(line); f[0] == "Udp:" && f[1] != "InDatagrams" {
					for _, v := range f[1:4] {
						k, _ := strconv.Atoi(v)
						n += k
					}
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// sendAll sends a datagram to each target as a raw frame.
func sendAll(t testing.TB, l *Lease, targets []string) {
	t.Helper()
	err := inside(t, l.NetNSPath(), func() error {
		for _, a := range targets {
			if err := sendRaw(l, l.sandbox, netip.MustParseAddr(a)); err != nil {
				return err
			}
		}
		return barrier(l)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestGateHoldsAlone takes the rules away, and nobody is there to put them back.
func TestGateHoldsAlone(t *testing.T) {
	const private = "10.9.9.9"
	defaultRoute(t, publicAddr, private)
	listen(t, "", "tcp4")
	p := newPool(t, func(c *Config) { c.Proxy, c.unguarded, c.Private = true, true, nil })
	open, closed, victim := acquire(t, p), acquireClosed(t, p), acquire(t, p)
	listen(t, victim.NetNSPath(), "tcp4")
	if _, err := dial(t, open, publicAddr+":"+labPort); err != nil {
		t.Fatal(err)
	}
	nft(t, "flush", "ruleset")
	targets := []string{
		hostAddr, open.host.String(), closed.host.String(), victim.host.String(), victim.Address().String(), publicAddr, private, labAddr,
		"169.254.169.254", "198.51.100.255", "255.255.255.255", "224.0.0.1", p.Gateway().addr.String(),
	}
	before := arrivedAll(t, victim)
	for _, l := range []*Lease{open, closed} {
		sendAll(t, l, targets)
	}
	for _, a := range []string{hostAddr, open.host.String(), victim.Address().String(), publicAddr} {
		if seen, err := tryDial(t, open, a+":"+labPort); err == nil {
			t.Errorf("reached %s as %q", a, seen)
		}
	}
	if n := arrivedAll(t, victim) - before; n != 0 {
		t.Errorf("%d packets arrived", n)
	}
	// They would have: without the gate they do.
	link, err := netlink.LinkByName(open.ifName())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.host.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}); err != nil {
		t.Fatal(err)
	}
	sendAll(t, open, []string{hostAddr, victim.Address().String()})
	if n := arrivedAll(t, victim) - before; n != 2 {
		t.Errorf("%d of 2 packets arrived without the gate: the test sees nothing", n)
	}
	if err := p.rules.remake(); err != nil {
		t.Fatal(err)
	}
}

// TestRulesAreMended has others take the rules away, as a reload of the host's
// firewall does, while sandboxes try what they may not.
func TestRulesAreMended(t *testing.T) {
	addOtherAddr(t)
	log := &safeBuffer{}
	p := newPool(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)); c.Proxy = true })
	open, narrow, victim := acquire(t, p), acquireClosed(t, p), acquire(t, p)
	setPolicy(t, narrow, custom([]string{labAddr + "/32"}, nil))
	listen(t, narrow.NetNSPath(), "tcp4")
	table := tablePrefix + p.mark
	for _, damage := range [][]string{
		{"flush", "ruleset"}, {"delete", "table", "inet", table}, {"flush", "table", "inet", table}, {"flush", "chain", "inet", table, "judge-out"},
		{"delete", "element", "inet", table, "custom", "{ " + narrow.Address().String() + " }"},
		{"insert", "rule", "inet", table, "judge-out", "accept"},
	} {
		log.Reset()
		before := arrivedAll(t, victim)
		stop, done := make(chan struct{}), make(chan struct{})
		if damage[0] != "insert" && damage[1] != "chain" { // these leave a moment in which more is open
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
						sendAll(t, narrow, []string{hostAddr, narrow.host.String(), victim.Address().String(), otherAddr, "169.254.169.254"})
					}
				}
			}()
		} else {
			close(done)
		}
		nft(t, damage...)
		eventually(t, strings.Join(damage, " "), func() bool {
			intact, err := p.rules.intact()
			return err == nil && intact && strings.Contains(log.String(), "made anew")
		})
		close(stop)
		<-done
		if n := arrivedAll(t, victim) - before; n != 0 {
			t.Errorf("%v: %d packets arrived", damage, n)
		}
		for _, l := range []*Lease{open, narrow} {
			if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
				t.Errorf("after %v: %v", damage, err)
			}
		}
		if _, err := dial(t, narrow, otherAddr+":"+labPort); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("after %v, what the policy does not allow: %v", damage, err)
		}
		if c, err := narrow.Dial(t.Context(), 8080); err != nil {
			t.Errorf("after %v, the host's connection: %v", damage, err)
		} else {
			c.Close()
		}
		if !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("after %v, the log has %s", damage, log)
		}
	}
	// Leases and policies of afterwards are in the rules that are there.
	later := acquire(t, p)
	if _, err := dial(t, later, labAddr+":"+labPort); err != nil {
		t.Error(err)
	}
}

// TestOwnChangesAreNotMended has many changes made by the pool itself.
func TestOwnChangesAreNotMended(t *testing.T) {
	log := &safeBuffer{}
	p := newPool(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	for range 5 {
		l := acquire(t, p)
		setPolicy(t, l, custom([]string{labAddr + "/32"}, nil))
	}
	if err := p.check(); err != nil {
		t.Error(err)
	}
	// The kernel tells of this after all of those.
	nft(t, "flush", "table", "inet", tablePrefix+p.mark)
	eventually(t, "the repair", func() bool { return strings.Contains(log.String(), "made anew") })
	if n := strings.Count(log.String(), "made anew"); n != 1 {
		t.Errorf("mended %d times: %s", n, log)
	}
}

// TestRoutingRulesAreMended has another program remove the routing rules.
func TestRoutingRulesAreMended(t *testing.T) {
	p := newPool(t, nil)
	if err := p.removeGateRules(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the routing rules", func() bool {
		rules, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Priority: gatePriority}, netlink.RT_FILTER_PRIORITY)
		return err == nil && len(rules) == 2
	})
}

// TestGatePasses runs frames through the program.
func TestGatePasses(t *testing.T) {
	p := newPool(t, nil)
	l, other := acquire(t, p), acquire(t, p)
	link, err := netlink.LinkByName(l.ifName())
	if err != nil {
		t.Fatal(err)
	}
	own, foreign := macOf(l.sandbox), macOf(other.sandbox)
	frame := func(source []byte, kind uint16, payload []byte) []byte {
		f := append(append([]byte{}, macOf(l.host)...), source...)
		return append(binary.BigEndian.AppendUint16(f, kind), payload...)
	}
	ip := func(from netip.Addr) []byte {
		b := make([]byte, 64)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(b[12:], from.AsSlice())
		copy(b[16:], []byte{198, 51, 100, 2})
		return b
	}
	arp := func(mac []byte, from netip.Addr) []byte {
		return append(arpFrame(l, 1, mac, from, l.host)[14:], make([]byte, 18)...)
	}
	broken := arp(own, l.sandbox)
	broken[4] = 8
	for name, c := range map[string]struct {
		frame []byte
		pass  bool
		mark  uint32
	}{
		"IPv4":                          {frame(own, unix.ETH_P_IP, ip(l.sandbox)), true, unjudgedMark},
		"IPv4 from another":             {frame(own, unix.ETH_P_IP, ip(other.sandbox)), false, 0},
		"IPv4 with another MAC":         {frame(foreign, unix.ETH_P_IP, ip(l.sandbox)), false, 0},
		"IPv4 of another altogether":    {frame(foreign, unix.ETH_P_IP, ip(other.sandbox)), false, 0},
		"IPv6":                          {frame(own, unix.ETH_P_IPV6, make([]byte, 64)), false, 0},
		"ARP":                           {frame(own, unix.ETH_P_ARP, arp(own, l.sandbox)), true, 0},
		"ARP for another's address":     {frame(own, unix.ETH_P_ARP, arp(own, other.sandbox)), false, 0},
		"ARP for another's MAC":         {frame(own, unix.ETH_P_ARP, arp(foreign, l.sandbox)), false, 0},
		"ARP of other sizes":            {frame(own, unix.ETH_P_ARP, broken), false, 0},
		"ARP cut short":                 {frame(own, unix.ETH_P_ARP, arp(own, l.sandbox)[:20]), false, 0},
		"LLDP":                          {frame(own, 0x88cc, make([]byte, 64)), false, 0},
		"802.3":                         {frame(own, 60, make([]byte, 64)), false, 0},
		"PPPoE":                         {frame(own, 0x8863, make([]byte, 64)), false, 0},
		"MPLS":                          {frame(own, 0x8847, ip(l.sandbox)), false, 0},
		"a VLAN's":                      {frame(own, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, ip(l.sandbox)...)), false, 0},
		"of an interface without lease": {nil, false, 0},
	} {
		index := link.Attrs().Index
		if c.frame == nil {
			c.frame, index = frame(own, unix.ETH_P_IP, ip(l.sandbox)), loopback
		}
		var out skBuff
		action, err := p.gate.program.Run(&ebpf.RunOptions{Data: c.frame, Context: skBuff{Ifindex: uint32(index)}, ContextOut: &out})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if (action == 0) != c.pass || action != 0 && action != 2 || out.Mark != c.mark {
			t.Errorf("%s: action %d, mark %x", name, action, out.Mark)
		}
	}
	// passed is how many of n equal frames pass. atMost is how many of a share for
	// about a second may have passed since start.
	passed := func(index, n int, data []byte) (passed int) {
		for range n {
			action, err := p.gate.program.Run(&ebpf.RunOptions{Data: data, Context: skBuff{Ifindex: uint32(index)}})
			if err != nil {
				t.Fatal(err)
			}
			if action == 0 {
				passed++
			}
		}
		return passed
	}
	start := time.Now()
	atMost := func(share int) int { return share * (2 + int(time.Since(start).Seconds())) }
	n := passed(link.Attrs().Index, 4*arpPerSecond, frame(own, unix.ETH_P_ARP, arp(own, l.sandbox)))
	if most := atMost(arpPerSecond); n < arpPerSecond/2 || n > most {
		t.Errorf("%d of %d ARP packets passed, want at the most %d", n, 4*arpPerSecond, most)
	}
	// Fragments are counted for each sandbox and for all.
	fragment := func(from netip.Addr, offset uint16, size int) []byte {
		b := append(ip(from), make([]byte, size)...)
		binary.BigEndian.PutUint16(b[6:], offset)
		return frame(macOf(from), unix.ETH_P_IP, b)
	}
	const more, last, whole = 0x2000, 185, 0x4000
	if passed(link.Attrs().Index, 1, fragment(l.sandbox, more, maxFragment)) != 0 {
		t.Error("a fragment passed that is longer than a packet")
	}
	leases := map[int]*Lease{}
	for range 4 * fragmentsOfAll / fragmentsPerSecond {
		one := acquire(t, p)
		link, err := netlink.LinkByName(one.ifName())
		if err != nil {
			t.Fatal(err)
		}
		leases[link.Attrs().Index] = one
	}
	start = time.Now()
	all := 0
	for index, one := range leases {
		n := 0
		for _, offset := range []uint16{more, last, more | last} {
			n += passed(index, fragmentsPerSecond, fragment(one.sandbox, offset, 0))
		}
		if most := atMost(fragmentsPerSecond); n > most {
			t.Errorf("%d fragments of a sandbox passed, want at the most %d", n, most)
		}
		if n := passed(index, 4*fragmentsPerSecond, fragment(one.sandbox, whole, 0)); n != 4*fragmentsPerSecond {
			t.Errorf("%d whole datagrams passed of %d", n, 4*fragmentsPerSecond)
		}
		all += n
	}
	if most := atMost(fragmentsOfAll); all < fragmentsOfAll/2 || all > most {
		t.Errorf("%d fragments of all sandboxes passed, want at the most %d", all, most)
	}
}

// skBuff is struct __sk_buff, as far as it is looked at.
type skBuff struct {
	Len, PktType, Mark, Queue, Protocol, VLANPresent, VLANTCI, VLANProto, Priority, IngressIfindex, Ifindex uint32
	_                                                                                                       [148]byte
}

// safeBuffer takes a log.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *safeBuffer) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Reset()
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for by := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(by) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// TestFlushWithoutServer takes the rules away while nobody serves, and has a later
// process go on.
func TestFlushWithoutServer(t *testing.T) {
	first, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: DefaultPrefix, Outbound: true, Proxy: true, Private: labNets, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
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
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Errorf("without a server: %v", err)
	}
	nft(t, "flush", "ruleset")
	before := arrivedAll(t)
	sendAll(t, l, []string{hostAddr, l.host.String(), labAddr, otherAddr})
	if n := arrivedAll(t) - before; n != 0 {
		t.Errorf("%d packets arrived", n)
	}
	second := newPool(t, func(c *Config) { c.Dir, c.Proxy = first.cfg.Dir, true })
	adopted, err := second.Adopt(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Release(t.Context())
	if opened, _, err := openedInterfaces(second.rules.table().Name); err != nil || !opened["uplink"] {
		t.Errorf("what comes in by %v alone goes only to sandboxes: %v", opened, err)
	}
	if _, err := tryDial(t, adopted, labAddr+":"+labPort); err == nil {
		t.Error("a sandbox of which no policy is known reaches the lab")
	}
	setPolicy(t, adopted, skerry.AllowAll())
	if _, err := dial(t, adopted, labAddr+":"+labPort); err != nil {
		t.Error(err)
	}
}
