package policy

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"
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
	// paths, queries and methods tell that a rule looks at that, forwards that one
	// appends the path to its own, sets that one sets headers.
	paths, queries, methods, forwards, sets bool
}

// Action is what a rule does. Exactly one of its fields is set.
type Action struct {
	// SetHeaders are those of transforms, by canonical name. It may be empty: the
	// request passes as it is.
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

// Compile makes a policy quick to decide by. It relies on
// skerry.NetworkPolicy.Validate: limits, names of domains and what a rule may do
// are not checked again. Its errors are *Error, about text that cannot be parsed.
func Compile(p Policy) (*Compiled, error) {
	c := &Compiled{mode: p.Mode, allowed: newRanges(p.AllowedCIDRs), denied: newRanges(p.DeniedCIDRs)}
	for _, d := range p.Domains {
		if err := c.add(d); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Compiled) add(d Domain) error {
	field := fmt.Sprintf("allow[%q]", d.Pattern)
	pattern, err := normalize(d.Pattern, true)
	if err != nil {
		return errorf(field, "%v", err)
	}
	slot := c.domains.slot(pattern)
	if *slot != nil {
		return errorf(field, "the domain is listed twice")
	}
	s := &Site{Pattern: pattern}
	for i, r := range d.Rules {
		a, err := compileRule(fmt.Sprintf("%s[%d]", field, i), r)
		if err != nil {
			return err
		}
		s.rules = append(s.rules, a)
		s.forwards, s.sets = s.forwards || a.ForwardURL != nil, s.sets || len(a.SetHeaders) > 0
		if a.match != nil {
			s.paths = s.paths || a.match.path != nil
			s.queries = s.queries || len(a.match.query) > 0
			s.methods = s.methods || len(a.match.method) > 0
		}
	}
	*slot = s
	return nil
}

func compileRule(field string, r Rule) (a *Action, err error) {
	a = &Action{}
	switch {
	case r.Transform != nil:
		a.SetHeaders = map[string]string{}
		for _, t := range r.Transform {
			maps.Copy(a.SetHeaders, canonical(t.Headers))
		}
	case r.ForwardURL != "":
		if a.ForwardURL, err = compileForward(field+".forwardURL", r.ForwardURL); err != nil {
			return nil, err
		}
	case r.Response != nil:
		response := *r.Response
		response.Headers = canonical(response.Headers)
		a.Response = &response
	default:
		return nil, errorf(field, "must have one of transform, forwardURL and response")
	}
	if r.Match != nil {
		if a.match, err = compileMatch(field+".match", *r.Match); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// canonical returns headers by their canonical names.
func canonical(headers map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range headers {
		out[http.CanonicalHeaderKey(name)] = strings.TrimSpace(value)
	}
	return out
}

func compileForward(field, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errorf(field, "is not a URL")
	}
	host, err := Normalize(u.Hostname())
	if err != nil {
		return nil, errorf(field, "%v", err)
	}
	if port := u.Port(); port != "" && port != "443" {
		host += ":" + port
	}
	u.Host = host
	return u, nil
}

func compileMatch(field string, m Match) (*match, error) {
	out := &match{}
	var err error
	if m.Path != nil {
		if out.path, err = compileMatcher(field+".path", *m.Path); err != nil {
			return nil, err
		}
		if out.loosePath, err = compileLoosePath(field+".path", *m.Path, out.path); err != nil {
			return nil, err
		}
	}
	for _, method := range m.Method {
		out.method = append(out.method, strings.ToUpper(method))
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
	for i, kv := range list {
		place := fmt.Sprintf("%s[%d]", field, i)
		var c keyValue
		if kv.Key != nil {
			key := *kv.Key
			if lowerKeys {
				key = key.lower()
			}
			if c.key, err = compileMatcher(place+".key", key); err != nil {
				return nil, err
			}
			if c.looseKey, err = compileMatcher(place+".key", key.lower()); err != nil {
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
		r := "(?i)" + *m.Regex
		if _, err := regexp.Compile(*m.Regex); err != nil {
			r = *m.Regex // for the error
		}
		out.Regex = &r
	}
	return out
}

func compileMatcher(field string, m Matcher) (matcher, error) {
	switch {
	case m.Exact != nil:
		want := *m.Exact
		return func(s string) bool { return s == want }, nil
	case m.StartsWith != nil:
		want := *m.StartsWith
		return func(s string) bool { return strings.HasPrefix(s, want) }, nil
	case m.Regex != nil:
		re, err := regexp.Compile(*m.Regex)
		if err != nil {
			return nil, errorf(field+".regex", "%v", err)
		}
		return re.MatchString, nil
	}
	return nil, errorf(field, "must have one of exact, startsWith and regex")
}

// compileLoosePath returns a matcher that accepts, besides what the strict one of m
// does, the paths that differ from that in letter case or in a slash at the end.
func compileLoosePath(field string, m Matcher, strict matcher) (matcher, error) {
	switch {
	case m.Exact != nil:
		want := folded(withoutLastSlash(*m.Exact))
		return func(s string) bool { return folded(withoutLastSlash(s)) == want }, nil
	case m.StartsWith != nil:
		want := folded(*m.StartsWith)
		return func(s string) bool {
			s = folded(s)
			return strings.HasPrefix(s, want) || s+"/" == want
		}, nil
	}
	re, err := regexp.Compile("(?i)" + *m.Regex)
	if err != nil {
		return nil, errorf(field+".regex", "%v", err)
	}
	return func(s string) bool {
		bare := strings.TrimSuffix(s, "/")
		return strict(s) || re.MatchString(bare) || re.MatchString(bare+"/")
	}, nil
}
