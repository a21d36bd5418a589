package acmetest

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

const (
	// Zone is what the server has authority for.
	Zone = "example.com."
	// TSIGKey is a line for a key that may change it.
	TSIGKey = "hmac-sha256:acme.:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	tsigKey = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
)

// DNS is a server in which all names are at 127.0.0.1, and TXT records are what
// they are set to: by dynamic updates, or by the hook.
type DNS struct {
	// Addr is its HOST:PORT, for UDP and TCP.
	Addr string

	hooks string

	mu  sync.Mutex
	txt map[string][]string
	log []string
}

func startDNS(t testing.TB) *DNS {
	t.Helper()
	d := &DNS{txt: map[string][]string{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.Addr = ln.Addr().String()
	pc, err := net.ListenPacket("udp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{"acme.": tsigKey}
	for _, s := range []*dns.Server{{Listener: ln}, {PacketConn: pc}} {
		up := make(chan struct{})
		s.Handler, s.TsigSecret = dns.HandlerFunc(d.answer), secrets
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // updates too
		s.NotifyStartedFunc = func() { close(up) }
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.ActivateAndServe() })
		<-up
		t.Cleanup(func() { _ = s.Shutdown(); serving.Wait() })
	}
	hooks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.set(r.FormValue("verb"), r.FormValue("name"), r.FormValue("value"))
	}))
	t.Cleanup(hooks.Close)
	d.hooks = hooks.URL
	return d
}

// Hook returns a program that sets records as a hook does.
func (d *DNS) Hook(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	script := fmt.Sprintf("#!/bin/sh\nexec curl -fsS --data-urlencode verb=\"$1\" --data-urlencode name=\"$2\" --data-urlencode value=\"$3\" %s\n", d.hooks)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// Changes are "present NAME" and "cleanup NAME", in order.
func (d *DNS) Changes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// Left is how many TXT records there are.
func (d *DNS) Left() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, values := range d.txt {
		n += len(values)
	}
	return n
}

func (d *DNS) set(verb, name, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, verb+" "+name)
	d.txt[name] = slices.DeleteFunc(d.txt[name], func(v string) bool { return v == value })
	if verb == "present" {
		d.txt[name] = append(d.txt[name], value)
	}
}

func (d *DNS) answer(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg).SetReply(r)
	m.Authoritative = true
	if r.Opcode == dns.OpcodeUpdate {
		d.update(w, r, m)
	} else if len(r.Question) == 1 {
		d.lookUp(r.Question[0], m)
	}
	_ = w.WriteMsg(m)
}

// update applies a dynamic update, if it is signed.
func (d *DNS) update(w dns.ResponseWriter, r, m *dns.Msg) {
	sig := r.IsTsig()
	if sig == nil || w.TsigStatus() != nil || r.Question[0].Name != Zone {
		m.Rcode = dns.RcodeRefused
		return
	}
	for _, rr := range r.Ns {
		if txt, ok := rr.(*dns.TXT); ok {
			verb := "present"
			if txt.Hdr.Class == dns.ClassNONE {
				verb = "cleanup"
			}
			d.set(verb, txt.Hdr.Name, txt.Txt[0])
		}
	}
	m.SetTsig(sig.Hdr.Name, sig.Algorithm, 300, int64(sig.TimeSigned))
}

func (d *DNS) lookUp(q dns.Question, m *dns.Msg) {
	head := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case q.Qtype == dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{Hdr: head, A: net.IPv4(127, 0, 0, 1)})
	case q.Qtype == dns.TypeTXT:
		for _, value := range d.txt[q.Name] {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: head, Txt: []string{value}})
		}
	case q.Qtype == dns.TypeSOA && q.Name == Zone:
		m.Answer = append(m.Answer, &dns.SOA{Hdr: head, Ns: "ns." + Zone, Mbox: "root." + Zone, Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 1})
	}
}
