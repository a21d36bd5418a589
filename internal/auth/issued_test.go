package auth

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

const ownURL = "https://skerry.example.com"

// openIssuing is open with an issuer.
func openIssuing(t *testing.T) *Auth {
	t.Helper()
	a, _ := open(t)
	t.Cleanup(a.Close)
	if err := a.OpenIssuer(t.Context(), ownURL, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return a
}

// identity authenticates a token that is good.
func identity(t *testing.T, a *Auth, secret string) *skerry.Identity {
	t.Helper()
	id, err := a.Authenticate(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// develop makes a development token.
func develop(t *testing.T, a *Auth, secret string, p *skerry.Project) string {
	t.Helper()
	token, _, err := a.DevelopmentToken(t.Context(), identity(t, a, secret), p.TeamID, p.Name)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestDevelopmentTokens(t *testing.T) {
	a := openIssuing(t)
	secret, parent, p := first(t, a, func(p *skerry.TokenParams) { p.ProjectID, p.Role = "", skerry.RoleOwner })
	other, err := a.CreateProject(t.Context(), p.TeamID, "other")
	if err != nil {
		t.Fatal(err)
	}
	token := develop(t, a, secret, p)
	id := identity(t, a, token)
	g := id.Grant(p.TeamID)
	if g == nil || g.Project == nil || g.Project.ID != p.ID || g.Role != skerry.RoleDeveloper || len(id.Grants) != 1 || id.Grant("other") != nil {
		t.Errorf("it grants %+v", id.Grants)
	}
	if id.TokenID != parent.ID || !id.Development || time.Until(id.ExpiresAt.Time).Round(time.Hour) != 12*time.Hour {
		t.Errorf("the identity is %+v", id)
	}
	if strings.Contains(token, secret) {
		t.Error("it has the access token in it")
	}
	_, _, err = a.DevelopmentToken(t.Context(), id, p.TeamID, p.ID)
	wantCode(t, "one made with one", err, skerry.CodeForbidden)
	_, _, err = a.DevelopmentToken(t.Context(), identity(t, a, secret), p.TeamID, "none")
	wantCode(t, "one for a project that does not exist", err, skerry.CodeNotFound)

	open := accessOf(id, p)
	elsewhere, past := open[0], open[0]
	elsewhere.Scope.ProjectID, past.ExpiresAt = "prj_none", time.Now().Add(-2*time.Minute).UnixMilli()
	if ended, err := a.Ended(t.Context(), []skerry.Access{open[0], elsewhere, past}); err != nil || !slices.Equal(ended, []skerry.Access{elsewhere, past}) {
		t.Errorf("ended: %v, %v", ended, err)
	}
	of := develop(t, a, secret, other)
	if _, err := a.DeleteProject(t.Context(), p.TeamID, other.ID); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), of)
	wantCode(t, "one of a deleted project", err, skerry.CodeUnauthorized)

	if _, err := a.RevokeToken(t.Context(), parent.ID); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), token)
	wantCode(t, "one whose access token was revoked", err, skerry.CodeUnauthorized)
	if ended, err := a.Ended(t.Context(), open); err != nil || len(ended) != 1 {
		t.Errorf("ended: %v, %v", ended, err)
	}
}

// TestDevelopmentTokensAllowNoMore: not than the access token, for no longer, and in no other
// project.
func TestDevelopmentTokensAllowNoMore(t *testing.T) {
	a := openIssuing(t)
	end := skerry.At(time.Now().Add(time.Hour).Truncate(time.Second))
	viewer, _, p := first(t, a, func(p *skerry.TokenParams) { p.Role, p.ExpiresAt = skerry.RoleViewer, end })
	id := identity(t, a, develop(t, a, viewer, p))
	if id.Grants[0].Role != skerry.RoleViewer || !id.ExpiresAt.Equal(end.Time) {
		t.Errorf("one of a viewer is %+v", id)
	}

	alice, err := a.AddMember(t.Context(), p.TeamID, "alice", skerry.RoleOwner)
	if err != nil {
		t.Fatal(err)
	}
	secret, _, _ := first(t, a, func(p *skerry.TokenParams) {
		p.TeamID, p.ProjectID, p.UserID, p.Role = "", "", alice.User.ID, skerry.RoleOwner
	})
	token := develop(t, a, secret, p)
	if id := identity(t, a, token); id.User == nil || id.User.ID != alice.User.ID || id.Grants[0].Role != skerry.RoleDeveloper {
		t.Errorf("one of a user is %+v", id)
	}
	if _, err := a.SetRole(t.Context(), p.TeamID, "alice", skerry.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if id := identity(t, a, token); id.Grants[0].Role != skerry.RoleViewer {
		t.Errorf("after the user's role has changed it is %+v", id)
	}
	if _, err := a.RemoveMember(t.Context(), p.TeamID, "alice"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), token)
	wantCode(t, "one of a user who has left", err, skerry.CodeUnauthorized)

	admin, _, err := a.CreateToken(t.Context(), skerry.TokenParams{Name: "admin", Role: skerry.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = a.DevelopmentToken(t.Context(), identity(t, a, admin), p.TeamID, p.ID)
	wantCode(t, "one of an administrator", err, skerry.CodeForbidden)
	i := issuertest.New(t, issuertest.Options{})
	accept(t, a, i, federation.Rule{ID: "ours", Match: map[string]string{"repository": "acme/web"}, Team: "default", Project: "default", Role: skerry.RoleDeveloper})
	job := identity(t, a, i.Token(i.GitHub("acme/web", "refs/heads/main", "").With("aud", audience)))
	_, _, err = a.DevelopmentToken(t.Context(), job, p.TeamID, p.ID)
	wantCode(t, "one made with a token of another issuer", err, skerry.CodeForbidden)
}

// TestKeysOfDevelopmentTokens: what another issuer signs is not taken, and a key that is
// revoked ends its tokens at once.
func TestKeysOfDevelopmentTokens(t *testing.T) {
	a, other := openIssuing(t), openIssuing(t)
	secret, _, p := first(t, a)
	token := develop(t, a, secret, p)
	_, err := other.Authenticate(t.Context(), token)
	wantCode(t, "a token of another installation", err, skerry.CodeUnauthorized)
	identity(t, a, token)
	if _, err := a.RotateKeys(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	opened := accessOf(identity(t, a, token), p)
	if ended, err := a.Ended(t.Context(), opened); err != nil || len(ended) > 0 {
		t.Errorf("ended by a rotation: %v, %v", ended, err)
	}
	keys, err := a.RotateKeys(t.Context(), true)
	if err != nil || len(keys) != 1 {
		t.Fatalf("%v, %v", keys, err)
	}
	if ended, err := a.Ended(t.Context(), opened); err != nil || !slices.Equal(ended, opened) {
		t.Errorf("ended by a revocation: %v, %v", ended, err)
	}
	_, err = a.Authenticate(t.Context(), token)
	wantCode(t, "a token of a key that was revoked", err, skerry.CodeUnauthorized)
	identity(t, a, develop(t, a, secret, p))
	b, err := a.PublicKeys(t.Context())
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
			D  string `json:"d"`
		} `json:"keys"`
	}
	if err != nil || json.Unmarshal(b, &set) != nil || len(set.Keys) != 1 || set.Keys[0].ID != keys[0].ID || set.Keys[0].D != "" {
		t.Errorf("the public keys are %s, %v", b, err)
	}
	offline, _ := open(t)
	if keys, err := offline.SigningKeys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("the keys of a server that does not run: %v, %v", keys, err)
	}
}
