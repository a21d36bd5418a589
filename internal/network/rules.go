package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// anyInterface is what the interface names of all installations on the machine
// begin with, tablePrefix their tables.
const (
	anyInterface = "sky"
	tablePrefix  = "skerry-"
)

// forbidden are the destinations that no sandbox may reach, besides the
// addresses of the host and of other sandboxes. Private ranges are not among
// them: where the host is routed to is the operator's own network.
var forbidden = []string{
	"0.0.0.0/8",          // this host
	"100.100.100.200/32", // metadata of Alibaba Cloud; the others' are link-local
	"127.0.0.0/8",        // loopback
	"168.63.129.16/32",   // the host agent of Azure
	"169.254.0.0/16",     // link-local, metadata
	"224.0.0.0/3",        // multicast, reserved, broadcast
}

// rules is the nftables table of one installation. Its size does not grow with
// the sandboxes: each is one element of a set.
//
//	prerouting, before connections are tracked (so that what is dropped fills
//	no table), for packets from sandboxes:
//	  drop IPv6; drop unless (interface, source) is in the set "leases";
//	  accept TCP to the host's ends unless it would open a connection; drop for the set "forbidden", sandboxes, and the host's own addresses;
//	  drop all, without Outbound
//	input:   drop packets from sandboxes, but for answers in connections that
//	         the host has opened (Lease.Dial)
//	forward: drop between sandboxes; towards them only what they asked for;
//	         in both directions only what the sandbox's policy allows (policy.go);
//	         drop a sandbox's new connections beyond its share of the host's
//	         connection table, which is everybody's
//	         what came in by an interface in the set "opened" goes nowhere but
//	         to sandboxes
//	postrouting: masquerade what sandboxes send
//
// What is denied by its destination is told of, within limits (denied.go).
//
// A verdict of accept ends this table alone: another table of the host, such
// as a firewall whose forward policy is drop, must let sandboxes pass too.
type rules struct {
	mark, ifPrefix string
	prefix         netip.Prefix
	outbound       bool
	// connections is how many the host tracks for one sandbox.
	connections uint32
	// gateway, if not nil, is where sandboxes with a list are redirected to.
	gateway *Gateway
	// tellTo, if not nil, is the group that is told of denied packets.
	tellTo *uint16
}

func (r *rules) table() *nftables.Table {
	return &nftables.Table{Name: tablePrefix + r.mark, Family: nftables.TableFamilyINet}
}

func (r *rules) leases() *nftables.Set {
	return &nftables.Set{
		Table: r.table(), Name: "leases", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr),
	}
}

func openedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "opened", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// countedSet holds, by the sandbox's address, how many connections are tracked.
func countedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "counted", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 16}
}

func element(l *Lease) []nftables.SetElement {
	return []nftables.SetElement{{Key: append(ifName(l.ifName()), l.sandbox.AsSlice()...)}}
}

// ifName is a whole interface name as nftables compares it.
func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// install makes the table, with the leases that exist, and lets the host
// forward. It replaces an earlier one in one step: there is no moment without
// rules.
func (r *rules) install(existing []*Lease, carried map[netip.Addr]verdicts) error {
	opened, err := r.toOpen()
	if err != nil {
		return err
	}
	var c nftables.Conn
	t := r.table()
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	var elements []nftables.SetElement
	for _, l := range existing {
		elements = append(elements, element(l)...)
	}
	leases := r.leases()
	if err := c.AddSet(leases, nil); err != nil {
		return err
	}
	if err := chunked(elements, func(part []nftables.SetElement) error { return c.SetAddElements(leases, part) }); err != nil {
		return err
	}
	if err := r.addPolicySets(&c, carried); err != nil {
		return err
	}
	var names []nftables.SetElement
	for _, name := range opened {
		names = append(names, nftables.SetElement{Key: ifName(name)})
	}
	if err := c.AddSet(openedSet(t), names); err != nil {
		return err
	}
	if err := c.AddSet(countedSet(t), nil); err != nil {
		return err
	}
	if err := c.AddSet(&nftables.Set{Table: t, Name: "forbidden", KeyType: nftables.TypeIPAddr, Interval: true}, intervals(forbidden)); err != nil {
		return err
	}
	if err := c.AddSet(toldSet(t), nil); err != nil {
		return err
	}
	r.addPolicyChains(&c, t)
	if r.gateway != nil {
		r.addGatewayChains(&c, t)
	}
	r.addChains(&c, t)
	if err := c.Flush(); err != nil {
		return err
	}
	// Only now: before, nothing kept the host from forwarding for others.
	return setForwarding(opened, "1")
}

// intervals encodes networks for a set of intervals. They must neither touch
// nor overlap, and be in order.
func intervals(networks []string) []nftables.SetElement {
	var list []nftables.SetElement
	for _, s := range networks {
		p := netip.MustParsePrefix(s)
		first := binary.BigEndian.Uint32(p.Addr().AsSlice())
		list = append(list, nftables.SetElement{Key: p.Addr().AsSlice()})
		// Beyond the last address of all there is no end to name.
		if end := first + 1<<(32-p.Bits()); end != 0 {
			list = append(list, nftables.SetElement{Key: binaryutil.BigEndian.PutUint32(end), IntervalEnd: true})
		}
	}
	return list
}

func (r *rules) addChains(c *nftables.Conn, t *nftables.Table) {
	ours := ifPrefixIs(expr.MetaKeyIIFNAME, r.ifPrefix)
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, ruleset ...[]expr.Any) {
		accept := nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
		for _, e := range ruleset {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: e})
		}
	}
	fromSandbox := [][]expr.Any{
		join(ifPrefixIsNot(expr.MetaKeyIIFNAME, r.ifPrefix), verdict(expr.VerdictAccept)),
		join(protocolIsNot(unix.NFPROTO_IPV4), drop()),
		join(leaseIsNotIn(r.leases().Name), drop()),
		// The chain to-host judges these, which knows what they are part of.
		join(destinationWithin(r.prefix), addressedToHost(), tcpNotOpening(), verdict(expr.VerdictAccept)),
		join(destinationIn("forbidden"), to(chainForbidden)),
		join(destinationWithin(r.prefix), to(chainForbidden)),
		join(destinationIsLocal(), to(chainForbidden)),
	}
	if !r.outbound {
		fromSandbox = append(fromSandbox, to(chainDropDenied))
	}
	chain("from-sandbox", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, fromSandbox...)
	toHost := [][]expr.Any{join(ours, established(), inReply(), verdict(expr.VerdictAccept)), join(ours, drop())}
	if r.gateway != nil {
		toHost = append([][]expr.Any{join(ours, destinationWithin(netip.PrefixFrom(r.gateway.addr, 32)), to("judge-proxied"))}, toHost...)
	}
	chain("to-host", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, toHost...)
	toOurs := ifPrefixIs(expr.MetaKeyOIFNAME, r.ifPrefix)
	chain("through-host", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
		join(ours, ifPrefixIs(expr.MetaKeyOIFNAME, anyInterface), drop()),
		join(toOurs, answers(), through("judge-in")),
		join(toOurs, answers(), verdict(expr.VerdictAccept)),
		join(toOurs, drop()),
		join(ours, through("judge-out")),
		join(ours, newConnection(), moreThan(r.connections, countedSet(t)), drop()),
		join(ours, verdict(expr.VerdictAccept)),
		join(interfaceIn("opened"), ifPrefixIsNot(expr.MetaKeyOIFNAME, anyInterface), drop()),
	)
	chain("to-outside", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		join(sourceWithin(r.prefix), ifPrefixIsNot(expr.MetaKeyOIFNAME, anyInterface), []expr.Any{&expr.Masq{}}),
	)
}

// add lets packets with the lease's address pass from the lease's interface.
func (r *rules) add(l *Lease) error {
	var c nftables.Conn
	if err := c.SetAddElements(r.leases(), element(l)); err != nil {
		return err
	}
	return c.Flush()
}

// drop undoes add; a lease that the rules do not know is no error.
func (r *rules) drop(l *Lease) error {
	var c nftables.Conn
	if err := c.SetDeleteElements(r.leases(), element(l)); err != nil {
		return err
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove from the rules: %w", err)
	}
	return nil
}

// remove takes the table away, and forwarding from the interfaces that only
// this installation opened.
func (r *rules) remove() error {
	opened, others, err := openedInterfaces(r.table().Name)
	if err != nil {
		return err
	}
	var closing []string
	for name := range opened {
		if !others[name] {
			closing = append(closing, name)
		}
	}
	router, err := forwardsEverywhere()
	if err != nil {
		return err
	}
	if !router { // a router forwards for others by now
		if err := setForwarding(closing, "0"); err != nil {
			return err
		}
	}
	var c nftables.Conn
	c.DelTable(r.table())
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network: remove the rules: %w", err)
	}
	return nil
}

// openedInterfaces lists the sets "opened" of the table with this name and of
// the tables of other installations.
func openedInterfaces(own string) (opened, others map[string]bool, err error) {
	var c nftables.Conn
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, fmt.Errorf("list tables: %w", err)
	}
	opened, others = map[string]bool{}, map[string]bool{}
	for _, t := range tables {
		if !strings.HasPrefix(t.Name, tablePrefix) {
			continue
		}
		elements, err := c.GetSetElements(openedSet(t))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, nil, fmt.Errorf("list the set of %s: %w", t.Name, err)
		}
		for _, e := range elements {
			name := strings.TrimRight(string(e.Key), "\x00")
			if t.Name == own {
				opened[name] = true
			} else {
				others[name] = true
			}
		}
	}
	return opened, others, nil
}

// The parts of rules. Registers are those of 32 bits, an interface name takes
// the first four.

func join(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func drop() []expr.Any { return verdict(expr.VerdictDrop) }

func ifPrefixIs(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}}
}

func ifPrefixIsNot(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(prefix)}}
}

func interfaceIn(set string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set}}
}

func protocolIsNot(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{p}}}
}

func isIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}}
}

// sourceOffset and destinationOffset are in the IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func address(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func leaseIsNotIn(set string) []expr.Any {
	const afterName = unix.NFT_REG32_00 + unix.IFNAMSIZ/4
	return join(isIPv4(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		address(sourceOffset, afterName),
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set, Invert: true},
	})
}

func destinationIn(set string) []expr.Any {
	return join(isIPv4(), []expr.Any{address(destinationOffset, 1), &expr.Lookup{SourceRegister: 1, SetName: set}})
}

func destinationWithin(p netip.Prefix) []expr.Any { return within(destinationOffset, p) }

func sourceWithin(p netip.Prefix) []expr.Any { return within(sourceOffset, p) }

func within(offset uint32, p netip.Prefix) []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return join(isIPv4(), []expr.Any{
		address(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	})
}

// destinationIsLocal matches what the host would take itself, by its address
// or as a broadcast in one of its networks.
func destinationIsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)},
	}
}

// addressedToHost matches what is for one of the host's own addresses.
func addressedToHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// tcpNotOpening matches TCP that is not the first packet of a connection. An
// inet table sees non-first fragments put together again: the connection
// tracking that other chains ask for comes before.
func tcpNotOpening() []expr.Any {
	const flagsOffset, syn, ack = 13, 0x02, 0x10
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{syn}},
	}
}

// established matches packets of connections that both sides know of, inReply
// those of the side that did not open the connection.
func established() []expr.Any { return ctState(expr.CtStateBitESTABLISHED) }

func inReply() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}},
	}
}

// newConnection matches the first packet of a connection.
func newConnection() []expr.Any { return ctState(expr.CtStateBitNEW) }

// moreThan matches a source address that has more than n connections.
func moreThan(n uint32, counted *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{
		address(sourceOffset, 1),
		&expr.Dynset{
			SrcRegKey: 1, SetName: counted.Name, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
			Exprs: []expr.Any{&expr.Connlimit{Count: n, Flags: expr.NFT_CONNLIMIT_F_INV}},
		},
	})
}

// answers matches packets of connections that the other side opened.
func answers() []expr.Any { return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// ctState matches packets whose connection is in one of the states.
func ctState(bits uint32) []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(bits)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
