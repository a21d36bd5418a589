// Package oidc signs tokens that tell a service outside from which sandbox a
// request comes, and serves what it takes to verify them.
package oidc

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/skerry-dev/skerry/internal/keyfile"
)

// Lifetime is how long a token is good.
const Lifetime = 5 * time.Minute

// Claims are what a token says of a sandbox.
type Claims struct{ TeamID, ProjectID, SandboxID, SandboxName string }

// Signer signs with an RSA key of 2048 bits (RS256). It is safe for concurrent
// use.
type Signer struct {
	issuer          string
	signer          jose.Signer
	keys, discovery []byte // JSON
}

const typeKey = "PRIVATE KEY"

// Open reads the key in the file at path, PEM with mode 0600, or makes one.
// issuer is the URL that tokens name as theirs, without a slash at its end;
// what Handler serves must be reachable below it.
func Open(path, issuer string) (*Signer, error) {
	u, err := url.Parse(issuer)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(issuer, "/") {
		return nil, fmt.Errorf("oidc: the issuer %q must be an http or https URL without query and final slash", issuer)
	}
	b, err := keyfile.Open(path, generate)
	if err != nil {
		return nil, fmt.Errorf("open the key for tokens: %w", err)
	}
	key, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("open the key for tokens %s: %w", path, err)
	}
	return newSigner(key, issuer)
}

func generate() ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

func parse(b []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != typeKey {
		return nil, errors.New("the file must have a private key")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key is not readable")
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok || key.N.BitLen() < 2048 {
		return nil, errors.New("the private key must be RSA with 2048 bits or more")
	}
	return key, nil
}

func newSigner(key *rsa.PrivateKey, issuer string) (*Signer, error) {
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.RS256), Use: "sig"}
	sum, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	s := &Signer{issuer: issuer}
	s.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	if s.keys, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}}); err != nil {
		return nil, err
	}
	s.discovery, err = json.Marshal(map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              issuer + "/.well-known/jwks",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		"claims_supported":                      []string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "team_id", "project_id", "sandbox_id", "sandbox_name"},
	})
	return s, err
}

// Issuer returns the URL.
func (s *Signer) Issuer() string { return s.issuer }

// Token returns a token for an audience, good for Lifetime.
func (s *Signer) Token(c Claims, audience string) (string, error) {
	now := time.Now()
	return jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer:   s.issuer,
		Subject:  "sandbox:" + c.SandboxID,
		Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(Lifetime)),
		ID: rand.Text(),
	}).Claims(map[string]any{
		"team_id": c.TeamID, "project_id": c.ProjectID, "sandbox_id": c.SandboxID, "sandbox_name": c.SandboxName,
	}).Serialize()
}

// Audience returns the audience of tokens for a forwardURL: the URL without a
// default port, and without slashes at its end, which is how the proxy library
// of the public SDK derives it from the requests that it gets.
func Audience(forward *url.URL) string {
	host := strings.ToLower(forward.Host)
	if forward.Scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	}
	return strings.ToLower(forward.Scheme) + "://" + host + strings.TrimRight(forward.EscapedPath(), "/")
}

// Handler serves GET /.well-known/jwks, /.well-known/jwks.json and
// /.well-known/openid-configuration.
func (s *Signer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /.well-known/jwks", document(s.keys))
	mux.Handle("GET /.well-known/jwks.json", document(s.keys))
	mux.Handle("GET /.well-known/openid-configuration", document(s.discovery))
	return mux
}

func document(b []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		w.Write(b)
	})
}
