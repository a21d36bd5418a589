package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/store"
)

func open(t *testing.T) (*Auth, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(s), dir
}

// first makes the first project and a token for it.
func first(t *testing.T, a *Auth, change ...func(*skerry.TokenParams)) (string, *skerry.AccessToken, *skerry.Project) {
	t.Helper()
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	params := skerry.TokenParams{Name: "first", TeamID: p.TeamID, ProjectID: p.ID, Role: skerry.RoleDeveloper}
	for _, f := range change {
		f(&params)
	}
	secret, token, err := a.CreateToken(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	return secret, token, p
}

func wantCode(t *testing.T, what string, err error, want skerry.Code) {
	t.Helper()
	if err == nil || skerry.CodeOf(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func TestTokenLife(t *testing.T) {
	a, dir := open(t)
	secret, token, p := first(t, a)
	again, err := a.Bootstrap(t.Context())
	if err != nil || again.ID != p.ID {
		t.Fatalf("the second Bootstrap = %v, %v, want the first project", again, err)
	}
	id, err := a.Authenticate(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	if g := id.Grant(""); g == nil || g.Project.ID != p.ID || g.Team.ID != p.TeamID || g.Team.Slug != "default" || g.Role != skerry.RoleDeveloper {
		t.Errorf("the token grants %+v", g)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte(secret[len(Prefix):20])) {
			t.Errorf("%s holds the token", f)
		}
	}
	access := skerry.Access{TokenID: token.ID, Scope: skerry.Scope{TeamID: p.TeamID, ProjectID: p.ID}, Role: skerry.RoleViewer}
	more, elsewhere, unknown := access, access, access
	more.Role, elsewhere.Scope.ProjectID, unknown.TokenID = skerry.RoleOwner, "prj_other", "tok_none"
	all := []skerry.Access{access, more, elsewhere, unknown}
	if ended, err := a.Ended(t.Context(), all); err != nil || !slices.Equal(ended, all[1:]) {
		t.Errorf("ended %v, %v", ended, err)
	}
	if _, err := a.RevokeToken(t.Context(), token.ID); err != nil {
		t.Fatal(err)
	}
	if ended, err := a.Ended(t.Context(), all); err != nil || !slices.Equal(ended, all) {
		t.Errorf("ended after the revocation: %v, %v", ended, err)
	}
	_, err = a.Authenticate(t.Context(), secret)
	wantCode(t, "a revoked token", err, skerry.CodeUnauthorized)
	_, err = a.RevokeToken(t.Context(), token.ID)
	wantCode(t, "revoking twice", err, skerry.CodeNotFound)
}

func TestTokenForm(t *testing.T) {
	a, _ := open(t)
	secret, _, _ := first(t, a)
	if !regexp.MustCompile(`^skerry_[A-Z2-7]{46}$`).MatchString(secret) {
		t.Errorf("the token is %q", secret)
	}
	other := byte('A')
	if secret[20] == other {
		other = 'B'
	}
	for _, bad := range []string{
		"", "x", secret + "x", secret[:len(secret)-1], Prefix, strings.Repeat(Prefix, 1000), strings.ToLower(secret),
		secret[:20] + string(other) + secret[21:], " " + secret[1:], "sk_" + strings.Repeat("A", randomChars),
	} {
		_, err := a.Authenticate(t.Context(), bad)
		wantCode(t, fmt.Sprintf("%.60q", bad), err, skerry.CodeUnauthorized)
	}
}

// TestOldToken uses a token of a version whose tokens had no checksum.
func TestOldToken(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := New(s)
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := "sk_" + strings.Repeat("AB7", 13)
	h := hash(old)
	if err := s.CreateToken(t.Context(), skerry.AccessToken{ID: "tok_old", TeamID: p.TeamID, ProjectID: p.ID, Role: skerry.RoleOwner}, h[:]); err != nil {
		t.Fatal(err)
	}
	if id, err := a.Authenticate(t.Context(), old); err != nil || id.TokenID != "tok_old" {
		t.Errorf("Authenticate() = %+v, %v", id, err)
	}
}

func TestTokenExpires(t *testing.T) {
	a, _ := open(t)
	secret, token, p := first(t, a, func(p *skerry.TokenParams) { p.ExpiresAt = skerry.At(time.Now().Add(100 * time.Millisecond)) })
	time.Sleep(time.Until(token.ExpiresAt.Time) + time.Millisecond)
	_, err := a.Authenticate(t.Context(), secret)
	wantCode(t, "an expired token", err, skerry.CodeUnauthorized)
	access := []skerry.Access{{TokenID: token.ID, Scope: skerry.Scope{TeamID: p.TeamID, ProjectID: p.ID}, Role: skerry.RoleViewer}}
	if ended, err := a.Ended(t.Context(), access); err != nil || len(ended) != 1 {
		t.Errorf("what an expired token has open goes on: %v, %v", ended, err)
	}
}

// TestChangesAreSeen changes what a token grants, in this process and in another one.
func TestChangesAreSeen(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, elsewhere := New(s), New(s)
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	alice, err := a.AddMember(t.Context(), p.TeamID, "alice@example.com", skerry.RoleOwner)
	if err != nil {
		t.Fatal(err)
	}
	secret, _, err := a.CreateToken(t.Context(), skerry.TokenParams{Name: "hers", UserID: alice.User.ID, Role: skerry.RoleOwner})
	if err != nil {
		t.Fatal(err)
	}
	role := func(a *Auth) skerry.Role {
		t.Helper()
		id, err := a.Authenticate(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		if g := id.Grant("default"); g != nil {
			return g.Role
		}
		return ""
	}
	if here, there := role(a), role(elsewhere); here != skerry.RoleOwner || there != here {
		t.Errorf("the roles are %s and %s", here, there)
	}
	if _, err := a.SetRole(t.Context(), p.TeamID, "alice@example.com", skerry.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if role(a) != skerry.RoleViewer {
		t.Error("the change is not seen at once")
	}
	time.Sleep(cacheFor + time.Millisecond)
	if role(elsewhere) != skerry.RoleViewer {
		t.Error("another process does not see the change")
	}
	if _, err := a.AddMember(t.Context(), p.TeamID, "bob", skerry.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RemoveMember(t.Context(), p.TeamID, alice.User.ID); err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), secret)
	wantCode(t, "the token of a user who is no member any more", err, skerry.CodeUnauthorized)
}

func TestBadAccounts(t *testing.T) {
	a, _ := open(t)
	_, _, p := first(t, a)
	ctx := t.Context()
	long := strings.Repeat("x", 300)
	field := func(what, want string, f func() error) {
		t.Helper()
		err := f()
		if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Code != skerry.CodeBadRequest || e.Field != want {
			t.Errorf("%s: %v, want bad_request about %s", what, err, want)
		}
	}
	for _, slug := range []string{"", long, "-a", "a-", "A", "a b", "a/b", "team_1", "ä", "prj_1"} {
		field("slug "+slug, "slug", func() error { _, err := a.CreateTeam(ctx, slug, "name"); return err })
	}
	field("a team's name", "name", func() error { _, err := a.CreateTeam(ctx, "a", "a\nb"); return err })
	for _, name := range []string{"", long, "A", "a b", "a/b", "prj_1", "team_x"} {
		field("project "+name, "name", func() error { _, err := a.CreateProject(ctx, p.TeamID, name); return err })
		field("project "+name, "name", func() error { _, err := a.RenameProject(ctx, p.TeamID, p.ID, name); return err })
	}
	for _, name := range []string{"", long, "a b", "a\nb", "user_1", "älice"} {
		field("user "+name, "user", func() error { _, err := a.AddMember(ctx, p.TeamID, name, skerry.RoleViewer); return err })
	}
	field("an unknown role", "role", func() error { _, err := a.AddMember(ctx, p.TeamID, "bob", "admin"); return err })
	token := skerry.TokenParams{Name: "a", TeamID: p.TeamID, Role: skerry.RoleViewer}
	for _, bad := range []struct {
		field  string
		change func(*skerry.TokenParams)
	}{
		{"name", func(p *skerry.TokenParams) { p.Name = "" }},
		{"name", func(p *skerry.TokenParams) { p.Name = "a\nb" }},
		{"name", func(p *skerry.TokenParams) { p.Name = long }},
		{"role", func(p *skerry.TokenParams) { p.Role = "root" }},
		{"expiresAt", func(p *skerry.TokenParams) { p.ExpiresAt = skerry.At(time.Now().Add(-time.Second)) }},
		{"teamId", func(p *skerry.TokenParams) { p.TeamID = "" }},
		{"teamId", func(p *skerry.TokenParams) { p.UserID = "user_1" }},
	} {
		params := token
		bad.change(&params)
		field("a token", bad.field, func() error { _, _, err := a.CreateToken(ctx, params); return err })
	}
	if tokens, _, err := a.Tokens(ctx, "", "", skerry.Page{}); err != nil || len(tokens) != 1 {
		t.Errorf("afterwards there are the tokens %+v, %v", tokens, err)
	}
	for what, f := range map[string]func() error{
		"team":    func() error { _, err := a.UpdateTeam(ctx, "none", "b", ""); return err },
		"project": func() error { _, err := a.DeleteProject(ctx, p.TeamID, "none"); return err },
		"member":  func() error { _, err := a.SetRole(ctx, p.TeamID, "none", skerry.RoleOwner); return err },
	} {
		wantCode(t, "no such "+what, f(), skerry.CodeNotFound)
	}
}

// fullStore is a store whose disk is full: it can be read.
type fullStore struct{ *store.Store }

func (fullStore) TouchToken(context.Context, string, skerry.Time) error {
	return errors.New("database or disk is full")
}

func TestFullDiskTurnsNobodyAway(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := New(fullStore{s})
	secret, _, _ := first(t, a)
	if _, err := a.Authenticate(t.Context(), secret); err != nil {
		t.Errorf("Authenticate() = %v", err)
	}
}

// BenchmarkAuthenticate measures what authentication adds to a request.
func BenchmarkAuthenticate(b *testing.B) {
	s, err := store.Open(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	a := New(s)
	p, err := a.Bootstrap(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	secret, _, err := a.CreateToken(b.Context(), skerry.TokenParams{Name: "b", TeamID: p.TeamID, Role: skerry.RoleOwner})
	if err != nil {
		b.Fatal(err)
	}
	if err := a.OpenIssuer(b.Context(), "https://skerry.example.com", slog.New(slog.DiscardHandler)); err != nil {
		b.Fatal(err)
	}
	id, err := a.Authenticate(b.Context(), secret)
	if err != nil {
		b.Fatal(err)
	}
	development, _, err := a.DevelopmentToken(b.Context(), id, p.TeamID, p.ID)
	if err != nil {
		b.Fatal(err)
	}
	for kind, token := range map[string]string{"access token": secret, "development token": development} {
		for name, before := range map[string]func(){"known": func() {}, "read from SQLite": a.forget} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				for b.Loop() {
					before()
					if _, err := a.Authenticate(b.Context(), token); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
