package policy

import (
	"net/netip"
	"sort"
)

// ranges are disjoint ranges of addresses in ascending order.
type ranges []addrRange

type addrRange struct{ first, last netip.Addr }

func newRanges(list []netip.Prefix) ranges {
	all := make(ranges, 0, len(list))
	for _, p := range list {
		p = p.Masked()
		all = append(all, addrRange{p.Addr(), lastOf(p)})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].first.Less(all[j].first) })
	merged := all[:0]
	for _, r := range all {
		if n := len(merged); n > 0 && r.first.Compare(merged[n-1].last) <= 0 {
			if merged[n-1].last.Less(r.last) {
				merged[n-1].last = r.last
			}
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

func (r ranges) contain(a netip.Addr) bool {
	i := sort.Search(len(r), func(i int) bool { return a.Compare(r[i].last) <= 0 })
	return i < len(r) && r[i].first.Compare(a) <= 0
}

// lastOf returns the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
