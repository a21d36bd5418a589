package oidc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

var claims = Claims{TeamID: "team_1", ProjectID: "prj_1", SandboxID: "sbx_1", SandboxName: "one"}

const issuer = "https://skerry.example.com"

func open(t *testing.T, path string) *Signer {
	t.Helper()
	s, err := Open(path, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch reads a document as a verifier does.
func fetch(t *testing.T, s *Signer, path string, into any) {
	t.Helper()
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	resp, err := http.Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// verify returns a token's claims, with the key that the served set has for it.
func verify(t *testing.T, keys jose.JSONWebKeySet, token string) (jwt.Claims, map[string]any) {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	found := keys.Key(parsed.Headers[0].KeyID)
	if len(parsed.Headers) != 1 || len(found) != 1 || parsed.Headers[0].Algorithm != "RS256" {
		t.Fatalf("headers %+v, keys %d", parsed.Headers, len(found))
	}
	var standard jwt.Claims
	own := map[string]any{}
	if err := parsed.Claims(found[0].Key, &standard, &own); err != nil {
		t.Fatal(err)
	}
	return standard, own
}

func TestTokensAreVerified(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "key"))
	var keys jose.JSONWebKeySet
	for _, path := range []string{"/.well-known/jwks", "/.well-known/jwks.json"} {
		fetch(t, s, path, &keys)
	}
	if len(keys.Keys) != 1 || !keys.Keys[0].IsPublic() || keys.Keys[0].Use != "sig" || keys.Keys[0].Algorithm != "RS256" {
		t.Fatalf("the keys are %+v", keys)
	}
	token, err := s.Token(claims, "https://svc.example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	standard, own := verify(t, keys, token)
	if err := standard.Validate(jwt.Expected{Issuer: issuer, Subject: "sandbox:sbx_1", AnyAudience: jwt.Audience{"https://svc.example.com/a"}, Time: time.Now()}); err != nil {
		t.Error(err)
	}
	if standard.Expiry.Time().Sub(standard.IssuedAt.Time()) != Lifetime || standard.NotBefore == nil || standard.ID == "" || len(standard.Audience) != 1 {
		t.Errorf("the claims are %+v", standard)
	}
	for name, want := range map[string]string{"team_id": "team_1", "project_id": "prj_1", "sandbox_id": "sbx_1", "sandbox_name": "one"} {
		if own[name] != want {
			t.Errorf("%s is %v", name, own[name])
		}
	}
	again, err := s.Token(claims, "https://svc.example.com/a")
	if err != nil {
		t.Fatal(err)
	}
	if other, _ := verify(t, keys, again); other.ID == standard.ID {
		t.Error("two tokens have the same id")
	}
	// What was changed is not signed.
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.ReplaceAll(string(body), "sbx_1", "sbx_2")))
	forged, err := jwt.ParseSigned(strings.Join(parts, "."), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	if forged.Claims(keys.Keys[0].Key, &standard) == nil {
		t.Error("a forged token is verified")
	}
}

func TestDiscovery(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "key"))
	var d struct {
		Issuer     string   `json:"issuer"`
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	fetch(t, s, "/.well-known/openid-configuration", &d)
	if d.Issuer != issuer || d.Keys != issuer+"/.well-known/jwks" || len(d.Algorithms) != 1 || d.Algorithms[0] != "RS256" {
		t.Errorf("%+v", d)
	}
}

// TestKeyIsKept: a restart signs with the same key, and a new file is a new key
// with another id, which the old set does not know.
func TestKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var before, after, other jose.JSONWebKeySet
	fetch(t, open(t, path), "/.well-known/jwks", &before)
	again := open(t, path)
	fetch(t, again, "/.well-known/jwks", &after)
	token, err := again.Token(claims, "https://svc.example.com")
	if err != nil {
		t.Fatal(err)
	}
	verify(t, before, token)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	rotated := open(t, path)
	fetch(t, rotated, "/.well-known/jwks", &other)
	if other.Keys[0].KeyID == after.Keys[0].KeyID || before.Keys[0].KeyID != after.Keys[0].KeyID {
		t.Errorf("ids %q, %q and %q", before.Keys[0].KeyID, after.Keys[0].KeyID, other.Keys[0].KeyID)
	}
	if token, err = rotated.Token(claims, "https://svc.example.com"); err != nil {
		t.Fatal(err)
	}
	verify(t, other, token)
	if parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256}); err != nil || len(before.Key(parsed.Headers[0].KeyID)) != 0 {
		t.Errorf("the old set knows the new key: %v", err)
	}
}

func encoded(t *testing.T, kind string, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestKeysThatAreRefused(t *testing.T) {
	good, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	damaged := pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: block.Bytes[:len(block.Bytes)/2]})
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
		says    string
	}{
		"empty":          {nil, 0o600, "must have a private key"},
		"cut short":      {good[:len(good)/2], 0o600, "must have a private key"},
		"damaged":        {damaged, 0o600, "not readable"},
		"a public one":   {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: block.Bytes}), 0o600, "must have a private key"},
		"another kind":   {encoded(t, typeKey, curve), 0o600, "must be RSA with 2048 bits"},
		"small":          {encoded(t, typeKey, small), 0o600, "must be RSA with 2048 bits"},
		"open to others": {good, 0o644, "mode 0600"},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, c.content, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, issuer)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) || len(err.Error()) > 300 {
			t.Errorf("%s: %v", name, err)
		}
		if b, rerr := os.ReadFile(path); rerr != nil || string(b) != string(c.content) {
			t.Errorf("%s: the file was changed: %v", name, rerr)
		}
	}
}

func TestIssuers(t *testing.T) {
	for _, bad := range []string{"", "skerry.example.com", "ftp://a.example", "https://a.example/", "https://a.example?x", "https://a.example#x", "https://"} {
		path := filepath.Join(t.TempDir(), "key")
		if _, err := Open(path, bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%q: a key was made", bad)
		}
	}
}

func TestAudience(t *testing.T) {
	for forward, want := range map[string]string{
		"https://Svc.Example.com":         "https://svc.example.com",
		"https://svc.example.com:443/":    "https://svc.example.com",
		"https://svc.example.com:8443/a/": "https://svc.example.com:8443/a",
		"https://svc.example.com/a%2Fb?x": "https://svc.example.com/a%2Fb",
	} {
		u, err := url.Parse(forward)
		if err != nil {
			t.Fatal(err)
		}
		if got := Audience(u); got != want {
			t.Errorf("%s: %s, want %s", forward, got, want)
		}
	}
}
