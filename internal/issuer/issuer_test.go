package issuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/skerry-dev/skerry"
)

var sandbox = Sandbox{TeamID: "team_1", ProjectID: "prj_1", SessionID: "sbx_1", SandboxName: "one"}

const issuerURL = "https://skerry.example.com"

// lab is an issuer whose keys are in a folder, and whose clock is the test's.
type lab struct {
	*Issuer
	keeper Keeper
	now    time.Time
	log    bytes.Buffer
}

func newLab(t *testing.T, keeper Keeper) *lab {
	t.Helper()
	l := &lab{keeper: keeper, now: time.Now().Truncate(time.Second)}
	l.Issuer = l.open(t)
	return l
}

// open opens the keys again, as another process does.
func (l *lab) open(t *testing.T) *Issuer {
	t.Helper()
	ring, err := openRing(t.Context(), l.keeper, slog.New(slog.NewTextHandler(&l.log, nil)), func() time.Time { return l.now })
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{issuerURL, ring}
}

// get fetches a document as a verifier does.
func get(t *testing.T, path string, sources ...KeySource) (status int, body []byte) {
	t.Helper()
	h, err := Handler(issuerURL, slog.New(slog.DiscardHandler), sources...)
	if err != nil {
		t.Fatal(err)
	}
	return getFrom(t, h, path)
}

func getFrom(t *testing.T, h http.Handler, path string) (status int, body []byte) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	resp, err := http.Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK && (resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "public, max-age=300") {
		t.Errorf("%s: headers %v", path, resp.Header)
	}
	return resp.StatusCode, b
}

// keys returns what is published.
func (l *lab) keys(t *testing.T) (set jose.JSONWebKeySet) {
	t.Helper()
	status, b := get(t, "/.well-known/jwks", l.PublicKeys)
	if err := json.Unmarshal(b, &set); err != nil || status != http.StatusOK {
		t.Fatalf("%d, %v: %s", status, err, b)
	}
	for _, k := range set.Keys {
		if !k.IsPublic() || k.Use != "sig" || k.Algorithm != "RS256" {
			t.Fatalf("a published key is %+v", k)
		}
	}
	return set
}

// kid returns the key that signs now.
func (l *lab) kid(t *testing.T) string {
	t.Helper()
	token, err := l.Forwarded(t.Context(), sandbox, "https://svc.example.com")
	if err != nil {
		t.Fatal(err)
	}
	verify(t, l.keys(t), token)
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Headers[0].KeyID
}

// verify returns a token's claims, with the key that the published set has for it.
func verify(t *testing.T, keys jose.JSONWebKeySet, token string) (jwt.Claims, map[string]any) {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, algorithms)
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

func TestTokensOfSandboxes(t *testing.T) {
	l := newLab(t, Folder(t.TempDir()))
	for _, c := range []struct {
		sign    func(context.Context, Sandbox, string) (string, error)
		subject string
		life    time.Duration
		session string // the claim with the session's id
	}{
		{l.Forwarded, "sandbox:sbx_1", ForwardedLifetime, "sandbox_id"},
		{func(ctx context.Context, s Sandbox, audience string) (string, error) {
			token, expires, err := l.Workload(ctx, s, audience)
			if err == nil && !expires.Equal(l.now.Add(WorkloadLifetime)) {
				t.Errorf("it ends at %v", expires)
			}
			return token, err
		}, "team:team_1:project:prj_1:sandbox:one", WorkloadLifetime, "session_id"},
	} {
		token, err := c.sign(t.Context(), sandbox, "https://svc.example.com/a")
		if err != nil {
			t.Fatal(err)
		}
		standard, own := verify(t, l.keys(t), token)
		if err := standard.Validate(jwt.Expected{Issuer: issuerURL, Subject: c.subject, AnyAudience: jwt.Audience{"https://svc.example.com/a"}, Time: time.Now()}); err != nil {
			t.Error(err)
		}
		if standard.Expiry.Time().Sub(standard.IssuedAt.Time()) != c.life || standard.NotBefore == nil || standard.ID == "" || len(standard.Audience) != 1 {
			t.Errorf("the claims are %+v", standard)
		}
		for name, want := range map[string]string{"team_id": "team_1", "project_id": "prj_1", c.session: "sbx_1", "sandbox_name": "one"} {
			if own[name] != want {
				t.Errorf("%s is %v", name, own[name])
			}
		}
		// The public SDK's proxy library takes every token with sandbox_id for that of a forwarded
		// request.
		if has := own["sandbox_id"] != nil; has != (c.session == "sandbox_id") {
			t.Errorf("the token of %s has the claim sandbox_id: %v", c.subject, has)
		}
		again, err := c.sign(t.Context(), sandbox, "https://svc.example.com/a")
		if err != nil {
			t.Fatal(err)
		}
		if other, _ := verify(t, l.keys(t), again); other.ID == standard.ID {
			t.Error("two tokens have the same id")
		}
		if _, err := l.VerifyDevelopment(t.Context(), token); err == nil {
			t.Errorf("the token of %s is taken for a developer's", c.subject)
		}
		// The audience is what the sandbox's creator says.
		token, err = c.sign(t.Context(), sandbox, issuerURL)
		if c.session == "session_id" {
			if skerry.CodeOf(err) != skerry.CodeBadRequest {
				t.Errorf("a workload token for this server: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.VerifyDevelopment(t.Context(), token); err == nil {
			t.Errorf("the token of %s with this audience is taken for a developer's", c.subject)
		}
	}
}

func TestTokensOfDevelopers(t *testing.T) {
	l := newLab(t, Folder(t.TempDir()))
	want := Development{Team: "acme", TeamID: "team_1", Project: "web", ProjectID: "prj_1", UserID: "usr_1", TokenID: "tok_1"}
	sign := func(latest time.Time) (string, time.Time) {
		t.Helper()
		token, expires, err := l.Development(t.Context(), want, latest)
		if err != nil {
			t.Fatal(err)
		}
		return token, expires
	}
	token, expires := sign(time.Time{})
	got, err := l.VerifyDevelopment(t.Context(), token)
	if err != nil || got.Development != want || got.KeyID != l.kid(t) || !got.Expires.Equal(expires) || expires.Sub(l.now).Round(time.Second) != DevelopmentLifetime {
		t.Errorf("%+v, %v", got, err)
	}
	standard, own := verify(t, l.keys(t), token)
	if standard.Subject != "owner:acme:project:web:environment:development" || own["environment"] != "development" || own["owner_id"] != "team_1" || own["project_id"] != "prj_1" {
		t.Errorf("%+v, %v", standard, own)
	}
	if _, expires = sign(l.now.Add(time.Hour)); expires.Sub(l.now).Round(time.Second) != time.Hour {
		t.Errorf("a token ends %v after the one that it was made with", expires.Sub(l.now)-time.Hour)
	}
	if !l.Signed(t.Context(), token) || l.Signed(t.Context(), "a.b.c") {
		t.Error("who has signed is not known")
	}

	refused := func(what, token string) {
		t.Helper()
		if got, err := l.VerifyDevelopment(t.Context(), token); err == nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
	// What was changed is not signed.
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	forged := base64.RawURLEncoding.EncodeToString(bytes.ReplaceAll(body, []byte("prj_1"), []byte("prj_2")))
	refused("forged", strings.Join([]string{parts[0], forged, parts[2]}, "."))
	head := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	refused("without a signature", head(`{"alg":"none","kid":"`+l.kid(t)+`"}`)+"."+parts[1]+".")
	refused("of another algorithm", head(`{"alg":"HS256","kid":"`+l.kid(t)+`"}`)+"."+parts[1]+"."+parts[2])
	refused("of another key", head(`{"alg":"RS256","kid":"other"}`)+"."+parts[1]+"."+parts[2])
	other := newLab(t, Folder(t.TempDir()))
	stranger, _, err := other.Development(t.Context(), want, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	refused("of another issuer", stranger)
	elsewhere := &Issuer{"https://other.example.com", l.Ring()}
	foreign, _, err := elsewhere.Development(t.Context(), want, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	refused("with another issuer's URL", foreign)
	// Whoever has a key for a while cannot make one that is good for longer.
	claims := l.standard(want.subject(), issuerURL, DevelopmentLifetime+time.Second)
	long, err := l.ring.sign(t.Context(), claims, want, environment{development})
	if err != nil {
		t.Fatal(err)
	}
	refused("for too long", long)
	l.now = l.now.Add(DevelopmentLifetime + 2*time.Minute)
	refused("expired", token)
	l.now = l.now.Add(-DevelopmentLifetime - time.Hour)
	refused("of the future", token)
}

func TestDiscovery(t *testing.T) {
	var d struct {
		Issuer     string   `json:"issuer"`
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	status, b := get(t, "/.well-known/openid-configuration")
	if err := json.Unmarshal(b, &d); err != nil || status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	if d.Issuer != issuerURL || d.Keys != issuerURL+"/.well-known/jwks" || len(d.Algorithms) != 1 || d.Algorithms[0] != "RS256" {
		t.Errorf("%+v", d)
	}
}

// TestKeysOfSeveral: the keys of a node that does not answer are those that it had.
func TestKeysOfSeveral(t *testing.T) {
	server, node := newLab(t, Folder(t.TempDir())), newLab(t, Folder(t.TempDir()))
	down := errors.New("the node does not answer")
	var failure error
	source := func(ctx context.Context) ([]byte, error) {
		if failure != nil {
			return nil, failure
		}
		return node.PublicKeys(ctx)
	}
	h, err := Handler(issuerURL, slog.New(slog.DiscardHandler), server.PublicKeys, source)
	if err != nil {
		t.Fatal(err)
	}
	failure = down
	if status, _ := getFrom(t, h, "/.well-known/jwks"); status != http.StatusServiceUnavailable {
		t.Errorf("without the node's keys: %d", status)
	}
	failure = nil
	_, with := getFrom(t, h, "/.well-known/jwks")
	failure = down
	status, without := getFrom(t, h, "/.well-known/jwks")
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(with, &set); err != nil || status != http.StatusOK || !bytes.Equal(with, without) {
		t.Fatalf("%d, %v: %s, then %s", status, err, with, without)
	}
	if len(set.Keys) != 2 || len(set.Key(server.kid(t))) != 1 || len(set.Key(node.kid(t))) != 1 {
		t.Errorf("%d keys", len(set.Keys))
	}
}

// TestRotation goes through three months: at all times the key that signs has been published
// for a day, and every token that is good can be verified.
func TestRotation(t *testing.T) {
	l := newLab(t, Folder(t.TempDir()))
	published, first := map[string]time.Time{}, l.kid(t)
	for _, k := range l.keys(t).Keys {
		published[k.KeyID] = l.now.Add(-PublishedBefore) // the first cannot be announced
	}
	type signed struct {
		token string
		until time.Time
	}
	var good []signed
	signers := map[string]int{}
	for range 3 * 31 * 4 {
		l.now = l.now.Add(6 * time.Hour)
		set := l.keys(t)
		if len(set.Keys) > 3 {
			t.Fatalf("%d keys at a time", len(set.Keys))
		}
		for _, k := range set.Keys {
			if published[k.KeyID].IsZero() {
				published[k.KeyID] = l.now
			}
		}
		kid := l.kid(t)
		signers[kid]++
		if age := l.now.Sub(published[kid]); age < PublishedBefore {
			t.Fatalf("a key signs %v after it was published", age)
		}
		token, expires, err := l.Development(t.Context(), Development{TeamID: "team_1", ProjectID: "prj_1", TokenID: "tok_1"}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		good = slices.DeleteFunc(append(good, signed{token, expires}), func(s signed) bool { return s.until.Before(l.now) })
		for _, s := range good {
			verify(t, set, s.token)
			if _, err := l.VerifyDevelopment(t.Context(), s.token); err != nil {
				t.Fatal(err)
			}
		}
	}
	last := l.keys(t)
	if left := len(last.Key(first)); len(signers) != 4 || left != 0 {
		t.Errorf("%d keys have signed in three months, and of the first %d are left", len(signers), left)
	}
	days := func(looks int) time.Duration { return time.Duration(looks) * 6 * time.Hour }
	whole := 0
	for kid, looks := range signers {
		if kid != first && kid != l.kid(t) {
			whole++
			if days(looks) != RotateEvery {
				t.Errorf("a key has signed for %v", days(looks))
			}
		}
	}
	if whole != 2 {
		t.Errorf("%d keys have signed for all of their time", whole)
	}
	if l.log.Len() > 0 {
		t.Errorf("the log: %s", &l.log)
	}
}

// TestAnotherServersKeys: servers with one database see each other's keys.
func TestAnotherServersKeys(t *testing.T) {
	l := newLab(t, Folder(t.TempDir()))
	other := l.open(t)
	states, err := other.Ring().Rotate(t.Context(), false)
	if err != nil || len(states) != 2 || states[0].State != stateSigning || states[1].State != stateNext {
		t.Fatalf("%+v, %v", states, err)
	}
	if _, err := other.Ring().Rotate(t.Context(), false); skerry.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("a second next key: %v", err)
	}
	if n := len(l.keys(t).Keys); n != 1 {
		t.Errorf("%d keys before the look", n)
	}
	l.now = l.now.Add(lookEvery)
	if n := len(l.keys(t).Keys); n != 2 {
		t.Errorf("%d keys after the look", n)
	}
	token, _, err := l.Development(t.Context(), Development{TeamID: "team_1", ProjectID: "prj_1", TokenID: "tok_1"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if states, err = other.Ring().Rotate(t.Context(), true); err != nil || len(states) != 1 || states[0].State != stateSigning {
		t.Fatalf("%+v, %v", states, err)
	}
	if _, err := other.VerifyDevelopment(t.Context(), token); err == nil {
		t.Error("a token of a key that was revoked is good where it was revoked")
	}
	l.now = l.now.Add(lookEvery)
	if _, err := l.VerifyDevelopment(t.Context(), token); err == nil {
		t.Error("a token of a key that was revoked is good elsewhere")
	}
	if all, err := l.Ring().Keys(t.Context()); err != nil || len(all) != 1 || all[0] != states[0] {
		t.Errorf("%+v, %v", all, err)
	}
}

// failing is a keeper that fails when it is told to.
type failing struct {
	Keeper
	reads, writes error
}

func (f *failing) Keys(ctx context.Context) ([]StoredKey, error) {
	if f.reads != nil {
		return nil, f.reads
	}
	return f.Keeper.Keys(ctx)
}

func (f *failing) Add(ctx context.Context, k StoredKey) error {
	if f.writes != nil {
		return f.writes
	}
	return f.Keeper.Add(ctx, k)
}

func (f *failing) Remove(ctx context.Context, id string) error {
	if f.writes != nil {
		return f.writes
	}
	return f.Keeper.Remove(ctx, id)
}

func TestKeeperFails(t *testing.T) {
	down := errors.New("the database does not answer")
	f := &failing{Keeper: Folder(t.TempDir()), writes: down}
	if _, err := Open(t.Context(), f, issuerURL, slog.New(slog.DiscardHandler)); !errors.Is(err, down) {
		t.Fatalf("without any key: %v", err)
	}
	f.writes = nil
	l := newLab(t, f)
	first := l.kid(t)
	f.reads, l.now = down, l.now.Add(2*RotateEvery)
	if kid := l.kid(t); kid != first {
		t.Errorf("while the keeper cannot be read, %s signs", kid)
	}
	f.reads, f.writes, l.now = nil, down, l.now.Add(lookEvery)
	if kid := l.kid(t); kid != first || len(l.keys(t).Keys) != 1 {
		t.Errorf("while the keeper cannot be written, %s signs", kid)
	}
	l.open(t) // with a key that is due, which is better than none
	if n := strings.Count(l.log.String(), down.Error()); n < 2 {
		t.Errorf("the log has it %d times: %s", n, &l.log)
	}
	f.writes, l.now = nil, l.now.Add(lookEvery)
	if n := len(l.keys(t).Keys); n != 2 {
		t.Errorf("%d keys when the keeper is well again", n)
	}
}

func TestKeysAreKept(t *testing.T) {
	dir := t.TempDir()
	l := newLab(t, Folder(dir))
	before := l.kid(t)
	l.Issuer = l.open(t)
	if after := l.kid(t); after != before {
		t.Errorf("%s signs before a restart, %s after it", before, after)
	}
	info, err := os.Stat(filepath.Join(dir, before+".pem"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for name, damage := range map[string]func(string) error{
		"open to others": func(path string) error { return os.Chmod(path, 0o644) },
		"cut short":      func(path string) error { return os.Truncate(path, 100) },
		"renamed":        func(path string) error { return os.Rename(path, filepath.Join(filepath.Dir(path), "other.pem")) },
	} {
		dir := t.TempDir()
		l := newLab(t, Folder(dir))
		if err := damage(filepath.Join(dir, l.kid(t)+".pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Folder(dir), issuerURL, slog.New(slog.DiscardHandler)); err == nil || len(err.Error()) > 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAdopt: the one key of versions before signs on.
func TestAdopt(t *testing.T) {
	k, err := newKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, folder := filepath.Join(dir, "tokens.pem"), Folder(filepath.Join(dir, "tokens"))
	if err := os.WriteFile(path, k.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to adopt
		if err := folder.Adopt(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t, folder)
	if kid := l.kid(t); kid != k.ID || len(l.keys(t).Keys) != 1 {
		t.Errorf("%s signs, and not %s", kid, k.ID)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old file: %v", err)
	}
	if _, err := l.Ring().Rotate(t.Context(), false); err != nil {
		t.Error(err)
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
	good, err := newKey(time.Now())
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
	block, _ := pem.Decode(good.PEM)
	damaged := pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: block.Bytes[:len(block.Bytes)/2]})
	for name, c := range map[string]struct {
		content []byte
		mode    os.FileMode
		says    string
	}{
		"empty":          {nil, 0o600, "no private key"},
		"cut short":      {good.PEM[:len(good.PEM)/2], 0o600, "no private key"},
		"damaged":        {damaged, 0o600, "not readable"},
		"a public one":   {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: block.Bytes}), 0o600, "no private key"},
		"another kind":   {encoded(t, typeKey, curve), 0o600, "must be RSA with 2048 bits"},
		"small":          {encoded(t, typeKey, small), 0o600, "must be RSA with 2048 bits"},
		"open to others": {good.PEM, 0o644, "mode 0600"},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, c.content, c.mode); err != nil {
			t.Fatal(err)
		}
		err := Folder(t.TempDir()).Adopt(t.Context(), path)
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
		dir := t.TempDir()
		if _, err := Open(t.Context(), Folder(dir), bad, nil); err == nil {
			t.Errorf("%q is taken", bad)
		}
		if made, err := os.ReadDir(dir); err != nil || len(made) > 0 {
			t.Errorf("%q: a key was made, %v", bad, err)
		}
		if _, err := Handler(bad, nil); err == nil {
			t.Errorf("%q is served", bad)
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
		if got := ForwardedAudience(u); got != want {
			t.Errorf("%s: %s, want %s", forward, got, want)
		}
	}
}
