package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// The policy of a sandbox is stored as elements of four sets, so the number of
// rules does not grow with the number of sandboxes:
//
//	open     addresses of sandboxes that may reach all that any may
//	custom   addresses of sandboxes with a list
//	denied   (address of a sandbox, range): its list's denied networks
//	allowed  (address of a sandbox, range): its list's allowed networks
//
// A sandbox in neither of the first two sets reaches nothing; this includes a new
// one. The address can identify the sandbox because packets with another source
// address are dropped earlier (see rules).
//
// Every packet is judged, in both directions, and not only the first of a
// connection. So a change closes the connections that it forbids, and others
// continue. A connection is closed by a reset to both sides.
func openSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "open", KeyType: nftables.TypeIPAddr}
}

func customSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "custom", KeyType: nftables.TypeIPAddr}
}

func deniedSet(t *nftables.Table) *nftables.Set  { return rangesSet(t, "denied") }
func allowedSet(t *nftables.Table) *nftables.Set { return rangesSet(t, "allowed") }

func rangesSet(t *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: name, Interval: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	}
}

// policySets returns all four sets, in the order of verdicts.elements. While a table is
// replaced, the kernel publishes the ranges of one set after the other, in this order:
// what is denied comes before what is allowed.
func policySets(t *nftables.Table) []*nftables.Set {
	return []*nftables.Set{openSet(t), customSet(t), deniedSet(t), allowedSet(t)}
}

// verdicts are the set elements of one sandbox. The zero value reaches nothing.
type verdicts struct {
	open, custom    bool
	denied, allowed []addressRange
}

type addressRange struct{ first, last netip.Addr }

func verdictsOf(p *skerry.NetworkPolicy) verdicts {
	switch p.Mode {
	case skerry.NetworkAllowAll:
		return verdicts{open: true}
	case skerry.NetworkCustom:
		return verdicts{custom: true, denied: ranges(p.Deny), allowed: ranges(p.Allow)}
	}
	return verdicts{}
}

// ranges leaves out IPv6, because no IPv6 packet leaves a sandbox anyway.
func ranges(list []netip.Prefix) (out []addressRange) {
	for _, p := range list {
		if !p.Addr().Is4() {
			continue
		}
		first := binary.BigEndian.Uint32(p.Masked().Addr().AsSlice())
		last := first | ^uint32(0)>>p.Bits()
		out = append(out, addressRange{p.Masked().Addr(), netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last)))})
	}
	return out
}

// elements returns the elements of a sandbox, for each of policySets.
func (v verdicts) elements(sandbox netip.Addr) [4][]nftables.SetElement {
	var e [4][]nftables.SetElement
	own := []nftables.SetElement{{Key: sandbox.AsSlice()}}
	if v.open {
		e[0] = own
	}
	if v.custom {
		e[1] = own
	}
	for i, list := range [][]addressRange{v.denied, v.allowed} {
		for _, r := range list {
			e[2+i] = append(e[2+i], nftables.SetElement{
				Key: append(sandbox.AsSlice(), r.first.AsSlice()...), KeyEnd: append(sandbox.AsSlice(), r.last.AsSlice()...),
			})
		}
	}
	return e
}

// SetPolicy enforces a policy. Before the first call the sandbox reaches nothing.
// Connections that the policy forbids are closed, and others continue. The change
// is atomic: if it fails, nothing has changed.
func (l *Lease) SetPolicy(ctx context.Context, p *skerry.NetworkPolicy) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return fmt.Errorf("network %s is released", l.id)
	}
	next := verdictsOf(p)
	if err := l.pool.rules.judge(l.sandbox, l.verdicts, next); err != nil {
		return fmt.Errorf("set the policy of network %s: %w", l.id, err)
	}
	if l.shut {
		if err := l.reopen(); err != nil {
			return fmt.Errorf("bring back network %s: %w", l.id, err)
		}
	}
	// A new lease has no connections.
	began := l.verdicts.open || l.verdicts.custom
	l.verdicts = next
	if began && !next.open {
		if err := l.wake(ctx, next); err != nil {
			l.pool.cfg.Log.Warn("a sandbox may wait for connections that were cut", "network", l.id, "error", err)
		}
	}
	return nil
}

// judge replaces the elements of a sandbox in one transaction. If elements or the
// table are missing, it recreates everything.
func (r *rules) judge(sandbox netip.Addr, before, after verdicts) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.exchange(sandbox, before, after)
	old, known := r.judged[sandbox]
	r.judged[sandbox] = after
	if errors.Is(err, unix.ENOENT) {
		err = r.restore()
	}
	switch {
	case err == nil:
	case known:
		r.judged[sandbox] = old
	default:
		delete(r.judged, sandbox)
	}
	return err
}

func (r *rules) exchange(sandbox netip.Addr, before, after verdicts) error {
	var c nftables.Conn
	old, elements := before.elements(sandbox), after.elements(sandbox)
	for i, set := range policySets(r.table()) {
		// What stays is not touched: the kernel may miss it for a moment otherwise.
		old[i], elements[i] = without(old[i], elements[i]), without(elements[i], old[i])
		if err := chunked(old[i], func(part []nftables.SetElement) error { return c.SetDeleteElements(set, part) }); err != nil {
			return err
		}
		if err := chunked(elements[i], func(part []nftables.SetElement) error { return c.SetAddElements(set, part) }); err != nil {
			return err
		}
	}
	return r.commit(&c)
}

// without returns the elements of a list that are not in another.
func without(list, other []nftables.SetElement) (rest []nftables.SetElement) {
	key := func(e nftables.SetElement) string { return string(e.Key) + string(e.KeyEnd) }
	others := map[string]bool{}
	for _, e := range other {
		others[key(e)] = true
	}
	for _, e := range list {
		if !others[key(e)] {
			rest = append(rest, e)
		}
	}
	return rest
}

// unjudge removes the elements of a sandbox. Missing elements are not an error.
func (r *rules) unjudge(sandbox netip.Addr, v verdicts) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.judged, sandbox)
	err := r.exchange(sandbox, v, verdicts{})
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// The transaction removed nothing, because an element is missing: remove them
	// one by one.
	for i, set := range policySets(r.table()) {
		for _, e := range v.elements(sandbox)[i] {
			var c nftables.Conn
			if err := c.SetDeleteElements(set, []nftables.SetElement{e}); err != nil {
				return err
			}
			if err := r.commit(&c); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove from the set %s: %w", set.Name, err)
			}
		}
	}
	return nil
}

// chunked calls f with parts of a list of elements, each of which fits into one
// message.
func chunked(list []nftables.SetElement, f func([]nftables.SetElement) error) error {
	const most = 500
	for len(list) > 0 {
		part := list[:min(most, len(list))]
		if err := f(part); err != nil {
			return err
		}
		list = list[len(part):]
	}
	return nil
}

// carried reads the policies that an earlier process of the installation enforced,
// by the sandbox's address. A table of a version without policies allowed
// everything.
func (r *rules) carried(existing []*Lease) (map[netip.Addr]verdicts, error) {
	var c nftables.Conn
	found := map[netip.Addr]verdicts{}
	names, err := r.setNames(&c)
	if err != nil || names == nil {
		return found, err
	}
	for i, set := range policySets(r.table()) {
		if !names[set.Name] {
			for _, l := range existing {
				found[l.sandbox] = verdicts{open: true}
			}
			return found, nil
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("list the set %s: %w", set.Name, err)
		}
		for _, e := range elements {
			if err := carry(found, i, e); err != nil {
				return nil, fmt.Errorf("list the set %s: %w", set.Name, err)
			}
		}
	}
	return found, nil
}

// setNames returns the names of the sets in the installation's table, or nil if
// there is no table.
func (r *rules) setNames(c *nftables.Conn) (map[string]bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name != r.table().Name {
			continue
		}
		sets, err := c.GetSets(r.table())
		if err != nil {
			return nil, fmt.Errorf("list sets: %w", err)
		}
		names := map[string]bool{}
		for _, s := range sets {
			names[s.Name] = true
		}
		return names, nil
	}
	return nil, nil
}

// carry adds an element of the i-th set of policySets.
func carry(found map[netip.Addr]verdicts, i int, e nftables.SetElement) error {
	if len(e.Key) < 4 || i >= 2 && (len(e.Key) != 8 || len(e.KeyEnd) != 8) {
		return fmt.Errorf("an element has the key % x", e.Key)
	}
	sandbox := netip.AddrFrom4([4]byte(e.Key[:4]))
	v := found[sandbox]
	switch i {
	case 0:
		v.open = true
	case 1:
		v.custom = true
	case 2:
		v.denied = append(v.denied, addressRange{netip.AddrFrom4([4]byte(e.Key[4:])), netip.AddrFrom4([4]byte(e.KeyEnd[4:]))})
	case 3:
		v.allowed = append(v.allowed, addressRange{netip.AddrFrom4([4]byte(e.Key[4:])), netip.AddrFrom4([4]byte(e.KeyEnd[4:]))})
	}
	found[sandbox] = v
	return nil
}

// addPolicySets creates the sets with the elements that were carried over.
func (r *rules) addPolicySets(c *nftables.Conn, carried map[netip.Addr]verdicts) error {
	var elements [4][]nftables.SetElement
	for sandbox, v := range carried {
		for i, list := range v.elements(sandbox) {
			elements[i] = append(elements[i], list...)
		}
	}
	for i, set := range policySets(r.table()) {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		if err := chunked(elements[i], func(part []nftables.SetElement) error { return c.SetAddElements(set, part) }); err != nil {
			return err
		}
	}
	return nil
}

// addPolicyChains creates the chains that judge packets of sandboxes. Allowed
// packets return to the calling chain.
func (r *rules) addPolicyChains(c *nftables.Conn, t *nftables.Table) {
	add := func(name string, ruleset ...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t})
		for _, e := range ruleset {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: e})
		}
	}
	// gVisor's UDP sockets fail at once only if the port is said to be unreachable.
	add("refuse-out", join(isTCP(), reset()), join(protocolIs(unix.IPPROTO_UDP), refusePort()), reject())
	add("refuse-in", join(isTCP(), reset()), drop())
	r.addTellingChains(c, t)
	for _, way := range []struct {
		name, deny, rest string // where what is denied goes, and what is left
		sandbox, outside uint32
		last             [][]expr.Any
	}{
		{"judge-out", chainDenied, chainNotAllowed, sourceOffset, destinationOffset, nil},
		// ICMP errors about a connection come from routers on the way, not from its
		// peer.
		{"judge-in", "refuse-in", "refuse-in", destinationOffset, sourceOffset, [][]expr.Any{join(related(), verdict(expr.VerdictReturn))}},
	} {
		pass := verdict(expr.VerdictReturn)
		ruleset := [][]expr.Any{
			join(addressIn(way.sandbox, openSet(t)), pass),
			join(addressNotIn(way.sandbox, customSet(t)), to(way.deny)),
			join(addressesIn(way.sandbox, way.outside, deniedSet(t)), to(way.deny)),
			join(addressesIn(way.sandbox, way.outside, allowedSet(t)), pass),
		}
		add(way.name, append(append(ruleset, way.last...), to(way.rest))...)
	}
}

// to continues in a chain without returning from it (goto); through returns from it
// (jump).
func to(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func through(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func isTCP() []expr.Any { return protocolIs(unix.IPPROTO_TCP) }

func protocolIs(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// reset answers with a TCP reset, reject with an ICMP error (administratively
// prohibited).
func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}

func refusePort() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

func related() []expr.Any { return ctState(expr.CtStateBitRELATED) }

func addressIn(offset uint32, set *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{address(offset, 1), &expr.Lookup{SourceRegister: 1, SetName: set.Name}})
}

func addressNotIn(offset uint32, set *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{address(offset, 1), &expr.Lookup{SourceRegister: 1, SetName: set.Name, Invert: true}})
}

func addressesIn(first, second uint32, set *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{
		address(first, unix.NFT_REG32_00), address(second, unix.NFT_REG32_01),
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: set.Name},
	})
}
