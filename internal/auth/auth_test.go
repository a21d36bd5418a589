package auth

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
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

func TestTokenLife(t *testing.T) {
	a, dir := open(t)
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Bootstrap(t.Context())
	if err != nil || again.ID != p.ID {
		t.Fatalf("the second Bootstrap = %v, %v, want the first project", again, err)
	}
	token, err := a.CreateToken(t.Context(), p.ID, "first", 0)
	if err != nil {
		t.Fatal(err)
	}
	id, err := a.Authenticate(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if id.Project.ID != p.ID || id.Team.ID != p.TeamID || id.Team.Slug != "default" {
		t.Errorf("the token belongs to %+v", id)
	}
	for _, bad := range []string{"", "x", token + "x", token[:len(token)-1], "sk_", strings.Repeat("sk_", 1000)} {
		if _, err := a.Authenticate(t.Context(), bad); skerry.CodeOf(err) != skerry.CodeUnauthorized {
			t.Errorf("Authenticate(%.20q) = %v, want unauthorized", bad, err)
		}
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
		if bytes.Contains(b, []byte(token)) || bytes.Contains(b, []byte(token[3:20])) {
			t.Errorf("%s holds the token", f)
		}
	}
	if ended, err := a.Ended(t.Context(), []string{id.TokenID, "tok_none"}); err != nil || len(ended) != 1 || ended[0] != "tok_none" {
		t.Errorf("ended %v, %v", ended, err)
	}
	if err := a.RevokeToken(t.Context(), id.TokenID); err != nil {
		t.Fatal(err)
	}
	if ended, err := a.Ended(t.Context(), []string{id.TokenID}); err != nil || len(ended) != 1 {
		t.Errorf("ended after the revocation: %v, %v", ended, err)
	}
	if _, err := a.Authenticate(t.Context(), token); skerry.CodeOf(err) != skerry.CodeUnauthorized {
		t.Errorf("a revoked token: %v", err)
	}
	if err := a.RevokeToken(t.Context(), id.TokenID); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("revoking twice: %v", err)
	}
}

func TestTokenExpires(t *testing.T) {
	a, _ := open(t)
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.CreateToken(t.Context(), p.ID, "short", time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.After(2 * time.Millisecond)
	<-deadline
	if _, err := a.Authenticate(t.Context(), token); skerry.CodeOf(err) != skerry.CodeUnauthorized {
		t.Errorf("an expired token: %v", err)
	}
	all, err := a.Tokens(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if ended, err := a.Ended(t.Context(), []string{all[0].ID}); err != nil || len(ended) != 1 {
		t.Errorf("what an expired token has open goes on: %v, %v", ended, err)
	}
}

func TestTokenNames(t *testing.T) {
	a, _ := open(t)
	for _, name := range []string{"", "a\nb", strings.Repeat("x", 129)} {
		if _, err := a.CreateToken(t.Context(), "p", name, 0); skerry.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("CreateToken(%.10q) = %v, want bad_request", name, err)
		}
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
	p, err := a.Bootstrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.CreateToken(t.Context(), p.ID, "first", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(t.Context(), token); err != nil {
		t.Errorf("Authenticate() = %v", err)
	}
}
