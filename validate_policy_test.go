package skerry_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestPolicyBounds: a policy that is as large as it may be is taken, and one that
// is larger is refused.
func TestPolicyBounds(t *testing.T) {
	domain := func(rules ...skerry.NetworkRule) *skerry.NetworkPolicy {
		return &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: "a.example", Rules: rules}}}
	}
	headers := func(n, size int) skerry.NetworkRule {
		h := map[string]string{}
		for i := range n {
			h[fmt.Sprint("x-", i)] = strings.Repeat("v", size)
		}
		return skerry.NetworkRule{Transform: []skerry.HeaderTransform{{Headers: h}}}
	}
	text := func(n int) *string {
		s := strings.Repeat("t", n)
		return &s
	}
	for _, bound := range []struct {
		what   string
		most   int
		policy func(n int) *skerry.NetworkPolicy
	}{
		{"domains", skerry.MaxPolicyDomains, func(n int) *skerry.NetworkPolicy {
			p := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom}
			for i := range n {
				p.Domains = append(p.Domains, skerry.DomainRules{Domain: fmt.Sprintf("d%d.example", i)})
			}
			return p
		}},
		{"bytes of a domain", skerry.MaxDomainLength, func(n int) *skerry.NetworkPolicy {
			name := strings.Repeat(strings.Repeat("a", 59)+".", 4)
			return &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: name + strings.Repeat("b", n-len(name))}}}
		}},
		{"rules of a domain", skerry.MaxDomainRules, func(n int) *skerry.NetworkPolicy {
			var rules []skerry.NetworkRule
			for i := range n {
				rule := headers(1, 1)
				path := fmt.Sprint("/", i, "/")
				rule.Match = &skerry.RequestMatch{Path: &skerry.Matcher{Exact: &path}}
				rules = append(rules, rule)
			}
			return domain(rules...)
		}},
		{"networks", skerry.MaxPolicyCIDRs, func(n int) *skerry.NetworkPolicy {
			p := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom}
			for i := range n {
				p.Deny = append(p.Deny, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i), 0}), 24))
			}
			return p
		}},
		{"headers of a rule", skerry.MaxRuleHeaders, func(n int) *skerry.NetworkPolicy { return domain(headers(n, 1)) }},
		{"bytes of a header", skerry.MaxHeaderValue, func(n int) *skerry.NetworkPolicy { return domain(headers(1, n)) }},
		{"bytes of a matcher", skerry.MaxPattern, func(n int) *skerry.NetworkPolicy {
			rule := headers(1, 1)
			path := "/" + strings.Repeat("p", n-1)
			rule.Match = &skerry.RequestMatch{Path: &skerry.Matcher{StartsWith: &path}}
			return domain(rule)
		}},
		{"instructions of regular expressions", skerry.MaxRegexSize, func(n int) *skerry.NetworkPolicy {
			var rules []skerry.NetworkRule
			for i, size := range []int{2000, n - 2000} {
				expr := strings.Repeat("ab"[i:i+1], size-2) // and the two that every program has
				rule := headers(1, 1)
				rule.Match = &skerry.RequestMatch{Path: &skerry.Matcher{Regex: &expr}}
				rules = append(rules, rule)
			}
			return domain(rules...)
		}},
		{"bytes of a body", skerry.MaxRuleBody, func(n int) *skerry.NetworkPolicy {
			return domain(skerry.NetworkRule{Response: &skerry.RuleResponse{StatusCode: 200, Body: text(n), ContentType: "text/plain"}})
		}},
	} {
		if err := bound.policy(bound.most).Validate("networkPolicy"); err != nil {
			t.Errorf("%d %s: %v", bound.most, bound.what, err)
		}
		if err := bound.policy(bound.most + 1).Validate("networkPolicy"); skerry.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("%d %s: %v, want a refusal", bound.most+1, bound.what, err)
		}
	}
	var rules []skerry.NetworkRule
	for i := range skerry.MaxPolicyBytes/skerry.MaxHeaderValue + 1 {
		rule := headers(1, skerry.MaxHeaderValue)
		path := fmt.Sprint("/", i, "/")
		rule.Match = &skerry.RequestMatch{Path: &skerry.Matcher{Exact: &path}}
		rules = append(rules, rule)
	}
	if err := domain(rules...).Validate("networkPolicy"); skerry.CodeOf(err) != skerry.CodeBadRequest || !strings.Contains(err.Error(), "the policy must have at most") {
		t.Errorf("a policy of more than %d bytes: %v", skerry.MaxPolicyBytes, err)
	}
}

// TestPolicyNamesTheRule: an error names the rule at fault, and tells no secret.
func TestPolicyNamesTheRule(t *testing.T) {
	type rule = skerry.NetworkRule
	ptr := func(s string) *string { return &s }
	custom := func(domains ...string) skerry.NetworkPolicy {
		p := skerry.NetworkPolicy{Mode: skerry.NetworkCustom}
		for _, d := range domains {
			p.Domains = append(p.Domains, skerry.DomainRules{Domain: d})
		}
		return p
	}
	ruled := func(r rule) skerry.NetworkPolicy {
		p := custom("a.example")
		p.Domains[0].Rules = []rule{r}
		return p
	}
	headers := func(name, value string) rule {
		return rule{Transform: []skerry.HeaderTransform{{Headers: map[string]string{name: value}}}}
	}
	answer := func(r skerry.RuleResponse) skerry.NetworkPolicy { return ruled(rule{Response: &r}) }
	matching := func(m skerry.RequestMatch) skerry.NetworkPolicy {
		r := headers("x", "s3cret")
		r.Match = &m
		return ruled(r)
	}
	networks := func(list ...netip.Prefix) skerry.NetworkPolicy {
		return skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Deny: list}
	}
	const at = "allow.a.example[0]"
	for _, tt := range []struct {
		field  string
		policy skerry.NetworkPolicy
	}{
		{"mode", skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll, Domains: custom("a").Domains}},
		{"allow.a..b", custom("a..b")}, {"allow.api-*.example.com", custom("api-*.example.com")}, {"allow.1.2.3.4", custom("1.2.3.4")},
		{"allow.a.0x1f", custom("a.0x1f")}, {"allow.a.0x", custom("a.0x")}, {"allow.A.example.", custom("a.example", "A.example.")},
		{"subnets.deny[1]", networks(netip.MustParsePrefix("10.0.0.0/8"), netip.Prefix{})},
		{"subnets.deny[0]", networks(netip.MustParsePrefix("10.0.0.1/8"))},
		{"subnets.deny[0]", networks(netip.MustParsePrefix("::ffff:10.0.0.0/104"))},
		{at, ruled(rule{})},
		{at, ruled(rule{Transform: []skerry.HeaderTransform{}, ForwardURL: "https://p.example"})},
		{at + ".transform[0].headers.Host", ruled(headers("Host", "x"))},
		{at + ".transform[0].headers.vercel-forwarded-host", ruled(headers("vercel-forwarded-host", "x"))},
		{at + ".transform[0].headers.Vercel-Sandbox-OIDC-Token", ruled(headers("Vercel-Sandbox-OIDC-Token", "x"))},
		{at + ".transform[0].headers.Proxy-Authorization", ruled(headers("Proxy-Authorization", "x"))},
		{at + ".transform[0].headers.a b", ruled(headers("a b", "x"))},
		{at + ".transform[0].headers.a", ruled(headers("a", "s3cret\r\nb: c"))},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://127.0.0.1/"})},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://[::1]/"})},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://0x7f.1/"})},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://*.example/"})},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://p.example/a/../b"})},
		{at + ".forwardURL", ruled(rule{ForwardURL: "https://u:s3cret@p.example/"})},
		{at + ".response.statusCode", answer(skerry.RuleResponse{StatusCode: 199})},
		{at + ".response.contentType", answer(skerry.RuleResponse{StatusCode: 200, Body: ptr("x")})},
		{at + ".response.body", answer(skerry.RuleResponse{StatusCode: 204, Body: ptr("x"), ContentType: "text/plain"})},
		{at + ".response.headers.TE", answer(skerry.RuleResponse{StatusCode: 200, Headers: map[string]string{"TE": "x"}})},
		{at + ".match.path", matching(skerry.RequestMatch{Path: &skerry.Matcher{}})},
		{at + ".match.path.regex", matching(skerry.RequestMatch{Path: &skerry.Matcher{Regex: ptr("(")}})},
		{at + ".match.path.regex", matching(skerry.RequestMatch{Path: &skerry.Matcher{Regex: ptr("((a{1000}){1000}){1000}")}})},
		{at + ".match.method[1]", matching(skerry.RequestMatch{Method: []string{"GET", "A B"}})},
		{at + ".match.headers[0]", matching(skerry.RequestMatch{Headers: []skerry.PairMatcher{{}}})},
		{at + ".match.headers[0].key.regex", matching(skerry.RequestMatch{Headers: []skerry.PairMatcher{{Key: &skerry.Matcher{Regex: ptr("a)(b")}}}})},
	} {
		err := tt.policy.Validate("")
		if e, ok := err.(*skerry.Error); !ok || e.Field != tt.field || e.Code != skerry.CodeBadRequest {
			t.Errorf("want an error at %s, got %v", tt.field, err)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error has the secret: %v", err)
		}
	}
	for what, p := range map[string]skerry.NetworkPolicy{
		"a rule that changes nothing": ruled(rule{Transform: []skerry.HeaderTransform{}}),
		"no header":                   ruled(rule{Transform: []skerry.HeaderTransform{{}}}),
		"a proxy":                     ruled(rule{ForwardURL: "https://P.example.:8443/in/..x"}),
	} {
		if err := p.Validate("networkPolicy"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestValidPolicyIsNotWritten: a policy that was validated may be validated again
// while others read it. The race detector sees a write.
func TestValidPolicyIsNotWritten(t *testing.T) {
	p := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: "A.example.", Rules: []skerry.NetworkRule{{
		Match: &skerry.RequestMatch{Method: []string{"post"}}, Response: &skerry.RuleResponse{StatusCode: 403},
	}}}}}
	if err := p.Validate(""); err != nil || p.Domains[0].Domain != "a.example" || p.Domains[0].Rules[0].Match.Method[0] != "POST" {
		t.Fatalf("%+v, %v", p, err)
	}
	var checks sync.WaitGroup
	for range 4 {
		checks.Go(func() {
			if err := p.Validate(""); err != nil {
				t.Error(err)
			}
		})
	}
	checks.Wait()
}
