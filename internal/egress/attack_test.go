package egress

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// ask sends a query from a sandbox and returns the answer, or nil if there is
// none.
func ask(t testing.TB, ns *os.File, network, name string, kind dnsmessage.Type) *dnsmessage.Message {
	t.Helper()
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialFrom(ns, network, "203.0.113.53:53") // whatever the sandbox takes for its server
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if network == "tcp" {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	buf = buf[:n]
	if network == "tcp" {
		buf = buf[2:]
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf); err != nil || m.ID != 4711 || !m.Response {
		t.Fatalf("answer %v, %v", m.Header, err)
	}
	return &m
}

func addrsOf(m *dnsmessage.Message) (list []string) {
	if m == nil {
		return nil
	}
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			list = append(list, netip.AddrFrom4(a.A).String())
		}
	}
	slices.Sort(list)
	return list
}

func TestDNSAnswersWhatThePolicyCanUse(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = fmt.Sprintf("203.0.113.%d", i+1)
	}
	r := newRig(t, allow("web.example.com", "alias.example.com", "rebind.example.com", "many.example.com", "gone.example.com"), Limits{})
	zone := map[string][]string{"many.example.com": many}
	for k, v := range usualZone {
		zone[k] = v
	}
	setZone(t, zone)
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range []struct {
			name string
			kind dnsmessage.Type
			code dnsmessage.RCode
			want []string
		}{
			{"web.example.com", dnsmessage.TypeA, 0, []string{webAddr}},
			{"WEB.Example.com", dnsmessage.TypeA, 0, []string{webAddr}},
			{"alias.example.com", dnsmessage.TypeA, 0, []string{webAddr}},
			{"web.example.com", dnsmessage.TypeAAAA, 0, nil},
			{"web.example.com", 65, 0, nil},
			{"rebind.example.com", dnsmessage.TypeA, 0, nil},
			{"gone.example.com", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
			{"web.example.com", dnsmessage.TypeTXT, dnsmessage.RCodeRefused, nil},
			{"web.example.com", 10 /* NULL */, dnsmessage.RCodeRefused, nil},
			{"web.example.com", dnsmessage.TypeALL, dnsmessage.RCodeRefused, nil},
			{"evil.example.net", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil},
			{"c2VjcmV0.web.example.com", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil},
			{"2.100.51.198.in-addr.arpa", dnsmessage.TypePTR, dnsmessage.RCodeRefused, nil},
			{"a b\x00.example.com", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil},
		} {
			m := ask(t, lab.sb1, network, tt.name, tt.kind)
			if m == nil || m.RCode != tt.code || !slices.Equal(addrsOf(m), tt.want) {
				t.Errorf("%s %s %v: %v", network, tt.name, tt.kind, m)
			}
		}
		if n := len(addrsOf(ask(t, lab.sb1, network, "many.example.com", dnsmessage.TypeA))); n < 20 {
			t.Errorf("%s: %d of many addresses", network, n)
		}
	}
	asked := labQueries()
	slices.Sort(asked)
	for _, q := range slices.Compact(asked) {
		if !strings.HasPrefix(q, "TypeA ") || r.box(sb1Addr).policy().Site(q[len("TypeA "):]) == nil {
			t.Errorf("asked upstream: %s", q)
		}
	}
	r.mustTell("refused", func(e Event) bool { return e.Protocol == ProtocolDNS && !e.Allowed && e.Domain == "evil.example.net" })
}

func TestDNSIsNoTunnel(t *testing.T) {
	for what, pol := range map[string]policy.Policy{"deny-all": {}, "custom": allow("web.example.com"), "one label": allow("*.*.example.com")} {
		r := newRig(t, pol, Limits{QueriesPerSecond: 1000})
		for i := range 50 {
			ask(t, lab.sb1, "udp", fmt.Sprintf("d%d.tunnel.evil.example.net", i), dnsmessage.TypeA)
			ask(t, lab.sb1, "udp", fmt.Sprintf("d%d.tunnel.evil.example.net", i), dnsmessage.TypeTXT)
		}
		if q := labQueries(); len(q) > 0 {
			t.Errorf("%s: asked upstream: %q …", what, q[0])
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		t.Cleanup(func() {})
	}
}

func TestDNSOfAllowAll(t *testing.T) {
	newRig(t, policy.Policy{Mode: policy.AllowAll}, Limits{})
	if m := ask(t, lab.sb1, "udp", "web.example.com", dnsmessage.TypeTXT); m == nil || len(m.Answers) != 1 {
		t.Errorf("TXT: %v", m)
	}
	if m := ask(t, lab.sb1, "udp", "rebind.example.com", dnsmessage.TypeA); m == nil || len(m.Answers) != 0 {
		t.Errorf("rebinding: %v", m)
	}
	if m := ask(t, lab.sb1, "udp", "web.example.com", dnsmessage.TypeAXFR); m == nil || m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("AXFR: %v", m)
	}
}

func TestDNSIsLimited(t *testing.T) {
	r := newRig(t, allow("web.example.com"), Limits{QueriesPerSecond: 10})
	r.box(sb1Addr).queries.SetBurst(20)
	c, err := dialFrom(lab.sb1, "udp", "203.0.113.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	q := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, _ := q.Pack()
	for range 500 {
		c.Write(b)
	}
	c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	n := 0
	for buf := make([]byte, 512); ; n++ {
		if _, err := c.Read(buf); err != nil {
			break
		}
	}
	if n < 1 || n > 60 {
		t.Errorf("%d of 500 were answered", n)
	}
	if m := ask(t, lab.sb2, "udp", "web.example.com", dnsmessage.TypeA); len(addrsOf(m)) != 1 {
		t.Errorf("the neighbour got %v", m)
	}
}

// TestTenThousandConnections of one sandbox, all silent, leave the neighbour its
// service.
func TestTenThousandConnections(t *testing.T) {
	r := newRig(t, allow("*"), Limits{ConnectionsPerSandbox: 1500, Hello: 30 * time.Second})
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	var refused atomic.Int64
	for i := range 10_000 {
		addr := webAddr + ":443"
		if i%2 == 0 {
			addr = evilAddr + ":80"
		}
		c, err := dialFrom(lab.sb1, "tcp", addr)
		if err != nil {
			refused.Add(1)
			continue
		}
		if i < 3000 {
			c.Write([]byte{22, 3, 1})
		}
		if open = append(open, c); len(open) > 5000 {
			open[0].Close() // this process's own files are bounded
			open = open[1:]
		}
		if i%1000 == 999 {
			start := time.Now()
			get(t, clientFrom(t, lab.sb2, webAddr, lab.roots), "https://web.example.com/")
			t.Logf("after %d connections the neighbour waited %v", i+1, time.Since(start))
		}
	}
	if n := r.total.Load(); n > 1500+50 {
		t.Errorf("%d connections were taken", n)
	}
	r.mustTell("too many", func(e Event) bool { return e.Reason == reasonTooMany && e.Sandbox == "sbx_1" })
}

func TestSlowLoris(t *testing.T) {
	newRig(t, allow("web.example.com"), Limits{Hello: 300 * time.Millisecond, Idle: 600 * time.Millisecond})
	hello := rawHello(t, "web.example.com")
	for what, tt := range map[string]struct {
		addr string
		in   []byte
	}{
		"ClientHello": {webAddr + ":443", hello},
		"headers":     {webAddr + ":80", []byte("GET / HTTP/1.1\r\nHost: web.example.com\r\nX: " + strings.Repeat("a", 1000))},
	} {
		c, err := dialFrom(lab.sb1, "tcp", tt.addr)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, b := range tt.in {
			if _, err = c.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err == nil {
			t.Errorf("%s: all was taken, in %v", what, time.Since(start))
		}
		c.Close()
	}
	// One that has been let through and then rests.
	c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := tls.Client(c, &tls.Config{ServerName: "web.example.com", RootCAs: lab.roots}).Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("resting: %v", err)
	}
}

func TestHugeHeaders(t *testing.T) {
	newRig(t, allow("web.example.com"), Limits{})
	in := "GET / HTTP/1.1\r\nHost: web.example.com\r\nX: " + strings.Repeat("a", 200<<10) + "\r\n\r\n"
	if out, _ := talk(t, lab.sb1, webAddr+":80", []byte(in)); out != "" && !strings.HasPrefix(out, "HTTP/1.1 431") {
		t.Errorf("%.100q", out)
	}
}

// TestPolicyChangesUnderFire changes a policy while connections come and go:
// after each change nothing that it forbids gets an answer any more.
func TestPolicyChangesUnderFire(t *testing.T) {
	r := newRig(t, allow("web.example.com"), Limits{})
	var gate sync.RWMutex // held while the policy is "deny" and nothing may succeed
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var denied, succeeded atomic.Int64
	var forbidden atomic.Bool
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				gate.RLock()
				before := forbidden.Load()
				client := clientFrom(t, lab.sb1, webAddr, lab.roots)
				_, _, err := tryGet(client, "https://web.example.com/")
				client.CloseIdleConnections()
				after := forbidden.Load()
				gate.RUnlock()
				switch {
				case before && after && err == nil:
					t.Error("it succeeded while it was forbidden")
				case err == nil:
					succeeded.Add(1)
				default:
					denied.Add(1)
				}
			}
		})
	}
	// grows waits for the next of what is counted.
	grows := func(what string, count *atomic.Int64) bool {
		before := count.Load()
		for end := time.Now().Add(30 * time.Second); count.Load() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("nothing is %s any more", what)
				return false
			}
		}
		return true
	}
	for round, goes := 0, true; goes && round < 30; round++ {
		r.set(policy.Policy{})
		forbidden.Store(true)
		goes = grows("denied", &denied)
		gate.Lock() // those that began while it was forbidden have ended
		forbidden.Store(false)
		r.set(allow("web.example.com"))
		gate.Unlock()
		goes = goes && grows("let through", &succeeded)
	}
	cancel()
	wg.Wait()
}

func TestForwardURL(t *testing.T) {
	pol := policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{
		{Pattern: "web.example.com", Rules: []policy.Rule{{ForwardURL: "https://Forward.example.com:443/api/v1/"}}},
		{Pattern: "bad.example.com", Rules: []policy.Rule{{ForwardURL: "https://rebind.example.com/"}}},
		{Pattern: "cert.example.com", Rules: []policy.Rule{{ForwardURL: "https://untrusted.example.com/"}}},
	}}
	r := newRig(t, pol, Limits{})
	client := clientFrom(t, lab.sb1, evilAddr, r.ca)
	for _, scheme := range []string{"https", "http"} {
		port := map[string]string{"https": "443", "http": "80"}[scheme]
		for _, path := range []string{"/", "/v1/x?a=b", "/%2F/x"} {
			_, s := get(t, client, scheme+"://web.example.com"+path, func(r *http.Request) {
				r.Header.Set("Vercel-Forwarded-Host", "forged")
				r.Header.Set("Vercel-Sandbox-Oidc-Token", "forged")
				r.Header.Set("X-Mine", "1")
			})
			h := s.Header
			if s.Host != "forward.example.com" || s.URI != "/api/v1"+path || h.Get("X-Mine") != "1" || len(h["Vercel-Forwarded-Host"]) != 1 ||
				h.Get("vercel-forwarded-host") != "web.example.com" || h.Get("vercel-forwarded-scheme") != scheme ||
				h.Get("vercel-forwarded-port") != port || h.Get("vercel-forwarded-path") != path {
				t.Fatalf("%+v", s)
			}
			tok, err := jwt.ParseSigned(h.Get("vercel-sandbox-oidc-token"), []jose.SignatureAlgorithm{jose.RS256})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := tok.UnsafeClaimsWithoutVerification(&claims); err != nil || !claims.Audience.Contains("https://forward.example.com/api/v1") {
				t.Errorf("%+v, %v", claims, err)
			}
		}
	}
	for _, host := range []string{"bad.example.com", "cert.example.com"} {
		if resp, s := get(t, client, "https://"+host+"/"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%s: %d %+v", host, resp.StatusCode, s)
		}
	}
}

// TestForwardingEndsWithItsRule changes the rule of a request that is under way.
func TestForwardingEndsWithItsRule(t *testing.T) {
	forward := func(to string) policy.Policy {
		return policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{{Pattern: "web.example.com", Rules: []policy.Rule{{ForwardURL: to}}}}}
	}
	const there = "https://forward.example.com/"
	for what, tt := range map[string]struct {
		after policy.Policy
		cut   bool
	}{
		"the same":    {forward(there), false},
		"elsewhere":   {forward("https://api.example.com/"), true},
		"no rule":     {allow("web.example.com"), true},
		"other rules": {endedPolicy("web.example.com"), true},
		"allow-all":   {policy.Policy{Mode: policy.AllowAll}, true},
	} {
		for _, scheme := range []string{"http", "https"} {
			r := newRig(t, forward(there), Limits{})
			resp, err := clientFrom(t, lab.sb1, webAddr, r.ca).Get(scheme + "://web.example.com/endless")
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8192)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
			r.set(tt.after)
			for n := 0; err == nil && (tt.cut || n < 1<<20); {
				var m int
				m, err = resp.Body.Read(b)
				n += m
			}
			if (err != nil) != tt.cut || err != nil && strings.Contains(err.Error(), "Timeout") {
				t.Errorf("%s, %s: %v", what, scheme, err)
			}
			resp.Body.Close()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
