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

// Echoes reports whether a method has the server answer with the request itself, and
// so with headers that a rule sets.
func (s *Site) Echoes(method string) bool {
	return s.sets && (strings.EqualFold(method, http.MethodTrace) || strings.EqualFold(method, "TRACK") || strings.EqualFold(method, "DEBUG"))
}

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

// action returns the first rule that matches a request with a reading of its path
// and query, or nil. Loosely, the letter case of the path and of the query's keys
// makes no difference, nor does a slash at the end of the path.
func (s *Site) action(r *http.Request, path string, query url.Values, loosely bool) *Action {
	for _, a := range s.rules {
		if a.match == nil || a.match.fulfilled(r, path, query, loosely) {
			return a
		}
	}
	return nil
}

type (
	match struct {
		path, loosePath matcher
		method          []string
		query, headers  []keyValue
	}
	keyValue struct{ key, looseKey, value matcher }
	// matcher is nil where every text matches.
	matcher func(string) bool
)

func (m *match) fulfilled(r *http.Request, path string, query url.Values, loosely bool) bool {
	matches := m.path
	if loosely {
		matches = m.loosePath
	}
	if matches != nil && !matches(path) {
		return false
	}
	if len(m.method) > 0 && !slices.Contains(m.method, strings.ToUpper(r.Method)) {
		return false
	}
	key := func(k string) string { return k }
	if loosely {
		key = strings.ToLower
	}
	for _, kv := range m.query {
		if loosely {
			kv.key = kv.looseKey
		}
		if !kv.matchesOne(query, key) {
			return false
		}
	}
	for _, kv := range m.headers {
		host := http.Header{"host": {r.Host}}
		if !kv.matchesOne(r.Header, strings.ToLower) && !kv.matchesOne(r.Header, dashed) && !kv.matchesOne(host, strings.ToLower) {
			return false
		}
	}
	return true
}

// dashed is how a server that does not tell "_" from "-" reads a header's name.
func dashed(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

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
