package network

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dialled connects the host to a sandbox's echo server and returns the
// connection and the host's side of it.
func dialled(t *testing.T, l *Lease) (net.Conn, netip.AddrPort) {
	t.Helper()
	c, err := l.Dial(context.Background(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.TCPAddr).AddrPort()
}

func TestDial(t *testing.T) {
	for name, outbound := range map[string]bool{"outbound": true, "no outbound": false} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, func(c *Config) { c.Outbound = outbound })
			l := acquire(t, p)
			if c, err := l.Dial(context.Background(), 8080); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("nothing listens, but: %v %v", c, err)
			}
			listen(t, l.NetNSPath(), "tcp4")
			c, own := dialled(t, l)
			if own.Addr() != l.host {
				t.Errorf("the host's side is %s", own)
			}
			r := bufio.NewReader(c)
			if line, err := r.ReadString('\n'); err != nil || strings.TrimSpace(line) != l.host.String() {
				t.Fatalf("the sandbox saw %q: %v", line, err)
			}
			text := strings.Repeat("x", 1<<16) + "\n"
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if line, err := r.ReadString('\n'); err != nil || line != text {
				t.Fatalf("echoed %d bytes: %v", len(line), err)
			}
		})
	}
}

// TestDialToASilentSandbox has a sandbox that takes no connections, though it
// listens.
func TestDialToASilentSandbox(t *testing.T) {
	p := newPool(t, func(c *Config) { c.dialTimeout = 100 * time.Millisecond })
	l := acquire(t, p)
	err := inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 8080}), unix.Listen(fd, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	dialled(t, l) // there is room for one that waits
	_, err = l.Dial(context.Background(), 8080)
	if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("a connection that is not taken: %v", err)
	}
}

// TestDialOpensNoWayBack has a sandbox that the host is connected to try to
// reach the host by that.
func TestDialOpensNoWayBack(t *testing.T) {
	listen(t, "", "tcp4")
	p := newPool(t, nil)
	l, other := acquire(t, p), acquire(t, p)
	listen(t, l.NetNSPath(), "tcp4")
	listen(t, other.NetNSPath(), "tcp4")
	_, own := dialled(t, l)
	_, others := dialled(t, other)
	for name, target := range map[string]netip.AddrPort{
		"the host's end":              netip.AddrPortFrom(l.host, 8080),
		"the connection's own port":   own,
		"the host":                    netip.MustParseAddrPort(hostAddr + ":8080"),
		"another's connection":        others,
		"another sandbox":             netip.AddrPortFrom(other.sandbox, 8080),
		"the other sandbox's gateway": netip.AddrPortFrom(other.host, 8080),
	} {
		if seen, err := tryDial(t, l, target.String()); err == nil {
			t.Errorf("reached %s as %q", name, seen)
		}
	}
	// Segments that open nothing, as a hostile kernel sends them: none may be
	// answered, as even a reset tells what listens.
	const ack, synAck, rst, fin = 0x10, 0x12, 0x04, 0x01
	before := settled(t)
	for _, flags := range []byte{ack, synAck, rst, fin, 0} {
		for _, dst := range []netip.AddrPort{
			netip.AddrPortFrom(l.host, 8080), netip.AddrPortFrom(l.host, 9), others, netip.AddrPortFrom(other.host, 8080),
			netip.MustParseAddrPort(hostAddr + ":8080"), netip.AddrPortFrom(other.sandbox, 8080),
		} {
			err := inside(t, l.NetNSPath(), func() error { return sendSegment(l, dst, flags) })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(100 * time.Millisecond) // for what must not come there is nothing to wait for
	if n := segments(t) - before; n != 0 {
		t.Errorf("the host's TCP was given %d segments", n)
	}
}

// TestDialEndsWithLease: the host looks nowhere else for the address.
func TestDialEndsWithLease(t *testing.T) {
	p := newPool(t, nil)
	l := acquire(t, p)
	if err := l.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Dial(context.Background(), 8080); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("dialled %v: %v", c, err)
	}
}

// settled counts it once the ends of earlier connections have come.
func settled(t *testing.T) int {
	t.Helper()
	n := segments(t)
	for {
		time.Sleep(100 * time.Millisecond)
		now := segments(t)
		if now == n {
			return n
		}
		n = now
	}
}

// segments counts what the host's TCP was given.
func segments(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp") // the first thread may be left in a sandbox's namespace
	if err != nil {
		t.Fatal(err)
	}
	var titles []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if titles == nil {
			titles = f
			continue
		}
		n := 0
		for i, title := range titles {
			if title == "InSegs" || title == "InErrs" {
				v := 0
				for _, d := range f[i] {
					v = v*10 + int(d-'0')
				}
				n += v
			}
		}
		return n
	}
	t.Fatal("no TCP counters")
	return 0
}

// sendSegment sends a TCP segment from the sandbox's port 8080 as a raw frame.
func sendSegment(l *Lease, dst netip.AddrPort, flags byte) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tcp := binary.BigEndian.AppendUint16(nil, 8080)
	tcp = binary.BigEndian.AppendUint16(tcp, dst.Port())
	tcp = append(tcp, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, flags, 0x10, 0, 0, 0, 0, 0)
	pseudo := append(append([]byte{}, l.sandbox.AsSlice()...), dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...), 0))
	head := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}
	head = append(append(head, l.sandbox.AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], checksum(head, 0))
	frame := append(append([]byte{}, macOf(l.host)...), macOf(l.sandbox)...)
	frame = append(append(append(frame, 0x08, 0), head...), tcp...)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
}
