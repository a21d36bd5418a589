package federation

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation/issuertest"
)

// settled waits until no fetch is in progress.
func settled(t testing.TB, v *Verifier) {
	t.Helper()
	for _, i := range v.state.Load().issuers {
		i.mu.Lock()
		f := i.flight
		i.mu.Unlock()
		if f != nil {
			<-f.done
		}
	}
}

func requests(t testing.TB, i *issuertest.Issuer, want int) {
	t.Helper()
	if _, keys := i.Requests(); keys != want {
		t.Fatalf("%d requests for keys, not %d", keys, want)
	}
}

func rotate(t testing.TB, i *issuertest.Issuer, alg jose.SignatureAlgorithm) *issuertest.Key {
	t.Helper()
	k, err := i.Rotate(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// unpublished returns a key that the issuer does not have.
func unpublished(t testing.TB, alg jose.SignatureAlgorithm) *issuertest.Key {
	t.Helper()
	k, err := issuertest.NewKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, k *issuertest.Key, c issuertest.Claims, headers ...map[string]any) string {
	t.Helper()
	token, err := k.Sign(c, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestRotation: a new key is found with the first token that it signed, the old one goes
// on while it is published, and stops when the keys are fetched without it.
func TestRotation(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	old := i.Key()
	accept(t, v, sign(t, old, i.Plain("1")))
	c.Advance(refetchEvery)
	next := rotate(t, i, jose.ES256)
	accept(t, v, sign(t, next, i.Plain("2")))
	accept(t, v, sign(t, old, i.Plain("3")))
	requests(t, i, 2)
	i.Publish(next)
	removed := sign(t, old, i.Plain("4"))
	accept(t, v, removed)
	c.Advance(DefaultKeyLife)
	refuse(t, v, removed, skerry.CodeUnauthorized, "signature")
	refuse(t, v, sign(t, old, i.Plain("5")), skerry.CodeUnauthorized, "signature")
	accept(t, v, sign(t, next, i.Plain("6")))
	requests(t, i, 3)
}

// TestSwappedKey: another key under the id of a known one.
func TestSwappedKey(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	old := i.Key()
	accept(t, v, sign(t, old, i.Plain("1")))
	c.Advance(refetchEvery)
	next := unpublished(t, jose.RS256)
	next.ID = old.ID
	i.Publish(next)
	accept(t, v, sign(t, next, i.Plain("2")))
	refuse(t, v, sign(t, old, i.Plain("3")), skerry.CodeUnauthorized, "signature")
}

// TestAllKeysRemoved: an issuer that withdraws everything is obeyed.
func TestAllKeysRemoved(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	accept(t, v, i.Token(i.Plain("1")))
	i.Publish()
	c.Advance(DefaultKeyLife)
	refuse(t, v, i.Token(i.Plain("2")), skerry.CodeUnauthorized, "signature")
}

// TestCacheControl: keys live as long as the issuer says, within bounds.
func TestCacheControl(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": DefaultKeyLife, "public": DefaultKeyLife, "max-age=x": DefaultKeyLife, "max-age=-1": DefaultKeyLife,
		"max-age=0": MinKeyLife, "max-age=1": MinKeyLife, "no-store": MinKeyLife, "no-cache, max-age=9999": MinKeyLife,
		"public, max-age=7200": 2 * time.Hour, "MAX-AGE=7200": 2 * time.Hour, "max-age=4294967295": MaxKeyLife, "max-age=99999999999999999999": DefaultKeyLife,
	} {
		if got := keyLife(http.Header{"Cache-Control": {header}}); got != want {
			t.Errorf("%q: %v, not %v", header, got, want)
		}
	}
	if got := keyLife(http.Header{"Cache-Control": {"max-age=7200"}, "Age": {"3600"}}); got != time.Hour {
		t.Errorf("with an age: %v", got)
	}

	i, v, c := start(t, issuertest.Options{})
	i.CacheControl("max-age=7200")
	accept(t, v, i.Token(i.Plain("1")))
	c.Advance(90*time.Minute - time.Second)
	accept(t, v, i.Token(i.Plain("2")))
	requests(t, i, 1)
	// In the last quarter of their life they are fetched in the background: nobody waits.
	hold := make(chan struct{})
	i.Fail(issuertest.Faults{Hold: hold})
	c.Advance(time.Second)
	for n := range 10 {
		accept(t, v, i.Token(i.Plain(fmt.Sprint("3.", n))))
	}
	close(hold)
	settled(t, v)
	requests(t, i, 2)
	accept(t, v, i.Token(i.Plain("4")))
	requests(t, i, 2)
}

// TestStormOfUnknownKeys: tokens with keys that do not exist cause one fetch in 30 s, and
// do not delay those with known keys, not even while the issuer is slow.
func TestStormOfUnknownKeys(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	accept(t, v, i.Token(i.Plain("1")))
	bad := unpublished(t, jose.RS256)
	storm := func(n int) {
		for k := range n {
			refuse(t, v, sign(t, bad, i.Plain("x"), map[string]any{"kid": fmt.Sprint("kid-", k)}), skerry.CodeUnauthorized, "signature")
		}
	}
	storm(20)
	requests(t, i, 1) // the keys are fresh
	c.Advance(refetchEvery - time.Second)
	storm(20)
	requests(t, i, 1)
	c.Advance(time.Second)
	storm(20)
	requests(t, i, 2)
	c.Advance(refetchEvery)

	hold := make(chan struct{})
	i.Fail(issuertest.Faults{Hold: hold})
	var storms sync.WaitGroup
	var refused atomic.Int64
	for k := range 2 * maxWaiting {
		token := sign(t, bad, i.Plain(fmt.Sprint(k)))
		storms.Go(func() {
			switch _, err := v.Verify(context.Background(), token); skerry.CodeOf(err) {
			case skerry.CodeUnauthorized, skerry.CodeUnavailable:
				refused.Add(1)
			}
		})
	}
	for n := range 20 {
		accept(t, v, i.Token(i.Plain(fmt.Sprint("known ", n))))
	}
	close(hold)
	storms.Wait()
	if refused.Load() != 2*maxWaiting {
		t.Errorf("%d were refused", refused.Load())
	}
	requests(t, i, 3)
}

// TestWaitingIsBounded: of tokens that wait for a slow issuer, there are only so many.
func TestWaitingIsBounded(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	hold := make(chan struct{})
	i.Fail(issuertest.Faults{Hold: hold})
	token := i.Token(i.Plain("x"))
	s := v.state.Load().issuers[i.URL()].source
	s.mu.Lock()
	s.waiting = maxWaiting
	s.mu.Unlock()
	refuse(t, v, token, skerry.CodeUnavailable, "try again later")
	s.mu.Lock()
	s.waiting = 0
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, token); err == nil || ctx.Err() == nil {
		t.Error("the caller's context is not obeyed")
	}
	close(hold)
	accept(t, v, token)
	if s.waiting != 0 {
		t.Errorf("%d wait", s.waiting)
	}
}

// TestIssuerDown: without keys tokens are unavailable, not unauthorized. Keys that are
// known go on until MaxKeyLife, and nobody waits for the issuer.
func TestIssuerDown(t *testing.T) {
	i, v, c := start(t, issuertest.Options{})
	i.Fail(issuertest.Faults{Down: true})
	token := func() string { return i.Token(i.Plain(fmt.Sprint(c.Now()))) }
	refuse(t, v, token(), skerry.CodeUnavailable, "cannot be fetched")
	refuse(t, v, token(), skerry.CodeUnavailable, "cannot be fetched")
	if discovery, _ := i.Requests(); discovery != 1 {
		t.Errorf("%d attempts, without a pause", discovery)
	}
	i.Fail(issuertest.Faults{})
	c.Advance(firstRetry)
	accept(t, v, token())
	fetched := c.Now()

	i.Fail(issuertest.Faults{Down: true})
	c.Advance(refetchEvery)
	refuse(t, v, sign(t, unpublished(t, jose.RS256), i.Plain("x")), skerry.CodeUnavailable, "")
	refuse(t, v, sign(t, unpublished(t, jose.RS256), i.Plain("x")), skerry.CodeUnavailable, "")
	for c.Advance(time.Hour); c.Now().Before(fetched.Add(MaxKeyLife)); c.Advance(time.Hour) {
		accept(t, v, token())
		settled(t, v)
	}
	refuse(t, v, token(), skerry.CodeUnavailable, "")
	if s := v.Status(); len(s) != 1 || s[0].Keys != 1 || !s[0].Fetched.Equal(fetched) || s[0].Err == nil || !strings.Contains(s[0].Err.Error(), "status 503") {
		t.Errorf("status %+v", s)
	}
	i.Fail(issuertest.Faults{})
	c.Advance(lastRetry)
	accept(t, v, token())
	if s := v.Status(); s[0].Err != nil {
		t.Errorf("status %+v", s)
	}
}

// TestHostileDiscovery: what discovery and keys must not be.
func TestHostileDiscovery(t *testing.T) {
	other := issuertest.New(t, issuertest.Options{})
	var many []byte
	for range MaxKeys + 1 {
		many = append(many, ",{}"...)
	}
	for name, c := range map[string]struct {
		faults issuertest.Faults
		reason string
	}{
		"another issuer":             {issuertest.Faults{Issuer: other.URL()}, "of another issuer"},
		"issuer with a slash":        {issuertest.Faults{Issuer: "SLASH"}, "of another issuer"},
		"keys of another origin":     {issuertest.Faults{JWKS: other.URL() + "/jwks"}, "another origin"},
		"keys by plain HTTP":         {issuertest.Faults{JWKS: "http://192.0.2.1/jwks"}, "must begin with https://"},
		"keys in a file":             {issuertest.Faults{JWKS: "file:///etc/passwd"}, "must be an https URL"},
		"keys with a password":       {issuertest.Faults{JWKS: "http://user:secret@127.0.0.1/jwks"}, "no user name"},
		"no keys":                    {issuertest.Faults{JWKS: " "}, "no white space"},
		"redirect to another origin": {issuertest.Faults{Redirect: other.URL() + "/jwks"}, "another origin"},
		"redirect to metadata":       {issuertest.Faults{Redirect: "http://169.254.169.254/latest/meta-data"}, "another origin"},
		"redirects without an end":   {issuertest.Faults{Redirect: "/jwks"}, "too many redirects"},
		"a huge document":            {issuertest.Faults{Keys: append([]byte(`{"keys":[]}`), bytes.Repeat([]byte(" "), MaxDocument)...)}, "more than 1048576 bytes"},
		"too many keys":              {issuertest.Faults{Keys: fmt.Appendf(nil, `{"keys":[%s]}`, many[1:])}, "has 65 keys"},
		"no JSON":                    {issuertest.Faults{Keys: []byte("<html>")}, "not a JSON object"},
		"an error as JSON":           {issuertest.Faults{Keys: []byte(`{"error":"no"}`)}, "not a JSON object"},
		"null":                       {issuertest.Faults{Keys: []byte(`null`)}, "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			i, v, _ := start(t, issuertest.Options{Algorithm: jose.EdDSA})
			if c.faults.Issuer == "SLASH" {
				c.faults.Issuer = i.URL() + "/"
			}
			i.Fail(c.faults)
			_, err := v.Probe(t.Context(), configured(i))
			if err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("probe: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error has a password: %v", err)
			}
			refuse(t, v, i.Token(i.Plain("x")), skerry.CodeUnavailable, "cannot be fetched")
		})
	}
	if d, k := other.Requests(); d+k != 0 {
		t.Errorf("%d requests to another origin", d+k)
	}

	i, v, _ := start(t, issuertest.Options{})
	i.Fail(issuertest.Faults{Redirect: "/moved"})
	accept(t, v, i.Token(i.Plain("x"))) // in the same origin
}

// TestKeysOfAnotherHost: the operator may say where the keys are.
func TestKeysOfAnotherHost(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	set(t, v, configured(i, func(o *Issuer) { o.URL, o.JWKSURL = "https://accounts.google.com", i.JWKSURL() }))
	accept(t, v, i.Token(i.Google("jane@example.com", "example.com").With("iss", "https://accounts.google.com")))
	if discovery, _ := i.Requests(); discovery != 0 {
		t.Error("there was a discovery")
	}
}

// TestUnusableKeys: keys of other kinds and purposes are skipped, with what else is in
// the document.
func TestUnusableKeys(t *testing.T) {
	good := unpublished(t, jose.ES256).Public()
	b, err := good.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	encryption := good
	encryption.Use = "enc"
	e, err := encryption.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	private := jose.JSONWebKey{Key: unpublished(t, jose.ES256).Private}
	p, err := private.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	documents := slices.Concat([]byte(`{"keys":[{"kty":"oct","k":"AAAA","alg":"HS256"},{"kty":"new"},{},null,7,{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},`),
		e, []byte(","), p, []byte(","), b, []byte("]}"))
	s, err := parseKeys(documents)
	if err != nil || len(s.keys) != 1 || s.skipped != 9 || s.keys[0].id != good.KeyID {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestSetWhileWaiting: a token that waits for the keys of an issuer is judged by the
// issuers that there are then.
func TestSetWhileWaiting(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	hold := make(chan struct{})
	defer close(hold)
	i.Fail(issuertest.Faults{Hold: hold})
	result := make(chan error)
	go func() {
		_, err := v.Verify(context.Background(), i.Token(i.Plain("x")))
		result <- err
	}()
	for waiting := 0; waiting == 0; {
		s := v.state.Load().issuers[i.URL()].source
		s.mu.Lock()
		waiting = s.waiting
		s.mu.Unlock()
	}
	set(t, v) // ends the fetch
	if err := <-result; skerry.CodeOf(err) != skerry.CodeUnauthorized || !strings.Contains(err.Error(), "not one that is accepted") {
		t.Error(err)
	}
}

// TestClose ends a fetch, and none begins after it.
func TestClose(t *testing.T) {
	i, v, _ := start(t, issuertest.Options{})
	hold := make(chan struct{})
	defer close(hold)
	i.Fail(issuertest.Faults{Hold: hold})
	result := make(chan error)
	go func() {
		_, err := v.Verify(context.Background(), i.Token(i.Plain("x")))
		result <- err
	}()
	for d := 0; d == 0; {
		d, _ = i.Requests()
	}
	v.Close()
	if err := <-result; skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Error(err)
	}
	refuse(t, v, i.Token(i.Plain("y")), skerry.CodeUnavailable, "")
	if d, _ := i.Requests(); d != 1 {
		t.Errorf("%d requests", d)
	}
}

// TestConcurrently is for the race detector: tokens, rotations and changes at once.
func TestConcurrently(t *testing.T) {
	i, v, c := start(t, issuertest.Options{Algorithm: jose.EdDSA})
	c1 := configured(i)
	c2 := configured(i, rules(Rule{ID: "two", Match: map[string]string{"sub": "**"}, Team: "t", Role: skerry.RoleViewer}))
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for n := range 50 {
				if _, err := v.Verify(context.Background(), i.Token(i.Plain(fmt.Sprint(n)))); err != nil && skerry.CodeOf(err) != skerry.CodeUnauthorized {
					t.Error(err)
				}
			}
		})
	}
	work.Go(func() {
		for range 10 {
			set(t, v, c2)
			set(t, v, c1)
			rotate(t, i, jose.EdDSA)
			c.Advance(refetchEvery)
			v.Status()
		}
	})
	work.Wait()
}
