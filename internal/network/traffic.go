package network

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// devices has the counters of all interfaces. Reading it takes a few milliseconds for a
// thousand sandboxes; asking for each interface would take ten times as long. It is the
// file of the calling thread, because the process's first thread may be in another
// namespace.
const devices = "/proc/thread-self/net/dev"

// Traffic returns the number of packets on each lease's interface, by the lease's id.
func (p *Pool) Traffic(context.Context) (map[string]uint64, error) {
	b, err := os.ReadFile(devices)
	if err != nil {
		return nil, fmt.Errorf("read the interfaces' counters: %w", err)
	}
	return parseDevices(b, p.ifPrefix())
}

// parseDevices adds up the packets of the interfaces whose names begin with prefix, by
// the rest of their names.
func parseDevices(b []byte, prefix string) (map[string]uint64, error) {
	// Fields after the name.
	const received, sent, fields = 1, 9, 16
	packets := map[string]uint64{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, counters, ok := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		id, ours := strings.CutPrefix(name, prefix)
		if !ok || !ours {
			continue
		}
		list := strings.Fields(counters)
		if len(list) < fields {
			return nil, fmt.Errorf("the counters of interface %s are malformed", name)
		}
		for _, i := range []int{received, sent} {
			n, err := strconv.ParseUint(list[i], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the counters of interface %s are malformed: %w", name, err)
			}
			packets[id] += n
		}
	}
	return packets, nil
}

// Connected returns the addresses of the sandboxes that have open TCP connections to
// the outside.
func (p *Pool) Connected(context.Context) (map[netip.Addr]bool, error) {
	flows, err := whole(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	connected := map[netip.Addr]bool{}
	for _, f := range flows {
		tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
		if !ok || tcp.State < nl.TCP_CONNTRACK_SYN_SENT || tcp.State > nl.TCP_CONNTRACK_ESTABLISHED {
			continue
		}
		if a, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && p.prefix.Contains(a) {
			connected[a] = true
		}
	}
	return connected, nil
}
