package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var benchAddrs = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
}

func benchQuery(b *testing.B) []byte {
	query, err := newQuery(dns.Question{Name: "web.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET}).Pack()
	if err != nil {
		b.Fatal(err)
	}
	return query
}

// BenchmarkMessage reads a query and makes its answer.
func BenchmarkMessage(b *testing.B) {
	query := benchQuery(b)
	b.ReportAllocs()
	for b.Loop() {
		q, ok := parseQuery(query)
		if !ok || q.reply(dns.RcodeSuccess, benchAddrs, time.Minute, q.size) == nil {
			b.Fatal("no answer")
		}
	}
}

// BenchmarkUpstream reads the addresses in an answer of an upstream server.
func BenchmarkUpstream(b *testing.B) {
	q, ok := parseQuery(benchQuery(b))
	if !ok {
		b.Fatal("no query")
	}
	raw := q.reply(dns.RcodeSuccess, benchAddrs, time.Minute, q.size)
	b.ReportAllocs()
	for b.Loop() {
		var m dns.Msg
		if err := m.Unpack(raw); err != nil {
			b.Fatal(err)
		}
		if a := readAddrs(&m, q.Name); len(a.addrs) != len(benchAddrs) {
			b.Fatal(a)
		}
	}
}

// BenchmarkServer asks for a name that the server remembers, over UDP.
func BenchmarkServer(b *testing.B) {
	query := benchQuery(b)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	r, err := NewResolver(ResolverConfig{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	r.cache.put("web.example.com.", answer{benchAddrs, time.Hour})
	s := &Server{Resolver: r, Normalize: func(s string) (string, error) { return s, nil }, Client: func(netip.Addr) Client { return everybody{} }}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- s.ServeUDP(ctx, conn) }()
	c, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, udpSize)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(query); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
