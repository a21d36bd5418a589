package network

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tracked counts the connections of a sandbox that the host tracks.
func tracked(t *testing.T, l *Lease) (n int) {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if a, _ := netip.AddrFromSlice(f.Forward.SrcIP.To4()); a == l.Address() {
			n++
		}
	}
	return n
}

// TestFullTableIsRelieved has one sandbox nearly fill the host's table, beside
// one that has a connection.
func TestFullTableIsRelieved(t *testing.T) {
	const many = 300
	before, _, err := connectionTable()
	if err != nil {
		t.Fatal(err)
	}
	p := newPool(t, func(c *Config) { c.table = before + many })
	honest, greedy := acquire(t, p), acquire(t, p)
	var f *os.File
	err = inside(t, honest.NetNSPath(), func() error {
		fd, err := blockingDial(labAddr+":"+labPort, patience)
		f = os.NewFile(uintptr(fd), "lab")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sendFrom(t, greedy, many)
	eventually(t, "the relief", func() bool { return tracked(t, greedy) < many/2 })
	if n := tracked(t, honest); n != 1 {
		t.Errorf("%d connections of the other are left", n)
	}
	if _, err := f.WriteString("still there"); err != nil {
		t.Error(err)
	}
	greeting := len(hostAddr) + 1
	if _, err := io.ReadFull(f, make([]byte, greeting+len("still there"))); err != nil {
		t.Error(err)
	}
}

// sendFrom sends n datagrams to as many ports of the lab.
func sendFrom(t *testing.T, l *Lease, n int) {
	t.Helper()
	err := inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range n {
			// That nothing listens there is an error of the next.
			err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 20000 + i, Addr: netip.MustParseAddr(labAddr).As4()})
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRateOfQueries has a sandbox ask as quickly as it can: beyond a rate, its
// queries do not get into the queue that it shares with the others.
func TestRateOfQueries(t *testing.T) {
	p := newPool(t, func(c *Config) { c.Proxy = true })
	greedy, honest := acquireClosed(t, p), acquireClosed(t, p)
	var got atomic.Int64
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := p.Gateway().DNS.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if from.Addr().Unmap() == greedy.Address() {
				got.Add(1)
			} else {
				p.Gateway().DNS.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	for _, l := range []*Lease{greedy, honest} {
		setPolicy(t, l, custom(nil, nil))
	}
	start := time.Now()
	err := inside(t, greedy.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 5 * queryBurst {
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{203, 0, 113, 5}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !dnsEcho(t, honest, "203.0.113.5:53") {
		t.Error("the other sandbox gets no answer")
	}
	if n, most := got.Load(), queryBurst+queriesPerSecond*int64(time.Since(start).Seconds()+1); n == 0 || n > most {
		t.Errorf("%d queries came through, want at the most %d", n, most)
	}
}

// TestRateOfConnections has a sandbox open connections as quickly as it can.
func TestRateOfConnections(t *testing.T) {
	p := newPool(t, nil)
	greedy, honest := acquire(t, p), acquire(t, p)
	start := time.Now()
	sendFrom(t, greedy, 3*connectionBurst)
	if n, most := tracked(t, greedy), connectionBurst+connectionsPerSecond*int(time.Since(start).Seconds()+1); n == 0 || n > most {
		t.Errorf("%d connections were opened, want at the most %d", n, most)
	}
	if _, err := dial(t, honest, labAddr+":"+labPort); err != nil {
		t.Errorf("another sandbox: %v", err)
	}
}
