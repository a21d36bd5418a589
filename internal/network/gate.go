package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The gate is a second line of defence behind the nftables rules. Other programs on
// the machine can delete the rules: "nft flush ruleset", as in a reload of a
// firewall, removes all tables. The gate depends neither on the table nor on a
// running server.
//
// A program at the host's end of each lease (tc, clsact ingress) sees a frame
// before nftables does. It drops every frame that is neither ARP nor IPv4 from the
// lease's own hardware and IP address, and marks every IPv4 packet as not judged.
// The last of the judging rules removes the mark. A packet that still has the mark
// is not routed: two policy-routing rules (ip rule) have no route for it. They also
// apply to packets to the host itself, because the kernel looks up the route back
// to the sender with the mark (rp_filter and src_valid_mark, see configureHost),
// and drops a packet without one.
const (
	unjudgedMark = 0x736b7901
	// gatePriority is the priority of the routing rules: before those of other
	// programs, after the table of the host's own addresses.
	gatePriority = 60
	// arpPerSecond is the number of ARP packets accepted from one sandbox per
	// second. An honest sandbox asks for its gateway once in a while.
	arpPerSecond = 64
	// fragmentsPerSecond is the number of IPv4 fragments accepted from one sandbox per
	// second, fragmentsOfAll from all sandboxes together. The host reassembles
	// datagrams before the rules judge them, and has 4 MiB for all of them
	// (net.ipv4.ipfrag_high_thresh). An incomplete datagram stays for 30 s and takes
	// 2.5 KiB, at most 4.5 KiB. So sandboxes use less than 3.2 MiB. Honest programs send
	// few fragments: TCP, QUIC and DNS queries do not need them. Received fragments
	// are not counted.
	fragmentsPerSecond, fragmentsOfAll = 8, 24
	// maxFragment is the length of a fragment's frame: the interface's MTU is 1,500.
	maxFragment = 1514
)

// gate is the program and its map of leases.
type gate struct {
	program *ebpf.Program
	leases  *ebpf.Map
	// sum has the program's count for all leases together.
	sum *ebpf.Map
	// block is the number of the installation's block of filters.
	block uint32
	// held is true if an interface has the block for as long as the pool is open.
	held bool
}

// gateEntry is the program's data for a lease, by the index of the host's end. The
// program itself writes the last two fields, which are counts: the second in which
// packets were last counted, and the number of packets in it.
type gateEntry struct {
	_         [2]byte
	MAC       [6]byte
	Address   [4]byte
	ARP       [2]uint32
	Fragments [2]uint32
}

// Offsets in gateEntry, and in struct __sk_buff of linux/bpf.h.
const (
	entryMAC, entryAddress, entryARP, entryFragments, entrySize = 2, 8, 12, 20, 28
	countSize                                                   = 8
	skbLen, skbMark, skbVLANPresent, skbIfindex                 = 0, 8, 20, 40
	gateEntries                                                 = 1 << 16
)

func openGate(mark string) (_ *gate, err error) {
	h := fnv.New32a()
	h.Write([]byte(mark))
	g := &gate{block: h.Sum32() | 1} // 0 is none
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make the gate of sandboxes' interfaces: %w", err), g.close())
		}
	}()
	g.leases, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "skerry_leases", Type: ebpf.Hash, KeySize: 4, ValueSize: entrySize, MaxEntries: gateEntries, Flags: unix.BPF_F_NO_PREALLOC,
	})
	if err != nil {
		return nil, err
	}
	g.sum, err = ebpf.NewMap(&ebpf.MapSpec{Name: "skerry_sum", Type: ebpf.Array, KeySize: 4, ValueSize: countSize, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	g.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "skerry_gate", Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: gateInstructions(g.leases, g.sum),
	})
	return g, err
}

// close releases the program. The interfaces of leases keep it loaded.
func (g *gate) close() error {
	var errs []error
	if g.program != nil {
		errs = append(errs, g.program.Close())
	}
	for _, m := range []*ebpf.Map{g.leases, g.sum} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// know adds a lease to the program's map, by the index of the host's end.
func (g *gate) know(index int, sandbox netip.Addr) error {
	entry := gateEntry{MAC: [6]byte(macOf(sandbox)), Address: sandbox.As4()}
	if err := g.leases.Put(uint32(index), entry); err != nil {
		return fmt.Errorf("tell the gate of a lease: %w", err)
	}
	return nil
}

// hang attaches the gate to an interface. The interface of a lease must not be up
// before. All interfaces of an installation share one block of filters, which
// contains one filter.
func (g *gate) hang(h *netlink.Handle, index int) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT, IngressBlock: &g.block,
	}}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("hang the gate: %w", err)
	}
	if g.held { // and so the filter is there
		return nil
	}
	if err := h.FilterAdd(g.filter()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the gate's filter: %w", err)
	}
	return nil
}

// takeOver replaces the program of an earlier process in the block, if an interface
// has the block.
func (g *gate) takeOver(h *netlink.Handle) error {
	err := h.FilterReplace(g.filter())
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // there is no such block
	}
	return err
}

func (g *gate) filter() *netlink.BpfFilter {
	const ofBlock = -1 // TCM_IFINDEX_MAGIC_BLOCK; the parent is its number
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ofBlock, Parent: g.block, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          g.program.FD(), Name: "skerry", DirectAction: true,
	}
}

// forget removes the entry of an interface that does not exist any more.
func (g *gate) forget(index int) error {
	if err := g.leases.Delete(uint32(index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget the gate of the lease: %w", err)
	}
	return nil
}

// gateInstructions returns the program. R6 is the packet, R7 the lease's entry, R8 the
// count of all leases.
func gateInstructions(leases, sum *ebpf.Map) asm.Instructions {
	const (
		key                  = -4
		ethernet, ethernetAt = 14, -64
		ip, ipAt             = 20, -32
		// At such an offset that the compared fields are aligned.
		arp, arpAt = 28, -46
		// Verdicts of tc (linux/pkt_cls.h).
		pass, shot = 0, 2
		// The field of the IPv4 header that is not 0 in a fragment.
		fragmentOffset              = 6
		moreFragments, fragmentBits = 0x2000, 0x1fff
	)
	load := func(from, n int32, to int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, from),
			asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, to), asm.Mov.Imm(asm.R4, n),
			asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "drop"),
		}
	}
	// equal continues if the bytes on the stack are the same as in the entry, and
	// drops the packet otherwise.
	equal := func(at int16, in int16, size asm.Size) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.R10, at, size), asm.LoadMem(asm.R3, asm.R7, in, size), asm.JNE.Reg(asm.R2, asm.R3, "drop"),
		}
	}
	number := func(at int16) asm.Instructions { // 16 bits into R2
		return asm.Instructions{asm.LoadMem(asm.R2, asm.R10, at, asm.Half), asm.HostTo(asm.BE, asm.R2, asm.Half)}
	}
	// within counts the packet and goes on if there were at most that many in this
	// second. If two CPUs begin a second at the same moment, a few more may pass.
	within := func(base asm.Register, at int16, most int32, symbol string) asm.Instructions {
		second, count := at, at+4
		return asm.Instructions{
			asm.FnKtimeGetNs.Call(), asm.RSh.Imm(asm.R0, 30), asm.Mov.Reg32(asm.R3, asm.R0), // a second, about
			asm.LoadMem(asm.R2, base, second, asm.Word), asm.JEq.Reg(asm.R2, asm.R3, symbol),
			asm.StoreMem(base, second, asm.R3, asm.Word), asm.Mov.Imm(asm.R2, 0), asm.StoreMem(base, count, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R2, 1).WithSymbol(symbol), asm.AddAtomic.Mem(base, asm.R2, asm.Word, count),
			asm.LoadMem(asm.R2, base, count, asm.Word), asm.JGT.Imm(asm.R2, most, "drop"),
		}
	}
	return joined(
		asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R6, skbVLANPresent, asm.Word), asm.JNE.Imm(asm.R2, 0, "drop"),
			asm.LoadMem(asm.R2, asm.R6, skbIfindex, asm.Word), asm.StoreMem(asm.R10, key, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R1, leases.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "drop"),
			asm.Mov.Reg(asm.R7, asm.R0),
		},
		load(0, ethernet, ethernetAt),
		equal(ethernetAt+6, entryMAC, asm.Half), equal(ethernetAt+8, entryMAC+2, asm.Word),
		number(ethernetAt+12),
		asm.Instructions{asm.JEq.Imm(asm.R2, unix.ETH_P_ARP, "arp"), asm.JNE.Imm(asm.R2, unix.ETH_P_IP, "drop")},

		load(ethernet, ip, ipAt),
		equal(ipAt+sourceOffset, entryAddress, asm.Word),
		number(ipAt+fragmentOffset),
		asm.Instructions{
			asm.And.Imm(asm.R2, moreFragments|fragmentBits), asm.JEq.Imm(asm.R2, 0, "whole"),
			asm.LoadMem(asm.R2, asm.R6, skbLen, asm.Word), asm.JGT.Imm(asm.R2, maxFragment, "drop"),
		},
		within(asm.R7, entryFragments, fragmentsPerSecond, "fragment"),
		asm.Instructions{
			asm.Mov.Imm(asm.R2, 0), asm.StoreMem(asm.R10, key, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R1, sum.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "drop"),
			asm.Mov.Reg(asm.R8, asm.R0),
		},
		within(asm.R8, 0, fragmentsOfAll, "fragment of all"),
		asm.Instructions{
			asm.Mov.Imm32(asm.R2, unjudgedMark).WithSymbol("whole"), asm.StoreMem(asm.R6, skbMark, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, pass), asm.Return(),
		},

		named("arp", load(ethernet, arp, arpAt)),
		number(arpAt), asm.Instructions{asm.JNE.Imm(asm.R2, unix.ARPHRD_ETHER, "drop")},
		number(arpAt+2), asm.Instructions{asm.JNE.Imm(asm.R2, unix.ETH_P_IP, "drop")},
		number(arpAt+4), asm.Instructions{asm.JNE.Imm(asm.R2, 6<<8|4, "drop")}, // lengths of addresses
		equal(arpAt+8, entryMAC, asm.Half), equal(arpAt+10, entryMAC+2, asm.Word), equal(arpAt+14, entryAddress, asm.Word),
		within(asm.R7, entryARP, arpPerSecond, "arp in this second"),
		asm.Instructions{
			asm.Mov.Imm(asm.R0, pass), asm.Return(),
			asm.Mov.Imm(asm.R0, shot).WithSymbol("drop"), asm.Return(),
		},
	)
}

func joined(parts ...asm.Instructions) (all asm.Instructions) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func named(symbol string, list asm.Instructions) asm.Instructions {
	list[0] = list[0].WithSymbol(symbol)
	return list
}

// setMark is the part of a rule that sets a packet's mark.
func setMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// gateRules returns the routing rules that give packets with the mark no route:
// packets from sandboxes and, for the look-up of the return route, packets to them.
func (p *Pool) gateRules() []*netlink.Rule {
	sandboxes := &net.IPNet{IP: p.prefix.Addr().AsSlice(), Mask: net.CIDRMask(p.prefix.Bits(), 32)}
	mask := ^uint32(0)
	var list []*netlink.Rule
	for range 2 {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Type, r.Mark, r.Mask = unix.AF_INET, gatePriority, unix.RTN_BLACKHOLE, unjudgedMark, &mask
		list = append(list, r)
	}
	list[0].Src, list[1].Dst = sandboxes, sandboxes
	return list
}

// addGateRules adds the routing rules that are missing.
func (p *Pool) addGateRules() error {
	for _, r := range p.gateRules() {
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add a routing rule: %w", err)
		}
	}
	return nil
}

func (p *Pool) removeGateRules() error {
	var errs []error
	for _, r := range p.gateRules() {
		if err := netlink.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove a routing rule: %w", err))
		}
	}
	return errors.Join(errs...)
}

// takeOverGate replaces the program on the leases that an earlier process left with
// this process's. It also attaches the gate to the gateway's interface, so that the
// gate stays while there are no leases.
func (p *Pool) takeOverGate() error {
	links, err := interfaces(p.ifPrefix())
	if err != nil {
		return err
	}
	for _, link := range links {
		n, ok := parseID(strings.TrimPrefix(link.Attrs().Name, p.ifPrefix()))
		if !ok || n >= p.free.size {
			continue
		}
		_, sandbox := addresses(p.prefix, n)
		if err := p.gate.know(link.Attrs().Index, sandbox); err != nil {
			return err
		}
	}
	if err := p.gate.takeOver(p.host); err != nil {
		return err
	}
	if p.gateway == nil {
		return nil
	}
	peer, err := netlink.LinkByName(p.peerName())
	if err != nil {
		return err
	}
	err = p.gate.hang(p.host, peer.Attrs().Index)
	p.gate.held = err == nil
	return err
}
