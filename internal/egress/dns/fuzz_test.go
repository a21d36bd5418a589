package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
)

// nobody may ask for anything, so that no query leaves.
type nobody struct{ refused int }

func (*nobody) Allow() bool      { return true }
func (*nobody) Everything() bool { return false }
func (*nobody) Name(string) bool { return false }
func (n *nobody) Refused(string) { n.refused++ }

func (*nobody) Withheld(string, netip.Addr) {}
func (*nobody) Unanswered(string)           {}
func (*nobody) Address(netip.Addr) bool     { return false }

// FuzzQuery gives the server what a sandbox may send: it answers nothing, or a
// refusal that a client can read and that is no longer than it may be.
func FuzzQuery(f *testing.F) {
	for _, kind := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeHTTPS, dns.TypeANY} {
		q, err := newQuery(dns.Question{Name: "web.example.com.", Qtype: kind, Qclass: dns.ClassINET}).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(q)
		f.Add(q[:len(q)-5])
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}) // a name that points to itself
	// A label with a dot in it is not the name that it looks like.
	f.Add([]byte("00\x010\x00\x01\x00\x00\x00\x00\x00\x01\x0bweb.example\x03com\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, query []byte) {
		for _, stream := range []bool{false, true} {
			var c nobody
			s := &Server{Normalize: func(s string) (string, error) { return strings.ToLower(s), nil }}
			answer := s.answer(context.Background(), &c, query, stream)
			if answer == nil {
				continue
			}
			var m dns.Msg
			if err := m.Unpack(answer); err != nil || !m.Response || m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 || c.refused != 1 {
				t.Fatalf("%v: %+v, refused %d times", err, m, c.refused)
			}
			if len(answer) > udpSize || m.Id != uint16(query[0])<<8|uint16(query[1]) {
				t.Fatalf("%d bytes, id %d", len(answer), m.Id)
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
		var read dns.Msg
		if read.Unpack(msg) != nil {
			return
		}
		if a := readAddrs(&read, name.String()); len(a.addrs) > maxAddrs || a.ttl < minTTL || a.ttl > maxTTL {
			t.Fatalf("%d addresses for %s", len(a.addrs), a.ttl)
		}
		onlyGoodAddresses(&read, &nobody{})
	})
}

// TestNameOfAQuery asks for names with bytes that domain names do not have.
func TestNameOfAQuery(t *testing.T) {
	for label, want := range map[string]string{
		"web.example":    `web\.example.com.`, // not the name that it looks like
		"a\\b":           `a\\b.com.`,
		"a\\200":         `a\\200.com.`,
		"a\x00b":         `a\000b.com.`,
		"m\xc3\xbcnchen": "m\xc3\xbcnchen.com.",
		"\xff":           "\xff.com.",
	} {
		q, ok := parseQuery([]byte("00\x010\x00\x01\x00\x00\x00\x00\x00\x00" + string(rune(len(label))) + label + "\x03com\x00\x00\x01\x00\x01"))
		if !ok || q.text() != want {
			t.Errorf("%q: the query is %+v, for %q, want %q", label, q, q.text(), want)
		}
	}
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

// TestResolverClosesAtOnce ends lookups whose queries have been sent, over UDP and,
// after an answer that was cut off, over TCP.
func TestResolverClosesAtOnce(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		asked := make(chan struct{}, 10)
		server := silentAfter(t, network, asked)
		r, err := NewResolver(ResolverConfig{Upstreams: []netip.AddrPort{server}, Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		looked := make(chan error, 1)
		go func() {
			_, _, err := r.Lookup(context.Background(), "web.example.com")
			looked <- err
		}()
		<-asked
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			r.Close()
		}()
		select {
		case <-closed:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: the resolver waits for an answer after it was closed", network)
		}
		if err := <-looked; err == nil {
			t.Errorf("%s: found", network)
		}
	}
}

// silentAfter takes queries over a network and says nothing. For TCP it answers
// those over UDP that they do not fit.
func silentAfter(t *testing.T, network string, asked chan<- struct{}) netip.AddrPort {
	t.Helper()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		buf := make([]byte, 1024)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if network == "udp" {
				asked <- struct{}{}
				continue
			}
			buf[2] |= 0x82 // a response, cut off
			udp.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Read(make([]byte, 1)); err == nil {
				asked <- struct{}{}
			}
		}
	}()
	return netip.MustParseAddrPort(tcp.Addr().String())
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
