package policy

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// maxOddPath is how long a path may be that has something in it that servers
// understand differently: each reading of it is judged.
const maxOddPath = 4 << 10

// maxReadings is how many readings of a request are judged. An honest one has a
// few; each costs a look at all rules.
const maxReadings = 12

// Choose returns the rule that a request falls under, or nil for none. It is not ok
// for a request of which a server may take the path or the query for another, that
// another rule is for: such a request must be refused. The path is judged as it came,
// and as servers read it that take "\" for "/", cut parameters off (";"), decode
// twice, join slashes, or keep "%2F" in a segment. Each of these readings is judged
// again without regard to letter case and to a slash at the end: Express and IIS route
// "/Admin/" as "/admin", and ASP.NET takes "?Project" for "?project".
func (s *Site) Choose(r *http.Request) (a *Action, ok bool) {
	paths, queries := []string{pathOf(r.URL)}, []url.Values{nil}
	if s.paths || s.forwards {
		if paths, ok = readPath(r.URL); !ok {
			return nil, false
		}
	}
	if s.queries {
		if queries, ok = readQuery(r.URL.RawQuery); !ok {
			return nil, false
		}
	}
	if len(paths)*len(queries) > maxReadings {
		return nil, false
	}
	for i, p := range paths {
		for j, q := range queries {
			choice := s.action(r, p, q, false)
			if i == 0 && j == 0 {
				a = choice
			}
			if choice != a || s.action(r, p, q, true) != a {
				return nil, false
			}
		}
	}
	return a, true
}

// pathOf is the path of a request, which is "/" for one without.
func pathOf(u *url.URL) string {
	if u.Path == "" {
		return "/"
	}
	return u.Path
}

// readPath returns the readings of a path, the usual one first. It is not ok if one
// of them leads elsewhere ("..") or is no text.
func readPath(u *url.URL) (readings []string, ok bool) {
	path := pathOf(u)
	if !odd(path) && !strings.Contains(u.EscapedPath(), "%") {
		return []string{path}, true
	}
	if len(path) > maxOddPath || !utf8.ValidString(path) || strings.ContainsFunc(path, unprintable) {
		return nil, false
	}
	steps := []func(string) string{decoded, slashed, withoutParameters, joined}
	for _, start := range []string{path, withEncodedSlashes(u)} {
		for choice := range 1 << len(steps) {
			reading := start
			for i, step := range steps {
				if choice>>i&1 == 1 {
					reading = step(reading)
				}
			}
			if skerry.HasDotSegment(reading) {
				return nil, false
			}
			if !slices.Contains(readings, reading) {
				readings = append(readings, reading)
			}
		}
	}
	return readings, true
}

// odd reports whether a decoded path has something that servers read differently.
func odd(path string) bool {
	return strings.ContainsAny(path, `\;%?#`) || strings.Contains(path, "//") || strings.Contains(path, "/.") || !utf8.ValidString(path) ||
		strings.ContainsFunc(path, unprintable)
}

func unprintable(c rune) bool { return c < ' ' || c == 0x7f }

func slashed(path string) string { return strings.ReplaceAll(path, `\`, "/") }

// decoded decodes what is encoded still; what cannot be stays.
func decoded(path string) string {
	if again, err := url.PathUnescape(path); err == nil {
		return again
	}
	return path
}

func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

func joined(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// folded has one letter for all that differ in case alone.
func folded(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}

// withoutLastSlash leaves "/" as it is.
func withoutLastSlash(path string) string {
	if len(path) > 1 {
		return strings.TrimSuffix(path, "/")
	}
	return path
}

// withEncodedSlashes decodes a path but for its slashes.
func withEncodedSlashes(u *url.URL) string {
	const slash = "%2F"
	raw := strings.ReplaceAll(u.EscapedPath(), "%2f", slash)
	parts := strings.Split(raw, slash)
	for i, p := range parts {
		parts[i] = decoded(p)
	}
	return strings.Join(parts, slash)
}

// readQuery returns the readings of a query: of a key that is there more than once,
// servers take all values, the first, or the last; some decode twice, or leave "+" as
// it is. It is not ok for a query that cannot be decoded, or has a key in two letter
// cases.
func readQuery(raw string) (readings []url.Values, ok bool) {
	usual, err := url.ParseQuery(raw)
	if err != nil {
		return nil, false
	}
	readings = []url.Values{usual}
	literal := usual
	if strings.Contains(raw, "+") {
		if literal, err = url.ParseQuery(strings.ReplaceAll(raw, "+", "%2B")); err != nil {
			return nil, false
		}
		readings = append(readings, literal)
	}
	if strings.Contains(strings.ToLower(raw), "%25") {
		for _, v := range readings {
			twice := url.Values{}
			for k, values := range v {
				for _, value := range values {
					twice.Add(decoded(k), decoded(value))
				}
			}
			readings = append(readings, twice)
		}
	}
	for _, v := range readings {
		cases := map[string]bool{}
		for k := range v {
			if cases[strings.ToLower(k)] {
				return nil, false
			}
			cases[strings.ToLower(k)] = true
		}
		repeated := false
		first, last := url.Values{}, url.Values{}
		for k, values := range v {
			repeated = repeated || len(values) > 1
			first[k], last[k] = values[:1], values[len(values)-1:]
		}
		if repeated {
			readings = append(readings, first, last)
		}
	}
	return readings, true
}

// Overrides are headers by which some servers take another method or path than the
// request's. They must not reach a site whose rules look at that.
func (s *Site) Overrides() (list []string) {
	if s.methods {
		list = append(list, "X-Http-Method", "X-Http-Method-Override", "X-Method-Override")
	}
	if s.paths || s.forwards {
		list = append(list, "X-Original-Url", "X-Rewrite-Url")
	}
	return list
}
