package auth

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
	"github.com/skerry-dev/skerry/internal/store"
)

const audience = "https://sandbox.example.com"

// accept has an Auth accept the tokens of an issuer, by its keys.
func accept(t *testing.T, a *Auth, i *issuertest.Issuer, rules ...federation.Rule) {
	t.Helper()
	_, err := a.ChangeIssuer(t.Context(), "ci", func(f *federation.Issuer, _ bool) error {
		f.URL, f.Audiences, f.Keys, f.Rules = i.URL(), []string{audience}, string(i.JWKS()), rules
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func accessOf(id *skerry.Identity, p *skerry.Project) []skerry.Access {
	return []skerry.Access{{
		TokenID: id.TokenID, Scope: skerry.Scope{TeamID: p.TeamID, ProjectID: p.ID}, Role: skerry.RoleViewer,
		Rule: id.Rule, Key: id.Key, ExpiresAt: id.ExpiresAt.Millis(),
	}}
}

func TestFederatedTokens(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := New(s)
	defer a.Close()
	i := issuertest.New(t, issuertest.Options{})
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	job := i.Token(i.GitHub("acme/web", "refs/heads/main", "").With("aud", audience))
	_, err = a.Authenticate(t.Context(), job)
	wantCode(t, "a token of an unknown issuer", err, skerry.CodeUnauthorized)

	ours := federation.Rule{ID: "ours", Match: map[string]string{"repository": "acme/web"}, Team: "default", Project: "default", Role: skerry.RoleDeveloper}
	accept(t, a, i,
		ours,
		federation.Rule{ID: "lost", Match: map[string]string{"repository": "acme/lost"}, Team: "default", Project: "none", Role: skerry.RoleDeveloper},
		federation.Rule{ID: "vercel", Match: map[string]string{"owner": "acme"}, Team: "default", Project: "default", Role: skerry.RoleViewer},
	)
	id, err := a.Authenticate(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if g := id.Grant("default"); g == nil || g.Project == nil || g.Project.ID != p.ID || g.Role != skerry.RoleDeveloper || !strings.HasPrefix(id.TokenName, "oidc:ci:repo:acme/web") {
		t.Errorf("the identity is %+v, %+v", id, g)
	}
	if strings.Contains(id.TokenID, job) || len(id.TokenID) > 40 {
		t.Errorf("the id of the token is %q", id.TokenID)
	}
	for _, bad := range []struct {
		what   string
		claims issuertest.Claims
		want   skerry.Code
	}{
		{"another repository", i.GitHub("evil/web", "refs/heads/main", "").With("aud", audience), skerry.CodeForbidden},
		{"a project that does not exist", i.GitHub("acme/lost", "refs/heads/main", "").With("aud", audience), skerry.CodeForbidden},
		{"another audience", i.GitHub("acme/web", "refs/heads/main", "").With("aud", "https://elsewhere.example.com"), skerry.CodeUnauthorized},
	} {
		_, err := a.Authenticate(t.Context(), i.Token(bad.claims))
		wantCode(t, bad.what, err, bad.want)
	}

	// A client takes the team and the project that it names from the claims.
	id2, err := a.Authenticate(t.Context(), i.Token(i.Vercel("acme", "team_theirs", "web", "prj_theirs", "development").With("aud", audience)))
	if err != nil {
		t.Fatal(err)
	}
	if g := id2.Grant("team_theirs"); g == nil || g.Team.ID != p.TeamID || !g.For("prj_theirs") || g.For("prj_other") || id2.Grant("team_other") != nil {
		t.Errorf("by the ids of the claims the grant is %+v", g)
	}

	// Another process reads what is stored.
	later := New(s)
	defer later.Close()
	if err := later.LoadIssuers(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if _, err := later.Authenticate(t.Context(), job); err != nil {
		t.Errorf("in a later process: %v", err)
	}

	open := accessOf(id, p)
	if ended, err := a.Ended(t.Context(), open); err != nil || len(ended) != 0 {
		t.Errorf("ended %v, %v", ended, err)
	}
	expired := slices.Clone(open)
	expired[0].ExpiresAt = 1
	if ended, err := a.Ended(t.Context(), expired); err != nil || len(ended) != 1 {
		t.Errorf("of an expired token %v has ended, %v", ended, err)
	}
	less := ours
	less.Role = skerry.RoleViewer
	accept(t, a, i, less)
	if ended, err := a.Ended(t.Context(), open); err != nil || len(ended) != 1 {
		t.Errorf("after the change of the rule %v has ended, %v", ended, err)
	}
	if id, err := a.Authenticate(t.Context(), job); err != nil || id.Grants[0].Role != skerry.RoleViewer {
		t.Errorf("after the change the identity is %+v, %v", id, err)
	}
	if err := a.RemoveIssuer(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), job)
	wantCode(t, "a token of an issuer that was removed", err, skerry.CodeUnauthorized)
	wantCode(t, "to remove it again", a.RemoveIssuer(t.Context(), "ci"), skerry.CodeNotFound)
}

// TestBadIssuers has changes of issuers that cannot be made: nothing changes.
func TestBadIssuers(t *testing.T) {
	a, _ := open(t)
	defer a.Close()
	i := issuertest.New(t, issuertest.Options{})
	rule := federation.Rule{ID: "all", When: "true", Team: "default", Project: "default", Role: skerry.RoleViewer}
	accept(t, a, i, rule)
	for field, change := range map[string]func(*federation.Issuer){
		"url":            func(f *federation.Issuer) { f.URL, f.Keys = "ftp://example.com", "" },
		"audiences":      func(f *federation.Issuer) { f.Audiences = nil },
		"algorithms[0]":  func(f *federation.Issuer) { f.Algorithms = []string{"none"} },
		"keys":           func(f *federation.Issuer) { f.Keys = "{}" },
		"rules[0].when":  func(f *federation.Issuer) { f.Rules[0].When = "claims." },
		"rules[0].role":  func(f *federation.Issuer) { f.Rules[0].Role = "root" },
		"rules[1].id":    func(f *federation.Issuer) { f.Rules = append(f.Rules, f.Rules[0]) },
		"rules[0].match": func(f *federation.Issuer) { f.Rules[0].When = "" },
	} {
		_, err := a.ChangeIssuer(t.Context(), "ci", func(f *federation.Issuer, _ bool) error { change(f); return nil })
		if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Code != skerry.CodeBadRequest || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	_, err := a.ChangeIssuer(t.Context(), "again", func(f *federation.Issuer, _ bool) error {
		f.URL, f.Audiences, f.Keys = i.URL(), []string{audience}, string(i.JWKS())
		return nil
	})
	wantCode(t, "two issuers with one URL", err, skerry.CodeBadRequest)
	if all, err := a.Issuers(t.Context()); err != nil || len(all) != 1 || len(all[0].Rules) != 1 || all[0].Rules[0].When != "true" {
		t.Errorf("afterwards there are %+v, %v", all, err)
	}
	if _, err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	token := i.Token(i.Plain("x").With("aud", audience))
	if _, err := a.Authenticate(t.Context(), token); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	// One that another version has stored, and this one cannot use.
	if err := a.store.SetIssuer(t.Context(), store.Issuer{ID: "newer", Document: `{"format":1,"id":"newer","url":"https://x","audiences":["a"],"algorithms":["NEW1"]}`}); err != nil {
		t.Fatal(err)
	}
	if err := a.LoadIssuers(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(t.Context(), token); err != nil {
		t.Errorf("beside one that cannot be used: %v", err)
	}
	if err := a.RemoveIssuer(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), token)
	wantCode(t, "removed beside one that cannot be used", err, skerry.CodeUnauthorized)
	if err := a.RemoveIssuer(t.Context(), "newer"); err != nil {
		t.Errorf("one that cannot be used is not removed: %v", err)
	}
}
