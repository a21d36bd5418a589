// Package policy holds network policies: what a sandbox may reach, and what is
// done to its requests on the way. Compile turns the plain values into a form
// that decides quickly, however many domains there are. What a policy may say is
// validated before, by package skerry.
//
// The order of decisions: denied CIDRs, allowed CIDRs (which bypass the
// domains), domains. Of the domain patterns that match a name the most
// specific one counts, alone: from the right, label by label, a literal label
// before "*", and "*" for one label before a leading "*" for any depth.
package policy

import (
	"fmt"
	"net/netip"
)

// Mode is the kind of a policy.
type Mode int

const (
	// DenyAll lets nothing out. It is the zero value.
	DenyAll Mode = iota
	// AllowAll lets everything out but what is forbidden to every sandbox.
	AllowAll
	// Custom lets out what the policy's lists allow.
	Custom
)

// Policy is a network policy as it is written. In another mode than Custom
// the lists must be empty.
type Policy struct {
	Mode Mode
	// Domains are allowed. A pattern is there once.
	Domains []Domain
	// AllowedCIDRs bypass the domains and their rules.
	AllowedCIDRs []netip.Prefix
	// DeniedCIDRs go before everything else; they also apply to the addresses
	// that an allowed domain turns out to have.
	DeniedCIDRs []netip.Prefix
}

// Domain allows the names that a pattern matches.
type Domain struct {
	// Pattern is a name in which "*" stands for one label, as the first label
	// for one or more, and alone for every name. Case, a final dot and the
	// Unicode or ASCII form of a name make no difference. IP addresses are no
	// names.
	Pattern string
	// Rules are looked at in order; the first that matches a request is
	// applied, and a request that none matches goes out as it is. A domain
	// with rules has its TLS ended in the proxy.
	Rules []Rule
}

// Rule does one thing to the requests that it matches: exactly one of
// Transform, ForwardURL and Response is set.
type Rule struct {
	// Match is nil for a rule that matches every request.
	Match *Match
	// Transform sets headers of the request. They are not sent over plain
	// HTTP, where anybody could read them.
	Transform []Transform
	// ForwardURL is where the request is sent instead: an https URL without
	// user, query and fragment.
	ForwardURL string
	// Response is the answer.
	Response *Response
}

// Transform changes a request on its way out.
type Transform struct {
	// Headers replace those of the same name.
	Headers map[string]string
}

// Response is what the proxy answers itself.
type Response struct {
	StatusCode int // 200 to 599
	Headers    map[string]string
	// Body needs a ContentType and a status code that has a body.
	Body        string
	ContentType string
}

// Match is fulfilled by requests that fulfil all of its parts; an empty part
// is fulfilled by every request.
type Match struct {
	// Path is about the path without the query, after percent-decoding.
	Path *Matcher
	// Method has the methods of which one must be the request's.
	Method []string
	// QueryString has matchers of which each must match an entry.
	QueryString []KeyValue
	// Headers has matchers of which each must match a header. Names are
	// compared in lower case. "host" is a header.
	Headers []KeyValue
}

// KeyValue matches an entry of a query or a header, by its key, its value or
// both. At least one is set.
type KeyValue struct{ Key, Value *Matcher }

// Matcher matches a text in exactly one way.
type Matcher struct {
	Exact      *string
	StartsWith *string
	// Regex is in RE2's syntax and may match anywhere in the text.
	Regex *string
}

// Error says what in a policy cannot be compiled.
type Error struct {
	// Field is the place in the words of the API, such as
	// allow["api.example.com"][2].match.path.regex or subnets.deny[0].
	Field   string
	Message string
}

func (e *Error) Error() string { return e.Field + ": " + e.Message }

func errorf(field, format string, args ...any) error {
	return &Error{Field: field, Message: fmt.Sprintf(format, args...)}
}
