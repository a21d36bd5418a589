package network

import (
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestReleaseForgetsConnections releases leases at the same time, so that they share
// walks through the table, while another keeps its connections.
func TestReleaseForgetsConnections(t *testing.T) {
	p := newPool(t, nil)
	stays := acquire(t, p)
	sendFrom(t, stays, 3)
	leases := []*Lease{acquire(t, p), acquire(t, p), acquire(t, p), acquire(t, p)}
	for _, l := range leases {
		sendFrom(t, l, 5)
		if n := tracked(t, l); n != 5 {
			t.Fatalf("%s has %d connections", l.ID(), n)
		}
	}
	var wg sync.WaitGroup
	for _, l := range leases {
		wg.Go(func() {
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range leases {
		if n := tracked(t, l); n != 0 {
			t.Errorf("%d connections of %s are left", n, l.ID())
		}
	}
	if n := tracked(t, stays); n != 3 {
		t.Errorf("%d connections of the other are left", n)
	}
}

// TestSilent: a lease is silent until its sandbox or the host sends.
func TestSilent(t *testing.T) {
	p := newPool(t, nil)
	link := func(l *Lease) netlink.Link {
		t.Helper()
		link, err := netlink.LinkByName(l.ifName())
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	from, to := acquire(t, p), acquire(t, p)
	for _, l := range []*Lease{from, to} {
		if !silent(link(l)) {
			t.Errorf("%s is not silent: %+v", l.ID(), link(l).Attrs().Statistics)
		}
	}
	sendFrom(t, from, 1)
	if silent(link(from)) {
		t.Error("a packet from the sandbox was not counted")
	}
	// Nothing listens there; the attempt counts.
	if conn, err := to.Dial(t.Context(), 9); err == nil {
		conn.Close()
	}
	if silent(link(to)) {
		t.Error("a packet from the host was not counted")
	}
}
