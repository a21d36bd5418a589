package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nobody may ask for anything, so that no query leaves.
type nobody struct{ refused int }

func (*nobody) Allow() bool             { return true }
func (*nobody) Everything() bool        { return false }
func (*nobody) Name(string) bool        { return false }
func (n *nobody) Refused(string)        { n.refused++ }
func (*nobody) Address(netip.Addr) bool { return false }

// FuzzQuery gives the server what a sandbox may send: it answers nothing, or a
// refusal that a client can read and that is no longer than it may be.
func FuzzQuery(f *testing.F) {
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeTXT, typeHTTPS, dnsmessage.TypeALL} {
		q, err := buildQuery(dnsmessage.Question{Name: dnsmessage.MustNewName("web.example.com."), Type: kind, Class: dnsmessage.ClassINET})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(q)
		f.Add(q[:len(q)-5])
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}) // a name that points to itself
	f.Fuzz(func(t *testing.T, query []byte) {
		for _, stream := range []bool{false, true} {
			var c nobody
			s := &Server{Normalize: func(s string) (string, error) { return strings.ToLower(s), nil }}
			answer := s.answer(context.Background(), &c, query, stream)
			if answer == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(answer); err != nil || !m.Response || m.RCode != dnsmessage.RCodeRefused || len(m.Answers) > 0 || c.refused != 1 {
				t.Fatalf("%v: %+v, refused %d times", err, m, c.refused)
			}
			if len(answer) > udpSize || m.ID != uint16(query[0])<<8|uint16(query[1]) {
				t.Fatalf("%d bytes, id %d", len(answer), m.ID)
			}
		}
	})
}

// FuzzAnswer reads what an upstream server, or who forges its answers, may send.
func FuzzAnswer(f *testing.F) {
	name := dnsmessage.MustNewName("web.example.com.")
	head := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 1 << 31}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{Response: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{
			{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: name}},
			{Header: head, Body: &dnsmessage.AResource{A: [4]byte{169, 254, 169, 254}}},
		},
	}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, err := readAddrs(msg, name)
		if err == nil && (len(a.addrs) > maxAddrs || a.ttl < minTTL || a.ttl > maxTTL) {
			t.Fatalf("%d addresses for %s", len(a.addrs), a.ttl)
		}
		if len(msg) > 2 {
			onlyGoodAddresses(msg, &nobody{})
		}
	})
}

// TestResolverCloses ends a lookup that nobody answers.
func TestResolverCloses(t *testing.T) {
	silent := netip.MustParseAddrPort(silentServer(t))
	r, err := NewResolver(ResolverConfig{Upstreams: []netip.AddrPort{silent}, Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the caller is gone; what it began goes on
	if _, _, err := r.Lookup(ctx, "web.example.com"); err == nil {
		t.Error("found")
	}
	r.Close() // hangs if the lookup does
	if _, _, err := r.Lookup(t.Context(), "web.example.com"); err == nil {
		t.Error("found after Close")
	}
}

// silentServer takes queries and says nothing.
func silentServer(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().String()
}
