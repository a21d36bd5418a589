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

// maxResolvers is the number of name servers that the resolver of the C library
// uses.
const maxResolvers = 3

// resolverFiles are the files in which the host configures its DNS servers.
// systemd-resolved lists the real servers separately from its stub on loopback.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// resolvers returns the configured DNS servers, or else those of the host's that a
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

// readResolvers returns the name servers in a resolv.conf, except those on the host
// and those that sandboxes may not reach.
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
	// shares is the number of parts into which the host's connection table is
	// divided. A sandbox gets one part, so a few that fill theirs leave room for
	// the others and for the host. A thirty-second of the usual table is 8,192
	// connections, more than a sandbox with an honest purpose opens.
	shares = 32
	// usualConnections is the table's size on a machine with 4 GiB or more.
	usualConnections = 262144
	minShare         = 1024
	// connectionsPerSecond is the rate at which a sandbox may open connections,
	// after a burst. Beyond it packets are dropped, and TCP tries again a second
	// later.
	connectionsPerSecond, connectionBurst = 1000, 4000
	// queriesPerSecond is the number of datagrams per second that a sandbox may
	// send to the proxy's name server, which answers fewer than that.
	queriesPerSecond, queryBurst = 400, 800
)

// connectionShare returns the number of connections that the host tracks for one
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
	return shareOf(size), nil
}

// shareOf returns a sandbox's share of a connection table.
func shareOf(size int) uint32 { return uint32(max(size/shares, minShare)) }

// forwardsEverywhere reports whether the host is already a router between all its
// networks, configured by the operator or by a program such as Docker.
func forwardsEverywhere() (bool, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/forwarding")
	return strings.TrimSpace(string(b)) == "1", err
}

// toOpen returns the interfaces on which this installation enables forwarding.
// Linux decides by the setting of the interface on which a packet arrives. So
// forwarding must be enabled on the sandboxes' own interfaces and on those on which
// the replies arrive: all interfaces with a route. Setting ip_forward instead would
// make the host a router between all its networks. The rules let packets that
// arrive on an interface opened here go only to sandboxes, as if it were not
// opened. On a host that is already a router, or has become one since the last
// start, nothing is opened, and so nothing is kept out.
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
	for _, name := range r.opened { // the table may have been taken away
		mine[name] = true
	}
	routed, err := routedInterfaces()
	if err != nil {
		return nil, err
	}
	for _, name := range routed {
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

// assumeOpened treats the interfaces on which the host forwards as opened by an
// earlier process, if that process left leases but its table is gone. Packets that
// arrive on them must again go only to sandboxes.
func (r *rules) assumeOpened(leases bool) error {
	if !r.outbound || !leases {
		return nil
	}
	if now, err := r.fingerprint(); err != nil || now != "" {
		return err
	}
	if router, err := forwardsEverywhere(); router || err != nil {
		return err
	}
	routed, err := routedInterfaces()
	if err != nil {
		return err
	}
	for _, name := range routed {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", name, "forwarding"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if strings.TrimSpace(string(b)) == "1" {
			r.opened = append(r.opened, name)
		}
	}
	return nil
}

// routedInterfaces returns the names of the interfaces with a route, except those
// of sandboxes and loopback.
func routedInterfaces() ([]string, error) {
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

// setForwarding sets the forwarding of interfaces. A missing interface is not an
// error.
func setForwarding(names []string, value string) error {
	for _, name := range names {
		if err := sysctl("ipv4", name, "forwarding", value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
