package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// perLease is the number of addresses of a lease: a /30. The second address is the
// host's end, the third the sandbox's.
const perLease = 4

// alternatives is the number of ranges to try if none is configured.
const alternatives = 16

// choosePrefix returns the range for sandboxes. No route of the host may lead into
// it, except routes to interfaces of this installation: the host could not reach
// the destinations of that route any more. If several ranges are possible, it
// prefers the one in which an earlier process left interfaces, because their
// sandboxes will be adopted.
func choosePrefix(configured, ifPrefix string) (netip.Prefix, error) {
	first, err := parsePrefix(configured)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix %q: %w", configured, err)
	}
	taken, own, err := hostRoutes(ifPrefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	tries := 1
	if configured == "" {
		tries = alternatives
	}
	var free []netip.Prefix
	for i := range tries {
		a := first.Addr().As4()
		a[1] += byte(i)
		candidate := netip.PrefixFrom(netip.AddrFrom4(a), first.Bits())
		hit := overlapping(candidate, taken)
		if hit.IsValid() {
			err = fmt.Errorf("prefix %s overlaps the host's route to %s", candidate, hit)
			continue
		}
		if overlapping(candidate, own).IsValid() {
			return candidate, nil
		}
		free = append(free, candidate)
	}
	if len(free) == 0 {
		return netip.Prefix{}, err
	}
	return free[0], nil
}

// CheckPrefix returns an error if s cannot be Config.Prefix.
func CheckPrefix(s string) error {
	_, err := parsePrefix(s)
	return err
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		s = DefaultPrefix
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("not an IPv4 network such as " + DefaultPrefix)
	case !p.Addr().Is4():
		return netip.Prefix{}, errors.New("sandboxes have no IPv6; give an IPv4 network such as " + DefaultPrefix)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its prefix; the network is %s", p, p.Masked())
	case p.Bits() < 14 || p.Bits() > 28:
		return netip.Prefix{}, fmt.Errorf("must be from /14 to /28, is /%d", p.Bits())
	}
	return p, nil
}

// hostRoutes returns the destinations of the host's routes in all tables: those
// through interfaces of this installation (own), and the others.
func hostRoutes(ifPrefix string) (others, own []netip.Prefix, err error) {
	routes, err := routesBy(&netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, nil, fmt.Errorf("list the host's routes: %w", err)
	}
	links, err := interfaces(ifPrefix)
	if err != nil {
		return nil, nil, err
	}
	ours := map[int]bool{}
	for _, link := range links {
		ours[link.Attrs().Index] = true
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		switch {
		case !ok || bits == 0:
		case ours[r.LinkIndex]:
			own = append(own, netip.PrefixFrom(addr, bits))
		default:
			others = append(others, netip.PrefixFrom(addr, bits))
		}
	}
	return others, own, nil
}

func overlapping(p netip.Prefix, list []netip.Prefix) netip.Prefix {
	for _, q := range list {
		if p.Overlaps(q) {
			return q
		}
	}
	return netip.Prefix{}
}

// addresses returns the addresses of both ends of the lease with this index.
func addresses(p netip.Prefix, index uint32) (host, sandbox netip.Addr) {
	base := binary.BigEndian.Uint32(p.Addr().AsSlice()) + index*perLease
	at := func(n uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+n)))
	}
	return at(1), at(2)
}

// freeList hands out the index that was returned longest ago, so that an address
// stays unused for a while before the next sandbox gets it.
type freeList struct {
	size  uint32
	queue []uint32
}

func newFreeList(p netip.Prefix) freeList {
	// The last index is the gateway's.
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

// reserve removes n from the list.
func (f *freeList) reserve(n uint32) {
	for i, q := range f.queue {
		if q == n {
			f.queue = append(f.queue[:i:i], f.queue[i+1:]...)
			return
		}
	}
}
