package federation

import (
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
)

// Limits of the configuration.
const (
	// MaxIssuers is the number of issuers.
	MaxIssuers = 256
	// MaxRules is the number of rules of all issuers together: an expression that is
	// compiled takes some 2 KiB.
	MaxRules = 4096
	// MaxAudiences is the number of audiences of an issuer.
	MaxAudiences = 32
	// MaxMatches is the number of claims that a rule compares.
	MaxMatches = 32
	// MaxWildcards is the number of * and ** in a pattern.
	MaxWildcards = 8
	// MaxText is the length of a URL, an audience, a pattern, the name of a claim, in
	// bytes.
	MaxText = 512
	// MaxExpression is the length of an expression or a template, in bytes.
	MaxExpression = 2 << 10
	// MaxPlaces is the number of expressions in a template.
	MaxPlaces = 4
	// MaxDocument is the size of a document of an issuer, in bytes: keys, discovery,
	// certificates. The largest in use have some tens of KiB.
	MaxDocument = 1 << 20
)

// Issuer is a party whose tokens are accepted.
type Issuer struct {
	// ID is its name here: part of each Identity's principal, so it must not be given to
	// another issuer later.
	ID string `json:"id"`
	// URL is what tokens have as "iss", byte for byte. It must be an https URL, since
	// discovery uses it, unless JWKSURL or Keys are set: then it is any text.
	URL string `json:"url"`
	// Audiences: a token must be for one of them. At least one is required, as tokens of a
	// public issuer that are for another service could be replayed here by it.
	Audiences []string `json:"audiences"`
	// Algorithms are those of signatures; empty means DefaultAlgorithms.
	Algorithms []string `json:"algorithms,omitempty"`
	// JWKSURL is where the keys are, instead of discovery. It may have another host
	// than URL, as Google's has.
	JWKSURL string `json:"jwksUrl,omitempty"`
	// Keys is a JWKS document with the keys, for issuers that the server cannot reach.
	Keys string `json:"keys,omitempty"`
	// CA has certificates (PEM) that connections to the issuer trust beside the system's.
	CA string `json:"ca,omitempty"`
	// Rules are tried in order. The first one that matches decides. Without rules, the
	// issuer's tokens are good for nothing.
	Rules []Rule `json:"rules,omitempty"`
}

// Rule maps tokens to a team, a project and a role. It matches if all that Match and
// When say is true. At least one of them is required: a public issuer has tokens for
// everybody.
type Rule struct {
	// ID is the rule's name in errors and in identities.
	ID string `json:"id"`
	// Match has patterns that claims must match. A key is the name of a claim, or a
	// JSON pointer into the claims ("/kubernetes.io/namespace") if it begins with a slash.
	// In a pattern, * is any text without / and :, and ** is any text. A claim that
	// is a list matches if one of its elements does; a boolean or an integer matches as
	// JSON writes it.
	Match map[string]string `json:"match,omitempty"`
	// When is a CEL expression over "claims" that must be true.
	When string `json:"when,omitempty"`
	// Team and Project are ids, or a slug and a name. ${…} is replaced by the value of the
	// CEL expression in it, which must be a string: "${claims.owner_id}". An empty
	// Project means the whole team.
	Team    string      `json:"team"`
	Project string      `json:"project,omitempty"`
	Role    skerry.Role `json:"role"`
}

// algorithms are those of signatures that an issuer may use.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// DefaultAlgorithms are those of an issuer that names none.
var DefaultAlgorithms = []string{"RS256", "ES256", "EdDSA"}

var (
	idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	// referencePattern is that of ids, slugs and names of teams and projects.
	referencePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// Validate returns a *skerry.Error that names the first field at fault, or nil. URLs of
// loopback addresses may be plain HTTP; Verifier.Validate knows whether they may.
// Whether the issuer answers is not tried; see Verifier.Probe.
func (i *Issuer) Validate() error {
	_, err := compile(*i, true)
	return err
}

// clone returns a copy that shares nothing with i.
func (i Issuer) clone() Issuer {
	i.Audiences, i.Algorithms, i.Rules = slices.Clone(i.Audiences), slices.Clone(i.Algorithms), slices.Clone(i.Rules)
	for n, r := range i.Rules {
		i.Rules[n].Match = maps.Clone(r.Match)
	}
	return i
}

func (i *Issuer) validate(loopbackHTTP bool) error {
	if !idPattern.MatchString(i.ID) {
		return skerry.Invalid("id", "must have from 1 to 64 letters, digits and the characters - _ . and begin with a letter or digit")
	}
	if err := validateText("url", i.URL); err != nil {
		return err
	}
	switch {
	case i.JWKSURL != "" && i.Keys != "":
		return skerry.Invalid("keys", "must not be set together with jwksUrl")
	case i.JWKSURL != "":
		if _, err := validateURL("jwksUrl", i.JWKSURL, loopbackHTTP); err != nil {
			return err
		}
	case i.Keys == "":
		u, err := validateURL("url", i.URL, loopbackHTTP)
		if err != nil {
			return err
		}
		if u.RawQuery != "" || u.ForceQuery {
			return skerry.Invalid("url", "must have no query")
		}
	}
	if len(i.Audiences) == 0 || len(i.Audiences) > MaxAudiences {
		return skerry.Invalid("audiences", "must have from 1 to %d entries, has %d", MaxAudiences, len(i.Audiences))
	}
	for n, a := range i.Audiences {
		if err := validateText(fmt.Sprintf("audiences[%d]", n), a); err != nil {
			return err
		}
	}
	if len(i.Algorithms) > len(algorithms) {
		return skerry.Invalid("algorithms", "must have at most %d entries, has %d", len(algorithms), len(i.Algorithms))
	}
	for n, a := range i.Algorithms {
		if !slices.Contains(algorithms, jose.SignatureAlgorithm(a)) {
			return skerry.Invalid(fmt.Sprintf("algorithms[%d]", n), "must be one of %v, is %.32q", algorithms, a)
		}
	}
	if len(i.Keys) > MaxDocument {
		return skerry.Invalid("keys", "must have at most %d bytes, has %d", MaxDocument, len(i.Keys))
	}
	if len(i.CA) > MaxDocument {
		return skerry.Invalid("ca", "must have at most %d bytes, has %d", MaxDocument, len(i.CA))
	}
	if i.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CA)) {
		return skerry.Invalid("ca", "has no certificate in PEM")
	}
	if len(i.Rules) > MaxRules {
		return skerry.Invalid("rules", "must have at most %d entries, has %d", MaxRules, len(i.Rules))
	}
	return nil
}

// validateText checks text that is compared byte for byte. Without other characters
// than ASCII's, no two of them look the same.
func validateText(field, s string) error {
	if s == "" || len(s) > MaxText {
		return skerry.Invalid(field, "must have from 1 to %d bytes, has %d", MaxText, len(s))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return skerry.Invalid(field, "must have no white space and no characters other than those of ASCII")
	}
	return nil
}

// validateURL checks a URL that the server is to connect to.
func validateURL(field, s string, loopbackHTTP bool) (*url.URL, error) {
	if err := validateText(field, s); err != nil {
		return nil, err
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, skerry.Invalid(field, "is not a URL")
	case u.Hostname() == "" || u.Opaque != "":
		return nil, skerry.Invalid(field, "must be an https URL with a host")
	case u.User != nil || u.Fragment != "" || strings.Contains(s, "#"):
		return nil, skerry.Invalid(field, "must have no user name, password or fragment")
	case u.Scheme == "https" || u.Scheme == "http" && loopbackHTTP && isLoopback(u.Hostname()):
		return u, nil
	default:
		return nil, skerry.Invalid(field, "must begin with https://")
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// origin returns what two URLs of the same server have in common.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
