package federation

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/skerry-dev/skerry"
)

// Limits of tokens. Real ones have 1 to 3 KiB, some tens of claims and three levels.
const (
	// MaxToken is the size of a token, in bytes.
	MaxToken = 16 << 10
	// MaxDepth is the number of levels of lists and objects in the claims.
	MaxDepth = 16
	// MaxValues is the number of values in the claims, at all levels together.
	MaxValues = 2048
	// MaxSubject is the length of "sub", in bytes. OpenID Connect has 255, but GitHub lets
	// organizations put more into it.
	MaxSubject = 1024
	// MaxKeyID is the length of "kid", in bytes.
	MaxKeyID = 512
)

// unauthorized is the error for a token that is not valid.
func unauthorized(format string, args ...any) *skerry.Error {
	return &skerry.Error{Code: skerry.CodeUnauthorized, Message: "the token is not valid: " + fmt.Sprintf(format, args...)}
}

// IsJWT reports whether a credential has the form of a JWT, so that callers know
// whom to give it to. It looks at no more than MaxToken bytes.
func IsJWT(credential string) bool {
	return strings.HasPrefix(credential, "ey") && len(credential) <= MaxToken && strings.Count(credential, ".") == 2
}

// token is a token whose form is right. Nothing of it is verified.
type token struct {
	raw string
	// kid is the id of the key, "" if the token names none.
	kid     string
	payload []byte
	claims  claims
}

// claims are the claims of a token; all has every one of them.
type claims struct {
	issuer, subject   string
	audiences         []string
	expires           time.Time
	notBefore, issued time.Time // zero if there is none
	all               map[string]any
}

// refused are headers of which the token could bring its own key, or change what is
// signed. Verifiers that ignore them are right too; but no honest issuer sends them.
var refused = []string{"crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc", "cty"}

// tokenTypes are those of access and ID tokens. Others, such as logout tokens, have the same
// issuer, audience and keys, and must not be taken for them (RFC 8725, 3.11).
var tokenTypes = []string{"jwt", "at+jwt", "jose", "application/jwt", "application/at+jwt"}

// parse checks the form of a token. The signature is not decoded: go-jose does that.
func parse(raw string) (*token, error) {
	if len(raw) > MaxToken {
		return nil, unauthorized("it has more than %d bytes", MaxToken)
	}
	head, rest, _ := strings.Cut(raw, ".")
	body, signature, compact := strings.Cut(rest, ".")
	if !compact || head == "" || body == "" || signature == "" || !isBase64(head) || !isBase64(body) || !isBase64(signature) {
		return nil, unauthorized("it does not have the form of a signed JWT")
	}
	header, _, err := decode(head)
	if err != nil {
		return nil, unauthorized("its header %v", err)
	}
	for _, name := range refused {
		if _, is := header[name]; is {
			return nil, unauthorized("its header must not have %q", name)
		}
	}
	t := &token{raw: raw}
	if typ, is := header["typ"]; is {
		if s, _ := typ.(string); !slices.Contains(tokenTypes, strings.ToLower(s)) {
			return nil, unauthorized("its type is not that of an access or ID token")
		}
	}
	if kid, is := header["kid"]; is {
		if t.kid, is = kid.(string); !is || t.kid == "" || len(t.kid) > MaxKeyID {
			return nil, unauthorized(`"kid" must be a string of 1 to %d bytes`, MaxKeyID)
		}
	}
	all, payload, err := decode(body)
	if err != nil {
		return nil, unauthorized("its payload %v", err)
	}
	t.payload, t.claims.all = payload, all
	return t, t.claims.read()
}

func isBase64(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// decode decodes a part of a token, a JSON object. Integers become int64 and other
// numbers float64. go-jose's decoder refuses duplicate names, and does not take "Iss"
// for "iss".
func decode(part string) (map[string]any, []byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return nil, nil, errors.New("is not base64url")
	}
	if !utf8.Valid(b) {
		return nil, nil, errors.New("is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.SetNumberType(json.UnmarshalJSONNumber)
	var object map[string]any
	if err := d.Decode(&object); err != nil || object == nil {
		return nil, nil, errors.New("is not a JSON object with distinct names")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, nil, errors.New("has more than a JSON object")
	}
	values := MaxValues
	if _, err := bounded(object, MaxDepth, &values); err != nil {
		return nil, nil, err
	}
	return object, b, nil
}

// bounded converts the numbers of a value, and returns an error if it has too many
// levels or values.
func bounded(v any, depth int, values *int) (any, error) {
	if *values--; *values < 0 {
		return nil, fmt.Errorf("has more than %d values", MaxValues)
	}
	if depth < 0 {
		return nil, fmt.Errorf("has more than %d levels", MaxDepth)
	}
	var err error
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			if v[name], err = bounded(e, depth-1, values); err != nil {
				return nil, err
			}
		}
	case []any:
		for n, e := range v {
			if v[n], err = bounded(e, depth-1, values); err != nil {
				return nil, err
			}
		}
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n, nil
		}
		f, err := strconv.ParseFloat(string(v), 64)
		if err != nil {
			return nil, errors.New("has a number that is out of range")
		}
		return f, nil
	}
	return v, nil
}

// read reads the claims that every token has.
func (c *claims) read() error {
	var is bool
	if c.issuer, is = c.all["iss"].(string); !is || c.issuer == "" {
		return unauthorized(`"iss" must be a string`)
	}
	c.subject, is = c.all["sub"].(string)
	if !is || c.subject == "" || len(c.subject) > MaxSubject || strings.ContainsFunc(c.subject, unicode.IsControl) {
		return unauthorized(`"sub" must be a string of 1 to %d printable bytes`, MaxSubject)
	}
	switch aud := c.all["aud"].(type) {
	case string:
		c.audiences = []string{aud}
	case []any:
		for _, a := range aud {
			s, is := a.(string)
			if !is {
				return unauthorized(`"aud" must be a string or a list of strings`)
			}
			c.audiences = append(c.audiences, s)
		}
	default:
		return unauthorized(`"aud" must be a string or a list of strings`)
	}
	if _, is := c.all["exp"]; !is {
		return unauthorized(`it has no "exp"`)
	}
	for name, to := range map[string]*time.Time{"exp": &c.expires, "nbf": &c.notBefore, "iat": &c.issued} {
		if err := c.time(name, to); err != nil {
			return err
		}
	}
	return nil
}

// text returns a claim that is a short text, "" if it is not.
func (c *claims) text(name string) string {
	if s, _ := c.all[name].(string); len(s) <= MaxText {
		return s
	}
	return ""
}

// maxTime is the end of the year 9999.
const maxTime = 253402300799

func (c *claims) time(name string, to *time.Time) error {
	v, is := c.all[name]
	if !is {
		return nil
	}
	seconds, is := v.(int64)
	if f, isFloat := v.(float64); isFloat && f >= 0 && f <= maxTime {
		seconds, is = int64(math.Floor(f)), true
	}
	if !is || seconds < 0 || seconds > maxTime {
		return unauthorized("%q must be a number of seconds since 1970", name)
	}
	*to = time.Unix(seconds, 0)
	return nil
}

// check compares the claims with what the issuer and the time allow.
func (c *claims) check(audiences []string, now time.Time, skew, maxLife time.Duration) error {
	if !slices.ContainsFunc(c.audiences, func(a string) bool { return slices.Contains(audiences, a) }) {
		return unauthorized(`"aud" names no audience that is accepted from this issuer`)
	}
	begin := c.issued
	if begin.IsZero() {
		begin = now
	}
	switch {
	case !now.Before(c.expires.Add(skew)):
		return unauthorized("it has expired")
	case now.Add(skew).Before(c.notBefore):
		return unauthorized(`it is not valid yet ("nbf")`)
	case now.Add(skew).Before(c.issued):
		return unauthorized(`it was issued in the future ("iat")`)
	case c.expires.Sub(begin) > maxLife:
		return unauthorized("it lives longer than %v", maxLife)
	}
	return nil
}
