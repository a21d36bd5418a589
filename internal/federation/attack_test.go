package federation

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNone: "none" in all its spellings, with and without a signature.
func TestNone(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	payload := b64(marshal(t, i.Plain("admin")))
	signature := i.Token(i.Plain("admin"))
	signature = signature[strings.LastIndex(signature, ".")+1:]
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "null", "rs256", "RS256 ", "RS256\x00"} {
		head := b64(marshal(t, map[string]any{"alg": alg, "typ": "JWT", "kid": i.Key().ID}))
		for _, sig := range []string{"", "AA", signature} {
			refuse(t, v, head+"."+payload+"."+sig, skerry.CodeUnauthorized, "the token is not valid")
		}
	}
	for _, head := range []string{`{}`, `{"alg":null}`, `{"alg":["RS256"]}`, `{"alg":{"RS256":1}}`, `{"alg":256}`} {
		refuse(t, v, b64([]byte(head))+"."+payload+"."+signature, skerry.CodeUnauthorized, "the token is not valid")
	}
}

// TestPublicKeyAsSecret: HMAC with all forms of a public key as the secret.
func TestPublicKeyAsSecret(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA} {
		i, v, _ := start(t, issuertest.Options{Algorithm: alg})
		public := i.Key().Public()
		der, err := x509.MarshalPKIXPublicKey(public.Key)
		if err != nil {
			t.Fatal(err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		secrets := map[string][]byte{
			"der": der, "pem": block, "pem without its last line end": block[:len(block)-1],
			"jwk": marshal(t, public), "jwks": i.JWKS(), "kid": []byte(public.KeyID), "nothing": nil,
		}
		for name, secret := range secrets {
			for _, hs := range []string{"HS256", "HS384", "HS512", string(alg)} {
				input := b64(marshal(t, map[string]any{"alg": hs, "kid": public.KeyID})) + "." + b64(marshal(t, i.Plain("admin")))
				mac := hmac.New(sha256.New, secret)
				mac.Write([]byte(input))
				token := input + "." + b64(mac.Sum(nil))
				if _, err := v.Verify(t.Context(), token); skerry.CodeOf(err) != skerry.CodeUnauthorized {
					t.Errorf("%s %s with %s: %v", hs, alg, name, err)
				}
			}
		}
	}
	for _, alg := range []string{"none", "HS256", "HS384", "HS512", "", "rs256", "RSA-OAEP", "dir"} {
		o := Issuer{ID: "x", URL: "https://x.example.com", Audiences: []string{"a"}, Algorithms: []string{"RS256", alg}}
		if e, _ := o.Validate().(*skerry.Error); e == nil || e.Field != "algorithms[1]" {
			t.Errorf("%q may be configured: %v", alg, e)
		}
	}
}

// TestAlgorithmOfAKey: the algorithm must be allowed, and be that of the key.
func TestAlgorithmOfAKey(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{}, func(i *Issuer) { i.Algorithms = []string{"RS256", "ES256"} })
	// A key says that it is for RS256: PS256 and RS512 with it are not allowed, nor possible.
	for _, alg := range []jose.SignatureAlgorithm{jose.PS256, jose.RS512} {
		k := *i.Key()
		k.Algorithm = alg
		refuse(t, v, sign(t, &k, i.Plain("x")), skerry.CodeUnauthorized, "its algorithm is not one of [RS256 ES256]")
		all, err := json.Marshal(map[string]any{"alg": "RS256", "kid": k.ID})
		if err != nil {
			t.Fatal(err)
		}
		token, err := k.SignBytes(all, marshal(t, i.Plain("x")))
		if err != nil {
			t.Fatal(err)
		}
		refuse(t, v, token, skerry.CodeUnauthorized, "signature")
	}
	set := configured(i, func(o *Issuer) { o.Algorithms = []string{"RS256", "PS256"} })
	if err := v.Set([]Issuer{set}); err != nil {
		t.Fatal(err)
	}
	k := *i.Key()
	k.Algorithm = jose.PS256
	refuse(t, v, sign(t, &k, i.Plain("x")), skerry.CodeUnauthorized, "signature")

	// ES256 with a key of P-384.
	p384 := unpublished(t, jose.ES384)
	public := p384.Public()
	public.Algorithm = ""
	s := keySet{keys: []key{{id: p384.ID, public: public.Key}}}
	for alg, fits := range map[jose.SignatureAlgorithm]bool{jose.ES384: true, jose.ES256: false, jose.ES512: false, jose.RS256: false, jose.EdDSA: false, jose.HS256: false} {
		if s.keys[0].fits(alg) != fits {
			t.Errorf("a key of P-384 fits %s: %v", alg, !fits)
		}
	}
}

// TestHeaders: ids of keys that are something else, keys in the token, and what a header
// must not have. No request follows from them.
func TestHeaders(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	accept(t, v, i.Token(i.Plain("x")))
	mine := unpublished(t, jose.RS256)
	for _, kid := range []string{
		"../../../../dev/null", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/jwks", i.URL() + "/jwks", "' OR '1'='1", "1; DROP TABLE keys",
		"$(id)", "\x00", "\n", "*", i.Key().ID + "\x00", i.Key().ID + " ", strings.ToUpper(i.Key().ID),
	} {
		refuse(t, v, sign(t, mine, i.Plain("x"), map[string]any{"kid": kid}), skerry.CodeUnauthorized, "signature")
		refuse(t, v, sign(t, i.Key(), i.Plain("x"), map[string]any{"kid": kid}), skerry.CodeUnauthorized, "signature")
	}
	for _, kid := range []any{"", 7, nil2(), []string{"a"}, map[string]any{"a": 1}, strings.Repeat("x", MaxKeyID+1)} {
		refuse(t, v, sign(t, mine, i.Plain("x"), map[string]any{"kid": kid}), skerry.CodeUnauthorized, `"kid" must be a string`)
	}
	// A token with the id of a key, and one without any, must be of one of the keys.
	refuse(t, v, sign(t, mine, i.Plain("x"), map[string]any{"kid": i.Key().ID}), skerry.CodeUnauthorized, "signature")
	refuse(t, v, sign(t, mine, i.Plain("x"), map[string]any{"kid": nil}), skerry.CodeUnauthorized, "signature")
	accept(t, v, sign(t, i.Key(), i.Plain("y"), map[string]any{"kid": nil}))

	der, err := x509.MarshalPKIXPublicKey(mine.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{
		"jwk": mine.Public(), "jku": i.URL() + "/jwks", "x5u": "https://evil.example.com/x5u", "x5c": []string{base64.StdEncoding.EncodeToString(der)},
		"crit": []string{"exp"}, "b64": false, "zip": "DEF", "enc": "A128GCM", "cty": "JWT",
	} {
		for _, k := range []*issuertest.Key{mine, i.Key()} {
			refuse(t, v, sign(t, k, i.Plain("x"), map[string]any{name: value}), skerry.CodeUnauthorized, fmt.Sprintf("must not have %q", name))
		}
	}
	refuse(t, v, sign(t, i.Key(), i.Plain("x"), map[string]any{"crit": []string{"b64"}, "b64": true}), skerry.CodeUnauthorized, "must not have")
	for _, typ := range []any{"logout+jwt", "dpop+jwt", "secevent+jwt", "", 7} {
		refuse(t, v, sign(t, i.Key(), i.Plain("x"), map[string]any{"typ": typ}), skerry.CodeUnauthorized, "its type")
	}
	for _, typ := range []any{"jwt", "at+jwt", "application/at+JWT", nil} {
		accept(t, v, sign(t, i.Key(), i.Plain(fmt.Sprint("typ ", typ)), map[string]any{"typ": typ}))
	}
	if d, k := i.Requests(); d != 1 || k != 1 {
		t.Errorf("%d and %d requests", d, k)
	}
}

// nil2 is a JSON null, which Sign does not leave out.
func nil2() any { return json.RawMessage("null") }

// TestForm: what is not exactly a JWT in the compact serialization.
func TestForm(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	good := i.Token(i.Plain("x"))
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	full := fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, body, head, sig)
	general := fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, body, head, sig)
	nested := func(header map[string]any) string {
		token, err := i.Key().SignBytes(marshal(t, header), []byte(good))
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for _, token := range []string{
		"", ".", "..", "...", "a", head + "." + body, head + "." + body + ".", "." + body + "." + sig, head + ".." + sig, good + ".", good + "." + sig, good + ".." + sig,
		" " + good, good + " ", good + "\n", head + ".\n" + body + "." + sig, good[:20] + "\r\n" + good[20:], good + "=", head + "=." + body + "." + sig,
		strings.ReplaceAll(good, ".", "%2E"), "Bearer " + good, full, general, strings.ReplaceAll(good, "_", "/"),
		nested(map[string]any{"alg": "RS256", "kid": i.Key().ID}), nested(map[string]any{"alg": "RS256", "kid": i.Key().ID, "cty": "JWT"}),
		head + "." + body + "." + sig[:len(sig)-4], head + "." + body + "." + sig + "AAAA", sig + "." + body + "." + head,
		strings.Repeat("eyJ", MaxToken), strings.Repeat(".", MaxToken), strings.Repeat("x", 1<<20), head + "." + strings.Repeat("A", 1<<20) + "." + sig,
	} {
		if token == good {
			continue // there is no underscore in it
		}
		refuse(t, v, token, skerry.CodeUnauthorized, "the token is not valid")
	}
	accept(t, v, good)
	// The largest token.
	big := i.Plain("x").With("pad", strings.Repeat("x", 11_000))
	if token := i.Token(big); len(token) > MaxToken {
		t.Error(len(token))
	} else {
		accept(t, v, token)
	}
}

// TestChangedParts: a token that differs in any byte is not the same token.
func TestChangedParts(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{Algorithm: jose.ES256})
	good := i.Token(i.Plain("user"))
	head, rest, _ := strings.Cut(good, ".")
	_, sig, _ := strings.Cut(rest, ".")
	for _, body := range []issuertest.Claims{i.Plain("admin"), i.Plain("user").With("groups", "admin")} {
		refuse(t, v, head+"."+b64(marshal(t, body))+"."+sig, skerry.CodeUnauthorized, "signature")
	}
	for n := 0; n < len(good); n += 7 {
		c := byte('A')
		if good[n] == c {
			c = 'B'
		}
		changed := good[:n] + string(c) + good[n+1:]
		if id, err := v.Verify(t.Context(), changed); err == nil || id != nil {
			t.Errorf("changed at %d: %+v", n, id)
		}
	}
	refuse(t, v, head+"."+strings.Split(good, ".")[1]+"."+b64(make([]byte, 64)), skerry.CodeUnauthorized, "signature")
}

// payload signs a payload that is not what an honest issuer sends.
func payload(t testing.TB, i *issuertest.Issuer, format string, args ...any) string {
	t.Helper()
	token, err := i.Key().SignBytes(marshal(t, map[string]any{"alg": i.Key().Algorithm, "kid": i.Key().ID}), fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestClaims: claims of the wrong type, twice, or too many. The issuer signed them all.
func TestClaims(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	for _, change := range []struct {
		name   string
		value  any
		reason string
	}{
		{"exp", nil, `it has no "exp"`}, {"exp", fmt.Sprint(c.Now().Unix() + 60), `"exp" must be a number`}, {"exp", nil2(), `"exp" must be a number`},
		{"exp", json.RawMessage("1e300"), `"exp" must be a number`}, {"exp", json.RawMessage("1e400"), "out of range"}, {"exp", json.RawMessage("99999999999999999999999"), `"exp" must be`},
		{"exp", -1, `"exp" must be a number`}, {"exp", json.RawMessage("253402300800"), `"exp" must be`}, {"exp", json.RawMessage("9223372036854775807"), `"exp" must be`},
		{"exp", []int64{c.Now().Unix() + 60}, `"exp" must be`}, {"exp", true, `"exp" must be`}, {"exp", 0, "expired"},
		{"nbf", json.RawMessage("1e300"), `"nbf" must be`}, {"nbf", json.RawMessage("-1e300"), `"nbf" must be`}, {"nbf", "0", `"nbf" must be`},
		{"iat", json.RawMessage("1e300"), `"iat" must be`}, {"iat", json.RawMessage("-9223372036854775808"), `"iat" must be`}, {"iat", "now", `"iat" must be`},
		{"iss", nil, `"iss" must be a string`}, {"iss", "", `"iss" must be a string`}, {"iss", 7, `"iss" must be a string`}, {"iss", []string{i.URL()}, `"iss" must be a string`},
		{"sub", nil, `"sub" must be`}, {"sub", "", `"sub" must be`}, {"sub", 7, `"sub" must be`}, {"sub", "a\nb", `"sub" must be`}, {"sub", "a\x00", `"sub" must be`},
		{"sub", "a\u009bb", `"sub" must be`}, {"sub", strings.Repeat("x", MaxSubject+1), `"sub" must be`},
		{"aud", nil, `"aud" must be`}, {"aud", 7, `"aud" must be`}, {"aud", map[string]any{issuertest.Audience: true}, `"aud" must be`},
		{"aud", []any{issuertest.Audience, 7}, `"aud" must be`}, {"aud", "", "names no audience"}, {"aud", []string{}, "names no audience"}, {"aud", "https://other.example.com", "names no audience"},
		{"aud", issuertest.Audience + "/", "names no audience"}, {"aud", strings.ToUpper(issuertest.Audience), "names no audience"}, {"aud", "*", "names no audience"},
		{"entries", slices.Repeat([]int{1}, 5_000), "more than 2048 values"}, {"deep", json.RawMessage(strings.Repeat("[", 20) + strings.Repeat("]", 20)), "more than 16 levels"},
		{"deep", json.RawMessage(strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000)), "more than 16 levels"}, {"big", json.RawMessage("1e999"), "out of range"},
	} {
		refuse(t, v, i.Token(i.Plain("x").With(change.name, change.value)), skerry.CodeUnauthorized, change.reason)
	}
	accept(t, v, i.Token(i.Plain("x").With("aud", []string{"https://other.example.com", issuertest.Audience})))
	accept(t, v, i.Token(i.Plain(strings.Repeat("x", MaxSubject))))
	accept(t, v, i.Token(i.Plain("x").With("entries", slices.Repeat([]int{1}, 1_000))))

	many := maps.Clone(i.Plain("x"))
	for n := range 10_000 {
		many[fmt.Sprint(n)] = 1
	}
	refuse(t, v, i.Token(many), skerry.CodeUnauthorized, "more than 16384 bytes")

	// The same claim twice: with the first, the last, or in another object.
	exp, iss := c.Now().Unix()+60, i.URL()
	for _, p := range []string{
		`{"iss":%[1]q,"sub":"x","sub":"admin","aud":%[2]q,"exp":%[3]d}`, `{"iss":%[1]q,"sub":"x","aud":%[2]q,"exp":%[3]d,"exp":99999999999}`,
		`{"iss":%[1]q,"iss":"https://evil.example.com","sub":"x","aud":%[2]q,"exp":%[3]d}`, `{"iss":%[1]q,"sub":"x","s\u0075b":"admin","aud":%[2]q,"exp":%[3]d}`,
		`{"iss":%[1]q,"sub":"x","aud":%[2]q,"exp":%[3]d,"o":{"a":1,"a":2}}`,
	} {
		refuse(t, v, payload(t, i, p, iss, issuertest.Audience, exp), skerry.CodeUnauthorized, "distinct names")
	}
	// Names are not folded.
	refuse(t, v, payload(t, i, `{"ISS":%q,"Sub":"x","aud":%q,"exp":%d}`, iss, issuertest.Audience, exp), skerry.CodeUnauthorized, `"iss" must be`)
	for _, p := range []string{``, `null`, `[]`, `"x"`, `7`, `{`, `{}`, `{}{}`, `{"a":1,}`, "{\"iss\":\"\xff\"}", "\xef\xbb\xbf{}", `{"a":01}`, `{"a":NaN}`} {
		refuse(t, v, payload(t, i, "%s", p), skerry.CodeUnauthorized, "the token is not valid")
	}
}

// TestOtherIssuers: an issuer is who it is byte for byte, and no request is made to
// look at another.
func TestOtherIssuers(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{Path: "/acme"})
	evil := issuertest.New(t, issuertest.Options{Path: "/acme"})
	u := i.URL()
	for _, iss := range []string{
		evil.URL(), u + "/", u + "#", u + "?", u + "/.", u + "/../acme", strings.Replace(u, "http:", "https:", 1), strings.Replace(u, "http:", "HTTP:", 1),
		strings.Replace(u, "127.0.0.1", "localhost", 1), strings.Replace(u, "127.0.0.1", "evil@127.0.0.1", 1), strings.Replace(u, "acme", "%61cme", 1), strings.Replace(u, "acme", "ACME", 1),
		strings.Replace(u, "acme", "\u0430cme", 1), strings.Replace(u, "acme", "acme\u200b", 1), strings.Replace(u, "127", "\uff1127", 1), u + "\x00", " " + u, u + "\n", strings.Replace(u, ".", "\u3002", 1),
	} {
		refuse(t, v, sign(t, evil.Key(), i.Plain("x").With("iss", iss)), skerry.CodeUnauthorized, "is not one that is accepted here")
		refuse(t, v, sign(t, i.Key(), i.Plain("x").With("iss", iss)), skerry.CodeUnauthorized, "is not one that is accepted here")
	}
	for _, o := range []*issuertest.Issuer{i, evil} {
		if d, k := o.Requests(); d+k != 0 {
			t.Errorf("%d requests", d+k)
		}
	}
	// Two issuers: the key of one is not good for the other.
	c := configured(evil)
	c.ID = "evil"
	set(t, v, configured(i), c)
	accept(t, v, i.Token(i.Plain("x")))
	refuse(t, v, sign(t, evil.Key(), i.Plain("x")), skerry.CodeUnauthorized, "signature")
	refuse(t, v, sign(t, evil.Key(), i.Plain("x"), map[string]any{"kid": i.Key().ID}), skerry.CodeUnauthorized, "signature")
	refuse(t, v, sign(t, i.Key(), i.Plain("x").With("iss", evil.URL())), skerry.CodeUnauthorized, "")
}

// TestManyKeysOfOneID: a token does not make the server try all keys.
func TestManyKeysOfOneID(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{Algorithm: jose.ES256})
	var keys []*issuertest.Key
	for range maxTries {
		keys = append(keys, unpublished(t, jose.ES256))
	}
	i.Publish(append(slices.Clone(keys), i.Key())...)
	accept(t, v, sign(t, i.Key(), i.Plain("x")))
	accept(t, v, sign(t, keys[maxTries-1], i.Plain("x"), map[string]any{"kid": nil}))
	refuse(t, v, sign(t, i.Key(), i.Plain("x"), map[string]any{"kid": nil}), skerry.CodeUnauthorized, "signature")
}
