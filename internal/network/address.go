package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// perLease is how many addresses a lease takes: those of a /30, of which the
// second is the host's end and the third the sandbox's.
const perLease = 4

// alternatives is how many ranges are tried when none is configured.
const alternatives = 16

// choosePrefix returns the range for sandboxes: one that no route of the host
// leads into, except routes to interfaces of this installation, as addresses
// in it would no longer be reached.
func choosePrefix(configured, ifPrefix string) (netip.Prefix, error) {
	first, err := parsePrefix(configured)
	if err != nil {
		return netip.Prefix{}, err
	}
	taken, err := hostRoutes(ifPrefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	tries := 1
	if configured == "" {
		tries = alternatives
	}
	for i := range tries {
		a := first.Addr().As4()
		a[1] += byte(i)
		candidate := netip.PrefixFrom(netip.AddrFrom4(a), first.Bits())
		hit := overlapping(candidate, taken)
		if !hit.IsValid() {
			return candidate, nil
		}
		err = fmt.Errorf("prefix %s overlaps the host's route to %s", candidate, hit)
	}
	return netip.Prefix{}, err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		s = DefaultPrefix
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Bits() < 14 || p.Bits() > 28 || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("prefix %q must be an IPv4 network from /14 to /28", s)
	}
	return p, nil
}

// hostRoutes are the destinations of the host's routes, of any table.
func hostRoutes(ifPrefix string) ([]netip.Prefix, error) {
	routes, err := routesBy(&netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	own, err := interfaces(ifPrefix)
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{}
	for _, link := range own {
		ours[link.Attrs().Index] = true
	}
	var list []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || ours[r.LinkIndex] {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if bits, _ := r.Dst.Mask.Size(); ok && bits > 0 {
			list = append(list, netip.PrefixFrom(addr, bits))
		}
	}
	return list, nil
}

func overlapping(p netip.Prefix, list []netip.Prefix) netip.Prefix {
	for _, q := range list {
		if p.Overlaps(q) {
			return q
		}
	}
	return netip.Prefix{}
}

// addresses returns both ends' addresses of the lease with this index.
func addresses(p netip.Prefix, index uint32) (host, sandbox netip.Addr) {
	base := binary.BigEndian.Uint32(p.Addr().AsSlice()) + index*perLease
	at := func(n uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+n)))
	}
	return at(1), at(2)
}

// freeList hands out the index that was given back longest ago, so that an
// address rests before the next sandbox has it.
type freeList struct {
	size  uint32
	queue []uint32
}

func newFreeList(p netip.Prefix) freeList {
	// The last is the gateway's.
	f := freeList{size: 1<<(32-p.Bits())/perLease - 1}
	for n := range f.size {
		f.queue = append(f.queue, n)
	}
	return f
}

func (f *freeList) take() (uint32, bool) {
	if len(f.queue) == 0 {
		return 0, false
	}
	n := f.queue[0]
	f.queue = f.queue[1:]
	return n, true
}

func (f *freeList) give(n uint32) {
	if n < f.size {
		f.reserve(n) // never twice
		f.queue = append(f.queue, n)
	}
}

// reserve takes n out of the list.
func (f *freeList) reserve(n uint32) {
	for i, q := range f.queue {
		if q == n {
			f.queue = append(f.queue[:i:i], f.queue[i+1:]...)
			return
		}
	}
}
