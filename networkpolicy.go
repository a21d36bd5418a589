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
	// NetworkAllowAll allows everything that any sandbox may reach. The default.
	NetworkAllowAll NetworkMode = "allow-all"
	NetworkDenyAll  NetworkMode = "deny-all"
	// NetworkCustom allows only what the policy lists.
	NetworkCustom NetworkMode = "custom"
)

// Limits of a network policy. They keep a policy small enough to be compiled in
// milliseconds, and stored and shown as a whole.
const (
	// MaxPolicyDomains, MaxDomainRules and MaxPolicyCIDRs limit the domains, the
	// rules of one domain, and each list of networks.
	MaxPolicyDomains = 1000
	MaxDomainRules   = 64
	MaxPolicyCIDRs   = 128
	// MaxPolicyBytes limits all text in a policy together, in bytes.
	MaxPolicyBytes = 256 << 10
	// MaxRuleHeaders limits the headers that a rule sets, and the methods, headers
	// and query parameters that it matches.
	MaxRuleHeaders = 64
	// MaxHeaderValue limits the value of a header, MaxRuleBody the body of a
	// response, and MaxPattern the value of a matcher; in bytes.
	MaxHeaderValue = 16 << 10
	MaxRuleBody    = 64 << 10
	MaxPattern     = 2048
	// MaxRegexSize limits all regular expressions of a domain's rules together, in
	// instructions of the compiled programs. Matching a request takes up to this
	// number of steps for each byte. A repetition such as {0,40} counts 40 times.
	MaxRegexSize = 4000
	// MaxDomainLength limits a domain, MaxLabelLength each of its labels, in bytes
	// (RFC 1035).
	MaxDomainLength = 253
	MaxLabelLength  = 63
)

// NetworkPolicy is what a sandbox may reach. It may contain secrets, in the headers
// that its rules set, so it is never sent back; see Summary.
//
// A custom policy is evaluated in this order: networks in Deny; networks in Allow,
// for every protocol; domains, for TLS on port 443 by server name and for HTTP on
// port 80 by host. Everything else is denied.
type NetworkPolicy struct {
	Mode NetworkMode `json:"mode"`
	// Domains may be reached over HTTP and HTTPS. They are in lower case, and in the
	// order of the request. A label "*" matches one label; as the first label it
	// matches one or more; "*" alone matches every domain. If several match, the most
	// specific one is used.
	Domains []DomainRules `json:"domains,omitempty"`
	// Allow and Deny are IPv4 and IPv6 networks; sandboxes have no IPv6.
	Allow []netip.Prefix `json:"allow,omitempty"`
	Deny  []netip.Prefix `json:"deny,omitempty"`
}

// DomainRules is a domain with its rules. The first rule that matches a request is
// applied. A request that matches no rule passes unchanged.
type DomainRules struct {
	Domain string        `json:"domain"`
	Rules  []NetworkRule `json:"rules,omitempty"`
}

// NetworkRule is a rule for requests to a domain. Exactly one of Transform,
// ForwardURL and Response is set. Its JSON form is that of the API.
type NetworkRule struct {
	// Match selects the requests that the rule applies to; nil selects all.
	Match *RequestMatch `json:"match,omitempty"`
	// Transform changes the request on its way out. If it is not nil and sets no
	// header, the request passes as it is.
	Transform []HeaderTransform `json:"transform,omitzero"`
	// ForwardURL is the HTTPS proxy that gets the request instead of the domain.
	ForwardURL string `json:"forwardURL,omitempty"`
	// Response is sent instead of contacting the domain.
	Response *RuleResponse `json:"response,omitempty"`
}

// HeaderTransform sets headers of a request.
type HeaderTransform struct {
	Headers map[string]string `json:"headers,omitempty"`
}

// RuleResponse is the response of a rule.
type RuleResponse struct {
	StatusCode  int               `json:"statusCode" required:"true"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        *string           `json:"body,omitempty"`
	ContentType string            `json:"contentType,omitempty"`
}

// RequestMatch selects requests. Every part that is set must match: the path, one of
// the methods, and every entry of QueryString and Headers, each by some parameter or
// header of the request.
type RequestMatch struct {
	Path        *Matcher      `json:"path,omitempty"`
	Method      []string      `json:"method,omitempty"`
	QueryString []PairMatcher `json:"queryString,omitempty"`
	Headers     []PairMatcher `json:"headers,omitempty"`
}

// PairMatcher matches a query parameter or a header. A nil field matches everything.
type PairMatcher struct {
	Key   *Matcher `json:"key,omitempty"`
	Value *Matcher `json:"value,omitempty"`
}

// Matcher matches a text. Exactly one field is set.
type Matcher struct {
	Exact      *string `json:"exact,omitempty"`
	StartsWith *string `json:"startsWith,omitempty"`
	// Regex is an RE2 expression.
	Regex *string `json:"regex,omitempty"`
}

// AllowAll returns the default policy.
func AllowAll() *NetworkPolicy { return &NetworkPolicy{Mode: NetworkAllowAll} }

// NetworkPolicySummary is the redacted form of a policy that the API returns. Of the
// headers that rules set, it has only the names.
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

// InjectionRule is the redacted form of a rule with a transform.
type InjectionRule struct {
	Domain      string        `json:"domain"`
	HeaderNames []string      `json:"headerNames"`
	Match       *RequestMatch `json:"match,omitempty"`
}

// ForwardRule is the redacted form of a rule with a ForwardURL.
type ForwardRule struct {
	Domain     string        `json:"domain"`
	ForwardURL string        `json:"forwardURL"`
	Match      *RequestMatch `json:"match,omitempty"`
}

// ResponseRule is the redacted form of a rule with a response, which may contain
// secrets too.
type ResponseRule struct {
	Domain     string        `json:"domain"`
	StatusCode int           `json:"statusCode"`
	Match      *RequestMatch `json:"match,omitempty"`
}

// Summary returns the redacted form of p.
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

// headerNames returns the names of the headers that a rule sets, sorted.
func (r *NetworkRule) headerNames() []string {
	names := map[string]bool{}
	for _, t := range r.Transform {
		for name := range t.Headers {
			names[name] = true
		}
	}
	return append([]string{}, slices.Sorted(maps.Keys(names))...)
}

// shown returns m without the values that headers are compared with. Such a value may
// be a secret by which a rule tells callers in the sandbox apart.
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

// NeedsTLS reports whether the proxy must terminate TLS to see requests to the
// domain.
func (d *DomainRules) NeedsTLS() bool { return len(d.Rules) > 0 }

// NetworkEvent is a decision about a connection, a request, a DNS query or a packet of
// a sandbox.
type NetworkEvent struct {
	Time    Time `json:"time"`
	Allowed bool `json:"allowed"`
	// Protocol is "tcp", "tls" (passed through, decided by name), "https" (a request
	// in TLS that the proxy terminated), "http" or "dns". For a packet that was denied
	// by its address it is "tcp", "udp", "icmp", or "ip" for any other protocol.
	Protocol string `json:"protocol"`
	Reason   string `json:"reason"`
	Domain   string `json:"domain,omitempty"`
	// Destination is the address and port that the sandbox connected to, Upstream
	// those that the proxy connected to.
	Destination string `json:"destination,omitempty"`
	Upstream    string `json:"upstream,omitempty"`
	// End marks the end of a connection or request that was allowed before. Only then
	// are the byte counts and the duration set.
	End      bool     `json:"end,omitempty"`
	BytesIn  int64    `json:"bytesIn,omitempty"`
	BytesOut int64    `json:"bytesOut,omitempty"`
	Duration Duration `json:"durationMs,omitempty"`
	// Suppressed is the number of events before this one that were dropped, because
	// there were too many.
	Suppressed int64 `json:"suppressed,omitempty"`
}

// NeedsAuthority reports whether the sandbox must trust the installation's certificate
// authority, because the proxy terminates TLS.
func (p *NetworkPolicy) NeedsAuthority() bool {
	return slices.ContainsFunc(p.Domains, func(d DomainRules) bool { return d.NeedsTLS() })
}
