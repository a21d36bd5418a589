package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Lease is the network of one sandbox: a namespace with the interface eth0,
// its address and default route.
type Lease struct {
	pool  *Pool
	id    string
	index uint32
	// host and sandbox are the addresses of the two ends.
	host, sandbox netip.Addr

	mu       sync.Mutex
	released bool
	// verdicts are what the sandbox may reach.
	verdicts verdicts
}

// lease describes a lease; it makes nothing.
func (p *Pool) lease(id string, index uint32) *Lease {
	l := &Lease{pool: p, id: id, index: index}
	l.host, l.sandbox = addresses(p.prefix, index)
	return l
}

// ID names the lease, for Adopt after a restart.
func (l *Lease) ID() string { return l.id }

// NetNSPath is where the namespace is mounted.
func (l *Lease) NetNSPath() string { return filepath.Join(l.pool.cfg.Dir, l.id) }

// Address is the sandbox's address.
func (l *Lease) Address() netip.Addr { return l.sandbox }

// ifName is the interface of the host's end.
func (l *Lease) ifName() string { return l.pool.ifPrefix() + l.id }

// Counters returns how many bytes the sandbox has received and sent, as
// frames on its interface.
func (l *Lease) Counters() (ingress, egress int64, err error) {
	link, err := netlink.LinkByName(l.ifName())
	if err != nil {
		return 0, 0, fmt.Errorf("count network %s: %w", l.id, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return 0, 0, fmt.Errorf("count network %s: the kernel has no statistics", l.id)
	}
	return int64(s.TxBytes), int64(s.RxBytes), nil
}

// setUp makes the namespace and the pair of interfaces. The rules are told of the
// sandbox's end meanwhile; they know it before a packet can come from it.
func (l *Lease) setUp() error {
	told := make(chan error, 1)
	go func() { told <- l.pool.rules.add(l) }()
	known := sync.OnceValue(func() error {
		if err := <-told; err != nil {
			return fmt.Errorf("add to the rules: %w", err)
		}
		return nil
	})
	err := inNewNetNS(l.NetNSPath(), func(host int) error {
		if err := l.connect(host, known); err != nil {
			return fmt.Errorf("connect the namespace: %w", err)
		}
		return nil
	})
	if err != nil {
		known() // what it was told is taken back with the rest
	}
	return err
}

// loopback is the index of lo in every namespace.
const loopback = 1

// connect makes the pair, from inside the namespace, and brings both ends up
// once the rules know them.
func (l *Lease) connect(host int, known func() error) error {
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: "eth0", HardwareAddr: macOf(l.sandbox), NumTxQueues: 1, NumRxQueues: 1, TxQLen: -1},
		PeerName:         l.ifName(),
		PeerHardwareAddr: macOf(l.host),
		PeerNamespace:    netlink.NsFd(host),
	}
	if err := inside.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the interfaces: %w", err)
	}
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	peer := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: l.ifName(), Index: eth0.Attrs().ParentIndex}}
	configured := make(chan error, 1)
	go func() { configured <- configureHost(peer) }() // another thread, so on the host
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: loopback}}
	if err := errors.Join(disableIPv6("all"), inside.LinkSetUp(lo), setAddress(inside, eth0, l.sandbox), <-configured, known()); err != nil {
		return err
	}
	// This end last: the kernel lets an end send at once when it comes up and
	// the other is up already, otherwise only when it gets round to it.
	outside := l.pool.host
	if err := errors.Join(setAddress(outside, peer, l.host), up(outside, peer, l.sandbox), up(inside, eth0, l.host)); err != nil {
		return err
	}
	// And this query has it get round to it for the other end (Linux 6.8).
	if _, err := outside.LinkByIndex(peer.Index); err != nil {
		return err
	}
	gateway := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: l.host.AsSlice()}
	if err := inside.RouteAdd(gateway); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// disableIPv6 turns IPv6 off for an interface of the thread's namespace, or for
// all of them and for those to come. None may be up before, or it would have had
// an address.
func disableIPv6(iface string) error {
	err := sysctl("ipv6", iface, "disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}

// What include/uapi/linux/ip.h numbers: the settings of an interface that have
// files in /proc/sys/net/ipv4/conf.
const (
	confForwarding = 1
	confRPFilter   = 8
	confARPIgnore  = 19
)

// configureHost configures the host's end, from the host's namespace. IPv6 can
// be turned off by a file alone; IPv4 is configured in one message, which is
// faster than a file for each setting.
func configureHost(link netlink.Link) error {
	if err := disableIPv6(link.Attrs().Name); err != nil {
		return err
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	// arp_ignore: answer for this end's address alone, and tell none of the
	// host's others to who asks for them.
	for _, setting := range []int{confForwarding, confARPIgnore, confRPFilter} {
		conf.AddRtAttr(setting, nl.Uint32Attr(1))
	}
	r := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	r.AddData(msg)
	r.AddData(families)
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("configure %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// setAddress gives an end its address.
func setAddress(h *netlink.Handle, link netlink.Link, own netip.Addr) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(30, 32)}}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %s: %w", own, err)
	}
	return nil
}

// up brings an end up. The other end is a permanent neighbour, so that neither
// ever waits for the other's answer, nor believes another.
func up(h *netlink.Handle, link netlink.Link, other netip.Addr) error {
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", link.Attrs().Name, err)
	}
	err := h.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: other.AsSlice(), HardwareAddr: macOf(other),
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s: %w", other, err)
	}
	return nil
}

// macOf derives a locally administered hardware address.
func macOf(a netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x73}, a.AsSlice()...)
}

// check verifies that a lease of an earlier process is whole.
func (l *Lease) check() error {
	var st unix.Statfs_t
	if err := unix.Statfs(l.NetNSPath(), &st); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("nothing is mounted on %s", l.NetNSPath())
	}
	link, err := netlink.LinkByName(l.ifName())
	if err != nil {
		return fmt.Errorf("find %s: %w", l.ifName(), err)
	}
	addrs, err := addressesOf(link)
	if err != nil {
		return err
	}
	if len(addrs) != 1 || !addrs[0].IP.Equal(l.host.AsSlice()) {
		return fmt.Errorf("%s does not have the address %s", l.ifName(), l.host)
	}
	return nil
}

// Release removes the network. What is no longer there is no error; after
// another error it may be tried again. Once it is complete it does nothing.
func (l *Lease) Release(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	// The interface goes first: without it nothing comes from the namespace,
	// even if a process is still in there.
	err := errors.Join(l.removeLink(), l.removeNetNS())
	if err == nil {
		err = l.pool.rules.unjudge(l.sandbox, l.verdicts)
	}
	if err == nil {
		l.verdicts = verdicts{}
		err = l.pool.rules.drop(l)
	}
	if err != nil {
		return fmt.Errorf("release network %s: %w", l.id, err)
	}
	l.forgetConnections()
	l.released = true
	l.pool.forget(l)
	return nil
}

func (l *Lease) removeLink() error {
	link, err := netlink.LinkByName(l.ifName())
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (l *Lease) removeNetNS() error {
	path := l.NetNSPath()
	// EINVAL: nothing is mounted there.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// forgetConnections removes what the host tracks of the sandbox's
// connections: the next sandbox with the address must not get what peers still
// send to this one. A failure is not worth a lost address: that rests before
// it is used again.
func (l *Lease) forgetConnections() {
	// What it opened, and what the host has opened to it.
	for _, side := range []netlink.ConntrackFilterType{netlink.ConntrackOrigSrcIP, netlink.ConntrackOrigDstIP} {
		filter := &netlink.ConntrackFilter{}
		err := filter.AddIP(side, l.sandbox.AsSlice())
		if err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
		}
		if err != nil {
			l.pool.cfg.Log.Warn("cannot forget a network's connections", "network", l.id, "error", err)
		}
	}
}

// interfaces lists the host's interfaces whose names begin with prefix.
func interfaces(prefix string) ([]netlink.Link, error) {
	all, err := allLinks()
	if err != nil {
		return nil, fmt.Errorf("list the host's interfaces: %w", err)
	}
	var list []netlink.Link
	for _, link := range all {
		if strings.HasPrefix(link.Attrs().Name, prefix) {
			list = append(list, link)
		}
	}
	return list, nil
}

// found returns the ids of all that carries the installation's mark.
func (p *Pool) found() (map[string]bool, error) {
	ids := map[string]bool{}
	mounts, err := os.ReadDir(p.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range mounts {
		if _, ok := parseID(e.Name()); ok {
			ids[e.Name()] = true
		}
	}
	links, err := interfaces(p.ifPrefix())
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		id := strings.TrimPrefix(link.Attrs().Name, p.ifPrefix())
		if _, ok := parseID(id); ok {
			ids[id] = true
		}
	}
	return ids, nil
}
