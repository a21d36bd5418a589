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

// Lease is the network of one sandbox: a namespace with the interface eth0, an
// address and a default route.
type Lease struct {
	pool  *Pool
	id    string
	index uint32
	// host and sandbox are the addresses of the two ends.
	host, sandbox netip.Addr

	mu       sync.Mutex
	released bool
	// shut is true while the host's end is down.
	shut bool
	// verdicts is the policy in force.
	verdicts verdicts
}

// lease returns the description of a lease, without creating it.
func (p *Pool) lease(id string, index uint32) *Lease {
	l := &Lease{pool: p, id: id, index: index}
	l.host, l.sandbox = addresses(p.prefix, index)
	return l
}

// ID identifies the lease, for Adopt after a restart.
func (l *Lease) ID() string { return l.id }

// NetNSPath is the path at which the namespace is mounted.
func (l *Lease) NetNSPath() string { return filepath.Join(l.pool.cfg.Dir, l.id) }

// PrefixBits is the size of a lease's own subnet.
const PrefixBits = 30

// IfName is the name of the interface in the namespace.
const IfName = "eth0"

// Address is the sandbox's address.
func (l *Lease) Address() netip.Addr { return l.sandbox }

// Gateway is the address of the host's end.
func (l *Lease) Gateway() netip.Addr { return l.host }

// ifName is the interface of the host's end.
func (l *Lease) ifName() string { return l.pool.ifPrefix() + l.id }

// Counters returns the bytes that the sandbox has received and sent, counted as
// frames on its interface.
func (l *Lease) Counters(context.Context) (ingress, egress int64, err error) {
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

// setUp creates the namespace and the pair of interfaces. In the meantime the rules
// learn the sandbox's address, before a packet can come from it.
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

// connect creates the pair, from inside the namespace, and takes both ends up once
// the rules know them.
func (l *Lease) connect(host int, known func() error) error {
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: IfName, HardwareAddr: macOf(l.sandbox), NumTxQueues: 1, NumRxQueues: 1, TxQLen: -1},
		PeerName:         l.ifName(),
		PeerHardwareAddr: macOf(l.host),
		PeerNamespace:    netlink.NsFd(host),
	}
	if err := inside.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the interfaces: %w", err)
	}
	eth0, err := inside.LinkByName(IfName)
	if err != nil {
		return err
	}
	peer := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: l.ifName(), Index: eth0.Attrs().ParentIndex}}
	configured := make(chan error, 1)
	outside := l.pool.host
	go func() { // another thread, so on the host
		gate := l.pool.gate
		// Nothing is configured before it is certain that the index is the lease's.
		if found, err := outside.LinkByIndex(peer.Index); err != nil || found.Attrs().Name != peer.Name {
			configured <- errors.Join(fmt.Errorf("interface %d of the host is not %s", peer.Index, peer.Name), err)
			return
		}
		configured <- errors.Join(configureHost(peer), gate.know(peer.Index, l.sandbox), gate.hang(outside, peer.Index))
	}()
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: loopback}}
	if err := errors.Join(disableIPv6("all"), inside.LinkSetUp(lo), setAddress(inside, eth0, l.sandbox), <-configured, known()); err != nil {
		return err
	}
	// This end comes last: if the other end is up already, the kernel lets an end
	// send as soon as it comes up; otherwise the kernel does so with a delay.
	if err := errors.Join(setAddress(outside, peer, l.host), up(outside, peer, l.sandbox), up(inside, eth0, l.host)); err != nil {
		return err
	}
	// This query makes the kernel do so for the other end too (Linux 6.8).
	if _, err := outside.LinkByIndex(peer.Index); err != nil {
		return err
	}
	if err := inside.RouteAdd(l.gateway(eth0)); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// disableIPv6 disables IPv6 on an interface of the thread's namespace, or on all
// present and future ones. No interface may be up before, or it would already have
// an address.
func disableIPv6(iface string) error {
	err := sysctl("ipv6", iface, "disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}

// Numbers from include/uapi/linux/ip.h: the settings of an interface that also have
// files in /proc/sys/net/ipv4/conf.
const (
	confForwarding   = 1
	confRPFilter     = 8
	confARPIgnore    = 19
	confSrcValidMark = 24
)

// configureHost configures the host's end, from the host's namespace. IPv6 can only
// be disabled through a file. IPv4 is configured in one message, which is faster
// than a file for each setting.
func configureHost(link netlink.Link) error {
	if err := disableIPv6(link.Attrs().Name); err != nil {
		return err
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(unix.IFLA_INET_CONF, nil)
	// arp_ignore: answer ARP requests only for this end's address, and not for the
	// host's other addresses. src_valid_mark: see gate.go.
	for _, setting := range []int{confForwarding, confARPIgnore, confRPFilter, confSrcValidMark} {
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

// setAddress assigns the address to an end.
func setAddress(h *netlink.Handle, link netlink.Link, own netip.Addr) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(PrefixBits, 32)}}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %s: %w", own, err)
	}
	return nil
}

// up takes an end up. The other end becomes a permanent neighbour, so that neither
// waits for ARP replies of the other, nor believes forged ones.
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

// check verifies that a lease of an earlier process is complete. Its namespace may
// not be mounted any more: it was mounted in that process's mount namespace, and an
// init system may create a new one at each start of a service. The interface exists
// as long as the namespace, which the sandbox's kernel keeps alive.
func (l *Lease) check() error {
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

// Shut takes the host's end of the interface down, independently of the rules. The
// sandbox then reaches nothing and cannot be reached. The next successful SetPolicy
// takes the interface up again.
func (l *Lease) Shut() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	// Use an open socket: there may be no free file descriptor for another.
	link, err := l.pool.host.LinkByName(l.ifName())
	if err == nil {
		err = l.pool.host.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("shut network %s: %w", l.id, err)
	}
	l.shut = true
	return nil
}

// reopen undoes Shut.
func (l *Lease) reopen() error {
	link, err := l.pool.host.LinkByName(l.ifName())
	if err != nil {
		return err
	}
	if err := up(l.pool.host, link, l.sandbox); err != nil {
		return err
	}
	l.shut = false
	return nil
}

// Renew gives the interface its address and route back. The kernel of a sandbox takes them
// over from it and ends with them.
func (l *Lease) Renew(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return fmt.Errorf("renew network %s: it was released", l.id)
	}
	err := inNetNS(l.NetNSPath(), func() error {
		inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer inside.Close()
		eth0, err := inside.LinkByName(IfName)
		if err != nil {
			return err
		}
		if err := setAddress(inside, eth0, l.sandbox); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := up(inside, eth0, l.host); err != nil {
			return err
		}
		return inside.RouteReplace(l.gateway(eth0))
	})
	if err != nil {
		return fmt.Errorf("renew network %s: %w", l.id, err)
	}
	return nil
}

// gateway is the default route from the namespace.
func (l *Lease) gateway(eth0 netlink.Link) *netlink.Route {
	return &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: l.host.AsSlice()}
}

// Release removes the network. It is not an error if a part of it is missing. After
// any other error Release may be called again. After a success further calls do
// nothing.
func (l *Lease) Release(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	// The interface is removed first: without it nothing comes from the namespace,
	// even if a process is still in it.
	unused, err := l.removeLink()
	err = errors.Join(err, l.removeNetNS())
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
	if !unused {
		l.forgetConnections()
	}
	l.released = true
	l.pool.forget(l)
	return nil
}

// renewGate attaches the gate to a lease of an earlier process, which may not have
// had one.
func (l *Lease) renewGate() error {
	link, err := netlink.LinkByName(l.ifName())
	if err != nil {
		return err
	}
	l.shut = link.Attrs().Flags&net.FlagUp == 0
	if err := configureHost(link); err != nil {
		return err
	}
	return l.pool.gate.hang(l.pool.host, link.Attrs().Index)
}

// removeLink removes the pair of interfaces. It reports whether it was never used,
// which is not known of one that is gone. The sandbox has ended before, so nothing is
// sent in between.
func (l *Lease) removeLink() (unused bool, err error) {
	link, err := netlink.LinkByName(l.ifName())
	if err == nil {
		unused = silent(link)
		err = netlink.LinkDel(link)
	}
	if err == nil {
		err = l.pool.gate.forget(link.Attrs().Index)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return unused, err
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

// forgetConnections removes the tracked connections of the sandbox from the host:
// the next sandbox with this address must not receive packets that peers still send
// to this one. If it fails, the address is still reused, because it first stays
// unused for a while.
func (l *Lease) forgetConnections() {
	if err := l.pool.forgetter.forget(l.sandbox); err != nil {
		l.pool.cfg.Log.Warn("cannot forget a network's connections", "network", l.id, "error", err)
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

// found returns the ids of everything that carries the installation's mark.
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
