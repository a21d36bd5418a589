package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Reasons for which the rules deny a packet.
const (
	ReasonForbidden  = "forbidden address"   // to every sandbox, always
	ReasonPrivate    = "private network"     // that the operator has not opened
	ReasonDenied     = "denied address"      // by a network, by deny-all, or without Config.Outbound
	ReasonNotAllowed = "address not allowed" // by a list
)

// Denied is a packet that the rules denied.
type Denied struct {
	// Source is the sandbox's address.
	Source netip.Addr
	// Protocol is "tcp", "udp", "icmp" or "ip". Only tcp and udp have ports.
	Protocol    string
	Destination netip.AddrPort
	Reason      string
}

// The kernel reports denied packets through a group of its packet log (nflog): this
// many a second for each sandbox, after a burst.
const (
	deniedPerSecond = 10
	deniedBurst     = 50
	// deniedPacket is the number of bytes copied from a packet: the longest IPv4
	// header and the ports.
	deniedPacket = 64
	// deniedAgain is how long a repetition of the same packet is not reported: a
	// program that gets no answer tries again.
	deniedAgain = 10 * time.Second
	// deniedRemembered limits the number of packets that are remembered for
	// deniedAgain.
	deniedRemembered = 4096
)

// The kernel's interface: linux/netfilter/nfnetlink_log.h.
const (
	ulogPacket, ulogConfig      = unix.NFNL_SUBSYS_ULOG << 8, unix.NFNL_SUBSYS_ULOG<<8 | 1
	ulogCommand, ulogMode       = 1, 2
	ulogTimeout                 = 4
	ulogBind, ulogCopyPacket    = 1, 2
	ulogPayload, ulogPrefix     = 9, 10
	ulogTimeoutHundredths       = 10
	ulogGroups, ulogFirstGroup  = 64, 0x5300
	nfgenmsgBytes, ulogOverhead = 4, 1 << 20
)

// denials listens to a packet log group that no other program uses.
type denials struct {
	conn  *netlink.Conn
	group uint16
	once  sync.Once
}

// openDenials binds a free group. Each installation on a machine has its own.
func openDenials(mark string) (_ *denials, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	d := &denials{conn: conn}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	// Messages that do not fit are dropped silently, because this is only a log.
	if err := errors.Join(conn.SetOption(netlink.NoENOBUFS, true), conn.SetReadBuffer(ulogOverhead)); err != nil {
		return nil, err
	}
	h := fnv.New32a()
	h.Write([]byte(mark))
	for i := range uint32(ulogGroups) {
		d.group = uint16(ulogFirstGroup + (h.Sum32()+i)%ulogGroups)
		err = d.configure(netlink.Attribute{Type: ulogCommand, Data: []byte{ulogBind}})
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) { // somebody else's
			break
		}
	}
	if err != nil {
		return nil, err
	}
	mode := append(binary.BigEndian.AppendUint32(nil, deniedPacket), ulogCopyPacket, 0)
	timeout := binary.BigEndian.AppendUint32(nil, ulogTimeoutHundredths)
	return d, d.configure(netlink.Attribute{Type: ulogMode, Data: mode}, netlink.Attribute{Type: ulogTimeout, Data: timeout})
}

func (d *denials) configure(attributes ...netlink.Attribute) error {
	b, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, d.group)
	_, err = d.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ulogConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, b...),
	})
	return err
}

func (d *denials) close() (err error) {
	d.once.Do(func() { err = d.conn.Close() })
	return err
}

// Denials calls f for each packet that the rules deny, until ctx ends or the pool
// is closed. It then returns nil. It reports a repeated packet once in 10 s, and at
// most 10 packets a second of one sandbox, with bursts of 50. It may be called only
// once.
func (p *Pool) Denials(ctx context.Context, f func(Denied)) error {
	if p.denials == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { p.denials.close() })()
	var told lately
	for {
		messages, err := p.denials.conn.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.EBADF): // closed meanwhile
			return nil
		case err != nil:
			return fmt.Errorf("network: listen for denied packets: %w", err)
		}
		now := time.Now()
		for _, m := range messages {
			if m.Header.Type != ulogPacket {
				continue
			}
			if d, ok := parseDenied(m.Data); ok && told.first(d, now) {
				f(d)
			}
		}
	}
}

// lately remembers the packets that were reported, and when.
type lately map[Denied]time.Time

func (l *lately) first(d Denied, now time.Time) bool {
	if at, ok := (*l)[d]; ok && now.Sub(at) < deniedAgain {
		return false
	}
	if *l == nil {
		*l = lately{}
	}
	if len(*l) >= deniedRemembered {
		for k, at := range *l {
			if now.Sub(at) >= deniedAgain {
				delete(*l, k)
			}
		}
		if len(*l) >= deniedRemembered {
			clear(*l)
		}
	}
	(*l)[d] = now
	return true
}

// parseDenied reads a message of the packet log.
func parseDenied(b []byte) (d Denied, ok bool) {
	if len(b) < nfgenmsgBytes {
		return d, false
	}
	attributes, err := netlink.NewAttributeDecoder(b[nfgenmsgBytes:])
	if err != nil {
		return d, false
	}
	var packet []byte
	for attributes.Next() {
		switch attributes.Type() {
		case ulogPayload:
			packet = attributes.Bytes()
		case ulogPrefix:
			d.Reason = attributes.String()
		}
	}
	if attributes.Err() != nil || d.Reason == "" {
		return d, false
	}
	return d, d.parsePacket(packet)
}

// parsePacket reads the IPv4 header and the ports.
func (d *Denied) parsePacket(b []byte) bool {
	const least, protocolOffset, fragmentOffset, fragmentMask = 20, 9, 6, 0x1fff
	if len(b) < least || b[0]>>4 != 4 {
		return false
	}
	header := int(b[0]&0xf) * 4
	if header < least {
		return false
	}
	d.Source = netip.AddrFrom4([4]byte(b[sourceOffset:]))
	var port uint16
	ports := false
	switch b[protocolOffset] {
	case unix.IPPROTO_TCP:
		d.Protocol, ports = "tcp", true
	case unix.IPPROTO_UDP:
		d.Protocol, ports = "udp", true
	case unix.IPPROTO_ICMP:
		d.Protocol = "icmp"
	default:
		d.Protocol = "ip"
	}
	first := binary.BigEndian.Uint16(b[fragmentOffset:])&fragmentMask == 0
	if ports && first && len(b) >= header+4 {
		port = binary.BigEndian.Uint16(b[header+2:])
	}
	d.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[destinationOffset:])), port)
	return true
}

// toldSet has, by the sandbox's address, the rate of reported packets.
func toldSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "told", KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 1 << 16}
}

// Chains that report why a packet is denied, and then deny it.
const (
	chainForbidden, chainDropDenied = "tell-forbidden", "tell-no-outbound"
	chainDenied, chainNotAllowed    = "tell-denied", "tell-not-allowed"
	chainPrivate                    = "tell-private"
)

// addTellingChains creates the reporting chains. Without a listener they only deny.
func (r *rules) addTellingChains(c *nftables.Conn, t *nftables.Table) {
	for _, chain := range []struct {
		name, reason string
		then         []expr.Any
	}{
		{chainForbidden, ReasonForbidden, to("refuse-out")},
		{chainDropDenied, ReasonDenied, drop()},
		{chainPrivate, ReasonPrivate, to("refuse-out")},
		{chainDenied, ReasonDenied, to("refuse-out")},
		{chainNotAllowed, ReasonNotAllowed, to("refuse-out")},
	} {
		ch := c.AddChain(&nftables.Chain{Name: chain.name, Table: t})
		if r.tellTo != nil {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(notTooOften(toldSet(t)), tell(*r.tellTo, chain.reason))})
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: chain.then})
	}
}

// notTooOften matches a packet as long as its sandbox is below the rate of reported
// packets.
func notTooOften(told *nftables.Set) []expr.Any {
	return join(isIPv4(), []expr.Any{
		address(sourceOffset, 1),
		&expr.Dynset{
			SrcRegKey: 1, SetName: told.Name, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
			Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: deniedPerSecond, Unit: expr.LimitTimeSecond, Burst: deniedBurst}},
		},
	})
}

func tell(group uint16, reason string) []expr.Any {
	return []expr.Any{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_PREFIX,
		Group: group, Snaplen: deniedPacket, Data: []byte(reason),
	}}
}
