package federation

import (
	"errors"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// FuzzVerify: no token but those that the issuer signed is accepted, whatever it is,
// and every error is one for the caller.
func FuzzVerify(f *testing.F) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	i := issuertest.New(f, issuertest.Options{Algorithm: jose.EdDSA, Clock: clock})
	v := verifier(f, Options{Clock: clock})
	set(f, v, configured(i, func(o *Issuer) { o.URL, o.Keys = "issuer", string(i.JWKS()) }))
	good := i.Token(i.GitHub("acme/web", "refs/heads/main", "").With("iss", "issuer"))
	f.Add(good)
	for _, c := range []issuertest.Claims{i.Kubernetes("ci", "x"), i.Google("a@example.com", "example.com"), i.Plain("x").With("exp", "1"), {}} {
		f.Add(i.Token(c.With("iss", "issuer")))
	}
	forged := unpublished(f, jose.EdDSA)
	for _, header := range []map[string]any{{"alg": "none"}, {"kid": nil}, {"crit": []string{"b64"}}, {"jwk": forged.Public()}, {"kid": i.Key().ID}} {
		f.Add(sign(f, forged, i.Plain("x").With("iss", "issuer"), header))
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := v.Verify(t.Context(), token)
		if err == nil && id.Subject != "repo:acme/web:ref:refs/heads/main" && id.Subject != "system:serviceaccount:ci:x" && id.Subject != "110169484474386276334" {
			t.Fatalf("%q is accepted: %+v", token, id)
		}
		if _, is := errors.AsType[*skerry.Error](err); err != nil && (!is || id != nil) {
			t.Fatalf("%q: %v", token, err)
		}
	})
}

// FuzzClaims: claims that are signed may be anything.
func FuzzClaims(f *testing.F) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	i := issuertest.New(f, issuertest.Options{Algorithm: jose.EdDSA, Clock: clock})
	v := verifier(f, Options{Clock: clock})
	set(f, v, configured(i, func(o *Issuer) { o.URL, o.Keys = "issuer", string(i.JWKS()) }, rules(
		Rule{ID: "match", Match: map[string]string{"/a/b": "x*", "c": "**"}, Team: "t", Role: skerry.RoleViewer},
		Rule{ID: "when", When: `has(claims.a) && claims.a.exists(x, x == claims.c) || claims.c.matches("^a+$")`, Team: "${claims.c}", Project: `${claims.c.split("/")[1]}`, Role: skerry.RoleViewer},
	)))
	f.Add([]byte(`{"iss":"issuer","aud":"https://skerry.example.com","sub":"x","exp":1777896060,"a":{"b":"x"},"c":"a/b"}`))
	f.Add([]byte(`{"iss":"issuer","aud":["https://skerry.example.com"],"sub":"x","exp":1.7778e9,"a":["aa",1,null,true,{}],"c":"aa"}`))
	f.Fuzz(func(t *testing.T, claims []byte) {
		token, err := i.Key().SignBytes([]byte(`{"alg":"EdDSA"}`), claims)
		if err != nil {
			t.Fatal(err)
		}
		id, err := v.Verify(t.Context(), token)
		if err != nil {
			if code := skerry.CodeOf(err); code != skerry.CodeUnauthorized && code != skerry.CodeForbidden {
				t.Fatalf("%q: %v", claims, err)
			}
			return
		}
		if !referencePattern.MatchString(id.Team) || id.Project != "" && !referencePattern.MatchString(id.Project) || id.Subject == "" {
			t.Fatalf("%q: %+v", claims, id)
		}
	})
}

// FuzzKeys: a document of keys may be anything.
func FuzzKeys(f *testing.F) {
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA} {
		f.Add(marshal(f, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{unpublished(f, alg).Public()}}))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		s, err := parseKeys(document)
		if err != nil {
			return
		}
		if len(s.keys)+s.skipped > MaxKeys {
			t.Fatalf("%d keys", len(s.keys))
		}
		for _, k := range s.keys {
			if k.fits(jose.HS256) {
				t.Fatal("a key for HMAC")
			}
		}
	})
}
