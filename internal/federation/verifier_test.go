package federation

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// start starts an issuer and a verifier that accepts its tokens by any rules.
func start(t testing.TB, o issuertest.Options, change ...func(*Issuer)) (*issuertest.Issuer, *Verifier, *clock) {
	t.Helper()
	c := newClock()
	o.Clock = c.Now
	i := issuertest.New(t, o)
	v := verifier(t, Options{Clock: c.Now})
	set(t, v, configured(i, change...))
	return i, v, c
}

func verifier(t testing.TB, o Options) *Verifier {
	o.LoopbackHTTP, o.Log = true, slog.New(slog.NewTextHandler(io.Discard, nil))
	v := New(o)
	t.Cleanup(v.Close)
	return v
}

func set(t testing.TB, v *Verifier, issuers ...Issuer) {
	t.Helper()
	if err := v.Set(issuers); err != nil {
		t.Fatal(err)
	}
}

// all is a rule that admits everybody.
var all = Rule{ID: "all", When: "true", Team: "team_1", Project: "prj_1", Role: skerry.RoleDeveloper}

func configured(i *issuertest.Issuer, change ...func(*Issuer)) Issuer {
	c := Issuer{ID: "test", URL: i.URL(), Audiences: []string{issuertest.Audience}, CA: i.CA(), Rules: []Rule{all}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func rules(r ...Rule) func(*Issuer) { return func(i *Issuer) { i.Rules = r } }

func accept(t testing.TB, v *Verifier, token string) *Identity {
	t.Helper()
	id, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// refuse checks that a token is refused for a reason.
func refuse(t testing.TB, v *Verifier, token string, code skerry.Code, reason string) {
	t.Helper()
	id, err := v.Verify(t.Context(), token)
	if id != nil || skerry.CodeOf(err) != code || !strings.Contains(err.Error(), reason) {
		t.Fatalf("identity %+v, error %v; want %s with %q", id, err, code, reason)
	}
	if len(token) > 20 && strings.Contains(err.Error(), token[:20]) {
		t.Fatalf("the error has the token: %v", err)
	}
}

func TestVerify(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	} {
		i, v, c := start(t, issuertest.Options{Algorithm: alg, Path: "/acme"}, func(i *Issuer) { i.Algorithms = []string{string(alg)} })
		id := accept(t, v, i.Token(i.Plain("user:1")))
		want := Identity{
			IssuerID: "test", RuleID: "all", Subject: "user:1", ExpiresAt: c.Now().Add(time.Hour), Team: "team_1", Project: "prj_1",
			Role: skerry.RoleDeveloper, Principal: "oidc:test:user:1",
		}
		if got := *id; !got.ExpiresAt.Equal(want.ExpiresAt) {
			t.Errorf("%s: expires at %v", alg, got.ExpiresAt)
		} else if got.ExpiresAt = want.ExpiresAt; got != want {
			t.Errorf("%s: identity %+v", alg, got)
		}
	}
}

// TestProviders: rules for the providers that the documentation names.
func TestProviders(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{}, rules(
		Rule{ID: "deploy", Match: map[string]string{"repository": "acme/web", "environment": "production", "ref": "refs/heads/main"}, Team: "acme", Project: "web", Role: skerry.RoleOwner},
		Rule{ID: "github", Match: map[string]string{"repository": "acme/*", "repository_owner_id": "65"}, Team: "acme",
			Project: `${claims.repository.split("/")[1].lowerAscii()}`, Role: skerry.RoleDeveloper},
		Rule{ID: "gitlab", Match: map[string]string{"project_path": "group/**", "ref_protected": "true"}, Team: "acme", Project: "ci-${claims.project_id}", Role: skerry.RoleDeveloper},
		Rule{ID: "kubernetes", Match: map[string]string{"sub": "system:serviceaccount:ci:*", "/kubernetes.io/namespace": "ci"}, Team: "acme",
			Project: `${claims["kubernetes.io"].serviceaccount.name}`, Role: skerry.RoleDeveloper},
		Rule{ID: "vercel", When: `claims.owner_id.startsWith("team_") && claims.environment in ["development", "preview"]`,
			Team: "${claims.owner_id}", Project: "${claims.project_id}", Role: skerry.RoleDeveloper},
		Rule{ID: "google", Match: map[string]string{"hd": "example.com", "email_verified": "true"}, When: `claims.email.endsWith("@example.com")`, Team: "acme", Role: skerry.RoleViewer},
		Rule{ID: "groups", Match: map[string]string{"groups": "sre-*"}, When: `claims.groups.exists(g, g == "all")`, Team: "acme", Role: skerry.RoleOwner},
	))
	for _, c := range []struct {
		claims              issuertest.Claims
		rule, team, project string
		role                skerry.Role
	}{
		{i.GitHub("acme/web", "refs/heads/main", "production"), "deploy", "acme", "web", skerry.RoleOwner},
		{i.GitHub("acme/web", "refs/heads/main", ""), "github", "acme", "web", skerry.RoleDeveloper},
		{i.GitHub("acme/Api", "refs/pull/1/merge", ""), "github", "acme", "api", skerry.RoleDeveloper},
		{i.GitHub("evil/web", "refs/heads/main", "production"), "", "", "", ""},
		{i.GitHub("acme/web", "refs/heads/main", "").With("repository", "acme/web/x"), "", "", "", ""},
		{i.GitLab("group/sub/web", "main", true), "gitlab", "acme", "ci-20", skerry.RoleDeveloper},
		{i.GitLab("group/sub/web", "main", false), "", "", "", ""},
		{i.GitLab("groups/web", "main", true), "", "", "", ""},
		{i.Kubernetes("ci", "builder"), "kubernetes", "acme", "builder", skerry.RoleDeveloper},
		{i.Kubernetes("default", "builder"), "", "", "", ""},
		{i.Kubernetes("ci", "x").With("sub", "system:serviceaccount:ci:a:b"), "", "", "", ""},
		{i.Vercel("acme", "team_abc", "web", "prj_abc", "development"), "vercel", "team_abc", "prj_abc", skerry.RoleDeveloper},
		{i.Vercel("acme", "team_abc", "web", "prj_abc", "production"), "", "", "", ""},
		{i.Google("jane@example.com", "example.com"), "google", "acme", "", skerry.RoleViewer},
		{i.Google("jane@example.com", "example.com").With("email_verified", false), "", "", "", ""},
		{i.Google("jane@evil.com", "example.com"), "", "", "", ""},
		{i.Plain("x").With("groups", []string{"all", "sre-berlin"}), "groups", "acme", "", skerry.RoleOwner},
		{i.Plain("x").With("groups", []string{"sre-berlin"}), "", "", "", ""},
	} {
		token := i.Token(c.claims)
		if c.rule == "" {
			refuse(t, v, token, skerry.CodeForbidden, "no rule of the issuer test admits")
			continue
		}
		if id := accept(t, v, token); id.RuleID != c.rule || id.Team != c.team || id.Project != c.project || id.Role != c.role {
			t.Errorf("%v: identity %+v", c.claims["sub"], id)
		}
	}
}

// TestRealName: an issuer by its public name, over TLS, with its own authority.
func TestRealName(t *testing.T) {
	c := newClock()
	i := issuertest.New(t, issuertest.Options{TLS: true, Host: "token.actions.githubusercontent.com", Clock: c.Now})
	v := New(Options{Clock: c.Now, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "token.actions.githubusercontent.com:443" {
			return nil, errors.New("a connection to " + address)
		}
		return new(net.Dialer).DialContext(ctx, network, i.Address())
	}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(v.Close)
	token := i.Token(i.GitHub("acme/web", "refs/heads/main", ""))
	set(t, v, configured(i, func(i *Issuer) { i.CA = "" }))
	refuse(t, v, token, skerry.CodeUnavailable, "cannot be fetched")
	if s := v.Status(); len(s) != 1 || s[0].Err == nil || !strings.Contains(s[0].Err.Error(), "certificate") {
		t.Errorf("status %+v", s)
	}
	set(t, v, configured(i))
	accept(t, v, token)
	if n, err := v.Probe(t.Context(), configured(i)); n != 1 || err != nil {
		t.Errorf("probe: %d, %v", n, err)
	}
}

// TestStaticKeys: no connection is made, and the issuer's URL may be any text.
func TestStaticKeys(t *testing.T) {
	i, _, c := start(t, issuertest.Options{})
	v := verifier(t, Options{Clock: c.Now, Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("a connection was made")
		return nil, errors.New("no")
	}})
	set(t, v, configured(i, func(o *Issuer) { o.URL, o.Keys = "kubernetes/serviceaccount", string(i.JWKS()) }))
	accept(t, v, i.Token(i.Kubernetes("ci", "builder").With("iss", "kubernetes/serviceaccount")))
	other, err := issuertest.NewKey(jose.RS256)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := other.Sign(i.Plain("x").With("iss", "kubernetes/serviceaccount"))
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, v, forged, skerry.CodeUnauthorized, "signature")
}

func TestTimes(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	at := func(d time.Duration) int64 { return c.Now().Add(d).Unix() }
	for _, one := range []struct {
		name   string
		claims issuertest.Claims
		reason string
	}{
		{"expired within the skew", i.Plain("x").With("exp", at(-59*time.Second)), ""},
		{"expired", i.Plain("x").With("exp", at(-time.Minute)), "expired"},
		{"not yet valid within the skew", i.Plain("x").With("nbf", at(time.Minute)), ""},
		{"not yet valid", i.Plain("x").With("nbf", at(61*time.Second)), "nbf"},
		{"issued in the future within the skew", i.Plain("x").With("iat", at(time.Minute)), ""},
		{"issued in the future", i.Plain("x").With("iat", at(61*time.Second)), "iat"},
		{"longest life", i.Plain("x").With("exp", at(24*time.Hour)), ""},
		{"lives too long", i.Plain("x").With("exp", at(24*time.Hour+time.Second)), "lives longer than 24h"},
		{"lives too long, without iat", i.Plain("x").With("exp", at(24*time.Hour+time.Second)).With("iat", nil), "lives longer"},
		{"lives too long, by an old iat", i.Plain("x").With("iat", at(-24*time.Hour)), "lives longer"},
		{"without iat and nbf", i.Plain("x").With("iat", nil).With("nbf", nil), ""},
		{"with a fraction", i.Plain("x").With("exp", float64(at(time.Hour))+0.5), ""},
	} {
		t.Run(one.name, func(t *testing.T) {
			if token := i.Token(one.claims); one.reason == "" {
				accept(t, v, token)
			} else {
				refuse(t, v, token, skerry.CodeUnauthorized, one.reason)
			}
		})
	}
}

// TestCache: a verified token is not verified again for a minute, nor beyond its end,
// and is forgotten when the issuers change.
func TestCache(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	old := i.Key()
	token := i.Token(i.Plain("x"))
	first := accept(t, v, token)
	if accept(t, v, token) != first {
		t.Error("it was verified twice")
	}
	c.Advance(VerifiedFor)
	if accept(t, v, token) == first {
		t.Error("it was not verified again")
	}
	short := i.Token(i.Plain("x").With("exp", c.Now().Add(10*time.Second).Unix()))
	accept(t, v, short)
	c.Advance(10*time.Second + DefaultSkew - time.Second)
	accept(t, v, short)
	c.Advance(time.Second)
	refuse(t, v, short, skerry.CodeUnauthorized, "expired")

	// The key is withdrawn by configuration: what was verified with it is forgotten.
	token, err := old.Sign(i.Plain("x"))
	if err != nil {
		t.Fatal(err)
	}
	accept(t, v, token)
	other, err := i.Rotate(jose.RS256)
	if err != nil {
		t.Fatal(err)
	}
	i.Publish(other)
	set(t, v, configured(i, func(o *Issuer) { o.Keys = string(i.JWKS()) }))
	refuse(t, v, token, skerry.CodeUnauthorized, "signature")
	set(t, v)
	refuse(t, v, token, skerry.CodeUnauthorized, "is not one that is accepted")
}

func TestCacheIsBounded(t *testing.T) {
	now := time.Now()
	c := cache{size: 16, entries: map[[32]byte]entry{}}
	for n := range 1000 {
		c.put([32]byte{byte(n), byte(n >> 8)}, &Identity{}, now, now.Add(time.Minute))
		if len(c.entries) > 16 {
			t.Fatalf("%d entries", len(c.entries))
		}
		if c.get([32]byte{byte(n), byte(n >> 8)}, now) == nil {
			t.Fatal("the last one is not there")
		}
	}
	for n := range 16 { // what has expired goes first
		c.put([32]byte{1, 1, byte(n)}, &Identity{}, now.Add(time.Minute), now.Add(2*time.Minute))
	}
	if len(c.entries) != 16 {
		t.Errorf("%d entries", len(c.entries))
	}
}

// TestSetIsAtomic: an error names the field, and everything stays as it was.
func TestSetIsAtomic(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	token := i.Token(i.Plain("x"))
	first := accept(t, v, token)
	bad := configured(i, func(o *Issuer) { o.ID, o.URL, o.Keys = "bad", "https://other.example.com", string(i.JWKS()) },
		rules(all, Rule{ID: "bad", When: "claims.x ==", Team: "t", Role: skerry.RoleViewer}))
	err := v.Set([]Issuer{configured(i, rules()), bad})
	e, is := errors.AsType[*skerry.Error](err)
	if !is || e.Code != skerry.CodeBadRequest || e.Field != "issuers[1].rules[1].when" || !strings.Contains(e.Message, "does not compile: 1:12: ") {
		t.Fatalf("error %v", err)
	}
	if accept(t, v, token) != first {
		t.Error("the cache is another one")
	}
	for field, two := range map[string][]Issuer{
		"issuers[1].id":  {configured(i), configured(i, func(o *Issuer) { o.URL = "https://other.example.com" })},
		"issuers[1].url": {configured(i), configured(i, func(o *Issuer) { o.ID = "other" })},
		"issuers":        make([]Issuer, MaxIssuers+1),
	} {
		if e, is := errors.AsType[*skerry.Error](v.Set(two)); !is || e.Field != field {
			t.Errorf("%s: error %v", field, e)
		}
	}
	many := configured(i, rules())
	for n := range MaxRules {
		many.Rules = append(many.Rules, Rule{ID: "r" + strings.Repeat("x", n%60) + string(rune('a'+n%26)), Match: map[string]string{"sub": "x"}, Team: "t", Role: skerry.RoleViewer})
	}
	if e, is := errors.AsType[*skerry.Error](v.Set([]Issuer{configured(i), many})); !is || e.Field != "issuers[1].rules" {
		t.Errorf("error %v", e)
	}
}

// TestSetKeepsKeys: a change of rules makes no request, and is not seen by those who
// hold on to what they gave.
func TestSetKeepsKeys(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	token := i.Token(i.Plain("x"))
	accept(t, v, token)
	c := configured(i, rules(Rule{ID: "one", Match: map[string]string{"sub": "x"}, Team: "t", Role: skerry.RoleViewer}))
	set(t, v, c)
	c.Rules[0].ID, c.Rules[0].Match["sub"], c.Audiences[0] = "changed", "changed", "changed"
	if id := accept(t, v, token); id.RuleID != "one" || id.Project != "" {
		t.Errorf("identity %+v", id)
	}
	if _, keys := i.Requests(); keys != 1 {
		t.Errorf("%d requests for keys", keys)
	}
}

func TestPrincipal(t *testing.T) {
	long := strings.Repeat("ä", MaxSubject/2)
	seen := map[string]string{}
	for _, subject := range []string{
		"x", "a:b", `a"b`, `a\b`, "a\u202eb", `a\u202eb`, long, long[:MaxSubject-2], strings.Repeat("x", maxPrincipal), strings.Repeat("x", maxPrincipal+1),
	} {
		p := principal("gh", subject)
		if seen[p] != "" || len(p) > len("oidc:gh~")+33+maxPrincipal || !strings.HasPrefix(p, "oidc:gh") || strings.ContainsRune(p, '\u202e') {
			t.Errorf("%q: %q, also of %q", subject, p, seen[p])
		}
		seen[p] = subject
		if q := seen[principal("gh", p[len("oidc:gh:"):])]; q != "" && q != subject {
			t.Errorf("the principal of %q is also that of another", q)
		}
	}
}

func TestIsJWT(t *testing.T) {
	i, _, _ := start(t, issuertest.Options{})
	for s, want := range map[string]bool{
		i.Token(i.Plain("x")): true, "sk_abc": false, "": false, "a.b.c": false, "ey.a": false, "ey" + strings.Repeat("x", MaxToken) + "..": false,
	} {
		if IsJWT(s) != want {
			t.Errorf("%.20q: %v", s, !want)
		}
	}
}
