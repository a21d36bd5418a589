package dns

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/share"
)

// Client is what the server must know of who asks.
type Client interface {
	// Allow takes a query from the client's share; false means that it has used
	// it up.
	Allow() bool
	// Everything reports whether the client may ask for every name and type.
	Everything() bool
	// Name reports whether the client may have the addresses of a name, in the
	// form of policy.Normalize. It is also called for what is no such name,
	// with "".
	Name(name string) bool
	// Refused is told of a query that was refused.
	Refused(name string)
	// Address reports whether an address may be in an answer.
	Address(a netip.Addr) bool
	// Withheld is told of a name with addresses of which none may be in the
	// answer, and of one of them.
	Withheld(name string, a netip.Addr)
	// Unanswered is told of a query that no name server answered.
	Unanswered(name string)
}

// Server answers the queries of clients. Addresses of IPv6 are none of its
// answers, nor is what tells of other ways to a name's server (HTTPS, SVCB).
type Server struct {
	Resolver *Resolver
	// Client returns who has an address, or nil if nobody has.
	Client func(netip.Addr) Client
	// Normalize is policy.Normalize.
	Normalize func(string) (string, error)

	// Queries and Streams are how many are worked on and open at a time, of all
	// clients; default 1024 and 256. Beyond them, and beyond a client's share,
	// queries are not answered and connections closed.
	Queries, Streams int

	// idle and within are streamIdle and queryTime, but for tests.
	idle, within  time.Duration
	work, streams *share.Slots[netip.Addr]
	init          sync.Once
}

const (
	defaultQueries, queriesOfOne = 1024, 128
	defaultStreams, streamsOfOne = 256, 32

	streamIdle  = 10 * time.Second
	queryTime   = 10 * time.Second
	maxPerQuery = 100 // queries in one TCP connection
)

func (s *Server) start() {
	s.init.Do(func() {
		if s.Queries <= 0 {
			s.Queries = defaultQueries
		}
		if s.Streams <= 0 {
			s.Streams = defaultStreams
		}
		if s.idle <= 0 {
			s.idle = streamIdle
		}
		s.work, s.streams = share.New[netip.Addr](s.Queries, queriesOfOne), share.New[netip.Addr](s.Streams, streamsOfOne)
	})
}

// ServeUDP answers what comes to conn until ctx ends, waits for what it is
// doing, and closes conn.
func (s *Server) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	s.start()
	var running sync.WaitGroup
	defer running.Wait()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// The answer must come from the address that the query was sent to: the
	// one of the interface that the kernel redirected it to.
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }); err != nil || serr != nil {
		return errors.Join(err, serr)
	}
	buf, oob := make([]byte, udpSize), make([]byte, 128)
	for {
		n, oobn, flags, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if err != nil || flags&unix.MSG_TRUNC != 0 {
			continue
		}
		client := s.Client(from.Addr())
		if client == nil || !client.Allow() || !s.work.Take(from.Addr()) {
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		control := replyControl(oob[:oobn])
		running.Go(func() {
			defer s.work.Give(from.Addr())
			if answer := s.answer(ctx, client, query, false); answer != nil {
				conn.WriteMsgUDPAddrPort(answer, control, from)
			}
		})
	}
}

// replyControl makes of a received control message one that sends from the
// address that was sent to.
func replyControl(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[4:8])
			return unix.PktInfo4(&info)
		}
	}
	return nil
}

// ServeTCP is like ServeUDP.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener) error {
	s.start()
	var running sync.WaitGroup
	defer running.Wait()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of files: others must end first
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		from := peer.Addr().Unmap()
		client := s.Client(from)
		if client == nil || !s.streams.Take(from) {
			conn.Close()
			continue
		}
		running.Go(func() {
			defer s.streams.Give(from)
			s.serveStream(ctx, conn, client)
		})
	}
}

func (s *Server) serveStream(ctx context.Context, conn net.Conn, client Client) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	framed := &dns.Conn{Conn: conn}
	for range maxPerQuery {
		conn.SetDeadline(time.Now().Add(s.idle))
		query, err := framed.ReadMsgHeader(nil)
		if err != nil || !client.Allow() {
			return
		}
		answer := s.answer(ctx, client, query, true)
		if answer == nil {
			return
		}
		if _, err := framed.Write(answer); err != nil {
			return
		}
	}
}

// question is what of a query counts.
type question struct {
	dns.Question
	id   uint16
	rd   bool
	edns bool
	size int
}

// text returns the name with its bytes beyond ASCII as they were sent: they may
// be UTF-8. All else that no domain name has stays escaped.
func (q *question) text() string {
	if !strings.Contains(q.Name, `\`) {
		return q.Name
	}
	var b []byte
	for i := 0; i < len(q.Name); i++ {
		if q.Name[i] == '\\' && i+1 < len(q.Name) {
			if i+3 < len(q.Name) {
				if n, err := strconv.ParseUint(q.Name[i+1:i+4], 10, 8); err == nil && n >= 0x80 {
					b = append(b, byte(n))
					i += 3
					continue
				}
			}
			b = append(b, q.Name[i])
			i++
		}
		b = append(b, q.Name[i])
	}
	return string(b)
}

// answer returns the answer to a query, or nil for what deserves none.
func (s *Server) answer(ctx context.Context, c Client, query []byte, stream bool) []byte {
	q, ok := parseQuery(query)
	if !ok {
		return nil
	}
	limit := q.size
	if stream {
		limit = dns.MaxMsgSize - 1
	}
	name, err := s.Normalize(q.text())
	if err != nil {
		name = ""
	}
	everything := c.Everything()
	switch {
	case q.Qclass != dns.ClassINET, !everything && !c.Name(name):
		c.Refused(name)
		return q.reply(dns.RcodeRefused, nil, 0, limit)
	case q.Qtype == dns.TypeAAAA, q.Qtype == dns.TypeHTTPS, q.Qtype == dns.TypeSVCB:
		return q.reply(dns.RcodeSuccess, nil, 0, limit)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.within, queryTime))
	defer cancel()
	switch {
	case q.Qtype == dns.TypeA && name != "":
		return s.answerA(ctx, c, q, name, limit)
	case everything && q.Qtype != dns.TypeANY && q.Qtype != dns.TypeAXFR:
		return s.relay(ctx, c, q, name, limit)
	}
	c.Refused(name)
	return q.reply(dns.RcodeRefused, nil, 0, limit)
}

func (s *Server) answerA(ctx context.Context, c Client, q *question, name string, limit int) []byte {
	addrs, ttl, err := s.Resolver.Lookup(ctx, name)
	switch {
	case errors.Is(err, ErrNotFound):
		return q.reply(dns.RcodeNameError, nil, 0, limit)
	case err != nil:
		c.Unanswered(name)
		return q.reply(dns.RcodeServerFailure, nil, 0, limit)
	}
	var good []netip.Addr
	for _, a := range addrs {
		if c.Address(a) {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		c.Withheld(name, addrs[0])
	}
	return q.reply(dns.RcodeSuccess, good, ttl, limit)
}

// relay passes an upstream answer on, unless an address in it may not be.
func (s *Server) relay(ctx context.Context, c Client, q *question, name string, limit int) []byte {
	msg, err := s.Resolver.Exchange(ctx, q.Question)
	if err != nil {
		c.Unanswered(name)
	}
	if err != nil || !onlyGoodAddresses(msg, c) {
		return q.reply(dns.RcodeServerFailure, nil, 0, limit)
	}
	msg.Id, msg.RecursionDesired, msg.Compress = q.id, q.rd, true
	// What upstream says in its OPT record is for us.
	msg.Extra = slices.DeleteFunc(msg.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	q.addOPT(msg)
	answer, err := msg.Pack()
	if err != nil {
		return q.reply(dns.RcodeServerFailure, nil, 0, limit)
	}
	if len(answer) > limit {
		return q.replyTruncated()
	}
	return answer
}

func onlyGoodAddresses(msg *dns.Msg, c Client) bool {
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			a, is := rr.(*dns.A)
			if !is {
				continue
			}
			addr, ok := netip.AddrFromSlice(a.A)
			if !ok || !c.Address(addr.Unmap()) {
				return false
			}
		}
	}
	return true
}

// headerSize is what a message has before its records.
const headerSize = 12

// parseQuery accepts standard queries with one question and at the most an OPT
// record besides.
func parseQuery(msg []byte) (*question, bool) {
	// Records that no query has are not read: they would cost memory.
	if len(msg) < headerSize {
		return nil, false
	}
	count := func(section int) uint16 { return binary.BigEndian.Uint16(msg[4+2*section:]) }
	if count(0) != 1 || count(1) > 1 || count(2) > 1 || count(3) > 2 {
		return nil, false
	}
	var m dns.Msg
	if m.Unpack(msg) != nil || m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return nil, false
	}
	q := &question{Question: m.Question[0], id: m.Id, rd: m.RecursionDesired, size: dns.MinMsgSize}
	if opt := m.IsEdns0(); opt != nil {
		q.edns = true
		q.size = min(max(int(opt.UDPSize()), dns.MinMsgSize), udpSize)
	}
	return q, true
}

func (q *question) message(code int) *dns.Msg {
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: q.id, Response: true, RecursionDesired: q.rd, RecursionAvailable: true, Rcode: code},
		Compress: true, Question: []dns.Question{q.Question},
	}
	q.addOPT(m)
	return m
}

// reply builds an answer with addresses. It is shortened to fit.
func (q *question) reply(code int, addrs []netip.Addr, ttl time.Duration, limit int) []byte {
	// Each answer takes 16 bytes as its name is compressed.
	room := (limit - headerSize - len(q.Name) - 2 - 4 - 11) / 16
	addrs = addrs[:min(len(addrs), max(room, 0))]
	m := q.message(code)
	for _, a := range addrs {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(max(ttl, time.Second) / time.Second)},
			A:   a.AsSlice(),
		})
	}
	return pack(m)
}

func (q *question) replyTruncated() []byte {
	m := q.message(dns.RcodeSuccess)
	m.Truncated = true
	return pack(m)
}

// pack returns nil for what cannot be sent.
func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (q *question) addOPT(m *dns.Msg) {
	if q.edns {
		m.SetEdns0(udpSize, false)
	}
}
