package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
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
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry/internal/cgivar"
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

func TestNameServerThatIsSilentIsTold(t *testing.T) {
	for what, pol := range map[string]policy.Policy{"custom": allow("*.silent.test"), "allow-all": {Mode: policy.AllowAll}} {
		r := newRig(t, pol, Limits{})
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeTXT} {
			name := strings.ToLower(kind.String()) + ".silent.test"
			if kind == dnsmessage.TypeTXT && pol.Mode != policy.AllowAll {
				continue
			}
			ask(t, lab.sb1, "udp", name, kind)
			r.mustTell(what, func(e Event) bool {
				return e.Protocol == ProtocolDNS && !e.Allowed && e.Domain == name && e.Reason == reasonNameServer
			})
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
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
	if n := r.open.Used(); n > 1500+50 {
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

// TestHugeHeaders has headers that are about as large as they may be, and larger.
func TestHugeHeaders(t *testing.T) {
	newRig(t, allow("web.example.com"), Limits{})
	const head = "GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\nX: "
	for n, want := range map[int]string{maxHeaderBytes - 1<<10: "HTTP/1.1 200", maxHeaderBytes + 8<<10: "HTTP/1.1 431"} {
		in := head + strings.Repeat("a", n-len(head)) + "\r\n\r\n"
		if out, err := talk(t, lab.sb1, webAddr+":80", []byte(in)); !strings.HasPrefix(out, want) {
			t.Errorf("a request with headers of %d bytes: %.100q, %v", n, out, err)
		}
	}
	client := clientFrom(t, lab.sb1, webAddr, nil)
	for n, want := range map[int]int{maxAnswerHeader - 1<<10: http.StatusOK, maxAnswerHeader + 1<<10: http.StatusBadGateway} {
		if resp, _ := get(t, client, fmt.Sprint("http://web.example.com/header?n=", n)); resp.StatusCode != want {
			t.Errorf("an answer with headers of %d bytes: %s", n, resp.Status)
		}
	}
}

// TestAddressesThatAreTried has a name of which only the last address answers.
func TestAddressesThatAreTried(t *testing.T) {
	newRig(t, allow("few.example.com", "many.example.com"), Limits{})
	closed := slices.Repeat([]string{rawAddr}, maxTries) // which has no port 80
	setZone(t, map[string][]string{"few.example.com": append(slices.Clone(closed[1:]), webAddr), "many.example.com": append(slices.Clone(closed), webAddr)})
	client := clientFrom(t, lab.sb1, evilAddr, nil)
	for name, want := range map[string]int{"few": http.StatusOK, "many": http.StatusBadGateway} {
		if resp, _ := get(t, client, "http://"+name+".example.com/"); resp.StatusCode != want {
			t.Errorf("of %s: %s", name, resp.Status)
		}
	}
}

// TestConnectTime has a site that does not answer: whoever connects to it is told
// so before the kernel gives up.
func TestConnectTime(t *testing.T) {
	r := newRig(t, allow("lost.example.com"), Limits{Connect: 200 * time.Millisecond})
	setZone(t, map[string][]string{"lost.example.com": {"203.0.113.99"}}) // which nobody has
	client := clientFrom(t, lab.sb1, webAddr, lab.roots)
	if resp, _ := get(t, client, "http://lost.example.com/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("HTTP: %s", resp.Status)
	}
	if _, _, err := tryGet(client, "https://lost.example.com/"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("TLS: %v", err)
	}
	r.mustTell("no answer", func(e Event) bool { return !e.Allowed && e.Protocol == ProtocolTLS && e.Reason == reasonUpstream })
}

// TestEventsAreLimited has one sandbox cause more events than are told: the next
// that is counts the others.
func TestEventsAreLimited(t *testing.T) {
	r := newRig(t, allow("web.example.com"), Limits{EventsPerSecond: 1})
	const caused, burst = 100, 10
	cause := func(name string) {
		if m := ask(t, lab.sb1, "udp", name, dnsmessage.TypeA); m == nil || m.RCode != dnsmessage.RCodeRefused {
			t.Errorf("%s: %v", name, m)
		}
	}
	told := func() (n, suppressed int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.events {
			if e.Sandbox == "sbx_1" {
				n, suppressed = n+1, suppressed+int(e.Suppressed)
			}
		}
		return n, suppressed
	}
	start := time.Now()
	for i := range caused {
		cause(fmt.Sprintf("d%d.example.net", i))
	}
	if n, _ := told(); n < burst || n > burst+int(time.Since(start).Seconds())+1 {
		t.Errorf("%d of %d events are told", n, caused)
	}
	r.box(sb1Addr).telling.SetLimit(rate.Inf)
	cause("last.example.net")
	if n, suppressed := told(); n+suppressed != caused+1 {
		t.Errorf("%d events are told, %d counted, of %d", n, suppressed, caused+1)
	}
	get(t, clientFrom(t, lab.sb2, webAddr, lab.roots), "https://web.example.com/")
}

// TestRestBetweenRequests has a connection rest after a request.
func TestRestBetweenRequests(t *testing.T) {
	newRig(t, allow("web.example.com"), Limits{KeepAlive: 100 * time.Millisecond})
	c, err := dialFrom(lab.sb1, "tcp", webAddr+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK || res.Close {
		t.Fatalf("%s, close %v, %v", res.Status, res.Close, err)
	}
	if b, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after a while: %q, %v", b, err)
	}
}

// TestRequestsAtOnce has one connection make more requests at once than it may,
// which an honest client does not.
func TestRequestsAtOnce(t *testing.T) {
	r := newRig(t, endedPolicy("web.example.com"), Limits{})
	c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := tls.Client(c, &tls.Config{ServerName: "web.example.com", RootCAs: r.ca, NextProtos: []string{"h2"}})
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	frames := http2.NewFramer(conn, conn)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	next := func(kind http2.FrameType) http2.Frame {
		t.Helper()
		for {
			f, err := frames.ReadFrame()
			if err != nil {
				t.Fatalf("waiting for %v: %v", kind, err)
			}
			if f.Header().Type == kind {
				return f
			}
		}
	}
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	// request begins the nth one. Its body is to come, unless it has ended.
	request := func(n int, ended bool) {
		t.Helper()
		block.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "web.example.com"}, {":path", "/"}} {
			must(headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		must(frames.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*n - 1), BlockFragment: block.Bytes(), EndHeaders: true, EndStream: ended}))
	}
	must(frames.WriteSettings())
	if most, ok := next(http2.FrameSettings).(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams); !ok || most != maxStreams {
		t.Errorf("the client is told to make %d requests at once", most)
	}
	must(frames.WriteSettingsAck())
	for n := range maxStreams {
		request(n+1, false)
	}
	request(maxStreams+1, false)
	refused := next(http2.FrameRSTStream).(*http2.RSTStreamFrame)
	if refused.StreamID != 2*(maxStreams+1)-1 || refused.ErrCode != http2.ErrCodeProtocol { // it has been told
		t.Errorf("one more than may be: %v", refused)
	}
	// The end of one makes room for another.
	must(frames.WriteRSTStream(1, http2.ErrCodeCancel))
	request(maxStreams+2, true)
	if answered := next(http2.FrameHeaders).Header().StreamID; answered != 2*(maxStreams+2)-1 {
		t.Errorf("stream %d is answered", answered)
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

// reasonPrivate is what the tests' Forbidden says of privateNet.
const reasonPrivate = "private network"

var privateNet = netip.MustParsePrefix("192.168.0.0/16")

// TestAllowedNameAtPrivateAddress has an allowed name lead into a network that
// the operator has not opened.
func TestAllowedNameAtPrivateAddress(t *testing.T) {
	rules := []policy.Rule{{Transform: []policy.Transform{{Headers: map[string]string{"X-Key": "secret"}}}}}
	pol := policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{{Pattern: "plain.test"}, {Pattern: "ruled.test", Rules: rules}}}
	r := newRig(t, pol, Limits{})
	setZone(t, map[string][]string{"plain.test": {"192.168.7.7"}, "ruled.test": {"192.168.7.7"}})
	for _, name := range []string{"plain.test", "ruled.test"} {
		if got := addrsOf(ask(t, lab.sb1, "udp", name, dnsmessage.TypeA)); len(got) > 0 {
			t.Errorf("%s: answered %v", name, got)
		}
	}
	for url, protocol := range map[string]string{
		"http://plain.test/": ProtocolHTTP, "http://ruled.test/": ProtocolHTTP, "https://plain.test/": ProtocolTLS, "https://ruled.test/": ProtocolHTTPS,
	} {
		resp, err := clientFrom(t, lab.sb1, webAddr, r.ca).Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadGateway {
				t.Errorf("%s: %s", url, resp.Status)
			}
		}
		for _, want := range []string{protocol, ProtocolDNS} {
			r.mustTell(url, func(e Event) bool {
				return !e.Allowed && e.Protocol == want && e.Reason == reasonPrivate && strings.Contains(url, e.Domain)
			})
		}
	}
}

// TestHowRequestsPassRules sends raw requests, over TLS that is ended, to a site of
// which a rule closes /admin and another sets a credential.
func TestHowRequestsPassRules(t *testing.T) {
	pol := policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{{Pattern: "web.example.com", Rules: []policy.Rule{
		{Match: &policy.Match{Path: &policy.Matcher{StartsWith: ptr("/admin")}}, Response: &policy.Response{StatusCode: 403}},
		{Match: &policy.Match{Method: []string{"GET", "POST", "TRACE", "TRACK"}}, Transform: []policy.Transform{{Headers: map[string]string{"X-Key": "secret"}}}},
	}}}}
	r := newRig(t, pol, Limits{})
	setZone(t, usualZone)
	exchange := func(raw string) (int, *seen) {
		t.Helper()
		c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conn := tls.Client(c, &tls.Config{ServerName: "web.example.com", RootCAs: r.ca, NextProtos: []string{"http/1.1"}})
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(conn, raw); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		defer res.Body.Close()
		s := &seen{}
		if err := json.NewDecoder(res.Body).Decode(s); err != nil {
			return res.StatusCode, nil
		}
		return res.StatusCode, s
	}
	const host = "\r\nHost: web.example.com\r\n"
	for raw, want := range map[string]int{
		"GET /admin HTTP/1.1" + host + "\r\n":                                   403,
		"GET //admin HTTP/1.1" + host + "\r\n":                                  400,
		"GET /;/admin HTTP/1.1" + host + "\r\n":                                 400,
		"GET /%2e%2e/admin HTTP/1.1" + host + "\r\n":                            400,
		"GET /./admin HTTP/1.1" + host + "\r\n":                                 400,
		"GET /%2Fadmin HTTP/1.1" + host + "\r\n":                                400,
		"GET /%5Cadmin HTTP/1.1" + host + "\r\n":                                400,
		"GET https://web.example.com/admin HTTP/1.1" + host + "\r\n":            403,
		"GET https://web.example.com//admin HTTP/1.1" + host + "\r\n":           400,
		"GET https://other.example.com/ HTTP/1.1" + host + "\r\n":               421,
		"GET http://web.example.com/ HTTP/1.1" + host + "\r\n":                  421,
		"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n":                     421,
		"GET / HTTP/1.1\r\nHost: web.example.com:444\r\n\r\n":                   421,
		"TRACE / HTTP/1.1" + host + "\r\n":                                      405,
		"TRACK / HTTP/1.1" + host + "\r\n":                                      405,
		"trace / HTTP/1.1" + host + "\r\n":                                      405,
		"CONNECT web.example.com:443 HTTP/1.1\r\nHost: web.example.com\r\n\r\n": 405,
	} {
		if code, s := exchange(raw); code != want || s != nil {
			t.Errorf("%q: %d %v, want %d", raw, code, s, want)
		}
	}
	r.mustTell("an odd path", func(e Event) bool { return !e.Allowed && e.Reason == reasonPath && e.Protocol == ProtocolHTTPS })
	r.mustTell("TRACE", func(e Event) bool { return !e.Allowed && e.Reason == reasonMethod && e.Protocol == ProtocolHTTPS })

	// What is set gets there alone, whatever the sandbox says beside it.
	for what, raw := range map[string]string{
		"plain":               "GET / HTTP/1.1" + host + "\r\n",
		"duplicates":          "GET / HTTP/1.1" + host + "X-Key: a\r\nx-key: b\r\n\r\n",
		"aliases":             "GET / HTTP/1.1" + host + "X_Key: a\r\nX.Key: b\r\nx_KEY: c\r\n\r\n",
		"named by Connection": "GET / HTTP/1.1" + host + "Connection: x-key, close\r\nX-Key: a\r\n\r\n",
		"host in other forms": "GET / HTTP/1.1\r\nHost: WEB.Example.com.:443\r\n\r\n",
		"overrides":           "GET / HTTP/1.1" + host + "X-HTTP-Method-Override: DELETE\r\nX_Original_URL: /admin\r\nX-Rewrite-URL: /admin\r\n\r\n",
		"a trailer":           "POST / HTTP/1.1" + host + "Transfer-Encoding: chunked\r\nTrailer: X-Key, X_Key\r\n\r\n1\r\na\r\n0\r\nX-Key: b\r\nX_Key: c\r\n\r\n",
	} {
		code, s := exchange(raw)
		if code != 200 || s == nil {
			t.Errorf("%s: %d", what, code)
			continue
		}
		if s.Host != "web.example.com" || !slices.Equal(s.Header["X-Key"], []string{"secret"}) {
			t.Errorf("%s: the site saw host %q, X-Key %q", what, s.Host, s.Header["X-Key"])
		}
		for name := range s.Header {
			if name != "X-Key" && cgivar.Same(name, "X-Key") || strings.Contains(strings.ToLower(name), "override") || cgivar.Same(name, "X-Original-Url") || cgivar.Same(name, "X-Rewrite-Url") {
				t.Errorf("%s: the site saw %s: %q", what, name, s.Header[name])
			}
		}
		if len(s.Trailer) > 0 {
			t.Errorf("%s: the site saw the trailer %v", what, s.Trailer)
		}
	}
}
