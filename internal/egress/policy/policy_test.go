package policy

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

func compile(t testing.TB, p Policy) *Compiled {
	t.Helper()
	c, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func domains(patterns ...string) (list []Domain) {
	for _, p := range patterns {
		list = append(list, Domain{Pattern: p})
	}
	return list
}

func TestMostSpecificPatternCounts(t *testing.T) {
	c := compile(t, Policy{Mode: Custom, Domains: domains(
		"example.com", "*.example.com", "a.*.example.com", "b.example.com", "*.b.example.com",
		"x.*.*.org", "*.y.org", "Bücher.example.", "UPPER.example.net")})
	for name, want := range map[string]string{
		"example.com":               "example.com",
		"z.example.com":             "*.example.com",
		"y.z.example.com":           "*.example.com",
		"a.z.example.com":           "a.*.example.com",
		"q.a.z.example.com":         "*.example.com",
		"b.example.com":             "b.example.com",
		"a.b.example.com":           "*.b.example.com",
		"x.1.2.org":                 "x.*.*.org",
		"x.1.y.org":                 "*.y.org",
		"y.org":                     "",
		"x.2.org":                   "",
		"notexample.com":            "",
		"com":                       "",
		"example.com.evil.net":      "",
		"xn--bcher-kva.example":     "xn--bcher-kva.example",
		"upper.example.net":         "upper.example.net",
		"upper.example.net.example": "",
	} {
		got := ""
		if s := c.Site(name); s != nil {
			got = s.Pattern
		}
		if got != want {
			t.Errorf("%s: %q counts, want %q", name, got, want)
		}
	}
	all := compile(t, Policy{Mode: Custom, Domains: domains("*")})
	for _, name := range []string{"com", "a.b.c.d.example.com"} {
		if all.Site(name) == nil {
			t.Errorf("* does not allow %s", name)
		}
	}
}

func TestModes(t *testing.T) {
	a := netip.MustParseAddr("203.0.113.7")
	deny, allow := compile(t, Policy{}), compile(t, Policy{Mode: AllowAll})
	if deny.Address(a) != Denied || deny.Site("example.com") != nil {
		t.Error("deny-all lets something out")
	}
	if allow.Address(a) != Allowed || allow.Site("example.com") == nil || allow.Site("example.com").HasRules() {
		t.Error("allow-all does not let everything out")
	}
}

func TestAddress(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	c := compile(t, Policy{
		Mode:         Custom,
		AllowedCIDRs: prefixes("10.0.0.0/8", "10.2.0.0/16", "203.0.113.8/32", "2001:db8::/32"),
		DeniedCIDRs:  prefixes("10.1.2.3/16", "203.0.113.128/25"),
	})
	for s, want := range map[string]Verdict{
		"10.0.0.0": Allowed, "10.255.255.255": Allowed, "10.2.3.4": Allowed, "::ffff:10.2.3.4": Allowed,
		"10.1.0.0": Denied, "10.1.255.255": Denied, "11.0.0.0": ByName, "9.255.255.255": ByName,
		"203.0.113.8": Allowed, "203.0.113.9": ByName, "203.0.113.200": Denied, "2001:db8::1": Allowed, "2001:db9::1": ByName,
	} {
		if got := c.Address(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %d, want %d", s, got, want)
		}
	}
}

func TestNormalizeRefuses(t *testing.T) {
	for _, s := range []string{
		"", ".", "a..b", ".a", "1.2.3.4", "127.1", "2130706433", "0x7f000001", "0x7f.1", "::1", "[::1]", "a b", "a/b", "a:80", "*", "a*",
		"a@b", "a\x00b", strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 127) + "com", strings.Repeat("ä", 5000), "a.0x", "example.com..",
	} {
		if got, err := Normalize(s); err == nil {
			t.Errorf("%q is taken for %q", s, got)
		}
	}
}

func ptr(s string) *string { return &s }

// TestWhatCannotBeCompiled: a policy that was not validated is an error, not a
// panic.
func TestWhatCannotBeCompiled(t *testing.T) {
	rule := func(r Rule) Policy {
		return Policy{Mode: Custom, Domains: []Domain{{"api.example.com", []Rule{{Transform: []Transform{}}, r}}}}
	}
	const at = `allow["api.example.com"][1]`
	for _, tt := range []struct {
		field string
		p     Policy
	}{
		{`allow["a..b"]`, Policy{Mode: Custom, Domains: domains("a..b")}},
		{`allow["api-*.example.com"]`, Policy{Mode: Custom, Domains: domains("api-*.example.com")}},
		{`allow["1.2.3.4"]`, Policy{Mode: Custom, Domains: domains("1.2.3.4")}},
		{`allow["A.example."]`, Policy{Mode: Custom, Domains: domains("a.example", "A.example.")}},
		{at, rule(Rule{})},
		{at + ".forwardURL", rule(Rule{ForwardURL: "https://p.example.com/%zz"})},
		{at + ".forwardURL", rule(Rule{ForwardURL: "https://127.0.0.1/"})},
		{at + ".match.path", rule(Rule{Transform: []Transform{}, Match: &Match{Path: &Matcher{}}})},
		{at + ".match.path.regex", rule(Rule{Transform: []Transform{}, Match: &Match{Path: &Matcher{Regex: ptr("(")}}})},
		{at + ".match.headers[0].key.regex", rule(Rule{Transform: []Transform{}, Match: &Match{Headers: []KeyValue{{Key: &Matcher{Regex: ptr("a)(b")}}}}})},
	} {
		_, err := Compile(tt.p)
		var e *Error
		if !errors.As(err, &e) || e.Field != tt.field {
			t.Errorf("want an error at %s, got %v", tt.field, err)
		}
	}
}

// TestRuleThatChangesNothing: it decides all the same, so that the rules behind it
// are not applied.
func TestRuleThatChangesNothing(t *testing.T) {
	c := compile(t, Policy{Mode: Custom, Domains: []Domain{{"api.example.com", []Rule{
		{Match: &Match{Path: &Matcher{Exact: ptr("/open")}}, Transform: []Transform{}},
		{Response: &Response{StatusCode: 403}},
	}}}})
	s := c.Site("api.example.com")
	open, ok := s.Choose(httptest.NewRequest("GET", "/open", nil))
	if !ok || open == nil || open.SetHeaders == nil || len(open.SetHeaders) != 0 {
		t.Errorf("/open: %+v, %v", open, ok)
	}
	shut, ok := s.Choose(httptest.NewRequest("GET", "/shut", nil))
	if !ok || shut == nil || shut.Response == nil {
		t.Errorf("/shut: %+v, %v", shut, ok)
	}
	if !s.NeedsUpstream() || s.Echoes("TRACE") {
		t.Errorf("needs upstream: %v, echoes: %v", s.NeedsUpstream(), s.Echoes("TRACE"))
	}
}

func TestActions(t *testing.T) {
	status := func(code int, m *Match) Rule { return Rule{Match: m, Response: &Response{StatusCode: code}} }
	c := compile(t, Policy{Mode: Custom, Domains: []Domain{{"api.example.com", []Rule{
		status(201, &Match{Path: &Matcher{StartsWith: ptr("/v1/")}, Method: []string{"post", "PUT"}}),
		status(202, &Match{QueryString: []KeyValue{{Key: &Matcher{Exact: ptr("q")}, Value: &Matcher{Regex: ptr("^[0-9]+$")}}}}),
		status(203, &Match{Headers: []KeyValue{{Key: &Matcher{StartsWith: ptr("X-Api")}, Value: &Matcher{Exact: ptr("k")}}, {Key: &Matcher{Exact: ptr("x-other")}}}}),
		status(206, &Match{Headers: []KeyValue{{Key: &Matcher{Exact: ptr("Host")}, Value: &Matcher{Exact: ptr("api.example.com:8443")}}}}),
		status(207, &Match{Path: &Matcher{Exact: ptr("/admin")}}),
	}}}})
	s := c.Site("api.example.com")
	for _, tt := range []struct {
		method, url string
		headers     []string
		want        int
	}{
		{"POST", "/v1/x", nil, 201}, {"put", "/v1/x", nil, 201}, {"GET", "/v1/x", nil, 0}, {"POST", "/v2", nil, 0},
		{"GET", "/?q=1&q=2", nil, 202}, {"GET", "/?q=1&q=x", nil, -1}, {"GET", "/?q=x&p=1", nil, 0},
		{"GET", "/", []string{"x-api-key", "k", "X-Other", ""}, 203}, {"GET", "/", []string{"x-api-key", "k"}, 0},
		{"GET", "/%61dmin", nil, 207}, {"GET", "https://api.example.com:8443/", nil, 206},
	} {
		r := httptest.NewRequest(tt.method, tt.url, nil)
		for i := 0; i < len(tt.headers); i += 2 {
			r.Header.Set(tt.headers[i], tt.headers[i+1])
		}
		got := 0
		a, ok := s.Choose(r)
		if !ok {
			got = -1
		} else if a != nil {
			got = a.Response.StatusCode
		}
		if got != tt.want {
			t.Errorf("%s %s %v: rule %d, want %d", tt.method, tt.url, tt.headers, got, tt.want)
		}
	}
}

// manyDomains are ten times as many as a policy may have.
const manyDomains = 10 * skerry.MaxPolicyDomains

func TestTenThousandDomains(t *testing.T) {
	var list []Domain
	for i := range manyDomains - 1 {
		list = append(list, Domain{Pattern: fmt.Sprintf("h%d.*.example.com", i)})
	}
	list = append(list, Domain{Pattern: "*.example.com"})
	start := time.Now()
	c := compile(t, Policy{Mode: Custom, Domains: list})
	if d := time.Since(start); d > time.Second {
		t.Errorf("compiling took %v", d)
	}
	if s := c.Site("h9000.x.example.com"); s == nil || s.Pattern != "h9000.*.example.com" {
		t.Error("not found")
	}
}

func BenchmarkSite(b *testing.B) {
	var list []Domain
	for i := range manyDomains {
		list = append(list, Domain{Pattern: fmt.Sprintf("h%d.example.com", i)})
	}
	c := compile(b, Policy{Mode: Custom, Domains: list})
	for b.Loop() {
		if c.Site("h9999.example.com") == nil {
			b.Fatal("not found")
		}
	}
}

// FuzzNormalize: what is taken for a name is safe wherever names are put.
func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"Example.com.", "bücher.example", "a..b", "1.2.3.4", "xn--a", "a\x00"} {
		f.Add(s)
	}
	safe := regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)*$`)
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Normalize(s)
		if err != nil {
			return
		}
		if again, err := Normalize(n); !safe.MatchString(n) || len(n) > maxName || err != nil || again != n {
			t.Fatalf("%q became %q, then %q (%v)", s, n, again, err)
		}
		if _, err := netip.ParseAddr(n); err == nil {
			t.Fatalf("%q is an address", n)
		}
	})
}
