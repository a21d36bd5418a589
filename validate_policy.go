package skerry

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// Validate rewrites a policy in canonical form (domains and methods in one case),
// or returns a bad_request Error that names the rule and the field at fault, below
// path.
func (p *NetworkPolicy) Validate(path string) error {
	c := &policyChecker{path: path}
	switch p.Mode {
	case NetworkAllowAll, NetworkDenyAll:
		if len(p.Domains)+len(p.Allow)+len(p.Deny) > 0 {
			return c.bad("mode", "%q cannot be combined with allow or subnets", p.Mode)
		}
		return nil
	case NetworkCustom:
	default:
		return c.bad("mode", "must be allow-all or deny-all; leave it out for a policy with allow or subnets")
	}
	if err := c.domains(p.Domains); err != nil {
		return err
	}
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
		return c.bad("", "the policy must have at most %d bytes in total", MaxPolicyBytes)
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
		return p, Invalid(field, "%q has bits set after its prefix; write %s", s, p.Masked())
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
		return bad("write only the host, without a scheme, a port or a path")
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
			return bad("* must stand for a whole label, as in *.example.com")
		}
		if l == "" || len(l) > MaxLabelLength || l[0] == '-' || l[len(l)-1] == '-' {
			return bad("a label must have 1 to %d characters and not begin or end with a hyphen", MaxLabelLength)
		}
		for _, r := range l {
			if r > 0x7f {
				return bad("write labels with non-ASCII characters in their xn-- form")
			}
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", r) {
				return bad("a label may contain only letters, digits and hyphens")
			}
		}
	}
	if AddressLabel(labels[len(labels)-1]) {
		return bad("the last label cannot be a number")
	}
	return d, nil
}

// AddressLabel reports whether a name with this last label, in lower case, could be
// taken for an IPv4 address: some programs read 0x7f.1 as 127.0.0.1.
func AddressLabel(last string) bool {
	digits, hex := strings.CutPrefix(last, "0x")
	return strings.IndexFunc(digits, func(r rune) bool { return (r < '0' || r > '9') && (!hex || r < 'a' || r > 'f') }) < 0
}

type policyChecker struct {
	path  string
	bytes int
	// regex is the size of the regular expressions of the present domain.
	regex int
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

func short(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

func (c *policyChecker) domains(list []DomainRules) error {
	if len(list) > MaxPolicyDomains {
		return c.bad("allow", "must have at most %d domains, has %d", MaxPolicyDomains, len(list))
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
			return c.bad(name, "is listed twice")
		}
		seen[canonical] = true
		if d.Domain != canonical { // a policy that was validated is shared
			d.Domain = canonical
		}
		c.bytes += len(canonical)
		if err := c.rulesOf(name, d.Rules); err != nil {
			return err
		}
	}
	return nil
}

func (c *policyChecker) rulesOf(name string, rules []NetworkRule) error {
	if len(rules) > MaxDomainRules {
		return c.bad(name, "must have at most %d rules, has %d", MaxDomainRules, len(rules))
	}
	c.regex = 0
	matches := map[string]int{}
	for i := range rules {
		if err := c.rule(at(name, i), &rules[i]); err != nil {
			return err
		}
		key := rules[i].Match.key()
		for _, before := range []string{"", key} {
			if j, ok := matches[before]; ok {
				return c.bad(at(name, i), "is never used: the earlier rule [%d] matches every request that this one matches", j)
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
		return c.bad(name+".transform", "must have at most %d entries, has %d", MaxRuleHeaders, len(r.Transform))
	}
	for i, t := range r.Transform {
		if err := c.headers(at(name+".transform", i)+".headers", t.Headers, unsettable); err != nil {
			return err
		}
	}
	return nil
}

// managed are the headers that no rule can set, because the proxy does: they are
// about one connection, about where a message ends, or about whom a request is for.
// With forwardURL it also tells the other proxy what it forwards, see isManaged.
var managed = []string{
	"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

// unsettable are further headers, which a transform cannot set: they are for a
// proxy that the client itself has chosen.
var unsettable = []string{"proxy-authenticate", "proxy-authorization"}

// isManaged reports whether the proxy sets a header, whose name is in lower case.
func isManaged(header string) bool {
	return slices.Contains(managed, header) || strings.HasPrefix(header, "vercel-forwarded-") || header == "vercel-sandbox-oidc-token"
}

func (c *policyChecker) headers(name string, headers map[string]string, refused []string) error {
	if len(headers) > MaxRuleHeaders {
		return c.bad(name, "must have at most %d headers, has %d", MaxRuleHeaders, len(headers))
	}
	seen := map[string]bool{}
	for header, value := range headers {
		lower := strings.ToLower(header)
		field := name + "." + short(header)
		switch {
		case !isToken(header) || len(header) > 256:
			return c.bad(field, "is not a valid header name")
		case isManaged(lower), slices.Contains(refused, lower):
			return c.bad(field, "cannot be set: the proxy sets it")
		case seen[lower]:
			return c.bad(field, "is listed twice: header names are not case-sensitive")
		case len(value) > MaxHeaderValue:
			return c.bad(field, "must have at most %d bytes", MaxHeaderValue)
		case !isHeaderValue(value):
			return c.bad(field, "contains a character that is not allowed in a header")
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
		return c.bad(name, "must have at most %d bytes", MaxPattern)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return c.bad(name, "is not a URL")
	case HasDotSegment(u.Path):
		return c.bad(name, `the path must not contain "." or ".."`)
	case u.Scheme != "https":
		return c.bad(name, "must be an https URL")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#"):
		return c.bad(name, "must not have a query or a fragment")
	case u.User != nil:
		return c.bad(name, "must not have a user or password")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return c.bad(name, "has an invalid port: it must be 1 to 65535")
		}
	}
	if host := u.Hostname(); strings.Contains(host, "*") {
		return c.bad(name, "must have the name of one host")
	} else if _, err := ParseDomain(c.field(name), host); err != nil {
		return err
	}
	return nil
}

// HasDotSegment reports whether a server could read a path as one that leads
// elsewhere: some take a backslash for a slash, or cut parameters off a segment.
func HasDotSegment(path string) bool {
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

func (c *policyChecker) response(name string, r *RuleResponse) error {
	if r.StatusCode < 200 || r.StatusCode > 599 {
		return c.bad(name+".statusCode", "must be from 200 to 599, is %d", r.StatusCode)
	}
	if err := c.headers(name+".headers", r.Headers, nil); err != nil {
		return err
	}
	if len(r.ContentType) > 256 || !isHeaderValue(r.ContentType) {
		return c.bad(name+".contentType", "is not a valid content type")
	}
	if r.Body == nil {
		return nil
	}
	c.bytes += len(*r.Body)
	switch {
	case len(*r.Body) > MaxRuleBody:
		return c.bad(name+".body", "must have at most %d bytes", MaxRuleBody)
	case r.ContentType == "":
		return c.bad(name+".contentType", "is required if there is a body")
	case r.StatusCode == 204 || r.StatusCode == 205 || r.StatusCode == 304:
		return c.bad(name+".body", "must be left out: a response with status %d has no body", r.StatusCode)
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
		return c.bad(name+".method", "must have at most %d methods, has %d", MaxRuleHeaders, len(m.Method))
	}
	for i, method := range m.Method {
		if !isToken(method) || len(method) > 64 {
			return c.bad(at(name+".method", i), "is not an HTTP method")
		}
		if upper := strings.ToUpper(method); method != upper {
			m.Method[i] = upper
		}
		c.bytes += len(method)
	}
	for _, part := range []struct {
		name string
		list []PairMatcher
	}{{name + ".queryString", m.QueryString}, {name + ".headers", m.Headers}} {
		if len(part.list) > MaxRuleHeaders {
			return c.bad(part.name, "must have at most %d entries, has %d", MaxRuleHeaders, len(part.list))
		}
		for i, pair := range part.list {
			field := at(part.name, i)
			if pair.Key == nil && pair.Value == nil {
				return c.bad(field, "must have key or value, or both")
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
			return c.bad(name, "must have at most %d bytes", MaxPattern)
		}
	}
	if ways != 1 {
		return c.bad(name, "must have exactly one of exact, startsWith and regex, has %d", ways)
	}
	if m.Regex != nil {
		size, err := regexSize(*m.Regex)
		if err != nil {
			return c.bad(name+".regex", "is not a valid RE2 expression: %s", short(strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
		}
		if c.regex += size; c.regex > MaxRegexSize {
			return c.bad(name+".regex", "the regular expressions of this domain are too large: at most %d instructions are allowed, and there are %d up to here; use fewer and shorter repetitions",
				MaxRegexSize, c.regex)
		}
	}
	return nil
}

// regexSize is the number of instructions of an expression's program.
func regexSize(expr string) (int, error) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return 0, err
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, err
	}
	return len(prog.Inst), nil
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
		return c.bad(name, "must have at most %d networks, has %d", MaxPolicyCIDRs, len(list))
	}
	for i, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			return c.bad(at(name, i), "%s is not a network in canonical form, see ParseCIDR", p)
		}
		for j, q := range list[:i] {
			if p == q {
				return c.bad(at(name, i), "%s is listed twice, also as [%d]", p, j)
			}
			if p.Overlaps(q) {
				return c.bad(at(name, i), "%s overlaps [%d], which is %s", p, j, q)
			}
		}
	}
	return nil
}
