package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wake notifies a sandbox of the connections that a policy has closed. The rules
// reset an endpoint when it sends, but an endpoint that only receives would wait
// for ever. So wake sends to each a segment outside its window, apparently from its
// peer. TCP acknowledges such a segment (RFC 9293, 3.10.7.4), and the rules answer
// the acknowledgement with a reset. None of these packets leaves the host.
func (l *Lease) wake(ctx context.Context, v verdicts) error {
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	link, err := netlink.LinkByName(l.ifName())
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
	for _, f := range flows {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		src, _ := netip.AddrFromSlice(f.Forward.SrcIP.To4())
		dst, ok := netip.AddrFromSlice(f.Forward.DstIP.To4())
		if src != l.sandbox || !ok || f.Forward.Protocol != unix.IPPROTO_TCP || v.allow(dst) {
			continue
		}
		if err := unix.Sendto(l.pool.packets, l.stray(dst, f.Forward.DstPort, f.Forward.SrcPort), 0, to); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// allow reports whether the rules let packets to and from an address pass directly.
func (v verdicts) allow(a netip.Addr) bool {
	in := func(list []addressRange) bool {
		for _, r := range list {
			if r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0 {
				return true
			}
		}
		return false
	}
	return v.open || v.custom && !in(v.denied) && in(v.allowed)
}

// stray returns a frame with a TCP segment that belongs to no connection state.
func (l *Lease) stray(peer netip.Addr, peerPort, port uint16) []byte {
	const ethernet, ip, tcp = 14, 20, 20
	b := make([]byte, ethernet+ip+tcp)
	copy(b, macOf(l.sandbox))
	copy(b[6:], macOf(l.host))
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	h := b[ethernet:]
	h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(h[2:], ip+tcp)
	copy(h[12:], peer.AsSlice())
	copy(h[16:], l.sandbox.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h[:ip], 0))
	t := h[ip:]
	binary.BigEndian.PutUint16(t, peerPort)
	binary.BigEndian.PutUint16(t[2:], port)
	binary.BigEndian.PutUint32(t[4:], rand.Uint32())
	binary.BigEndian.PutUint32(t[8:], rand.Uint32())
	t[12], t[13] = tcp/4<<4, 0x10 // ACK
	pseudo := sum(h[12:20]) + unix.IPPROTO_TCP + tcp
	binary.BigEndian.PutUint16(t[16:], checksum(t, pseudo))
	return b
}

func sum(b []byte) (n uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return n
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte, start uint32) uint16 {
	n := start + sum(b)
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
