package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
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
}

// Server answers the queries of clients. Addresses of IPv6 are none of its
// answers, nor is what tells of other ways to a name's server (HTTPS, SVCB).
type Server struct {
	Resolver *Resolver
	// Client returns who has an address, or nil if nobody has.
	Client func(netip.Addr) Client
	// Normalize is policy.Normalize.
	Normalize func(string) (string, error)

	work chan struct{}
	init sync.Once
}

const (
	// maxQueries are worked on at a time; beyond, they are not answered.
	maxQueries = 1024
	// maxStreams are TCP connections.
	maxStreams  = 256
	streamIdle  = 10 * time.Second
	queryTime   = 10 * time.Second
	maxPerQuery = 100 // queries in one TCP connection
)

func (s *Server) start() { s.init.Do(func() { s.work = make(chan struct{}, maxQueries) }) }

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
		if client == nil || !client.Allow() {
			continue
		}
		select {
		case s.work <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		control := replyControl(oob[:oobn])
		running.Go(func() {
			defer func() { <-s.work }()
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
	streams := make(chan struct{}, maxStreams)
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
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		client := s.Client(from.Addr().Unmap())
		select {
		case streams <- struct{}{}:
		default:
			client = nil
		}
		if client == nil {
			conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-streams }()
			s.serveStream(ctx, conn, client)
		})
	}
}

func (s *Server) serveStream(ctx context.Context, conn net.Conn, client Client) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for range maxPerQuery {
		conn.SetDeadline(time.Now().Add(streamIdle))
		query, err := readMessage(conn)
		if err != nil || !client.Allow() {
			return
		}
		answer := s.answer(ctx, client, query, true)
		if answer == nil || writeMessage(conn, answer) != nil {
			return
		}
	}
}

// question is what of a query counts.
type question struct {
	dnsmessage.Question
	id   uint16
	rd   bool
	edns bool
	size int
}

// answer returns the answer to a query, or nil for what deserves none.
func (s *Server) answer(ctx context.Context, c Client, query []byte, stream bool) []byte {
	q, ok := parseQuery(query)
	if !ok {
		return nil
	}
	limit := q.size
	if stream {
		limit = maxMessage - 1
	}
	name, err := s.Normalize(q.Name.String())
	if err != nil {
		name = ""
	}
	everything := c.Everything()
	switch {
	case q.Class != dnsmessage.ClassINET, !everything && !c.Name(name):
		c.Refused(name)
		return q.reply(dnsmessage.RCodeRefused, nil, 0, limit)
	case q.Type == dnsmessage.TypeAAAA, q.Type == typeHTTPS, q.Type == typeSVCB:
		return q.reply(dnsmessage.RCodeSuccess, nil, 0, limit)
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	switch {
	case q.Type == dnsmessage.TypeA && name != "":
		return s.answerA(ctx, c, q, name, limit)
	case everything && q.Type != dnsmessage.TypeALL && q.Type != dnsmessage.TypeAXFR:
		return s.relay(ctx, c, q, limit)
	}
	c.Refused(name)
	return q.reply(dnsmessage.RCodeRefused, nil, 0, limit)
}

const (
	typeSVCB  dnsmessage.Type = 64
	typeHTTPS dnsmessage.Type = 65
)

func (s *Server) answerA(ctx context.Context, c Client, q *question, name string, limit int) []byte {
	addrs, ttl, err := s.Resolver.Lookup(ctx, name)
	switch {
	case errors.Is(err, ErrNotFound):
		return q.reply(dnsmessage.RCodeNameError, nil, 0, limit)
	case err != nil:
		return q.reply(dnsmessage.RCodeServerFailure, nil, 0, limit)
	}
	var good []netip.Addr
	for _, a := range addrs {
		if c.Address(a) {
			good = append(good, a)
		}
	}
	return q.reply(dnsmessage.RCodeSuccess, good, ttl, limit)
}

// relay passes an upstream answer on, unless an address in it may not be.
func (s *Server) relay(ctx context.Context, c Client, q *question, limit int) []byte {
	msg, err := s.Resolver.Exchange(ctx, q.Question)
	if err != nil || !onlyGoodAddresses(msg, c) {
		return q.reply(dnsmessage.RCodeServerFailure, nil, 0, limit)
	}
	if len(msg) > limit {
		return q.replyTruncated()
	}
	msg[0], msg[1] = byte(q.id>>8), byte(q.id)
	return msg
}

func onlyGoodAddresses(msg []byte, c Client) bool {
	var m dnsmessage.Message
	if m.Unpack(msg) != nil {
		return false
	}
	for _, section := range [][]dnsmessage.Resource{m.Answers, m.Authorities, m.Additionals} {
		for _, r := range section {
			if a, ok := r.Body.(*dnsmessage.AResource); ok && !c.Address(netip.AddrFrom4(a.A)) {
				return false
			}
		}
	}
	return true
}

// parseQuery accepts standard queries with one question and at the most an OPT
// record besides.
func parseQuery(msg []byte) (*question, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response || h.OpCode != 0 {
		return nil, false
	}
	q := &question{id: h.ID, rd: h.RecursionDesired, size: 512}
	if q.Question, err = p.Question(); err != nil || strings.Count(q.Name.String(), ".") > 127 {
		return nil, false
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, false
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return nil, false
	}
	if rh, err := p.AdditionalHeader(); err == nil && rh.Type == dnsmessage.TypeOPT {
		q.edns = true
		q.size = min(max(int(rh.Class), 512), udpSize)
	}
	return q, true
}

func (q *question) header(code dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{ID: q.id, Response: true, RecursionDesired: q.rd, RecursionAvailable: true, RCode: code}
}

// reply builds an answer with addresses. It is shortened to fit.
func (q *question) reply(code dnsmessage.RCode, addrs []netip.Addr, ttl time.Duration, limit int) []byte {
	// Each answer takes 16 bytes as its name is compressed.
	room := (limit - 12 - len(q.Name.String()) - 2 - 4 - 11) / 16
	addrs = addrs[:min(len(addrs), max(room, 0))]
	m := dnsmessage.Message{Header: q.header(code), Questions: []dnsmessage.Question{q.Question}}
	for _, a := range addrs {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: uint32(max(ttl, time.Second) / time.Second)},
			Body:   &dnsmessage.AResource{A: a.As4()},
		})
	}
	q.addOPT(&m)
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (q *question) replyTruncated() []byte {
	m := dnsmessage.Message{Header: q.header(dnsmessage.RCodeSuccess), Questions: []dnsmessage.Question{q.Question}}
	m.Truncated = true
	q.addOPT(&m)
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (q *question) addOPT(m *dnsmessage.Message) {
	if !q.edns {
		return
	}
	var h dnsmessage.ResourceHeader
	if h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false) == nil {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
}
