package network

import (
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetter removes tracked connections from the host's table. To find those of an address,
// the kernel walks through the whole table, which takes some ten milliseconds of CPU time
// even if there are few connections. So one walk serves all leases that end while the
// walk before it is in progress.
type forgetter struct {
	mu      sync.Mutex
	next    *walk // not begun yet; nil if nobody waits for one
	walking sync.Mutex
}

// walk is one walk through the table.
type walk struct {
	of   addresses4
	done chan struct{}
	err  error
}

// forget removes the connections that a sandbox opened and those that the host opened
// to it.
func (f *forgetter) forget(sandbox netip.Addr) error {
	f.mu.Lock()
	w, mine := f.next, f.next == nil
	if mine {
		w = &walk{of: addresses4{}, done: make(chan struct{})}
		f.next = w
	}
	w.of[sandbox] = true
	f.mu.Unlock()
	if mine {
		f.walk(w)
	}
	<-w.done
	return w.err
}

func (f *forgetter) walk(w *walk) {
	defer close(w.done)
	f.walking.Lock()
	defer f.walking.Unlock()
	f.mu.Lock()
	f.next = nil // from here on w.of stays as it is
	f.mu.Unlock()
	_, w.err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, w.of)
}

// addresses4 matches connections that have one of the addresses on either side.
type addresses4 map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (as addresses4) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP.To4())
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP.To4())
	return as[src] || as[dst]
}

// silent reports whether no frame has ever passed the host's end of a lease. Then the
// host tracks no connection of it: a sandbox that never used its network.
func silent(link netlink.Link) bool {
	s := link.Attrs().Statistics
	return s != nil && s.RxPackets+s.TxPackets+s.RxDropped+s.TxDropped+s.RxErrors+s.TxErrors == 0
}
