package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstFragments sends from a lease, as root in its sandbox can, n datagrams'
// beginnings of 1,480 bytes, each of a datagram of its own that never goes on.
func firstFragments(t testing.TB, l *Lease, n int, target netip.Addr) {
	t.Helper()
	err := inside(t, l.NetNSPath(), func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		const moreFragments = 0x2000
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
		for i := range n {
			frame := append(append([]byte{}, macOf(l.host)...), macOf(l.sandbox)...)
			frame = append(frame, 8, 0, 0x45, 0)
			frame = binary.BigEndian.AppendUint16(frame, 1500)
			frame = binary.BigEndian.AppendUint16(frame, uint16(i))
			frame = binary.BigEndian.AppendUint16(frame, moreFragments)
			frame = append(frame, 64, unix.IPPROTO_UDP, 0, 0)
			frame = append(append(frame, l.sandbox.AsSlice()...), target.AsSlice()...)
			sum := uint32(0)
			for j := 14; j < 34; j += 2 {
				sum += uint32(binary.BigEndian.Uint16(frame[j:]))
			}
			sum = sum&0xffff + sum>>16
			binary.BigEndian.PutUint16(frame[24:], ^uint16(sum+sum>>16))
			if err := unix.Sendto(fd, append(frame, make([]byte, 1480)...), 0, to); err != nil {
				return err
			}
		}
		return barrier(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reassembling returns how many datagrams the host has in parts, and the memory
// that they take.
func reassembling(t testing.TB) (datagrams, bytes int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/sockstat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "FRAG: inuse %d memory %d", &datagrams, &bytes); n == 2 {
			return datagrams, bytes
		}
	}
	t.Fatalf("no FRAG in %s", b)
	return 0, 0
}

// TestFragmentsLeaveRoom has sandboxes send beginnings of datagrams, as many as fill
// the host's memory for such. The host still puts together what others send.
func TestFragmentsLeaveRoom(t *testing.T) {
	p := newPool(t, nil)
	for range 4 {
		firstFragments(t, acquire(t, p), 1000, netip.MustParseAddr(labAddr))
	}
	datagrams, bytes := reassembling(t)
	if datagrams == 0 {
		t.Error("no fragment arrived: the test sees nothing")
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/ipfrag_high_thresh")
	if err != nil {
		t.Fatal(err)
	}
	room, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if bytes > room*3/4 {
		t.Errorf("%d datagrams of sandboxes take %d bytes of %d", datagrams, bytes, room)
	}
	// One from outside, in parts.
	c, err := net.ListenPacket("udp4", hostAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = inside(t, labNS, func() error { return sendLarge(c.LocalAddr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := c.ReadFrom(make([]byte, 1<<16)); err != nil || n != largeDatagram {
		t.Errorf("the host received %d bytes: %v", n, err)
	}
}

// TestFragmentsPass has a sandbox send a datagram larger than a packet.
func TestFragmentsPass(t *testing.T) {
	p := newPool(t, nil)
	before := arrived(t)
	l := acquire(t, p)
	if err := inside(t, l.NetNSPath(), func() error { return sendLarge(labAddr + ":" + labPort) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the datagram's arrival", func() bool { return arrived(t) > before })
}

const largeDatagram = 8 << 10

// sendLarge sends a datagram of that many bytes from the thread's namespace.
func sendLarge(target string) error {
	to := netip.MustParseAddrPort(target)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, make([]byte, largeDatagram), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}
