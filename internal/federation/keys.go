package federation

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// MaxKeys is the number of keys of an issuer.
	MaxKeys = 64
	// maxTries is with how many keys the signature of one token is compared. Issuers give
	// keys distinct ids, and most tokens name one.
	maxTries = 4
	// minRSA and maxRSA are sizes of RSA keys, in bits: smaller ones are weak, larger ones
	// cost milliseconds.
	minRSA, maxRSA = 2048, 8192
)

// key is a public key of an issuer.
type key struct {
	id string
	// algorithm is the only one that the key is for, if not "".
	algorithm string
	public    any
}

// fits reports whether a key may verify signatures of an algorithm.
func (k key) fits(alg jose.SignatureAlgorithm) bool {
	if k.algorithm != "" && k.algorithm != string(alg) {
		return false
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
	case *ecdsa.PublicKey:
		bits := public.Curve.Params().BitSize // a digest of one size with a curve of another is not in RFC 7518
		return alg == jose.ES256 && bits == 256 || alg == jose.ES384 && bits == 384 || alg == jose.ES512 && bits == 521
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// keySet are the keys of an issuer at a time.
type keySet struct {
	keys    []key
	skipped int
	// fetched is when they were asked for. From refresh on they are asked for again, in
	// the background. From expires on, that is waited for. From end on, they are not used.
	fetched, refresh, expires, end time.Time
}

// parseKeys reads a JWKS document. Keys that cannot verify tokens are skipped: issuers
// also publish keys for other purposes, and of kinds that are newer than this program.
func parseKeys(b []byte) (*keySet, error) {
	var document struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &document); err != nil || document.Keys == nil {
		return nil, errors.New(`is not a JSON object with the list "keys"`)
	}
	if n := len(*document.Keys); n > MaxKeys {
		return nil, fmt.Errorf("has %d keys, more than %d", n, MaxKeys)
	}
	set := &keySet{}
	for _, raw := range *document.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || !k.Valid() || !usable(&k) {
			set.skipped++
			continue
		}
		set.keys = append(set.keys, key{id: k.KeyID, algorithm: k.Algorithm, public: k.Key})
	}
	return set, nil
}

func usable(k *jose.JSONWebKey) bool {
	if k.Use != "" && k.Use != "sig" {
		return false
	}
	switch public := k.Key.(type) { // not private keys: whoever publishes them has lost them
	case *rsa.PublicKey:
		return public.N.BitLen() >= minRSA && public.N.BitLen() <= maxRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

// verify verifies a token with the keys, and reports whether one of them made its
// signature. The payload that go-jose verified is the one that was parsed.
func (s *keySet) verify(t *token, jws *jose.JSONWebSignature) bool {
	alg, tries := jose.SignatureAlgorithm(jws.Signatures[0].Protected.Algorithm), 0
	for _, k := range s.keys {
		if t.kid != "" && k.id != t.kid || !k.fits(alg) {
			continue
		}
		if tries++; tries > maxTries {
			return false
		}
		if payload, err := jws.Verify(k.public); err == nil && string(payload) == string(t.payload) {
			return true
		}
	}
	return false
}
