package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
)

// everybody may ask for everything.
type everybody struct{}

func (everybody) Allow() bool                 { return true }
func (everybody) Everything() bool            { return true }
func (everybody) Name(string) bool            { return true }
func (everybody) Refused(string)              {}
func (everybody) Withheld(string, netip.Addr) {}
func (everybody) Unanswered(string)           {}
func (everybody) Address(netip.Addr) bool     { return true }

const patience = 30 * time.Second

func questionFor(name string, kind dnsmessage.Type) dnsmessage.Question {
	return dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}
}

func queryFor(t *testing.T, id uint16, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id}, Questions: []dnsmessage.Question{questionFor(name, dnsmessage.TypeA)}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addresses are n answers to a question.
func addresses(q dnsmessage.Question, n int, ttl uint32) (list []dnsmessage.Resource) {
	for i := range n {
		list = append(list, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ttl},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i)}},
		})
	}
	return list
}

// upstream is a server that gives the answers that answer makes, which is called
// for each query on its own.
func upstream(t *testing.T, answer func(dnsmessage.Question) []dnsmessage.Resource) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for {
			buf := make([]byte, 1024)
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			go func() {
				var m dnsmessage.Message
				if m.Unpack(buf[:n]) != nil {
					return
				}
				m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: m.Questions}
				m.Answers = answer(m.Questions[0])
				if b, err := m.Pack(); err == nil {
					c.WriteToUDPAddrPort(b, from)
				}
			}()
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func newResolver(t *testing.T, timeout time.Duration, servers ...netip.AddrPort) *Resolver {
	t.Helper()
	r, err := NewResolver(ResolverConfig{Upstreams: servers, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// serve has a server answer until the test ends, and returns its address. asked
// counts what it has been sent.
func serve(t *testing.T, s *Server) (at netip.AddrPort, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	s.Client = func(netip.Addr) Client { asked.Add(1); return everybody{} }
	s.Normalize = func(name string) (string, error) { return strings.ToLower(strings.TrimSuffix(name, ".")), nil }
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at = tcp.Addr().(*net.TCPAddr).AddrPort()
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.ServeUDP(ctx, udp) }()
	go func() { ended <- s.ServeTCP(ctx, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	return at, asked
}

// client connects from an address of its own.
func client(t *testing.T, network string, n int, to netip.AddrPort) net.Conn {
	t.Helper()
	from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(n)}), 0)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from)}
	if network == "udp4" {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	c, err := d.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestQueriesInProgress has as many queries in progress as may be, of one client
// and of all: a further one is not answered, and later ones are.
func TestQueriesInProgress(t *testing.T) {
	for name, tt := range map[string]struct{ limit, clients, each int }{
		"of one": {limit: 0, clients: 1, each: queriesOfOne}, "of all": {limit: 6, clients: 6, each: 1},
	} {
		t.Run(name, func(t *testing.T) {
			goOn := make(chan struct{})
			server := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource {
				if strings.HasPrefix(q.Name.String(), "slow") {
					<-goOn
				}
				return addresses(q, 1, 60)
			})
			s := &Server{Resolver: newResolver(t, time.Hour, server), Queries: tt.limit}
			at, asked := serve(t, s)
			send := func(c net.Conn, query []byte) {
				t.Helper()
				before := asked.Load()
				if _, err := c.Write(query); err != nil {
					t.Fatal(err)
				}
				eventually(t, "a query to be taken", func() bool { return asked.Load() > before })
			}
			answered := func(c net.Conn) (id int) {
				t.Helper()
				b := make([]byte, udpSize)
				if _, err := c.Read(b); err != nil {
					t.Fatal(err)
				}
				return int(b[0])<<8 | int(b[1])
			}
			var greedy []net.Conn
			for i := range tt.clients {
				c := client(t, "udp4", 1+i, at)
				greedy = append(greedy, c)
				for k := range tt.each {
					send(c, queryFor(t, 1, fmt.Sprintf("slow%d.client%d.example.", k, i)))
				}
			}
			late := client(t, "udp4", 1, at)
			if tt.clients > 1 {
				late = client(t, "udp4", 100, at)
			}
			send(late, queryFor(t, 2, "web.example."))
			send(late, []byte("x")) // what came before has been dealt with
			close(goOn)
			for _, c := range greedy {
				for range tt.each {
					answered(c)
				}
			}
			eventually(t, "all to be answered", func() bool { return s.work.Used() == 0 })
			send(late, queryFor(t, 3, "web.example."))
			if id := answered(late); id != 3 {
				t.Errorf("query %d is answered", id)
			}
		})
	}
}

// exchange asks over TCP.
func exchange(t *testing.T, c net.Conn) error {
	t.Helper()
	framed := &dns.Conn{Conn: c}
	if _, err := framed.Write(queryFor(t, 1, "web.example.")); err != nil {
		return err
	}
	_, err := framed.ReadMsgHeader(nil)
	return err
}

// mustEnd fails unless the server closes a connection.
func mustEnd(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%s: read %d bytes, %v", what, n, err)
	}
}

// TestStreams has as many connections as may be, of one client and of all: a
// further one is closed, and the others are not.
func TestStreams(t *testing.T) {
	server := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource { return addresses(q, 1, 60) })
	for name, tt := range map[string]struct{ limit, clients, each int }{
		"of one": {limit: 0, clients: 1, each: streamsOfOne}, "of all": {limit: 6, clients: 6, each: 1},
	} {
		t.Run(name, func(t *testing.T) {
			at, _ := serve(t, &Server{Resolver: newResolver(t, patience, server), Streams: tt.limit, idle: time.Hour})
			var open []net.Conn
			for i := range tt.clients {
				for range tt.each {
					open = append(open, client(t, "tcp4", 1+i, at))
				}
			}
			for _, c := range open {
				if err := exchange(t, c); err != nil {
					t.Fatal(err)
				}
			}
			late := 1
			if tt.clients > 1 {
				late = 100
			}
			mustEnd(t, "one more", client(t, "tcp4", late, at))
			for _, c := range open {
				if err := exchange(t, c); err != nil {
					t.Errorf("one of those before: %v", err)
				}
			}
		})
	}
}

// TestEndOfAStream has a connection ask as often as it may, and another say
// nothing.
func TestEndOfAStream(t *testing.T) {
	server := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource { return addresses(q, 1, 60) })
	resolver := newResolver(t, patience, server)
	at, _ := serve(t, &Server{Resolver: resolver, idle: time.Hour})
	c := client(t, "tcp4", 1, at)
	for i := range maxPerQuery {
		if err := exchange(t, c); err != nil {
			t.Fatalf("query %d: %v", i+1, err)
		}
	}
	mustEnd(t, "one that has asked often", c)
	at, _ = serve(t, &Server{Resolver: resolver, idle: 50 * time.Millisecond})
	mustEnd(t, "a silent one", client(t, "tcp4", 1, at))
}

// TestTimeOfAQuery has a server that is silent for longer than a query may take.
func TestTimeOfAQuery(t *testing.T) {
	silent := netip.MustParseAddrPort(silentServer(t))
	s := &Server{Resolver: newResolver(t, time.Hour, silent), Normalize: func(name string) (string, error) { return strings.TrimSuffix(name, "."), nil }}
	s.within = 50 * time.Millisecond
	var got dnsmessage.Message
	if err := got.Unpack(s.answer(t.Context(), everybody{}, queryFor(t, 1, "web.example."), false)); err != nil || got.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("answered %v, %v", got.RCode, err)
	}
}

// TestNextServer has the first of two servers be silent.
func TestNextServer(t *testing.T) {
	silent := netip.MustParseAddrPort(silentServer(t))
	good := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource { return addresses(q, 1, 60) })
	addrs, _, err := newResolver(t, 500*time.Millisecond, silent, good).Lookup(t.Context(), "web.example")
	if err != nil || len(addrs) != 1 {
		t.Errorf("the second server's answer: %v, %v", addrs, err)
	}
}

// TestAnswersThatDoNotFit has a name of more addresses than are used, and answers
// that are longer than a client takes.
func TestAnswersThatDoNotFit(t *testing.T) {
	server := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource {
		if q.Type == dnsmessage.TypeA {
			return addresses(q, maxAddrs+1, 60)
		}
		text := dnsmessage.TXTResource{TXT: []string{strings.Repeat("a", 250), strings.Repeat("b", 250), strings.Repeat("c", 250)}}
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
		return []dnsmessage.Resource{{Header: head, Body: &text}, {Header: head, Body: &text}}
	})
	s := &Server{Resolver: newResolver(t, patience, server), Normalize: func(name string) (string, error) { return strings.TrimSuffix(name, "."), nil }}
	for _, tt := range []struct {
		kind         dnsmessage.Type
		edns, stream bool
		most, want   int
		cut          bool
	}{
		{dnsmessage.TypeA, false, true, dns.MaxMsgSize, maxAddrs, false}, {dnsmessage.TypeA, true, false, udpSize, maxAddrs, false},
		{dnsmessage.TypeA, false, false, 512, 29, false},
		{dnsmessage.TypeTXT, false, true, dns.MaxMsgSize, 2, false}, {dnsmessage.TypeTXT, true, false, udpSize, 0, true},
		{dnsmessage.TypeTXT, false, false, 512, 0, true},
	} {
		m := dnsmessage.Message{Questions: []dnsmessage.Question{questionFor("web.example.", tt.kind)}}
		if tt.edns {
			opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
			if err := opt.Header.SetEDNS0(4096, dnsmessage.RCodeSuccess, false); err != nil {
				t.Fatal(err)
			}
			m.Additionals = append(m.Additionals, opt)
		}
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b := s.answer(t.Context(), everybody{}, query, tt.stream)
		var got dnsmessage.Message
		if err := got.Unpack(b); err != nil || len(b) > tt.most || len(got.Answers) != tt.want || got.Truncated != tt.cut {
			t.Errorf("%v, EDNS %v, TCP %v: %d bytes, %d answers, cut off %v, %v", tt.kind, tt.edns, tt.stream, len(b), len(got.Answers), got.Truncated, err)
		}
	}
}

// TestHowLongAnswersAreKept has answers that are good for longer and for shorter
// than they are kept.
func TestHowLongAnswersAreKept(t *testing.T) {
	server := upstream(t, func(q dnsmessage.Question) []dnsmessage.Resource {
		ttl := uint32(1)
		if q.Name.String() == "long.example." {
			ttl = 24 * 60 * 60
		}
		return addresses(q, 1, ttl)
	})
	r := newResolver(t, patience, server)
	for name, want := range map[string]time.Duration{"short.example": minTTL, "long.example": maxTTL} {
		_, ttl, err := r.Lookup(t.Context(), name)
		if err != nil || ttl != want {
			t.Errorf("%s is good for %v, want %v; %v", name, ttl, want, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCache()
		c.put("short.example", answer{ttl: minTTL})
		if _, left, ok := c.get("short.example"); !ok || left != minTTL {
			t.Errorf("kept %v, for %v", ok, left)
		}
		time.Sleep(minTTL)
		if _, _, ok := c.get("short.example"); ok {
			t.Error("an expired answer is given")
		}
	})
}

// TestCacheIsBounded keeps more names than there is room for: expired ones go
// first.
func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache()
		for i := range maxCached / 2 {
			c.put(fmt.Sprint("short", i), answer{ttl: minTTL})
		}
		time.Sleep(minTTL + time.Second)
		for i := range maxCached/2 + 1 {
			c.put(fmt.Sprint("long", i), answer{ttl: maxTTL})
		}
		if _, _, ok := c.get("long0"); !ok || len(c.entries) != maxCached/2+1 {
			t.Errorf("of names that have not expired, %d are kept", len(c.entries))
		}
		for i := range maxCached {
			c.put(fmt.Sprint("new", i), answer{ttl: maxTTL})
			if len(c.entries) > maxCached {
				t.Fatalf("%d names are kept", len(c.entries))
			}
		}
	})
}
