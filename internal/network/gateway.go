package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// proxyMark returns the installation's own mark, so that another installation's
// rules do not judge its proxy. It never returns unjudgedMark.
func proxyMark(installation string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(installation))
	return 0x736b0000 | h.Sum32()&0xfff
}

// Gateway is the address to which connections of sandboxes with a list are
// redirected. It is an address of the host on its own interface, used for nothing
// else. Only connections that are redirected from a sandbox's interface reach it:
// none from outside, and none from programs on the host.
type Gateway struct {
	// Web accepts connections to TCP ports 80 and 443, DNS and DNSTCP queries to
	// port 53. The user of the Gateway closes them.
	Web, DNSTCP *net.TCPListener
	DNS         *net.UDPConn
	// Mark marks the connections that the proxy opens for sandboxes (SO_MARK). The
	// kernel applies to them the rules about addresses that no sandbox may reach,
	// independently of the proxy's decisions.
	Mark uint32

	addr         netip.Addr
	web, dns, tc uint16
}

// gatewayName is the interface with the gateway's address, peerName its other
// end, which carries nothing.
func (p *Pool) gatewayName() string { return p.ifPrefix() + "proxy" }
func (p *Pool) peerName() string    { return p.ifPrefix() + "none" }

// openGateway creates the interface, or takes over the interface of an earlier
// process, and listens. The rules must know the ports before anything is
// redirected.
func (p *Pool) openGateway() (_ *Gateway, err error) {
	g := &Gateway{Mark: proxyMark(p.mark)}
	// The address of the last index, which no lease ever has.
	g.addr, _ = addresses(p.prefix, p.free.size)
	if err := p.gatewayLink(g.addr); err != nil {
		return nil, fmt.Errorf("make the proxy's interface: %w", err)
	}
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.addr, 0))
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if g.Web, err = net.ListenTCP("tcp4", at); err != nil {
		return nil, err
	}
	if g.DNSTCP, err = net.ListenTCP("tcp4", at); err != nil {
		return nil, err
	}
	if g.DNS, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.addr, 0))); err != nil {
		return nil, err
	}
	g.web, g.tc = portOf(g.Web.Addr()), portOf(g.DNSTCP.Addr())
	g.dns = portOf(g.DNS.LocalAddr())
	return g, nil
}

func portOf(a net.Addr) uint16 {
	_, port, _ := net.SplitHostPort(a.String())
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n)
}

func (g *Gateway) close() error {
	var errs []error
	if g.Web != nil {
		errs = append(errs, g.Web.Close())
	}
	if g.DNSTCP != nil {
		errs = append(errs, g.DNSTCP.Close())
	}
	if g.DNS != nil {
		errs = append(errs, g.DNS.Close())
	}
	var kept []error
	for _, err := range errs {
		if !errors.Is(err, net.ErrClosed) {
			kept = append(kept, err)
		}
	}
	return errors.Join(kept...)
}

// gatewayLink creates the interface as one end of a veth pair, because the host
// must support these for the leases anyway.
func (p *Pool) gatewayLink(addr netip.Addr) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.gatewayName(), TxQLen: -1}, PeerName: p.peerName()}
	if err := netlink.LinkAdd(veth); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	for _, name := range []string{p.peerName(), p.gatewayName()} {
		if err := disableIPv6(name); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == p.gatewayName() {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}}
			if err := netlink.AddrReplace(link, a); err != nil {
				return fmt.Errorf("add %s: %w", addr, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// removeGateway removes the interface.
func (p *Pool) removeGateway() error {
	link, err := netlink.LinkByName(p.gatewayName())
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Gateway returns the gateway, or nil if Config.Proxy is false.
func (p *Pool) Gateway() *Gateway { return p.gateway }

// addGatewayChains redirects web connections and DNS queries of sandboxes with a
// list to the gateway, unless the list's networks already decide about them.
//
//	prerouting: dnat to the gateway
//	input:      only redirected packets reach the gateway (judge-proxied)
//	output:     the proxy's connections go nowhere that a sandbox may not go
func (r *rules) addGatewayChains(c *nftables.Conn, t *nftables.Table) {
	g := r.gateway
	add := func(ch *nftables.Chain, ruleset ...[]expr.Any) {
		c.AddChain(ch)
		for _, e := range ruleset {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: e})
		}
	}
	pass := verdict(expr.VerdictReturn)
	// Packets to closed networks are not redirected: the forward chain refuses them.
	add(&nftables.Chain{Name: chainSkipPrivate, Table: t},
		append(destinationsWithin(r.private, pass), destinationsWithin(closedPrefixes, verdict(expr.VerdictAccept))...)...)
	add(&nftables.Chain{Name: "to-proxy", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest},
		join(ifPrefixIsNot(expr.MetaKeyIIFNAME, r.ifPrefix), pass),
		join(addressNotIn(sourceOffset, customSet(t)), pass),
		join(addressesIn(sourceOffset, destinationOffset, deniedSet(t)), pass),
		join(addressesIn(sourceOffset, destinationOffset, allowedSet(t)), pass),
		// For any name server address that a program uses.
		join(isIPv4(), portIs(unix.IPPROTO_TCP, 53), dnat(g.addr, g.tc)),
		join(isIPv4(), portIs(unix.IPPROTO_UDP, 53), dnat(g.addr, g.dns)),
		through(chainSkipPrivate),
		join(isIPv4(), portIs(unix.IPPROTO_TCP, 80), dnat(g.addr, g.web)),
		join(isIPv4(), portIs(unix.IPPROTO_TCP, 443), dnat(g.addr, g.web)),
	)
	// If the policy changed to allow-all, connections to the gateway continue. The
	// proxy closes connections that the policy forbids. If nothing is allowed any
	// more, this chain closes them too.
	add(&nftables.Chain{Name: "judge-proxied", Table: t},
		// Applied before the queue of the name server's socket, which all sandboxes
		// share.
		join(protocolIs(unix.IPPROTO_UDP), quickerThan(queriesPerSecond, queryBurst, askedSet(t)), drop()),
		join(newConnection(), quickerThan(connectionsPerSecond, connectionBurst, openingSet(t)), drop()),
		join(newConnection(), moreThan(r.connections, countedSet(t)), drop()),
		join(redirected(), addressIn(sourceOffset, customSet(t)), verdict(expr.VerdictAccept)),
		join(redirected(), addressIn(sourceOffset, openSet(t)), verdict(expr.VerdictAccept)),
		join(isTCP(), reset()),
		drop(),
	)
	add(&nftables.Chain{Name: "to-gateway", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 1)},
		join(addressWithin(destinationOffset, netip.PrefixFrom(g.addr, 32)), ifPrefixIsNot(expr.MetaKeyIIFNAME, r.ifPrefix), drop()),
	)
	add(&nftables.Chain{Name: "from-proxy", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter},
		slices.Concat(
			[][]expr.Any{join(markIsNot(g.Mark), verdict(expr.VerdictAccept)), join(protocolIsNot(unix.NFPROTO_IPV4), reject())},
			destinationsWithin(forbiddenPrefixes, reject()),
			[][]expr.Any{join(destinationWithin(r.prefix), reject()), join(destinationIsLocal(), reject())},
			destinationsWithin(r.private, verdict(expr.VerdictAccept)),
			destinationsWithin(closedPrefixes, reject()),
			[][]expr.Any{join(outsideOf(uplinksSet(t)), reject())},
		)...)
}

const chainSkipPrivate = "skip-private"

// portIs matches a destination port.
func portIs(protocol byte, port uint16) []expr.Any {
	return join(protocolIs(protocol), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	})
}

func dnat(to netip.Addr, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

// redirected matches packets of connections that the rules have redirected.
func redirected() []expr.Any {
	const dstNAT = 1 << 5 // IPS_DST_NAT
	mask := binaryutil.NativeEndian.PutUint32(dstNAT)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func markIsNot(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}
