package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// closed are the ranges that no sandbox reaches unless the operator opens networks
// in them (Config.Private): private, shared, documentation, benchmark and reserved
// ranges. They are the operator's own networks, or unused. Networks that the host
// reaches through another interface than that of a default route are closed too,
// whatever their address. The rules check the interface, so a network is closed
// before its interface exists.
var closed = []string{
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // shared by a provider's customers
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"240.0.0.0/4",     // reserved
}

// CheckPrivate returns an error if an operator cannot open the network to
// sandboxes.
func CheckPrivate(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("not a network such as 10.1.0.0/16")
	case !p.Addr().Is4():
		return fmt.Errorf("%s is not IPv4, and sandboxes have no IPv6", p)
	case p != p.Masked():
		return fmt.Errorf("%s has bits beyond its prefix; the network is %s", p, p.Masked())
	}
	for _, f := range forbiddenPrefixes {
		if f.Bits() <= p.Bits() && f.Contains(p.Addr()) {
			return fmt.Errorf("no sandbox may ever reach %s (it is in %s)", p, f)
		}
	}
	return nil
}

func prefixes(list []string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

var forbiddenPrefixes, closedPrefixes = prefixes(forbidden), prefixes(closed)

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Forbidden returns the reason why no policy can open an address: ReasonForbidden,
// ReasonPrivate, or "" if policies can open it. If the kernel cannot be asked, for
// example because there is no free file descriptor, the address counts as
// forbidden.
func (p *Pool) Forbidden(a netip.Addr) string {
	if !a.Is4() || p.prefix.Contains(a) || within(forbiddenPrefixes, a) {
		return ReasonForbidden
	}
	opened := within(p.cfg.Private, a)
	if !opened && within(closedPrefixes, a) {
		return ReasonPrivate
	}
	routes, err := netlink.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return "" // nothing is reached
	case err != nil:
		return ReasonForbidden
	}
	uplinks := *p.uplinks.Load()
	for _, r := range routes {
		switch {
		case r.Type != unix.RTN_UNICAST:
			return ReasonForbidden
		case !opened && !uplinks.has(r.LinkIndex):
			return ReasonPrivate
		}
	}
	return ""
}

// uplinks are the interfaces of the host's default routes, by index.
type uplinks map[int]string

func (u uplinks) has(index int) bool { return u[index] != "" }

func (u uplinks) names() (list []string) {
	for _, name := range u {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// findUplinks returns the interfaces of the default routes in all routing tables.
// VPNs split the default route into two halves, so that theirs takes precedence.
func findUplinks() (uplinks, error) {
	routes, err := routesBy(&netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	found := uplinks{}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || !isDefault(r) {
			continue
		}
		found[r.LinkIndex] = ""
		for _, hop := range r.MultiPath {
			found[hop.LinkIndex] = ""
		}
	}
	named := uplinks{}
	for index := range found { // there may be thousands of others, which are sandboxes'
		link, err := netlink.LinkByIndex(index)
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone || index == 0 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up the interface of a default route: %w", err)
		}
		if name := link.Attrs().Name; name != "lo" {
			named[index] = name
		}
	}
	return named, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	bits, _ := r.Dst.Mask.Size()
	return bits <= 1
}

func resolversSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "resolvers", KeyType: nftables.TypeIPAddr}
}

func uplinksSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "uplinks", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// addPrivateSets creates the sets that the rules about closed networks use.
func (r *rules) addPrivateSets(c *nftables.Conn, t *nftables.Table) error {
	var servers []nftables.SetElement
	for _, a := range r.resolvers {
		servers = append(servers, nftables.SetElement{Key: a.AsSlice()})
	}
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{
		{resolversSet(t), servers}, {uplinksSet(t), interfaceElements(r.uplinks)},
	} {
		if err := c.AddSet(s.set, nil); err != nil {
			return err
		}
		if err := chunked(s.elements, func(part []nftables.SetElement) error { return c.SetAddElements(s.set, part) }); err != nil {
			return err
		}
	}
	return nil
}

func interfaceElements(names []string) (list []nftables.SetElement) {
	for _, name := range names {
		list = append(list, nftables.SetElement{Key: ifName(name)})
	}
	return list
}

const chainJudgePrivate = "judge-private"

// addPrivateChain creates the chain that keeps sandboxes out of closed networks.
// Packets to other networks return to the calling chain. In a closed network a
// sandbox reaches only its name servers, at their port.
func (r *rules) addPrivateChain(c *nftables.Conn, t *nftables.Table) {
	ch := c.AddChain(&nftables.Chain{Name: chainJudgePrivate, Table: t})
	pass := verdict(expr.VerdictReturn)
	for _, e := range slices.Concat(
		destinationsWithin(r.private, pass),
		[][]expr.Any{
			join(destinationIn(resolversSet(t).Name), portIs(unix.IPPROTO_UDP, 53), pass),
			join(destinationIn(resolversSet(t).Name), portIs(unix.IPPROTO_TCP, 53), pass),
		},
		destinationsWithin(closedPrefixes, to(chainPrivate)),
		[][]expr.Any{join(outsideOf(uplinksSet(t)), to(chainPrivate))},
	) {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: e})
	}
}

// outsideOf matches packets that leave through an interface that is not in the set.
func outsideOf(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set.Name, Invert: true}}
}
