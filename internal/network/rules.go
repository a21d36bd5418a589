package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// anyInterface is the prefix of the interface names of all installations on the
// machine, tablePrefix that of their tables.
const (
	anyInterface = "sky"
	tablePrefix  = "skerry-"
)

// forbidden are the destinations that no sandbox may ever reach, besides the
// addresses of the host and of other sandboxes.
var forbidden = []string{
	"0.0.0.0/8",          // this host
	"100.100.100.200/32", // metadata of Alibaba Cloud; the others' are link-local
	"127.0.0.0/8",        // loopback
	"168.63.129.16/32",   // the host agent of Azure
	"169.254.0.0/16",     // link-local, metadata
	"192.0.0.192/32",     // metadata of Oracle Cloud's older instances
	"224.0.0.0/4",        // multicast
	"255.255.255.255/32", // broadcast
}

// rules is the nftables table of one installation. The number of rules does not
// grow with the number of sandboxes: each sandbox is one element of a set.
//
//	prerouting, for packets from sandboxes; before connection tracking, so that
//	dropped packets do not fill its table:
//	  drop IPv6; drop unless (interface, source) is in the set "leases";
//	  accept TCP to the host's ends unless it opens a connection;
//	  refuse packets to forbidden networks, to sandboxes and to the host's own addresses;
//	  without Outbound, drop all; remove the mark from the rest (gate.go)
//	input:   drop packets from sandboxes, except replies in connections that
//	         the host has opened (Lease.Dial)
//	forward: drop packets between sandboxes; to sandboxes, accept only replies;
//	         from sandboxes, drop packets to closed networks (private.go);
//	         in both directions, accept only what the sandbox's policy allows (policy.go);
//	         drop a sandbox's new connections beyond a rate, and beyond its share
//	         of the host's connection table, which all programs share (relief.go);
//	         packets that arrive on an interface in the set "opened" may go only
//	         to sandboxes
//	postrouting: masquerade packets from sandboxes
//
// Packets that are denied by their destination are reported, at a limited rate
// (denied.go).
//
// A verdict of accept is final only in this table: another table of the host, such
// as a firewall whose forward policy is drop, must allow sandboxes too.
type rules struct {
	mark, ifPrefix string
	prefix         netip.Prefix
	outbound       bool
	// connections is the number of connections that the host tracks for one
	// sandbox.
	connections uint32
	// gateway, if not nil, is the destination to which connections of sandboxes
	// with a list are redirected.
	gateway *Gateway
	// tellTo, if not nil, is the packet log group for denied packets.
	tellTo *uint16
	// private are the closed networks that the operator has opened. resolvers are
	// the name servers of sandboxes. uplinks are the interfaces of default routes.
	private   []netip.Prefix
	resolvers []netip.Addr

	// mu serializes changes of the table. The fields that it guards are the content
	// of the table, so that the table can be recreated.
	mu      sync.Mutex
	uplinks []string
	// members are the interfaces of leases, and judged the policies, both by the
	// sandbox's address.
	members map[netip.Addr]string
	judged  map[netip.Addr]verdicts
	// opened are the interfaces on which the host forwards only for sandboxes.
	opened []string
	// made is the fingerprint of the table as it was created.
	made fingerprint
	// threads are the last threads that have changed the table.
	threads threads
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

// countedSet has, by the sandbox's address, the number of tracked connections.
func countedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "counted", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 16}
}

// askedSet and openingSet have, by the sandbox's address, the rate of its queries
// to the proxy's name server, and of its new connections.
func askedSet(t *nftables.Table) *nftables.Set   { return rateSet(t, "asked") }
func openingSet(t *nftables.Table) *nftables.Set { return rateSet(t, "opening") }

func rateSet(t *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 1 << 16}
}

func element(iface string, sandbox netip.Addr) nftables.SetElement {
	return nftables.SetElement{Key: append(ifName(iface), sandbox.AsSlice()...)}
}

// ifName encodes a complete interface name for comparisons in nftables.
func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// install creates the table, with the existing leases, and enables forwarding. It
// replaces an earlier table in one transaction, so there is no moment without
// rules.
func (r *rules) install(existing []*Lease, carried map[netip.Addr]verdicts) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members, r.judged = map[netip.Addr]string{}, map[netip.Addr]verdicts{}
	for _, l := range existing {
		r.members[l.sandbox] = l.ifName()
	}
	maps.Copy(r.judged, carried)
	return r.restore()
}

// batchBuffer limits the sizes of a transaction that recreates the table, which is one
// message, and of the answers to its parts. A rule takes 1 KiB of the kernel's memory, a
// network of a policy 100 bytes: so 2,000 sandboxes may have 256 networks each. The
// kernel's default is 208 KiB.
const batchBuffer = 64 << 20

// restore recreates the table from what is remembered of it.
func (r *rules) restore() error {
	opened, err := r.toOpen()
	if err != nil {
		return err
	}
	c, err := nftables.New(nftables.WithSockOptions(func(conn *netlink.Conn) error {
		return errors.Join(conn.SetReadBuffer(batchBuffer), conn.SetWriteBuffer(batchBuffer))
	}))
	if err != nil {
		return err
	}
	t := r.table()
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	if err := r.addSets(c, t, opened); err != nil {
		return err
	}
	r.addPolicyChains(c, t)
	r.addPrivateChain(c, t)
	if r.gateway != nil {
		r.addGatewayChains(c, t)
	}
	r.addChains(c, t)
	if err := r.commit(c); err != nil {
		return err
	}
	r.opened = opened
	if r.made, err = r.fingerprint(); err != nil {
		return err
	}
	// Only now: before, no rule kept the host from forwarding for others.
	return setForwarding(opened, "1")
}

func (r *rules) addSets(c *nftables.Conn, t *nftables.Table, opened []string) error {
	var elements []nftables.SetElement
	for sandbox, iface := range r.members {
		elements = append(elements, element(iface, sandbox))
	}
	leases := r.leases()
	if err := c.AddSet(leases, nil); err != nil {
		return err
	}
	if err := chunked(elements, func(part []nftables.SetElement) error { return c.SetAddElements(leases, part) }); err != nil {
		return err
	}
	if err := r.addPolicySets(c, r.judged); err != nil {
		return err
	}
	if err := c.AddSet(openedSet(t), interfaceElements(opened)); err != nil {
		return err
	}
	if err := r.addPrivateSets(c, t); err != nil {
		return err
	}
	for _, set := range []*nftables.Set{countedSet(t), toldSet(t), askedSet(t), openingSet(t)} {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	return nil
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
		// The chain to-host judges these packets, because it knows their
		// connections.
		join(destinationWithin(r.prefix), addressedToHost(), tcpNotOpening(), setMark(0), verdict(expr.VerdictAccept)),
	}
	fromSandbox = append(fromSandbox, destinationsWithin(forbiddenPrefixes, to(chainForbidden))...)
	fromSandbox = append(fromSandbox, join(destinationWithin(r.prefix), to(chainForbidden)), join(destinationIsLocal(), to(chainForbidden)))
	if !r.outbound {
		fromSandbox = append(fromSandbox, to(chainDropDenied))
	}
	fromSandbox = append(fromSandbox, setMark(0)) // see gate.go
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
		join(ours, through(chainJudgePrivate)),
		join(ours, through("judge-out")),
		join(ours, newConnection(), quickerThan(connectionsPerSecond, connectionBurst, openingSet(t)), drop()),
		join(ours, newConnection(), moreThan(r.connections, countedSet(t)), drop()),
		join(ours, verdict(expr.VerdictAccept)),
		join(interfaceIn("opened"), ifPrefixIsNot(expr.MetaKeyOIFNAME, anyInterface), drop()),
	)
	chain("to-outside", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		join(sourceWithin(r.prefix), ifPrefixIsNot(expr.MetaKeyOIFNAME, anyInterface), []expr.Any{&expr.Masq{}}),
	)
}

// add allows packets with the lease's address from the lease's interface.
func (r *rules) add(l *Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var c nftables.Conn
	if err := c.SetAddElements(r.leases(), []nftables.SetElement{element(l.ifName(), l.sandbox)}); err != nil {
		return err
	}
	err := r.commit(&c)
	r.members[l.sandbox] = l.ifName()
	if errors.Is(err, unix.ENOENT) { // somebody has taken the table away
		err = r.restore()
	}
	if err != nil {
		delete(r.members, l.sandbox)
	}
	return err
}

// drop undoes add. An unknown lease is not an error.
func (r *rules) drop(l *Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var c nftables.Conn
	if err := c.SetDeleteElements(r.leases(), []nftables.SetElement{element(l.ifName(), l.sandbox)}); err != nil {
		return err
	}
	if err := r.commit(&c); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove from the rules: %w", err)
	}
	delete(r.members, l.sandbox)
	return nil
}

// remove deletes the table, and disables forwarding on the interfaces that only
// this installation opened.
func (r *rules) remove() error {
	opened, others, err := openedInterfaces(r.table().Name)
	if err != nil {
		return err
	}
	for _, name := range r.opened { // the table may have been taken away
		opened[name] = true
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
	if err := r.commit(&c); err != nil && !errors.Is(err, unix.ENOENT) {
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
		if err != nil && !notThere(err) { // another server may have ended just now
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

// Parts of rules. Registers are those of 32 bits; an interface name takes the first
// four.

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

// sourceOffset and destinationOffset are offsets in the IPv4 header.
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

// destinationsWithin has a rule for each network. The kernel may miss an element of a
// set of intervals while another transaction is committed, up to Linux 6.18 at least;
// it never misses a rule.
func destinationsWithin(networks []netip.Prefix, then []expr.Any) (ruleset [][]expr.Any) {
	for _, p := range networks {
		ruleset = append(ruleset, join(destinationWithin(p), then))
	}
	return ruleset
}

func destinationWithin(p netip.Prefix) []expr.Any { return addressWithin(destinationOffset, p) }

func sourceWithin(p netip.Prefix) []expr.Any { return addressWithin(sourceOffset, p) }

func addressWithin(offset uint32, p netip.Prefix) []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	return join(isIPv4(), []expr.Any{
		address(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	})
}

// destinationIsLocal matches packets that the host would receive itself, by its
// address or as a broadcast in one of its networks.
func destinationIsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)},
	}
}

// addressedToHost matches packets to one of the host's own addresses.
func addressedToHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// tcpNotOpening matches TCP packets that are not the first of a connection. An inet
// table sees reassembled packets and no later fragments, because the connection
// tracking that other chains use comes before it.
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

// established matches packets of connections that both sides have acknowledged,
// inReply those from the side that did not open the connection.
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

// quickerThan matches a source address that exceeds a rate.
func quickerThan(perSecond uint64, burst uint32, set *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{
		address(sourceOffset, 1),
		&expr.Dynset{
			SrcRegKey: 1, SetName: set.Name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}},
		},
	})
}

// answers matches packets of connections that the other side opened.
func answers() []expr.Any { return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// ctState matches packets of connections in one of the states.
func ctState(bits uint32) []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(bits)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
