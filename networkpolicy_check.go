package skerry

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Check makes a policy that a client wrote canonical (domains in lower case and
// in order, networks without duplicates) or returns a bad_request Error that
// names the rule and the field at fault, below path.
func (p *NetworkPolicy) Check(path string) error {
	c := &policyChecker{path: path}
	switch p.Mode {
	case NetworkAllowAll, NetworkDenyAll:
		if len(p.Domains)+len(p.Allow)+len(p.Deny) > 0 {
			return c.bad("mode", "%q cannot be combined with allow or subnets", p.Mode)
		}
		return nil
	case NetworkCustom:
	default:
		return c.bad("mode", "must be allow-all or deny-all, or left out for a policy of allow and subnets")
	}
	if err := c.domains(p.Domains); err != nil {
		return err
	}
	slices.SortStableFunc(p.Domains, func(a, b DomainRules) int { return strings.Compare(a.Domain, b.Domain) })
	if err := c.networks("subnets.deny", p.Deny); err != nil {
		return err
	}
	if err := c.networks("subnets.allow", p.Allow); err != nil {
		return err
	}
	for i, a := range p.Allow {
		for j, d := range p.Deny {
			if d.Overlaps(a) && d.Bits() <= a.Bits() {
				return c.bad(at("subnets.allow", i), "%s has no effect: subnets.deny[%d] (%s) denies all of it", a, j, d)
			}
		}
	}
	if c.bytes > MaxPolicyBytes {
		return c.bad("", "the policy has more than %d bytes", MaxPolicyBytes)
	}
	return nil
}

// ParseCIDR reads a network such as 10.0.0.0/8.
func ParseCIDR(field, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			return p, Invalid(field, "%q is an address, not a network; write %s/%d", s, a, a.BitLen())
		}
		return p, Invalid(field, "%q is not a network in CIDR notation, such as 10.0.0.0/8", short(s))
	}
	if p.Addr().Is4In6() {
		return p, Invalid(field, "%q is an IPv4 network in IPv6 notation; write it as IPv4", s)
	}
	if p != p.Masked() {
		return p, Invalid(field, "%q has bits beyond its prefix; write %s", s, p.Masked())
	}
	return p, nil
}

// ParseDomain returns a domain or a pattern of domains in its canonical form.
func ParseDomain(field, s string) (string, error) {
	d := strings.ToLower(strings.TrimSuffix(s, "."))
	bad := func(format string, args ...any) (string, error) {
		return "", Invalid(field, "%q is not a domain: "+format, append([]any{short(s)}, args...)...)
	}
	if d == "" || len(d) > MaxDomainLength {
		return bad("it must have 1 to %d characters", MaxDomainLength)
	}
	if strings.Contains(s, "://") || strings.ContainsAny(s, "/:@?#") {
		return bad("write the host alone, without a scheme, a port or a path")
	}
	if _, err := netip.ParseAddr(d); err == nil {
		return bad("addresses belong in subnets.allow")
	}
	labels := strings.Split(d, ".")
	for _, l := range labels {
		if l == "*" {
			continue
		}
		if strings.Contains(l, "*") {
			return bad("* must be a whole label, as in *.example.com")
		}
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return bad("a label must have 1 to 63 characters and not begin or end with a hyphen")
		}
		for _, r := range l {
			if r > 0x7f {
				return bad("write labels that are not ASCII in their xn-- form")
			}
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", r) {
				return bad("a label has letters, digits and hyphens")
			}
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return bad("the last label cannot be a number")
	}
	return d, nil
}

type policyChecker struct {
	path  string
	bytes int
}

// field is the full name of a field of the policy.
func (c *policyChecker) field(name string) string {
	switch {
	case c.path == "":
		return name
	case name == "":
		return c.path
	}
	return c.path + "." + name
}

func (c *policyChecker) bad(name, format string, args ...any) error {
	return Invalid(c.field(name), format, args...)
}

func at(name string, i int) string { return fmt.Sprintf("%s[%d]", name, i) }

func short(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

func (c *policyChecker) domains(list []DomainRules) error {
	if len(list) > MaxPolicyDomains {
		return c.bad("allow", "has %d domains, more than %d", len(list), MaxPolicyDomains)
	}
	seen := map[string]bool{}
	for i := range list {
		d := &list[i]
		name := "allow." + short(d.Domain)
		canonical, err := ParseDomain(c.field(name), d.Domain)
		if err != nil {
			return err
		}
		if seen[canonical] {
			return c.bad(name, "is there twice")
		}
		seen[canonical] = true
		d.Domain = canonical
		c.bytes += len(canonical)
		if err := c.rulesOf(name, d.Rules); err != nil {
			return err
		}
	}
	return nil
}

func (c *policyChecker) rulesOf(name string, rules []NetworkRule) error {
	if len(rules) > MaxDomainRules {
		return c.bad(name, "has %d rules, more than %d", len(rules), MaxDomainRules)
	}
	matches := map[string]int{}
	for i := range rules {
		if err := c.rule(at(name, i), &rules[i]); err != nil {
			return err
		}
		key := rules[i].Match.key()
		for _, before := range []string{"", key} {
			if j, ok := matches[before]; ok {
				return c.bad(at(name, i), "is never reached: every request that it matches is matched by rule [%d] before", j)
			}
		}
		matches[key] = i
	}
	return nil
}

func (c *policyChecker) rule(name string, r *NetworkRule) error {
	actions := 0
	for _, given := range []bool{r.Transform != nil, r.ForwardURL != "", r.Response != nil} {
		if given {
			actions++
		}
	}
	if actions != 1 {
		return c.bad(name, "must have exactly one of transform, forwardURL and response, has %d", actions)
	}
	if err := c.match(name+".match", r.Match); err != nil {
		return err
	}
	switch {
	case r.ForwardURL != "":
		return c.forwardURL(name+".forwardURL", r.ForwardURL)
	case r.Response != nil:
		return c.response(name+".response", r.Response)
	}
	if len(r.Transform) > MaxRuleHeaders {
		return c.bad(name+".transform", "has %d entries, more than %d", len(r.Transform), MaxRuleHeaders)
	}
	for i, t := range r.Transform {
		if err := c.headers(at(name+".transform", i)+".headers", t.Headers, unsettable); err != nil {
			return err
		}
	}
	return nil
}

// unsettable are the headers that a transform cannot set: those that are about
// one connection or about where the body ends, and the one that says whom the
// request is for, which the policy's domain does.
var unsettable = []string{
	"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization",
	"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

// managed are the headers that a response cannot set.
var managed = []string{"connection", "content-length", "keep-alive", "proxy-connection", "trailer", "transfer-encoding", "upgrade"}

func (c *policyChecker) headers(name string, headers map[string]string, refused []string) error {
	if len(headers) > MaxRuleHeaders {
		return c.bad(name, "has %d headers, more than %d", len(headers), MaxRuleHeaders)
	}
	seen := map[string]bool{}
	for header, value := range headers {
		lower := strings.ToLower(header)
		field := name + "." + short(header)
		switch {
		case !isToken(header) || len(header) > 256:
			return c.bad(field, "is not the name of a header")
		case slices.Contains(refused, lower):
			return c.bad(field, "cannot be set: the proxy sets it")
		case seen[lower]:
			return c.bad(field, "is there twice, in different cases")
		case len(value) > MaxHeaderValue:
			return c.bad(field, "is longer than %d bytes", MaxHeaderValue)
		case !isHeaderValue(value):
			return c.bad(field, "holds a character that no header can")
		}
		seen[lower] = true
		c.bytes += len(header) + len(value)
	}
	return nil
}

// isToken reports whether s is a token of RFC 9110.
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r > 0x7e || r <= ' ' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}) < 0
}

func isHeaderValue(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

func (c *policyChecker) forwardURL(name, s string) error {
	c.bytes += len(s)
	if len(s) > MaxPattern {
		return c.bad(name, "is longer than %d bytes", MaxPattern)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return c.bad(name, "is not a URL")
	case u.Scheme != "https":
		return c.bad(name, "must be an https URL")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#"):
		return c.bad(name, "must have no query and no fragment")
	case u.User != nil:
		return c.bad(name, "must have no user")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return c.bad(name, "has a port that is none")
		}
	}
	return nil
}

func (c *policyChecker) response(name string, r *RuleResponse) error {
	if r.StatusCode < 200 || r.StatusCode > 599 {
		return c.bad(name+".statusCode", "must be 200 to 599, is %d", r.StatusCode)
	}
	if err := c.headers(name+".headers", r.Headers, managed); err != nil {
		return err
	}
	if len(r.ContentType) > 256 || !isHeaderValue(r.ContentType) {
		return c.bad(name+".contentType", "is not a content type")
	}
	if r.Body == nil {
		return nil
	}
	c.bytes += len(*r.Body)
	switch {
	case len(*r.Body) > MaxRuleBody:
		return c.bad(name+".body", "is longer than %d bytes", MaxRuleBody)
	case r.ContentType == "":
		return c.bad(name+".contentType", "is required with a body")
	case r.StatusCode == 204 || r.StatusCode == 205 || r.StatusCode == 304:
		return c.bad(name+".body", "cannot be sent with status %d", r.StatusCode)
	}
	return nil
}

func (c *policyChecker) match(name string, m *RequestMatch) error {
	if m == nil {
		return nil
	}
	if err := c.matcher(name+".path", m.Path); err != nil {
		return err
	}
	if len(m.Method) > MaxRuleHeaders {
		return c.bad(name+".method", "has %d methods, more than %d", len(m.Method), MaxRuleHeaders)
	}
	for i, method := range m.Method {
		if !isToken(method) || len(method) > 64 {
			return c.bad(at(name+".method", i), "is not an HTTP method")
		}
		m.Method[i] = strings.ToUpper(method)
		c.bytes += len(method)
	}
	for _, part := range []struct {
		name string
		list []PairMatcher
	}{{name + ".queryString", m.QueryString}, {name + ".headers", m.Headers}} {
		if len(part.list) > MaxRuleHeaders {
			return c.bad(part.name, "has %d entries, more than %d", len(part.list), MaxRuleHeaders)
		}
		for i, pair := range part.list {
			field := at(part.name, i)
			if pair.Key == nil && pair.Value == nil {
				return c.bad(field, "needs key or value")
			}
			if err := c.matcher(field+".key", pair.Key); err != nil {
				return err
			}
			if err := c.matcher(field+".value", pair.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *policyChecker) matcher(name string, m *Matcher) error {
	if m == nil {
		return nil
	}
	ways := 0
	for _, s := range []*string{m.Exact, m.StartsWith, m.Regex} {
		if s == nil {
			continue
		}
		ways++
		c.bytes += len(*s)
		if len(*s) > MaxPattern {
			return c.bad(name, "is longer than %d bytes", MaxPattern)
		}
	}
	if ways != 1 {
		return c.bad(name, "must have exactly one of exact, startsWith and regex, has %d", ways)
	}
	if m.Regex != nil {
		if _, err := regexp.Compile(*m.Regex); err != nil {
			return c.bad(name+".regex", "is not an RE2 expression: %s", short(strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
		}
	}
	return nil
}

// key is equal for matches that match the same; "" for every request.
func (m *RequestMatch) key() string {
	if m == nil {
		return ""
	}
	var b strings.Builder
	write := func(what string, m *Matcher) {
		if m == nil {
			return
		}
		for i, s := range []*string{m.Exact, m.StartsWith, m.Regex} {
			if s != nil {
				fmt.Fprintf(&b, "%s%d%q", what, i, *s)
			}
		}
	}
	write("path", m.Path)
	for _, method := range slices.Sorted(slices.Values(m.Method)) {
		fmt.Fprintf(&b, "method%q", method)
	}
	for i, list := range [][]PairMatcher{m.QueryString, m.Headers} {
		for _, p := range list {
			fmt.Fprintf(&b, "pair%d", i)
			write("key", p.Key)
			write("value", p.Value)
		}
	}
	return b.String()
}

// networks checks a list of networks; each must be there for something.
func (c *policyChecker) networks(name string, list []netip.Prefix) error {
	if len(list) > MaxPolicyCIDRs {
		return c.bad(name, "has %d networks, more than %d", len(list), MaxPolicyCIDRs)
	}
	for i, p := range list {
		for j, q := range list[:i] {
			if p == q {
				return c.bad(at(name, i), "%s is there twice, as [%d] too", p, j)
			}
			if p.Overlaps(q) {
				return c.bad(at(name, i), "%s overlaps [%d], which is %s", p, j, q)
			}
		}
	}
	return nil
}
