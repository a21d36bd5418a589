package skerry

import (
	"maps"
	"net/netip"
	"slices"
)

// NetworkMode is the kind of a network policy.
type NetworkMode string

// The kinds of network policies.
const (
	// NetworkAllowAll: everything but what no sandbox may reach. The default.
	NetworkAllowAll NetworkMode = "allow-all"
	NetworkDenyAll  NetworkMode = "deny-all"
	// NetworkCustom: nothing but what the policy lists.
	NetworkCustom NetworkMode = "custom"
)

// Bounds of a network policy.
const (
	// MaxPolicyDomains, MaxDomainRules and MaxPolicyCIDRs bound the domains,
	// the rules of one domain, and each list of networks.
	MaxPolicyDomains = 1000
	MaxDomainRules   = 64
	MaxPolicyCIDRs   = 128
	// MaxPolicyBytes bounds all that is written in a policy, in bytes.
	MaxPolicyBytes = 256 << 10
	// MaxRuleHeaders bounds the headers that a rule sets or matches.
	MaxRuleHeaders = 64
	// MaxHeaderValue bounds a header's value, MaxRuleBody the body of a
	// response, MaxPattern the value of a matcher; in bytes.
	MaxHeaderValue = 16 << 10
	MaxRuleBody    = 64 << 10
	MaxPattern     = 2048
	// MaxDomainLength bounds a domain, in bytes (RFC 1035).
	MaxDomainLength = 253
)

// NetworkPolicy is what a sandbox may reach. It may hold secrets, in the
// headers that its rules set, so it is never sent back: see Summary.
//
// A custom policy is decided in this order: networks in Deny, networks in
// Allow (for every protocol), and domains, for TLS on port 443 by the server
// name that is asked for and HTTP on port 80 by the host. The rest is denied.
type NetworkPolicy struct {
	Mode NetworkMode `json:"mode"`
	// Domains may be reached, by HTTP and HTTPS. They are in lower case and
	// ordered. A label "*" stands for one label, as the first for one or more,
	// alone for every domain. Of several that match, the most specific decides.
	Domains []DomainRules `json:"domains,omitempty"`
	// Allow and Deny are IPv4 and IPv6 networks; sandboxes have no IPv6.
	Allow []netip.Prefix `json:"allow,omitempty"`
	Deny  []netip.Prefix `json:"deny,omitempty"`
}

// DomainRules is a domain and what is done with requests to it: what the first
// rule that matches says, or nothing else than letting them pass.
type DomainRules struct {
	Domain string        `json:"domain"`
	Rules  []NetworkRule `json:"rules,omitempty"`
}

// NetworkRule says what is done with a request, by exactly one of Transform,
// ForwardURL and Response. Its JSON form is that of a request.
type NetworkRule struct {
	// Match is which requests the rule is for; nil is all.
	Match *RequestMatch `json:"match,omitempty"`
	// Transform changes the request on its way out. An empty list, unlike nil,
	// lets it pass as it is.
	Transform []HeaderTransform `json:"transform,omitzero"`
	// ForwardURL is the HTTPS proxy that has the request instead.
	ForwardURL string `json:"forwardURL,omitempty"`
	// Response is the answer, without asking anyone.
	Response *RuleResponse `json:"response,omitempty"`
}

// HeaderTransform sets headers of a request.
type HeaderTransform struct {
	Headers map[string]string `json:"headers,omitempty"`
}

// RuleResponse is an answer that a rule gives.
type RuleResponse struct {
	StatusCode  int               `json:"statusCode" required:"true"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        *string           `json:"body,omitempty"`
	ContentType string            `json:"contentType,omitempty"`
}

// RequestMatch is which requests a rule is for: those that every given part
// matches. Of Method one suffices; of QueryString and Headers all must be met,
// each by one of the request's.
type RequestMatch struct {
	Path        *Matcher      `json:"path,omitempty"`
	Method      []string      `json:"method,omitempty"`
	QueryString []PairMatcher `json:"queryString,omitempty"`
	Headers     []PairMatcher `json:"headers,omitempty"`
}

// PairMatcher matches a name with its value; nil matches every one.
type PairMatcher struct {
	Key   *Matcher `json:"key,omitempty"`
	Value *Matcher `json:"value,omitempty"`
}

// Matcher matches text in exactly one way.
type Matcher struct {
	Exact      *string `json:"exact,omitempty"`
	StartsWith *string `json:"startsWith,omitempty"`
	// Regex is an RE2 expression.
	Regex *string `json:"regex,omitempty"`
}

// AllowAll returns the policy of a sandbox whose creator does not say.
func AllowAll() *NetworkPolicy { return &NetworkPolicy{Mode: NetworkAllowAll} }

// NetworkPolicySummary is what is shown of a policy: of the headers that it
// sets, the names alone.
type NetworkPolicySummary struct {
	Mode NetworkMode `json:"mode"`
	// AllowedDomains is never nil in a custom policy.
	AllowedDomains []string        `json:"allowedDomains,omitzero"`
	AllowedCIDRs   []string        `json:"allowedCIDRs,omitempty"`
	DeniedCIDRs    []string        `json:"deniedCIDRs,omitempty"`
	InjectionRules []InjectionRule `json:"injectionRules,omitempty"`
	ForwardRules   []ForwardRule   `json:"forwardRules,omitempty"`
	ResponseRules  []ResponseRule  `json:"responseRules,omitempty"`
}

// InjectionRule is a rule with a transform.
type InjectionRule struct {
	Domain      string        `json:"domain"`
	HeaderNames []string      `json:"headerNames"`
	Match       *RequestMatch `json:"match,omitempty"`
}

// ForwardRule is a rule with a ForwardURL.
type ForwardRule struct {
	Domain     string        `json:"domain"`
	ForwardURL string        `json:"forwardURL"`
	Match      *RequestMatch `json:"match,omitempty"`
}

// ResponseRule is a rule with a response, which may hold secrets too.
type ResponseRule struct {
	Domain     string        `json:"domain"`
	StatusCode int           `json:"statusCode"`
	Match      *RequestMatch `json:"match,omitempty"`
}

// Summary returns what of p may be shown.
func (p *NetworkPolicy) Summary() *NetworkPolicySummary {
	s := &NetworkPolicySummary{Mode: p.Mode}
	if p.Mode != NetworkCustom {
		return s
	}
	s.AllowedDomains = []string{}
	for _, d := range p.Domains {
		s.AllowedDomains = append(s.AllowedDomains, d.Domain)
		for _, r := range d.Rules {
			switch {
			case r.ForwardURL != "":
				s.ForwardRules = append(s.ForwardRules, ForwardRule{d.Domain, r.ForwardURL, r.Match.shown()})
			case r.Response != nil:
				s.ResponseRules = append(s.ResponseRules, ResponseRule{d.Domain, r.Response.StatusCode, r.Match.shown()})
			default:
				s.InjectionRules = append(s.InjectionRules, InjectionRule{d.Domain, r.headerNames(), r.Match.shown()})
			}
		}
	}
	s.AllowedCIDRs, s.DeniedCIDRs = texts(p.Allow), texts(p.Deny)
	return s
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// headerNames are those that a rule sets, in order.
func (r *NetworkRule) headerNames() []string {
	names := map[string]bool{}
	for _, t := range r.Transform {
		for name := range t.Headers {
			names[name] = true
		}
	}
	return append([]string{}, slices.Sorted(maps.Keys(names))...)
}

// shown leaves out what a match compares headers with: that may be the secret
// by which callers in the sandbox are told apart.
func (m *RequestMatch) shown() *RequestMatch {
	if m == nil || len(m.Headers) == 0 {
		return m
	}
	hidden := *m
	hidden.Headers = nil
	for _, h := range m.Headers {
		hidden.Headers = append(hidden.Headers, PairMatcher{Key: h.Key})
	}
	return &hidden
}

// NeedsTLS reports whether requests to the domain are only known when TLS is
// ended on their way.
func (d *DomainRules) NeedsTLS() bool { return len(d.Rules) > 0 }

// NetworkEvent is a decision of the proxy about a connection, a request or a
// query of a sandbox.
type NetworkEvent struct {
	Time    Time `json:"time"`
	Allowed bool `json:"allowed"`
	// Protocol is "tcp", "tls" (passed through by its name), "https" (a request
	// in TLS that the proxy ended), "http" or "dns"; and of packets that
	// their address alone denied "tcp", "udp", "icmp" or "ip", which is any other.
	Protocol string `json:"protocol"`
	Reason   string `json:"reason"`
	Domain   string `json:"domain,omitempty"`
	// Destination is where the sandbox wanted to go, Upstream where the proxy
	// went; address and port.
	Destination string `json:"destination,omitempty"`
	Upstream    string `json:"upstream,omitempty"`
	// End says that what was allowed has ended; then the rest is set.
	End      bool     `json:"end,omitempty"`
	BytesIn  int64    `json:"bytesIn,omitempty"`
	BytesOut int64    `json:"bytesOut,omitempty"`
	Duration Duration `json:"durationMs,omitempty"`
	// Suppressed is how many events before were left out, as there were too
	// many.
	Suppressed int64 `json:"suppressed,omitempty"`
}

// NeedsAuthority reports whether the policy has TLS ended in the proxy, so that
// the sandbox must trust the installation's certificate authority.
func (p *NetworkPolicy) NeedsAuthority() bool {
	return slices.ContainsFunc(p.Domains, func(d DomainRules) bool { return d.NeedsTLS() })
}
