package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// All programs share the host's connection table, and the kernel cannot limit the
// part of all sandboxes together. Each sandbox has a share (connectionShare). If
// many use up their shares, connections of the sandboxes with the most are removed
// from the table.
const (
	// reliefEvery is the interval between checks of the table. At the rate at which
	// sandboxes may open connections, it takes longer to fill the part that is
	// left.
	reliefEvery = 2 * time.Second
	// Percentages of the table: relief starts at reliefFrom and stops at reliefTo.
	// If all sandboxes together have less than reliefPart, other programs fill the
	// table, and closing connections of sandboxes would not help.
	reliefFrom, reliefTo, reliefPart = 80, 70, 50
)

// relieve removes connections of the sandboxes with the most if the table is nearly
// full.
func (p *Pool) relieve() error {
	used, size, err := connectionTable()
	if p.cfg.table > 0 {
		size = p.cfg.table
	}
	if err != nil || used*100 <= size*reliefFrom {
		return err
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	counts, sum := map[netip.Addr]int{}, 0
	for _, f := range flows {
		if a, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && p.prefix.Contains(a) {
			counts[a]++
			sum++
		}
	}
	greediest := make([]netip.Addr, 0, len(counts))
	for a := range counts {
		greediest = append(greediest, a)
	}
	slices.SortFunc(greediest, func(a, b netip.Addr) int { return counts[b] - counts[a] })
	for _, a := range greediest {
		if used*100 <= size*reliefTo || sum*100 <= size*reliefPart {
			break
		}
		if err := forgetConnections(a, netlink.ConntrackOrigSrcIP); err != nil {
			return err
		}
		used, sum = used-counts[a], sum-counts[a]
		p.cfg.Log.Warn("the host's connection table was nearly full: a sandbox's connections were cut", "sandbox", a, "connections", counts[a])
	}
	return nil
}

// forgetConnections removes the tracked connections that have an address on one
// side.
func forgetConnections(a netip.Addr, side netlink.ConntrackFilterType) error {
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddIP(side, a.AsSlice()); err != nil {
		return err
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
	return err
}

// connectionTable returns the number of connections that the host tracks, and the
// maximum.
func connectionTable() (used, size int, err error) {
	read := func(name string) (n int) {
		b, rerr := os.ReadFile("/proc/sys/net/netfilter/" + name)
		if errors.Is(rerr, fs.ErrNotExist) { // nothing has been tracked yet
			return 0
		}
		n, perr := strconv.Atoi(strings.TrimSpace(string(b)))
		err = errors.Join(err, rerr, perr)
		return n
	}
	return read("nf_conntrack_count"), read("nf_conntrack_max"), err
}
