package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// deniedOf returns what a pool tells of.
func deniedOf(t *testing.T, p *Pool) <-chan Denied {
	t.Helper()
	told, ended := make(chan Denied, 10000), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- p.Denials(ctx, func(d Denied) { told <- d }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return told
}

func next(t *testing.T, told <-chan Denied) Denied {
	t.Helper()
	select {
	case d := <-told:
		return d
	case <-time.After(patience):
		t.Fatal("nothing is told")
		return Denied{}
	}
}

// send sends a packet without waiting for an answer.
func send(t *testing.T, l *Lease, kind, protocol int, target string, packet []byte) {
	t.Helper()
	err := inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ap := netip.MustParseAddrPort(target)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()})
	})
	if err != nil {
		t.Error(err)
	}
}

func sendUDP(t *testing.T, l *Lease, target string) {
	t.Helper()
	send(t, l, unix.SOCK_DGRAM, 0, target, []byte("x"))
}

func TestDeniedPacketsAreTold(t *testing.T) {
	addOtherAddr(t)
	p := newPool(t, func(c *Config) { c.Proxy = true })
	told := deniedOf(t, p)
	l := acquireClosed(t, p)
	want := func(protocol, destination, reason string) {
		t.Helper()
		if _, err := netip.ParseAddrPort(destination); err != nil {
			destination += ":0"
		}
		if got := next(t, told); got != (Denied{l.Address(), protocol, netip.MustParseAddrPort(destination), reason}) {
			t.Errorf("told of %+v, want %s to %s: %s", got, protocol, destination, reason)
		}
	}
	if _, err := tryDial(t, l, labAddr+":8080"); err == nil {
		t.Error("a new sandbox reaches the lab")
	}
	want("tcp", labAddr+":8080", ReasonDenied)
	setPolicy(t, l, custom([]string{otherAddr + "/32"}, []string{labAddr + "/32"}))
	if err := udpTo(t, l, labAddr+":443"); err == nil {
		t.Error("a denied address answers")
	}
	want("udp", labAddr+":443", ReasonDenied)
	sendUDP(t, l, "198.51.100.77:443")
	want("udp", "198.51.100.77:443", ReasonNotAllowed)
	send(t, l, unix.SOCK_RAW, unix.IPPROTO_ICMP, "198.51.100.77:0", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})
	want("icmp", "198.51.100.77", ReasonNotAllowed)
	for _, target := range []string{"169.254.169.254:80", hostAddr + ":22", l.host.String() + ":22"} {
		if _, err := tryDial(t, l, target); err == nil {
			t.Errorf("%s is reached", target)
		}
		want("tcp", target, ReasonForbidden)
	}
	// Once, and what is allowed not at all.
	for range 5 {
		sendUDP(t, l, "198.51.100.77:443")
	}
	if _, err := dial(t, l, otherAddr+":"+labPort); err != nil {
		t.Error(err)
	}
	sendUDP(t, l, "198.51.100.77:444")
	want("udp", "198.51.100.77:444", ReasonNotAllowed)
}

func TestNothingIsLetOutIsTold(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Outbound = false })
	told := deniedOf(t, p)
	l := acquire(t, p)
	sendUDP(t, l, labAddr+":"+labPort)
	if got := next(t, told); got.Reason != ReasonDenied || got.Destination.Addr().String() != labAddr {
		t.Errorf("told of %+v", got)
	}
}

// TestFloodIsNotTold has one sandbox send more than is told of, which costs its
// neighbour nothing.
func TestFloodIsNotTold(t *testing.T) {
	p := newPool(t, nil)
	l, neighbour := acquireClosed(t, p), acquireClosed(t, p)
	told := deniedOf(t, p)
	start := time.Now()
	err := inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range 20000 {
			// The kernel answers that it is forbidden: an error of the next.
			_ = unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 1 + i, Addr: netip.MustParseAddr(labAddr).As4()})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sendUDP(t, neighbour, labAddr+":7")
	n := 0
	for next(t, told).Source != neighbour.Address() {
		n++
	}
	if most := deniedBurst + deniedPerSecond*(int(time.Since(start).Seconds())+1); n == 0 || n > most {
		t.Errorf("told %d times, want at the most %d", n, most)
	}
}

// TestInstallationsListenBeside has two pools on a machine with the same first
// choice of a group.
func TestInstallationsListenBeside(t *testing.T) {
	one, err := openDenials("same")
	if err != nil {
		t.Fatal(err)
	}
	defer one.close()
	two, err := openDenials("same")
	if err != nil {
		t.Fatal(err)
	}
	defer two.close()
	if one.group == two.group {
		t.Errorf("both have group %d", one.group)
	}
}

func TestWhatWasToldIsBounded(t *testing.T) {
	var told lately
	now := time.Now()
	for i := range 3 * deniedRemembered {
		d := Denied{Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}), 1)}
		if !told.first(d, now) || told.first(d, now.Add(deniedAgain-1)) || len(told) > deniedRemembered {
			t.Fatalf("%d: %d remembered", i, len(told))
		}
	}
	d := Denied{Reason: "again"}
	if !told.first(d, now) || !told.first(d, now.Add(deniedAgain)) {
		t.Error("not told again")
	}
}

func message(t testing.TB, reason string, packet []byte) []byte {
	t.Helper()
	b, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 1, Data: make([]byte, 4)}, {Type: ulogPrefix, Data: append([]byte(reason), 0)}, {Type: ulogPayload, Data: packet},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{unix.AF_INET, 0, 0, 0}, b...)
}

// packet is one with a header of that many bytes.
func packet(header int, protocol byte, fragment, port uint16) []byte {
	b := make([]byte, header, header+4)
	b[0], b[9] = 0x40|byte(header/4), protocol
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], []byte{10, 0, 0, 1, 192, 0, 2, 1})
	return binary.BigEndian.AppendUint16(append(b, 0xaa, 0xaa), port)
}

func TestParseDenied(t *testing.T) {
	for name, c := range map[string]struct {
		packet []byte
		want   string
	}{
		"tcp":           {packet(20, 6, 0, 443), "tcp 192.0.2.1:443"},
		"options":       {packet(60, 17, 0, 53), "udp 192.0.2.1:53"},
		"fragment":      {packet(20, 17, 185, 53), "udp 192.0.2.1:0"},
		"icmp":          {packet(20, 1, 0, 9), "icmp 192.0.2.1:0"},
		"gre":           {packet(20, 47, 0, 9), "ip 192.0.2.1:0"},
		"no ports":      {packet(20, 6, 0, 443)[:22], "tcp 192.0.2.1:0"},
		"short":         {packet(20, 6, 0, 443)[:19], ""},
		"short header":  {append([]byte{0x44}, packet(20, 6, 0, 443)[1:]...), ""},
		"other version": {append([]byte{0x65}, packet(20, 6, 0, 443)[1:]...), ""},
		"nothing":       {nil, ""},
	} {
		d, ok := parseDenied(message(t, "because", c.packet))
		got := ""
		if ok {
			got = fmt.Sprint(d.Protocol, " ", d.Destination)
		}
		if got != c.want || ok && (d.Reason != "because" || d.Source.String() != "10.0.0.1") {
			t.Errorf("%s: %+v, want %q", name, d, c.want)
		}
	}
	if _, ok := parseDenied(message(t, "", packet(20, 6, 0, 1))); ok {
		t.Error("a packet of somebody else's rule is told of")
	}
}

func FuzzParseDenied(f *testing.F) {
	f.Add(message(f, "because", packet(20, 6, 0, 443)))
	f.Add(message(f, "because", packet(60, 17, 3, 443)))
	f.Add([]byte{2, 0, 0, 0, 255, 255, 9, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parseDenied(b); ok && (!d.Source.Is4() || !d.Destination.Addr().Is4() || d.Protocol == "" || d.Reason == "") {
			t.Errorf("%+v", d)
		}
	})
}
