package network

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// maxResolvers is how many name servers a resolver of the C library asks.
const maxResolvers = 3

// resolverFiles are where the host names its DNS servers: systemd-resolved
// lists the real ones apart from its stub on loopback.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// resolvers returns the configured DNS servers, or else the host's that a
// sandbox can reach.
func resolvers(configured []string) ([]string, error) {
	for _, s := range configured {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return nil, fmt.Errorf("resolver %q is not an IPv4 address", s)
		}
	}
	if configured != nil {
		return append([]string(nil), configured...), nil
	}
	for _, path := range resolverFiles {
		list, err := readResolvers(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if len(list) > 0 {
			return list, nil
		}
	}
	return nil, nil
}

// readResolvers reads the name servers of a resolv.conf that are neither on
// the host nor otherwise forbidden to sandboxes.
func readResolvers(path string) (list []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	own, err := addressesOf(nil)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() && len(list) < maxResolvers {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && a.Is4() && reachable(a, own) {
			list = append(list, a.String())
		}
	}
	return list, lines.Err()
}

func reachable(a netip.Addr, own []netlink.Addr) bool {
	for _, s := range forbidden {
		if netip.MustParsePrefix(s).Contains(a) {
			return false
		}
	}
	for _, o := range own {
		if o.IP.Equal(a.AsSlice()) {
			return false
		}
	}
	return true
}

const (
	// shares is into how many the host's connection table is divided. A
	// sandbox gets one of them: a few that fill theirs leave room for the
	// others and the host, and a thirty-second of the usual table is 8,192,
	// more than a sandbox with an honest purpose opens.
	shares = 32
	// usualConnections is the table's size on a machine with 4 GiB or more.
	usualConnections = 262144
	minShare         = 1024
)

// connectionShare returns how many connections the host tracks for one
// sandbox.
func connectionShare() (uint32, error) {
	size := usualConnections
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	switch {
	case err == nil:
		if size, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return 0, fmt.Errorf("read the size of the connection table: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist): // nothing has been tracked yet
		return 0, err
	}
	return uint32(max(size/shares, minShare)), nil
}

// forwardsEverywhere reports whether the operator, or a program such as
// Docker, has made the host a router between all its networks.
func forwardsEverywhere() (bool, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/forwarding")
	return strings.TrimSpace(string(b)) == "1", err
}

// toOpen returns the interfaces on which this installation lets the host
// forward. Linux forwards by the setting of the interface that a packet comes
// in by, so beside the sandboxes' own interfaces, those must have it by which
// the answers come: all that the host has a route out of. Setting ip_forward
// instead would make the host a router between all its networks; the rules
// keep what comes in by the interfaces opened here from going anywhere but to
// sandboxes, as it was before. On a host that is a router anyhow, or has become
// one since the last start, nothing is opened, and so nothing kept out.
func (r *rules) toOpen() ([]string, error) {
	if !r.outbound {
		return nil, nil
	}
	if router, err := forwardsEverywhere(); router || err != nil {
		return nil, err
	}
	mine, others, err := openedInterfaces(r.table().Name)
	if err != nil {
		return nil, err
	}
	uplinks, err := uplinks()
	if err != nil {
		return nil, err
	}
	for _, name := range uplinks {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", name, "forwarding"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just gone
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(b)) == "0" || others[name] {
			mine[name] = true
		}
	}
	var list []string
	for name := range mine {
		list = append(list, name)
	}
	sort.Strings(list)
	return list, nil
}

// uplinks are the names of the interfaces that a route of the host goes out
// of, except those of sandboxes and loopback.
func uplinks() ([]string, error) {
	links, err := allLinks()
	if err != nil {
		return nil, fmt.Errorf("list the host's interfaces: %w", err)
	}
	routes, err := routesBy(&netlink.Route{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	used := map[int]bool{}
	for _, r := range routes {
		used[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			used[hop.LinkIndex] = true
		}
	}
	var names []string
	for _, link := range links {
		if a := link.Attrs(); used[a.Index] && a.Name != "lo" && !strings.HasPrefix(a.Name, anyInterface) {
			names = append(names, a.Name)
		}
	}
	return names, nil
}

// setForwarding sets interfaces' forwarding; one that has gone is no error.
func setForwarding(names []string, value string) error {
	for _, name := range names {
		if err := sysctl("ipv4", name, "forwarding", value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
