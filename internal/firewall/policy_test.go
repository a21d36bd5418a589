package firewall

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/egress/policy"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// kernelSets returns the elements of the kernel's sets that are about a sandbox,
// by the set's name.
func kernelSets(t *testing.T, sandbox netip.Addr) map[string][]string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	found := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?s)set (open|custom|denied|allowed) \{.*?\n\t\}`).FindAllStringSubmatch(string(out), -1) {
		_, elements, _ := strings.Cut(m[0], "elements = {")
		for e := range strings.SplitSeq(strings.Trim(elements, "\n\t }"), ",") {
			first, rest, _ := strings.Cut(strings.TrimSpace(e), " . ")
			if first == sandbox.String() {
				found[m[1]] = append(found[m[1]], rest)
			}
		}
	}
	for _, list := range found {
		slices.Sort(list)
	}
	return found
}

// TestBothGetThePolicy sets policies and looks at what the kernel and the proxy
// were given: they must say the same of networks.
func TestBothGetThePolicy(t *testing.T) {
	f := newFirewall(t)
	l, id := newSession(t, f, &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll})
	path := "/v1/"
	list := &skerry.NetworkPolicy{
		Mode:  skerry.NetworkCustom,
		Allow: prefixes("192.0.2.0/24", "2001:db8::/32"), Deny: prefixes("192.0.2.128/25", "2001:db8:1::/48"),
		Domains: []skerry.DomainRules{{Domain: "a.example"}, {Domain: "*.b.example", Rules: []skerry.NetworkRule{{
			Match:     &skerry.RequestMatch{Path: &skerry.Matcher{StartsWith: &path}},
			Transform: []skerry.HeaderTransform{{Headers: map[string]string{"X-Key": "s3cret"}}},
		}}}},
	}
	for _, c := range []struct {
		name    string
		policy  *skerry.NetworkPolicy
		kernel  map[string][]string
		verdict [3]policy.Verdict // of 192.0.2.1, 192.0.2.200 and 198.51.100.1
		sites   string
	}{
		{"deny-all", &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}, nil, [3]policy.Verdict{policy.Denied, policy.Denied, policy.Denied}, ""},
		{"list", list, map[string][]string{"custom": {""}, "allowed": {"192.0.2.0/24"}, "denied": {"192.0.2.128/25"}},
			[3]policy.Verdict{policy.Allowed, policy.Denied, policy.ByName}, "a.example x.b.example+"},
		{"domains", &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: list.Domains}, map[string][]string{"custom": {""}},
			[3]policy.Verdict{policy.ByName, policy.ByName, policy.ByName}, "a.example x.b.example+"},
		{"allow-all", skerry.AllowAll(), map[string][]string{"open": {""}}, [3]policy.Verdict{policy.Allowed, policy.Allowed, policy.Allowed}, "a.example x.b.example c.example"},
		{"deny-all again", &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}, nil, [3]policy.Verdict{policy.Denied, policy.Denied, policy.Denied}, ""},
	} {
		if err := l.SetNetwork(t.Context(), id, nodeapi.NetworkSpec{Policy: c.policy}); err != nil {
			t.Fatal(c.name, err)
		}
		got := kernelSets(t, l.Address())
		for _, set := range []string{"open", "custom", "denied", "allowed"} {
			if !slices.Equal(got[set], c.kernel[set]) {
				t.Errorf("%s: the kernel's set %s has %q, want %q", c.name, set, got[set], c.kernel[set])
			}
		}
		compiled := l.known.Policy
		for i, a := range []string{"192.0.2.1", "192.0.2.200", "198.51.100.1"} {
			if v := compiled.Address(netip.MustParseAddr(a)); v != c.verdict[i] {
				t.Errorf("%s: the proxy says %v of %s, want %v", c.name, v, a, c.verdict[i])
			}
		}
		var sites []string
		for _, name := range []string{"a.example", "x.b.example", "c.example"} {
			if site := compiled.Site(name); site != nil && site.HasRules() {
				sites = append(sites, name+"+")
			} else if site != nil {
				sites = append(sites, name)
			}
		}
		if s := strings.Join(sites, " "); s != c.sites {
			t.Errorf("%s: the proxy has %q, want %q", c.name, s, c.sites)
		}
	}
}

// TestPolicyThatIsRefused: neither is given what one cannot take.
func TestPolicyThatIsRefused(t *testing.T) {
	f := newFirewall(t)
	before := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Allow: prefixes("192.0.2.0/24"), Domains: []skerry.DomainRules{{Domain: "a.example"}}}
	l, id := newSession(t, f, before)
	bad := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Allow: prefixes("198.51.100.0/24"), Domains: []skerry.DomainRules{{Domain: "not a name"}}}
	err := l.SetNetwork(context.Background(), id, nodeapi.NetworkSpec{Policy: bad})
	if skerry.CodeOf(err) != skerry.CodeBadRequest || !strings.Contains(err.Error(), "networkPolicy.") {
		t.Errorf("the error is %v", err)
	}
	if got := kernelSets(t, l.Address()); !slices.Equal(got["allowed"], []string{"192.0.2.0/24"}) {
		t.Errorf("the kernel has %q", got)
	}
	if l.known.Policy.Site("a.example") == nil || l.known.Policy.Address(netip.MustParseAddr("198.51.100.1")) != policy.ByName {
		t.Error("the proxy has another policy")
	}
}

// TestDenyAllWithoutRules closes a network while the kernel's rules cannot be
// changed: there is no file descriptor to do it by.
func TestDenyAllWithoutRules(t *testing.T) {
	f := newFirewall(t)
	l, id := newSession(t, f, skerry.AllowAll())
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	set := func(p *skerry.NetworkPolicy) error {
		return l.SetNetwork(t.Context(), id, nodeapi.NetworkSpec{Policy: p, Owner: nodeapi.Owner{SandboxID: "sb_1"}})
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	narrow := set(&skerry.NetworkPolicy{Mode: skerry.NetworkCustom})
	closed := set(&skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if narrow == nil || closed != nil {
		t.Fatalf("a list is set without a descriptor: %v; nothing can be closed: %v", narrow, closed)
	}
	if isUp(t, l.ID()) {
		t.Error("the network is not shut")
	}
	if err := set(skerry.AllowAll()); err != nil || !isUp(t, l.ID()) {
		t.Errorf("the network does not come back: %v", err)
	}
}

// isUp reports whether the host's end of a network is up.
func isUp(t *testing.T, lease string) bool {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasSuffix(link.Attrs().Name, lease) {
			return link.Attrs().Flags&net.FlagUp != 0
		}
	}
	t.Fatal("the network has no interface")
	return false
}

// TestDenyAllWithoutProxy closes a network when the proxy takes no policies any more.
func TestDenyAllWithoutProxy(t *testing.T) {
	f := newFirewall(t)
	l, id := newSession(t, f, skerry.AllowAll())
	if err := f.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNetwork(t.Context(), id, nodeapi.NetworkSpec{Policy: &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}, Owner: nodeapi.Owner{SandboxID: "sb_1"}}); err != nil {
		t.Error(err)
	}
	if isUp(t, l.ID()) {
		t.Error("the network is not shut")
	}
}

// FuzzPolicy: what is accepted from a client can be enforced. Otherwise a sandbox
// would keep a policy with which it cannot start.
func FuzzPolicy(f *testing.F) {
	f.Add("*.a.example", "x-key", "v", "https://p.example:8443/in", "get", "^/v[0-9]+$", "/", "text/plain", 200, true)
	f.Add("a.0x1f", "Vercel-Forwarded-Host", "", "https://0x7f.1/", "", "(?i)a", ";/..", "", 204, false)
	f.Add("b\u00fccher.example", "proxy-authorization", "\t", "https://b\u00fccher.example", "A B", "[", "//", "a/b", 599, true)
	f.Fuzz(func(t *testing.T, domain, header, value, forward, method, regex, exact, contentType string, status int, body bool) {
		match := &skerry.RequestMatch{
			Path: &skerry.Matcher{Regex: &regex}, Method: []string{method},
			QueryString: []skerry.PairMatcher{{Key: &skerry.Matcher{Exact: &exact}, Value: &skerry.Matcher{Regex: &regex}}},
			Headers:     []skerry.PairMatcher{{Key: &skerry.Matcher{Regex: &regex}}, {Value: &skerry.Matcher{StartsWith: &exact}}},
		}
		set := map[string]string{header: value}
		response := &skerry.RuleResponse{StatusCode: status, Headers: set, ContentType: contentType}
		if body {
			response.Body = &value
		}
		for _, rule := range []skerry.NetworkRule{
			{Match: match, Transform: []skerry.HeaderTransform{{Headers: set}}}, {ForwardURL: forward}, {Response: response},
		} {
			p := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: domain, Rules: []skerry.NetworkRule{rule}}}}
			if p.Validate("networkPolicy") != nil {
				continue
			}
			c, err := compile(p)
			if err != nil {
				t.Fatalf("%+v is valid, but: %v", p, err)
			}
			asked := strings.ReplaceAll(p.Domains[0].Domain, "*", "x")
			if site := c.Site(asked); site == nil || !site.HasRules() {
				t.Errorf("%q does not allow %q", p.Domains[0].Domain, asked)
			}
		}
	})
}
