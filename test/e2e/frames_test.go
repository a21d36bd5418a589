package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/client"
)

// namespace is where the network of a sandbox's session is mounted.
func (w *world) namespace(sb *client.Sandbox) string {
	w.t.Helper()
	b, err := os.ReadFile(w.path("state/sessions/" + sb.Session().ID + "/session.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	var about struct{ Lease string }
	if err := json.Unmarshal(b, &about); err != nil {
		w.t.Fatal(err)
	}
	found, err := filepath.Glob(w.path("run/*/netns/" + about.Lease))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("the network of %s is %q: %v", sb.Name(), found, err)
	}
	return found[0]
}

// takeOver opens the interface of a sandbox as its own kernel has it: what a
// sentry that was taken over could do. The socket belongs to the caller.
func (w *world) takeOver(sb *client.Sandbox) (fd, index int, own, gateway net.HardwareAddr) {
	w.t.Helper()
	done := make(chan error)
	go func() { // the thread ends with the goroutine
		runtime.LockOSThread()
		ns, err := os.Open(w.namespace(sb))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		var link netlink.Link
		if err == nil {
			link, err = netlink.LinkByName("eth0")
		}
		if err == nil {
			own, index = link.Attrs().HardwareAddr, link.Attrs().Index
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}
		done <- err
	}()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	// The host's end is an address below, and so is its hardware address.
	a := netip.MustParseAddr(w.address(sb)).Prev().As4()
	return fd, index, own, append(net.HardwareAddr{own[0], own[1]}, a[:]...)
}

// neighbours are the hardware addresses that the host believes in.
func (w *world) neighbours() string {
	w.t.Helper()
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		w.t.Fatal(err)
	}
	var known []string
	for _, n := range list {
		if n.IP.IsMulticast() || n.HardwareAddr == nil {
			continue
		}
		known = append(known, fmt.Sprintf("%d %s is at %s", n.LinkIndex, n.IP, n.HardwareAddr))
	}
	slices.Sort(known)
	return strings.Join(known, "\n")
}

func (w *world) addresses() string {
	w.t.Helper()
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		w.t.Fatal(err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprint(list, routes)
}

func ethernet(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(slices.Clone(to), from...), kind), payload...)
}

func arpPacket(op uint16, hardware net.HardwareAddr, sender, target netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, op)
	b = append(append(b, hardware...), sender.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}

func datagram(from, to string, port uint16) []byte {
	b := append([]byte{0x45, 0, 0, 32, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, netip.MustParseAddr(from).AsSlice()...)
	b = append(b, netip.MustParseAddr(to).AsSlice()...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, 4000), port)
	return append(b, 0, 12, 0, 0, 'o', 'u', 't', '!')
}

func datagram6(from, to string, protocol byte, payload []byte) []byte {
	b := append([]byte{0x60, 0, 0, 0}, byte(len(payload)>>8), byte(len(payload)), protocol, 255)
	b = append(append(b, netip.MustParseAddr(from).AsSlice()...), netip.MustParseAddr(to).AsSlice()...)
	return append(b, payload...)
}

// TestForgedFrames sends from a sandbox's side of its interface what gVisor does
// not let anybody in it send: nothing leaves but what the policy allows, the host
// believes nothing of it, and what is a neighbour's does not come.
func TestForgedFrames(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "forger", NetworkPolicy: customPolicy})
	other := w.create(client.CreateOptions{Name: "other", NetworkPolicy: customPolicy})
	own, victim, open := w.address(sb), w.address(other), w.address(w.neighbour)
	fd, index, mac, gateway := w.takeOver(sb)
	defer unix.Close(fd)
	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	strange := net.HardwareAddr{2, 0xba, 0xd0, 0, 0, 1}
	var frames [][]byte
	for _, claimed := range []string{netip.MustParseAddr(own).Prev().String(), netip.MustParseAddr(victim).Prev().String(), victim, open, "198.51.100.1", labGateway, allowedIP} {
		a := netip.MustParseAddr(claimed)
		for _, hardware := range []net.HardwareAddr{mac, strange} {
			for _, to := range []net.HardwareAddr{broadcast, gateway} {
				frames = append(frames,
					ethernet(to, hardware, unix.ETH_P_ARP, arpPacket(1, hardware, a, a)),
					ethernet(to, hardware, unix.ETH_P_ARP, arpPacket(2, hardware, a, netip.MustParseAddr(own).Prev())))
			}
		}
		frames = append(frames, ethernet(gateway, mac, unix.ETH_P_IP, datagram(claimed, directIP, 9000)), ethernet(gateway, mac, unix.ETH_P_IP, datagram(claimed, evilIP, 9000)))
	}
	for _, source := range []string{victim, open, "198.51.100.1", "127.0.0.1", "0.0.0.0", "255.255.255.255"} {
		for _, from := range []net.HardwareAddr{mac, strange, gateway} {
			frames = append(frames, ethernet(gateway, from, unix.ETH_P_IP, datagram(source, directIP, 9001)), ethernet(broadcast, from, unix.ETH_P_IP, datagram(source, "255.255.255.255", 67)))
		}
	}
	for _, to := range []string{evilIP, deniedIP, "169.254.169.254", "198.51.100.1", victim, open, labGateway} {
		plain := datagram(own, to, 9002)
		tagged := append([]byte{0, 1, 8, 0}, plain...)
		frames = append(frames,
			ethernet(gateway, mac, unix.ETH_P_IP, plain), ethernet(gateway, strange, unix.ETH_P_IP, plain), ethernet(broadcast, mac, unix.ETH_P_IP, plain),
			ethernet(gateway, mac, unix.ETH_P_8021Q, tagged), ethernet(gateway, mac, unix.ETH_P_8021AD, append([]byte{0, 1, 0x81, 0}, tagged...)),
			ethernet(gateway, mac, unix.ETH_P_MPLS_UC, append([]byte{0, 0, 0x11, 0xff}, plain...)))
	}
	// Router and neighbour advertisements, and datagrams of IPv6.
	router := append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
	neighbour := append(append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, netip.MustParseAddr("2001:db8::2").AsSlice()...), 2, 1, 2, 0xba, 0xd0, 0, 0, 1)
	for _, to := range []net.HardwareAddr{gateway, {0x33, 0x33, 0, 0, 0, 1}} {
		frames = append(frames,
			ethernet(to, mac, unix.ETH_P_IPV6, datagram6("fe80::bad", "ff02::1", unix.IPPROTO_ICMPV6, router)),
			ethernet(to, mac, unix.ETH_P_IPV6, datagram6("fe80::bad", "ff02::1", unix.IPPROTO_ICMPV6, neighbour)),
			ethernet(to, mac, unix.ETH_P_IPV6, datagram6("2001:db8::bad", "2001:db8::2", unix.IPPROTO_UDP, []byte{15, 160, 35, 40, 0, 8, 0, 0})),
			ethernet(to, mac, unix.ETH_P_IPV6, datagram6("2001:db8::bad", "2001:db8::1", unix.IPPROTO_UDP, []byte{15, 160, 35, 40, 0, 8, 0, 0})))
	}
	for _, kind := range []uint16{0x0800, 0x86dd, 0x88cc, 0x8863, 0x88e5, 0x0004, 0xffff} {
		frames = append(frames, ethernet(gateway, mac, kind, []byte{1, 2, 3}), ethernet(broadcast, mac, kind, make([]byte, 1400)))
	}

	// What comes to the forger that is not its own.
	var stolen atomic.Pointer[string]
	reading := make(chan struct{})
	tv := unix.NsecToTimeval(50e6)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(reading)
		buf := make([]byte, 65536)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && ll.Pkttype != unix.PACKET_OUTGOING && n >= 34 && binary.BigEndian.Uint16(buf[12:]) == unix.ETH_P_IP {
				if to := netip.AddrFrom4([4]byte(buf[30:])).String(); to != own {
					stolen.Store(&to)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	w.lab.seen()
	before, addresses := w.neighbours(), w.addresses()
	for range 3 {
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
				t.Fatalf("send % x: %v", f, err)
			}
		}
		for _, who := range []*client.Sandbox{other, w.neighbour, sb} {
			if code, out := w.shell(who, "curl -sS -m 20 http://allowed.test/"); code != 0 {
				t.Errorf("%s meanwhile: %d %s", who.Name(), code, out)
			}
		}
	}
	// One that is allowed, by the same way: what was sent before has arrived if it could.
	if err := unix.Sendto(fd, ethernet(gateway, mac, unix.ETH_P_IP, datagram(own, directIP, 9999)), 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	allowed := "17 198.51.100.1>" + directIP + ":9999"
	w.waitFor("what is allowed", func() bool {
		packets, _, _ := w.lab.seen()
		seen = append(seen, packets...)
		return slices.Contains(seen, allowed)
	})
	for _, p := range seen {
		if p != allowed && !slices.Contains(fair, p) {
			t.Errorf("the world saw %s", p)
		}
	}
	close(stop)
	<-reading
	if to := stolen.Load(); to != nil {
		t.Errorf("it was sent what is for %s", *to)
	}
	for line := range strings.Lines(w.neighbours()) {
		if !strings.Contains(before, strings.TrimSpace(line)) && (strings.Contains(line, strange.String()) || strings.Contains(line, mac.String())) {
			t.Errorf("the host has come to believe that %s", line)
		}
	}
	if now := w.addresses(); now != addresses {
		t.Errorf("the host's addresses and routes were\n%s\nand are\n%s", addresses, now)
	}
	for _, who := range []*client.Sandbox{sb, other, w.neighbour} {
		w.assertAlive(who)
	}
}
