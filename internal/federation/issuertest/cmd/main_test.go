package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// TestTokens: what a program in another language would do.
func TestTokens(t *testing.T) {
	in, requests := io.Pipe()
	answers, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(in, out) }()
	lines := bufio.NewScanner(answers)
	read := func() (m map[string]string) {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	v := federation.New(federation.Options{LoopbackHTTP: true, Log: slog.New(slog.DiscardHandler)})
	defer v.Close()
	err := v.Set([]federation.Issuer{{ID: "test", URL: read()["issuer"], Audiences: []string{issuertest.Audience}, Rules: []federation.Rule{
		{ID: "all", When: "true", Team: `${has(claims.owner_id) ? claims.owner_id : "none"}`, Role: skerry.RoleViewer},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ request, subject, team string }{
		{`{}`, "someone", "none"},
		{`{"kind":"github","claims":{"sub":"x","environment":null}}`, "x", "none"},
		{`{"kind":"gitlab"}`, "project_path:acme/web:ref_type:branch:ref:main", "none"},
		{`{"kind":"kubernetes"}`, "system:serviceaccount:ci:builder", "none"},
		{`{"kind":"google"}`, "110169484474386276334", "none"},
		{`{"kind":"vercel","claims":{"owner_id":"team_x"}}`, "owner:acme:project:web:environment:development", "team_x"},
	} {
		fmt.Fprintln(requests, c.request)
		id, err := v.Verify(t.Context(), read()["token"])
		if err != nil || id.Subject != c.subject || id.Team != c.team {
			t.Errorf("%s: %+v, %v", c.request, id, err)
		}
	}
	fmt.Fprintln(requests, `{"kind":"vercel","algorithm":"ES256"}`)
	if read()["token"] == "" {
		t.Error("no token")
	}
	fmt.Fprintln(requests, `{"kind":"unknown"}`)
	if err := <-done; err == nil {
		t.Error("an unknown kind is accepted")
	}
}
