package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/skerry-dev/skerry/client"
)

// fetchJSON reads a JSON document without a token, as other services do.
func fetchJSON(t *testing.T, url string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, b)
	}
}

const readToken = `cat "$SKERRY_OIDC_TOKEN_FILE"`

// checkToken verifies the token in a sandbox as a cloud does, and returns it.
func (s *server) checkToken(sb *client.Sandbox, audience string) string {
	s.t.Helper()
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	fetchJSON(s.t, s.config().URL+"/.well-known/openid-configuration", &discovery)
	var keys jose.JSONWebKeySet
	fetchJSON(s.t, discovery.Keys, &keys)
	token := s.output(sb, "sh", "-c", readToken)
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		s.t.Fatalf("%v: %.100q", err, token)
	}
	var claims jwt.Claims
	var own struct {
		Team    string `json:"team_id"`
		Project string `json:"project_id"`
		Session string `json:"session_id"`
		Name    string `json:"sandbox_name"`
	}
	key := keys.Key(parsed.Headers[0].KeyID)
	if len(key) != 1 {
		s.t.Fatalf("%d keys of %d are the token's", len(key), len(keys.Keys))
	}
	if err := parsed.Claims(key[0].Key, &claims, &own); err != nil {
		s.t.Fatal(err)
	}
	subject := "team:" + own.Team + ":project:" + own.Project + ":sandbox:" + sb.Name()
	if err := claims.Validate(jwt.Expected{Issuer: discovery.Issuer, Subject: subject, AnyAudience: jwt.Audience{audience}, Time: time.Now()}); err != nil {
		s.t.Errorf("%v: %+v", err, claims)
	}
	if own.Name != sb.Name() || own.Session != sb.Session().ID || claims.Expiry.Time().Sub(claims.IssuedAt.Time()) != time.Hour {
		s.t.Errorf("the token says %+v, %+v", own, claims)
	}
	return token
}

// TestWorkloadToken: a sandbox has a token of its own, in warm, cold and forked sandboxes and
// over restarts, and nobody else has it.
func TestWorkloadToken(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "worker", OIDCAudience: "sts.example.com"})
	first := s.checkToken(sb, "sts.example.com")
	if code, out := s.shell(sb, `sudo -u nobody cat "$SKERRY_OIDC_TOKEN_FILE"`); code == 0 || strings.Contains(out, first) {
		t.Errorf("another user reads it: %d %q", code, out)
	}
	if got := s.output(sb, "sh", "-c", `sudo cat "$SKERRY_OIDC_TOKEN_FILE"`); got != first {
		t.Errorf("root reads %.40q", got)
	}
	// It is no token for the server itself.
	_, err := s.connect(s.config().URL, s.config().Token, false).CreateSandbox(t.Context(), client.CreateOptions{OIDCAudience: s.config().URL})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusBadRequest || e.Field != "oidcAudience" {
		t.Errorf("a token for the server: %v", err)
	}
	if _, err := s.connect(s.config().URL, first, false).GetSandbox(t.Context(), "worker", client.GetOptions{}); !client.IsUnauthorized(err) {
		t.Errorf("the server's answer to it: %v", err)
	}

	fork, err := sb.Fork(t.Context(), client.ForkOptions{Name: "fork", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.checkToken(fork, "sts.example.com") == first {
		t.Error("the fork has its source's token")
	}
	s.delete(fork)

	s.kill()
	s.start()
	again := s.get("worker")
	// The new server does not know how old the token is.
	s.waitFor("a new token", func() bool { return s.output(again, "sh", "-c", readToken) != first })
	s.checkToken(again, "sts.example.com")

	stopped, err := again.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.output(s.get("worker"), "true") // which resumes it
	resumed := s.get("worker")
	if resumed.Session().ID == stopped.Session.ID {
		t.Fatal("it was not resumed")
	}
	s.checkToken(resumed, "sts.example.com")
	plain := s.create(client.CreateOptions{Source: client.FromSnapshot(stopped.Snapshot.ID())})
	if code, out := s.shell(plain, `test -z "$SKERRY_OIDC_TOKEN_FILE" && ! ls /run/skerry/oidc-token`); code != 0 {
		t.Errorf("a sandbox without a token, from the files of one that has one: %q", out)
	}
	s.delete(plain)
	s.delete(resumed)
}
