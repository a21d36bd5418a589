package policy

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Mode returns the policy's mode.
func (c *Compiled) Mode() Mode { return c.mode }

// Address says what the mode and the CIDRs say of a destination.
func (c *Compiled) Address(a netip.Addr) Verdict {
	a = a.Unmap()
	switch {
	case c.mode == AllowAll:
		return Allowed
	case c.mode != Custom || c.denied.contain(a):
		return Denied
	case c.allowed.contain(a):
		return Allowed
	}
	return ByName
}

// Site returns what counts for a normalized name, or nil if it is not allowed.
// Of an AllowAll policy every name is.
func (c *Compiled) Site(name string) *Site {
	switch c.mode {
	case AllowAll:
		return &everything
	case Custom:
		return c.domains.find(name)
	}
	return nil
}

var everything = Site{Pattern: "*"}

// HasRules reports whether there is something to do to the site's requests.
func (s *Site) HasRules() bool { return len(s.rules) > 0 }

// ForwardsTo reports whether a rule of the site forwards requests to a URL.
func (s *Site) ForwardsTo(u *url.URL) bool {
	return slices.ContainsFunc(s.rules, func(a *Action) bool { return a.ForwardURL != nil && *a.ForwardURL == *u })
}

// NeedsUpstream reports whether a request can be sent to the site itself.
func (s *Site) NeedsUpstream() bool {
	for _, a := range s.rules {
		if a.SetHeaders != nil {
			return true
		}
		if a.match == nil {
			return false
		}
	}
	return true
}

// Ambiguous reports whether rules of the site look at a path or query that a
// server may take for another: one with "." or ".." in it, or one that is
// malformed. Such a request must be refused.
func (s *Site) Ambiguous(u *url.URL) bool {
	if s.paths && hasDotSegment(u.Path) {
		return true
	}
	if s.queries {
		_, err := url.ParseQuery(u.RawQuery)
		return err != nil
	}
	return false
}

func hasDotSegment(path string) bool {
	if !strings.Contains(path, ".") {
		return false
	}
	for seg := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		// Some servers cut parameters off a segment first.
		seg, _, _ = strings.Cut(seg, ";")
		if seg == "." || seg == ".." {
			return true
		}
	}
	return false
}

// Action returns the first rule that matches a request, as a server got it, or
// nil.
func (s *Site) Action(r *http.Request) *Action {
	var query url.Values // parsed when first needed
	for _, a := range s.rules {
		if a.match == nil {
			return a
		}
		if len(a.match.query) > 0 && query == nil {
			query, _ = url.ParseQuery(r.URL.RawQuery)
			if query == nil {
				query = url.Values{}
			}
		}
		if a.match.fulfilled(r, query) {
			return a
		}
	}
	return nil
}

type (
	match struct {
		path           matcher
		method         []string
		query, headers []keyValue
	}
	keyValue struct{ key, value matcher }
	// matcher is nil where every text matches.
	matcher func(string) bool
)

func (m *match) fulfilled(r *http.Request, query url.Values) bool {
	if m.path != nil && !m.path(r.URL.Path) {
		return false
	}
	if len(m.method) > 0 && !slices.Contains(m.method, strings.ToUpper(r.Method)) {
		return false
	}
	for _, kv := range m.query {
		if !kv.matchesOne(query, func(k string) string { return k }) {
			return false
		}
	}
	for _, kv := range m.headers {
		host := http.Header{"host": {r.Host}}
		if !kv.matchesOne(r.Header, strings.ToLower) && !kv.matchesOne(host, strings.ToLower) {
			return false
		}
	}
	return true
}

func (kv keyValue) matchesOne(entries map[string][]string, key func(string) string) bool {
	for k, values := range entries {
		if kv.key != nil && !kv.key(key(k)) {
			continue
		}
		if kv.value == nil {
			return true
		}
		if slices.ContainsFunc(values, kv.value) {
			return true
		}
	}
	return false
}
