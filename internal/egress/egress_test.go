package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/policy"
	"github.com/skerry-dev/skerry/internal/issuer"
)

var sb1Addr, sb2Addr = netip.MustParseAddr("10.99.1.2"), netip.MustParseAddr("10.99.2.2")

// rig is a proxy in the lab with two sandboxes: sb1 with the policy of the
// test and sb2, its neighbour, which may reach web.example.com.
type rig struct {
	*Proxy
	t      testing.TB
	ca     *x509.CertPool // trusts the proxy's CA alone
	signer *issuer.Issuer
	meter  Meter

	mu     sync.Mutex
	events []Event
}

var usualZone = map[string][]string{
	"web.example.com": {webAddr}, "api.example.com": {webAddr}, "old.example.com": {oldAddr}, "raw.example.com": {rawAddr},
	"evil.example.net": {evilAddr}, "untrusted.example.com": {webAddr}, "mismatch.example.com": {webAddr}, "forward.example.com": {webAddr},
	"grpc.example.com": {dnsAddr}, "rebind.example.com": {metaAddr, hostAddr, "127.0.0.1", "10.99.2.2"}, "alias.example.com": {"=web.example.com", webAddr},
}

func newRig(t testing.TB, pol policy.Policy, limits Limits) *rig {
	t.Helper()
	setZone(t, usualZone)
	dir := t.TempDir()
	authority, err := ca.Open(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := issuer.Open(t.Context(), issuer.Folder(filepath.Join(dir, "tokens")), "https://skerry.example.com", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := dns.NewResolver(dns.ResolverConfig{Upstreams: []netip.AddrPort{netip.MustParseAddrPort(dnsAddr + ":53")}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ca: x509.NewCertPool(), signer: signer}
	r.ca.AppendCertsFromPEM(authority.CertificatePEM())
	forbidden := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix(hostAddr + "/32")}
	r.Proxy, err = New(Config{
		Resolver: resolver, CA: authority, Tokens: signer, Roots: lab.roots, Limits: limits,
		Forbidden: func(a netip.Addr) string {
			for _, p := range forbidden {
				if p.Contains(a) {
					return reasonForbidden
				}
			}
			if privateNet.Contains(a) {
				return reasonPrivate
			}
			return ""
		},
		OnEvent: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resolver.Close)
	r.set(pol)
	neighbour, err := policy.Compile(allow("web.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Set(sb2Addr, Sandbox{ID: "sbx_2", Policy: neighbour}); err != nil {
		t.Fatal(err)
	}
	r.listen()
	return r
}

func (r *rig) listen() {
	r.t.Helper()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: proxyPort})
	if err != nil {
		r.t.Fatal(err)
	}
	dnsTCP, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: dnsPort})
	if err != nil {
		r.t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{Port: dnsPort})
	if err != nil {
		r.t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- r.ServeTCP(context.Background(), tcp) }()
	go func() { done <- r.ServeDNS(context.Background(), udp, dnsTCP) }()
	r.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			r.t.Error(err)
		}
		for range 2 {
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		}
		if n := r.open.Used(); n != 0 {
			r.t.Errorf("%d connections are left", n)
		}
	})
}

func (r *rig) set(pol policy.Policy) {
	r.t.Helper()
	c, err := policy.Compile(pol)
	if err != nil {
		r.t.Fatal(err)
	}
	claims := issuer.Sandbox{TeamID: "team_1", ProjectID: "prj_1", SessionID: "sbx_1", SandboxName: "one"}
	if err := r.Set(sb1Addr, Sandbox{ID: "sbx_1", Policy: c, Claims: claims, Meter: &r.meter}); err != nil {
		r.t.Fatal(err)
	}
}

// told reports whether there was an event.
func (r *rig) told(match func(Event) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if match(e) {
			return true
		}
	}
	return false
}

func (r *rig) mustTell(what string, match func(Event) bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !r.told(match); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("no event: %s; there are %+v", what, r.events)
		}
	}
}

func allow(patterns ...string) policy.Policy {
	p := policy.Policy{Mode: policy.Custom}
	for _, s := range patterns {
		p.Domains = append(p.Domains, policy.Domain{Pattern: s})
	}
	return p
}

func ptr(s string) *string { return &s }

// ended allows a name whose TLS is ended: its rule matches nothing.
func endedPolicy(names ...string) policy.Policy {
	p := policy.Policy{Mode: policy.Custom}
	for _, s := range names {
		p.Domains = append(p.Domains, policy.Domain{Pattern: s, Rules: []policy.Rule{{
			Match:     &policy.Match{Path: &policy.Matcher{StartsWith: ptr("/secret/")}},
			Transform: []policy.Transform{{Headers: map[string]string{"Authorization": "Bearer s3cret"}}},
		}}})
	}
	return p
}

func get(t testing.TB, c *http.Client, url string, change ...func(*http.Request)) (*http.Response, seen) {
	t.Helper()
	resp, s, err := tryGet(c, url, change...)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return resp, s
}

func tryGet(c *http.Client, url string, change ...func(*http.Request)) (*http.Response, seen, error) {
	var s seen
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return nil, s, err
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, s, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, s, err
	}
	if json.Unmarshal(b, &s) != nil {
		s = seen{Body: string(b)}
	}
	return resp, s, nil
}

func TestTLSIsPassedByName(t *testing.T) {
	r := newRig(t, allow("web.example.com", "alias.example.com"), Limits{})
	client := clientFrom(t, lab.sb1, webAddr, lab.roots)
	resp, s := get(t, client, "https://web.example.com/x")
	client.CloseIdleConnections()
	if s.SNI != "web.example.com" || s.Server != webAddr+":443" || resp.ProtoMajor != 2 {
		t.Errorf("%s %+v", resp.Proto, s)
	}
	// What the sandbox takes for the address makes no difference.
	for _, forged := range []string{evilAddr, "203.0.113.99", oldAddr} {
		if _, s := get(t, clientFrom(t, lab.sb1, forged, lab.roots), "https://web.example.com/"); s.Server != webAddr+":443" {
			t.Errorf("a connection to %s got to %s", forged, s.Server)
		}
	}
	if _, s := get(t, clientFrom(t, lab.sb1, webAddr, lab.roots), "https://alias.example.com/"); s.SNI != "alias.example.com" {
		t.Errorf("%+v", s)
	}
	r.mustTell("the end, with bytes", func(e Event) bool {
		return e.Allowed && e.End && e.Protocol == ProtocolTLS && e.Domain == "web.example.com" && e.BytesIn > 500 && e.BytesOut > 200 && e.Upstream.String() == webAddr+":443"
	})
	if r.meter.Ingress() < 2000 || r.meter.Egress() < 1000 {
		t.Errorf("metered %d in, %d out", r.meter.Ingress(), r.meter.Egress())
	}
}

func TestTLSIsDenied(t *testing.T) {
	r := newRig(t, policy.Policy{
		Mode:        policy.Custom,
		Domains:     append(allow("web.example.com", "rebind.example.com", "nowhere.example.com", "old.example.com").Domains, endedPolicy("untrusted.example.com", "mismatch.example.com").Domains...),
		DeniedCIDRs: []netip.Prefix{netip.MustParsePrefix(oldAddr + "/32")},
	}, Limits{})
	for what, tt := range map[string]struct{ addr, name, text, reason string }{
		"another name":            {webAddr, "evil.example.net", "access denied", reasonDomain},
		"a longer name":           {webAddr, "web.example.com.evil.example.net", "access denied", reasonDomain},
		"a denied address":        {oldAddr, "web.example.com", "reset", reasonDenied},
		"a name at denied":        {webAddr, "old.example.com", "reset", reasonDenied},
		"metadata":                {metaAddr, "web.example.com", "reset", reasonForbidden},
		"the host":                {hostAddr, "web.example.com", "reset", reasonForbidden},
		"the neighbour":           {sb2Addr.String(), "web.example.com", "reset", reasonForbidden},
		"rebinding":               {evilAddr, "rebind.example.com", "reset", reasonForbidden},
		"a name that is not":      {webAddr, "nowhere.example.com", "reset", reasonUpstream},
		"an untrusted upstream":   {webAddr, "untrusted.example.com", "unknown certificate authority", reasonCertificate},
		"a certificate of others": {webAddr, "mismatch.example.com", "bad certificate", reasonCertificate},
	} {
		_, s, err := tryGet(clientFrom(t, lab.sb1, tt.addr, lab.roots), "https://"+tt.name+"/")
		if err == nil || !(strings.Contains(err.Error(), tt.text) || tt.text == "reset" && (errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE))) {
			t.Errorf("%s: %v %+v", what, err, s)
		}
		r.mustTell(what, func(e Event) bool { // what its address forbids is not asked for its name
			return !e.Allowed && e.Reason == tt.reason && (e.Domain == tt.name || e.Domain == "" && e.Protocol == ProtocolTCP) && e.Destination.String() == tt.addr+":443"
		})
	}
}

// rawHello is a ClientHello of crypto/tls.
func rawHello(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	b := make([]byte, 4096)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// insert adds an extension to a ClientHello.
func insert(h []byte, ext ...byte) []byte {
	b := bytes.Clone(h)
	grow := func(i int) { n := int(b[i])<<8 | int(b[i+1]); n += len(ext); b[i], b[i+1] = byte(n>>8), byte(n) }
	at := 5 + 4 + 2 + 32
	at += 1 + int(b[at])
	at += 2 + int(b[at])<<8 + int(b[at+1])
	at += 1 + int(b[at])
	grow(3)
	grow(7)
	grow(at)
	return append(b, ext...)
}

// talk sends something to an address and returns what comes back until the end.
func talk(t testing.TB, ns *os.File, addr string, parts ...[]byte) (string, error) {
	t.Helper()
	c, err := dialFrom(ns, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, p := range parts {
		if _, err := c.Write(p); err != nil {
			return "", err
		}
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

const accessDenied = "\x15\x03\x03\x00\x02\x02\x31"

func TestHellosThatAreNotJudgedByName(t *testing.T) {
	r := newRig(t, allow("web.example.com", "*.example.com"), Limits{Hello: 300 * time.Millisecond})
	hello := rawHello(t, "web.example.com")
	noName := rawHello(t, "")
	for what, tt := range map[string]struct {
		in     []byte
		out    string
		reason string
	}{
		"no name":        {noName, accessDenied, reasonNoName},
		"ECH":            {insert(hello, 0xfe, 0x0d, 0, 1, 0), accessDenied, reasonECH},
		"two names":      {insert(hello, 0, 0, 0, 6, 0, 4, 0, 0, 1, 'a'), "", reasonHello},
		"plain HTTP":     {[]byte("GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n"), "", reasonNotTLS},
		"SSH":            {[]byte("SSH-2.0-x\r\n"), "", reasonNotTLS},
		"too long":       {append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0}, make([]byte, 1<<16)...), "", reasonHello},
		"half of one":    {hello[:50], "", reasonTimeout},
		"nothing at all": {nil, "", reasonTimeout},
	} {
		if out, err := talk(t, lab.sb1, webAddr+":443", tt.in); out != tt.out || tt.out == "" && err == nil {
			t.Errorf("%s: %q, %v", what, out, err)
		}
		r.mustTell(what, func(e Event) bool { return !e.Allowed && e.Reason == tt.reason })
	}
	for _, q := range labQueries() {
		t.Errorf("asked for %s", q)
	}
}

func TestFragmentedHelloIsPassedWhole(t *testing.T) {
	newRig(t, allow("raw.example.com"), Limits{})
	hello := rawHello(t, "raw.example.com")
	c, err := dialFrom(lab.sb1, "tcp", rawAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	msg := hello[5:]
	for len(msg) > 0 { // records of 11 bytes, written in two halves
		n := min(11, len(msg))
		rec := append([]byte{22, 3, 1, 0, byte(n)}, msg[:n]...)
		msg = msg[n:]
		for _, half := range [][]byte{rec[:3], rec[3:]} {
			if _, err := c.Write(half); err != nil {
				t.Fatal(err)
			}
		}
	}
	fmt.Fprint(c, "ECHO")
	reply := make([]byte, 5)
	fmt.Fprint(c, "hello")
	for got := ""; !strings.HasSuffix(got, "hello"); {
		n, err := c.Read(reply)
		if err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		got += string(reply[:n])
	}
}

func TestPlainHTTPIsJudgedByEachHost(t *testing.T) {
	r := newRig(t, allow("web.example.com", "api.example.com"), Limits{Hello: time.Second})
	client := clientFrom(t, lab.sb1, evilAddr, nil)
	for i, tt := range []struct {
		host string
		want int
	}{{"web.example.com", 200}, {"API.example.com:80", 200}, {"web.example.com.", 200}, {"evil.example.net", 403}, {"web.example.com:8080", 421}, {evilAddr, 421}, {"[::1]", 421}} {
		resp, s := get(t, client, "http://web.example.com/p?q=1;2", func(r *http.Request) { r.Host = tt.host; r.Header.Set("X-Forwarded-For", "1.2.3.4") })
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d %+v", tt.host, resp.StatusCode, s)
		}
		if tt.want == 200 && (s.Server != webAddr+":80" || s.URI != "/p?q=1;2" || s.Header.Get("X-Forwarded-For") != "1.2.3.4" || s.Header.Get("Via") != "") {
			t.Errorf("%d: %+v", i, s)
		}
	}
	r.mustTell("denied", func(e Event) bool { return !e.Allowed && e.Protocol == ProtocolHTTP && e.Domain == "evil.example.net" })

	// Pipelined, absolute and smuggled ones.
	ok := "GET /1 HTTP/1.1\r\nHost: web.example.com\r\n\r\n"
	for what, tt := range map[string]struct {
		in, want, not string
	}{
		"pipelined":       {ok + "GET /2 HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "HTTP/1.1 403", `"URI":"/2"`},
		"absolute":        {"GET http://evil.example.net/2 HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n", "HTTP/1.1 403", `"URI"`},
		"absolute https":  {"GET https://web.example.com/2 HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n", "HTTP/1.1 421", `"URI"`},
		"connect":         {"CONNECT web.example.com:80 HTTP/1.1\r\nHost: web.example.com:80\r\n\r\n", "HTTP/1.1 405", `"URI"`},
		"two hosts":       {"GET /2 HTTP/1.1\r\nHost: web.example.com\r\nHost: evil.example.net\r\n\r\n", "HTTP/1.1 400", `"URI"`},
		"no host":         {"GET /2 HTTP/1.1\r\n\r\n", "HTTP/1.1 400", `"URI"`},
		"TE and CL":       {"POST /1 HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "", `"URI":"/2"`},
		"odd TE":          {"POST /1 HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 501", `"URI"`},
		"folded":          {"GET /1 HTTP/1.1\r\nHost: web.example.com\r\nX: a\r\n Host: evil.example.net\r\nConnection: close\r\n\r\n", "", "evil.example.net:80"},
		"h2 by knowledge": {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", `"URI"`},
		"h2c upgrade":     {"GET /1 HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", `"URI":"/1"`, "H2c"},
		"TLS":             {string(rawHello(t, "web.example.com")), "", `"URI"`},
	} {
		out, _ := talk(t, lab.sb1, webAddr+":80", []byte(tt.in))
		if !strings.Contains(out, tt.want) || strings.Contains(out, tt.not) {
			t.Errorf("%s: %q", what, out)
		}
	}
}

func TestOtherPortsAreDenied(t *testing.T) {
	r := newRig(t, allow("*"), Limits{})
	if out, err := talk(t, lab.sb1, rawAddr+":81", []byte("ECHO")); err == nil {
		t.Errorf("answered %q", out)
	}
	r.mustTell("denied", func(e Event) bool { return e.Reason == reasonPort && e.Destination.Port() == 81 })
}

func TestAddressesBypassDomains(t *testing.T) {
	for what, pol := range map[string]policy.Policy{
		"cidr":      {Mode: policy.Custom, AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24")}},
		"allow-all": {Mode: policy.AllowAll},
	} {
		t.Run(what, func(t *testing.T) {
			newRig(t, pol, Limits{})
			if _, s := get(t, clientFrom(t, lab.sb1, evilAddr, lab.roots), "https://evil.example.net/"); s.Server != evilAddr+":443" {
				t.Errorf("%+v", s)
			}
			if _, err := talk(t, lab.sb1, metaAddr+":80", []byte("GET / HTTP/1.0\r\n\r\n")); err == nil {
				t.Error("metadata was reached")
			}
			c, err := dialFrom(lab.sb1, "tcp", rawAddr+":81")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "ECHO")
			c.(*net.TCPConn).CloseWrite() // half closed: the other way goes on
			if b, err := io.ReadAll(c); err != nil || string(b) != "" {
				t.Errorf("%q %v", b, err)
			}
		})
	}
}

func TestDenyAllLetsNothingOut(t *testing.T) {
	newRig(t, policy.Policy{}, Limits{})
	for _, url := range []string{"https://web.example.com/", "http://web.example.com/"} {
		if _, s, err := tryGet(clientFrom(t, lab.sb1, webAddr, lab.roots), url); err == nil {
			t.Errorf("%s: %+v", url, s)
		}
	}
	if q := labQueries(); len(q) > 0 {
		t.Errorf("asked for %v", q)
	}
	// The neighbour is somebody else.
	get(t, clientFrom(t, lab.sb2, webAddr, lab.roots), "https://web.example.com/")
}

func TestUnknownSandboxIsReset(t *testing.T) {
	r := newRig(t, allow("*"), Limits{})
	r.Remove(sb1Addr)
	if _, _, err := tryGet(clientFrom(t, lab.sb1, webAddr, lab.roots), "https://web.example.com/"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%v", err)
	}
}

func TestEndedTLS(t *testing.T) {
	r := newRig(t, endedPolicy("web.example.com", "old.example.com"), Limits{})
	for _, tt := range []struct {
		host, addr string
		protocols  []string
		want       int
	}{
		{"web.example.com", evilAddr, nil, 2},
		{"web.example.com", webAddr, []string{"http/1.1"}, 1},
		{"old.example.com", oldAddr, nil, 1}, // the site has no h2, so the sandbox gets none
	} {
		client := clientFrom(t, lab.sb1, tt.addr, r.ca, tt.protocols...)
		resp, s := get(t, client, "https://"+tt.host+"/secret/x?a=b", func(r *http.Request) {
			r.Header.Set("authorization", "mine")
			r.Header.Set("Vercel-Forwarded-Host", "forged")
		})
		if resp.ProtoMajor != tt.want || s.Proto != resp.Proto || s.SNI != tt.host || s.Host != tt.host || s.URI != "/secret/x?a=b" {
			t.Errorf("%s: %s %+v", tt.host, resp.Proto, s)
		}
		if a := s.Header["Authorization"]; len(a) != 1 || a[0] != "Bearer s3cret" {
			t.Errorf("%s: Authorization %q", tt.host, a)
		}
		_, s = get(t, client, "https://"+tt.host+"/other")
		if s.Header.Get("Authorization") != "" {
			t.Errorf("%s: the secret went elsewhere: %+v", tt.host, s)
		}
		// Another host than the connection's: domain fronting.
		resp, s = get(t, client, "https://"+tt.host+"/", func(r *http.Request) { r.Host = "evil.example.net" })
		if resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s: fronted: %d %+v", tt.host, resp.StatusCode, s)
		}
	}
	r.mustTell("fronting", func(e Event) bool { return !e.Allowed && e.Protocol == ProtocolHTTPS && e.Reason == reasonHost })
}

func TestSecretsStayOutOfPlainHTTP(t *testing.T) {
	r := newRig(t, endedPolicy("web.example.com"), Limits{})
	if _, s := get(t, clientFrom(t, lab.sb1, webAddr, nil), "http://web.example.com/secret/"); s.URI != "/secret/" || s.Header.Get("Authorization") != "" {
		t.Errorf("%+v", s)
	}
	r.mustTell("left out", func(e Event) bool { return e.Reason == reasonPlain })
}

func TestResponses(t *testing.T) {
	pol := policy.Policy{Mode: policy.Custom, Domains: []policy.Domain{{Pattern: "web.example.com", Rules: []policy.Rule{
		{Match: &policy.Match{Path: &policy.Matcher{StartsWith: ptr("/v1/")}}, Transform: []policy.Transform{{Headers: map[string]string{"X-Key": "k"}}}},
		{Response: &policy.Response{StatusCode: 418, Headers: map[string]string{"X-A": "b"}, Body: "no", ContentType: "text/tea"}},
	}}, {Pattern: "nowhere.example.com", Rules: []policy.Rule{{Response: &policy.Response{StatusCode: 204}}}}}}
	r := newRig(t, pol, Limits{})
	for _, scheme := range []string{"https", "http"} {
		client := clientFrom(t, lab.sb1, webAddr, r.ca)
		if resp, s := get(t, client, scheme+"://web.example.com/v1/x"); resp.StatusCode != 200 || s.URI != "/v1/x" {
			t.Errorf("%s: %d %+v", scheme, resp.StatusCode, s)
		}
		resp, s := get(t, client, scheme+"://web.example.com/admin")
		if resp.StatusCode != 418 || s.Body != "no" || resp.Header.Get("X-A") != "b" || resp.Header.Get("Content-Type") != "text/tea" {
			t.Errorf("%s: %d %v %+v", scheme, resp.StatusCode, resp.Header, s)
		}
		for _, path := range []string{"/v1/../admin", "/v1/%2e%2e/admin", "/v1/..%2fadmin"} {
			if resp, s := get(t, client, scheme+"://web.example.com"+path); resp.StatusCode != 400 {
				t.Errorf("%s: %d %+v", path, resp.StatusCode, s)
			}
		}
		if resp, _ := get(t, client, scheme+"://nowhere.example.com/"); resp.StatusCode != 204 {
			t.Errorf("%s: %d", scheme, resp.StatusCode)
		}
	}
}

func TestDuplexAndTrailers(t *testing.T) {
	r := newRig(t, endedPolicy("web.example.com"), Limits{})
	client := clientFrom(t, lab.sb1, webAddr, r.ca)
	body, send := io.Pipe()
	req, err := http.NewRequest("POST", "https://web.example.com/duplex", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Te", "trailers")
	req.Trailer = http.Header{"X-Request-Trailer": nil}
	go send.Write([]byte("one\n"))
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i, want := range []string{"one\n", "two\n", "three\n"} { // each only after the one before was answered
		if i > 0 {
			io.WriteString(send, want)
		}
		if got, err := lines.ReadString('\n'); got != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	req.Trailer.Set("X-Request-Trailer", "7")
	send.Close()
	if _, err := io.ReadAll(lines); err != nil {
		t.Fatal(err)
	}
	if got := resp.Trailer.Get("Grpc-Status"); got != "07" || resp.ProtoMajor != 2 {
		t.Errorf("%s: trailer %q", resp.Proto, got)
	}
}

func TestWebSocket(t *testing.T) {
	pol := endedPolicy("web.example.com")
	r := newRig(t, pol, Limits{})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, url := range []string{"wss://web.example.com/ws", "ws://web.example.com/ws"} {
		c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: clientFrom(t, lab.sb1, webAddr, r.ca, "http/1.1")})
		if err != nil {
			t.Fatal(url, err)
		}
		for range 3 {
			if err := c.Write(ctx, websocket.MessageText, []byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, b, err := c.Read(ctx); err != nil || string(b) != "ping" {
				t.Fatalf("%q %v", b, err)
			}
		}
		start := time.Now()
		r.set(allow("api.example.com"))
		if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("%s: not cut: %v", url, err)
		}
		t.Logf("%s: cut after %s", url, time.Since(start))
		r.set(pol)
		scheme := map[string]string{"wss": ProtocolHTTPS, "ws": ProtocolHTTP}[strings.SplitN(url, ":", 2)[0]]
		// Three frames each way, the sandbox's with a mask.
		r.mustTell("the messages' bytes", func(e Event) bool {
			return e.End && e.Protocol == scheme && e.BytesIn >= 3*6 && e.BytesOut >= 3*10
		})
	}
}

func TestPolicyChangeCutsWhatItForbids(t *testing.T) {
	both := policy.Policy{Mode: policy.Custom, Domains: append(allow("web.example.com").Domains, endedPolicy("api.example.com").Domains...)}
	for what, tt := range map[string]struct {
		url   string
		after policy.Policy
		cut   bool
	}{
		"passed, kept":             {"https://web.example.com", allow("*.example.com"), false},
		"passed, forbidden":        {"https://web.example.com", allow("api.example.com"), true},
		"passed, now ended":        {"https://web.example.com", endedPolicy("web.example.com"), true},
		"passed, denied address":   {"https://web.example.com", policy.Policy{Mode: policy.Custom, Domains: both.Domains, DeniedCIDRs: []netip.Prefix{netip.MustParsePrefix(webAddr + "/32")}}, true},
		"passed, allow-all":        {"https://web.example.com", policy.Policy{Mode: policy.AllowAll}, false},
		"passed, deny-all":         {"https://web.example.com", policy.Policy{}, true},
		"ended, kept":              {"https://api.example.com", endedPolicy("api.example.com"), false},
		"ended, no rules any more": {"https://api.example.com", allow("api.example.com"), false},
		"ended, forbidden":         {"https://api.example.com", allow("web.example.com"), true},
		"plain, kept":              {"http://api.example.com", allow("api.example.com"), false},
		"plain, forbidden":         {"http://api.example.com", allow("web.example.com"), true},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, both, Limits{})
			roots := lab.roots.Clone()
			roots.AppendCertsFromPEM(r.cfg.CA.CertificatePEM())
			resp, err := clientFrom(t, lab.sb1, webAddr, roots).Get(tt.url + "/endless")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b := make([]byte, 8192)
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				t.Fatal(err)
			}
			r.set(tt.after)
			start := time.Now()
			// What is cut ends, however late; what is kept goes on for longer than
			// the buffers on the way could make it seem.
			for n := 0; err == nil && (tt.cut || n < 32<<20) && time.Since(start) < 20*time.Second; {
				var m int
				m, err = resp.Body.Read(b)
				if n += m; !tt.cut && time.Since(start) > time.Second {
					break
				}
			}
			if (err != nil) != tt.cut {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
			t.Logf("after %s: %v", time.Since(start), err)
		})
	}
}
