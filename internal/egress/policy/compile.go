package policy

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Compiled decides by a policy. It does not change and may be shared.
type Compiled struct {
	mode            Mode
	allowed, denied ranges
	domains         trie
}

// Site is the domain pattern that counts for a name.
type Site struct {
	// Pattern is as it is compared, see Normalize.
	Pattern string
	rules   []*Action
	// paths and queries tell that a rule looks at the path or at the query.
	paths, queries bool
}

// Action is a rule, checked. Exactly one of its fields is set.
type Action struct {
	// SetHeaders are those of transforms, by canonical name.
	SetHeaders map[string]string
	ForwardURL *url.URL
	Response   *Response

	match *match
}

// Verdict is what CIDRs say of an address.
type Verdict int

const (
	// ByName means that the domains decide.
	ByName Verdict = iota
	Denied
	Allowed
)

// Compile checks a policy and makes it quick to decide by. Its errors are
// *Error.
func Compile(p Policy) (*Compiled, error) {
	c := &Compiled{mode: p.Mode}
	switch {
	case p.Mode != DenyAll && p.Mode != AllowAll && p.Mode != Custom:
		return nil, errorf("mode", "there is no mode %d", p.Mode)
	case p.Mode != Custom && len(p.Domains)+len(p.AllowedCIDRs)+len(p.DeniedCIDRs) > 0:
		return nil, errorf("mode", "only a custom policy has domains and subnets")
	case len(p.Domains) > MaxDomains:
		return nil, errorf("allow", "%d domains are more than %d", len(p.Domains), MaxDomains)
	}
	var err error
	if c.allowed, err = compileCIDRs("subnets.allow", p.AllowedCIDRs); err != nil {
		return nil, err
	}
	if c.denied, err = compileCIDRs("subnets.deny", p.DeniedCIDRs); err != nil {
		return nil, err
	}
	for _, d := range p.Domains {
		if err := c.add(d); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func compileCIDRs(field string, list []netip.Prefix) (ranges, error) {
	if len(list) > MaxCIDRs {
		return nil, errorf(field, "%d are more than %d", len(list), MaxCIDRs)
	}
	for i, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, errorf(fmt.Sprintf("%s[%d]", field, i), "no valid CIDR")
		}
	}
	return newRanges(list), nil
}

func (c *Compiled) add(d Domain) error {
	field := fmt.Sprintf("allow[%q]", clip(d.Pattern))
	pattern, err := normalize(d.Pattern, true)
	if err != nil {
		return errorf(field, "%v", err)
	}
	slot := c.domains.slot(pattern)
	if *slot != nil {
		return errorf(field, "the domain is there twice")
	}
	if len(d.Rules) > MaxRules {
		return errorf(field, "%d rules are more than %d", len(d.Rules), MaxRules)
	}
	s := &Site{Pattern: pattern}
	for i, r := range d.Rules {
		a, err := compileRule(fmt.Sprintf("%s[%d]", field, i), r)
		if err != nil {
			return err
		}
		s.rules = append(s.rules, a)
		if a.match != nil {
			s.paths = s.paths || a.match.path != nil
			s.queries = s.queries || len(a.match.query) > 0
		}
	}
	*slot = s
	return nil
}

func clip(s string) string {
	if len(s) > 2*maxName {
		return s[:2*maxName] + "…"
	}
	return s
}

func compileRule(field string, r Rule) (a *Action, err error) {
	a = &Action{}
	actions := 0
	if r.Transform != nil {
		actions++
		a.SetHeaders, err = compileTransform(field+".transform", r.Transform)
	}
	if r.ForwardURL != "" && err == nil {
		actions++
		a.ForwardURL, err = compileForward(field+".forwardURL", r.ForwardURL)
	}
	if r.Response != nil && err == nil {
		actions++
		a.Response, err = compileResponse(field+".response", *r.Response)
	}
	if err != nil {
		return nil, err
	}
	if actions != 1 {
		return nil, errorf(field, "a rule has exactly one of transform, forwardURL and response, not %d", actions)
	}
	if r.Match != nil {
		if a.match, err = compileMatch(field+".match", *r.Match); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func compileTransform(field string, list []Transform) (map[string]string, error) {
	all := map[string]string{}
	for i, t := range list {
		h, err := compileHeaders(fmt.Sprintf("%s[%d].headers", field, i), t.Headers)
		if err != nil {
			return nil, err
		}
		for k, v := range h {
			all[k] = v
		}
	}
	if len(all) == 0 {
		return nil, errorf(field, "sets no header")
	}
	return all, nil
}

// managed are the headers that the proxy itself is responsible for: they say
// where a message ends, what a connection is, or which site is asked.
var managed = map[string]bool{
	"Host": true, "Connection": true, "Content-Length": true, "Transfer-Encoding": true, "Keep-Alive": true,
	"Upgrade": true, "Te": true, "Trailer": true, "Proxy-Connection": true, "Expect": true, "Http2-Settings": true,
}

// compileHeaders never puts a value into an error: it may be a secret.
func compileHeaders(field string, headers map[string]string) (map[string]string, error) {
	if len(headers) > MaxHeaders {
		return nil, errorf(field, "%d are more than %d", len(headers), MaxHeaders)
	}
	out := map[string]string{}
	for k, v := range headers {
		name := http.CanonicalHeaderKey(k)
		switch place := fmt.Sprintf("%s[%q]", field, clip(k)); {
		case len(k)+len(v) > MaxHeaderBytes:
			return nil, errorf(place, "longer than %d bytes", MaxHeaderBytes)
		case !httpguts.ValidHeaderFieldName(k):
			return nil, errorf(place, "no valid header name")
		case !httpguts.ValidHeaderFieldValue(v):
			return nil, errorf(place, "no valid header value")
		case managed[name] || strings.HasPrefix(name, "Vercel-Forwarded-") || name == "Vercel-Sandbox-Oidc-Token":
			return nil, errorf(place, "the proxy sets this header itself")
		}
		if _, twice := out[name]; twice {
			return nil, errorf(field, "the header %s is there twice", name)
		}
		out[name] = strings.TrimSpace(v)
	}
	return out, nil
}

func compileForward(field, s string) (*url.URL, error) {
	if len(s) > MaxPatternBytes {
		return nil, errorf(field, "longer than %d bytes", MaxPatternBytes)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errorf(field, "no valid URL")
	case u.Scheme != "https":
		return nil, errorf(field, "must be an https URL")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return nil, errorf(field, "must have no user, query or fragment")
	}
	host, err := Normalize(u.Hostname())
	if err != nil {
		return nil, errorf(field, "%v", err)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errorf(field, "no valid port")
		}
		if port != "443" {
			host += ":" + port
		}
	}
	u.Host = host
	if hasDotSegment(u.Path) {
		return nil, errorf(field, `the path must have no "." or ".." in it`)
	}
	return u, nil
}

func compileResponse(field string, r Response) (*Response, error) {
	headers, err := compileHeaders(field+".headers", r.Headers)
	if err != nil {
		return nil, err
	}
	bodiless := r.StatusCode == 204 || r.StatusCode == 205 || r.StatusCode == 304
	switch {
	case r.StatusCode < 200 || r.StatusCode > 599:
		return nil, errorf(field+".statusCode", "must be 200 to 599")
	case len(r.Body) > MaxBodyBytes:
		return nil, errorf(field+".body", "longer than %d bytes", MaxBodyBytes)
	case r.Body != "" && bodiless:
		return nil, errorf(field+".body", "a response %d has no body", r.StatusCode)
	case r.Body != "" && r.ContentType == "":
		return nil, errorf(field+".contentType", "must be set when there is a body")
	case !httpguts.ValidHeaderFieldValue(r.ContentType) || len(r.ContentType) > MaxHeaderBytes:
		return nil, errorf(field+".contentType", "no valid header value")
	}
	r.Headers = headers
	return &r, nil
}

func compileMatch(field string, m Match) (*match, error) {
	out := &match{}
	var err error
	if m.Path != nil {
		if out.path, err = compileMatcher(field+".path", *m.Path); err != nil {
			return nil, err
		}
	}
	if len(m.Method) > MaxMatchers {
		return nil, errorf(field+".method", "%d are more than %d", len(m.Method), MaxMatchers)
	}
	for i, s := range m.Method {
		if !httpguts.ValidHeaderFieldName(s) || len(s) > 64 {
			return nil, errorf(fmt.Sprintf("%s.method[%d]", field, i), "no valid method")
		}
		out.method = append(out.method, strings.ToUpper(s))
	}
	if out.query, err = compileKeyValues(field+".queryString", m.QueryString, false); err != nil {
		return nil, err
	}
	if out.headers, err = compileKeyValues(field+".headers", m.Headers, true); err != nil {
		return nil, err
	}
	return out, nil
}

func compileKeyValues(field string, list []KeyValue, lowerKeys bool) (out []keyValue, err error) {
	if len(list) > MaxMatchers {
		return nil, errorf(field, "%d are more than %d", len(list), MaxMatchers)
	}
	for i, kv := range list {
		place := fmt.Sprintf("%s[%d]", field, i)
		if kv.Key == nil && kv.Value == nil {
			return nil, errorf(place, "has neither key nor value")
		}
		var c keyValue
		if kv.Key != nil {
			key := *kv.Key
			if lowerKeys {
				key = key.lower()
			}
			if c.key, err = compileMatcher(place+".key", key); err != nil {
				return nil, err
			}
		}
		if kv.Value != nil {
			if c.value, err = compileMatcher(place+".value", *kv.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// lower returns m for texts in lower case; a regular expression is told to
// take no notice of case.
func (m Matcher) lower() Matcher {
	low := func(s *string) *string {
		if s == nil {
			return nil
		}
		l := strings.ToLower(*s)
		return &l
	}
	out := Matcher{Exact: low(m.Exact), StartsWith: low(m.StartsWith)}
	if m.Regex != nil {
		r := "(?i:" + *m.Regex + ")"
		if _, err := regexp.Compile(*m.Regex); err != nil {
			r = *m.Regex // for the error
		}
		out.Regex = &r
	}
	return out
}

func compileMatcher(field string, m Matcher) (matcher, error) {
	set := 0
	var out matcher
	if m.Exact != nil {
		set++
		want := *m.Exact
		out = func(s string) bool { return s == want }
	}
	if m.StartsWith != nil {
		set++
		want := *m.StartsWith
		out = func(s string) bool { return strings.HasPrefix(s, want) }
	}
	if m.Regex != nil {
		set++
		if len(*m.Regex) > MaxPatternBytes {
			return nil, errorf(field+".regex", "longer than %d bytes", MaxPatternBytes)
		}
		re, err := regexp.Compile(*m.Regex)
		if err != nil {
			return nil, errorf(field+".regex", "%v", err)
		}
		out = re.MatchString
	}
	if set != 1 {
		return nil, errorf(field, "must have exactly one of exact, startsWith and regex, not %d", set)
	}
	return out, nil
}
