package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Key is a key pair.
type Key struct {
	ID        string
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// NewKey makes a key for an algorithm.
func NewKey(alg jose.SignatureAlgorithm) (*Key, error) {
	k := &Key{Algorithm: alg}
	var err error
	switch alg {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
		k.Private, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		k.Private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		k.Private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		k.Private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, k.Private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no key can be made for the algorithm %s", alg)
	}
	if err != nil {
		return nil, err
	}
	sum, err := (&jose.JSONWebKey{Key: k.Private.Public()}).Thumbprint(crypto.SHA256)
	k.ID = base64.RawURLEncoding.EncodeToString(sum)
	return k, err
}

// Public is what is published of the key.
func (k *Key) Public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
}

// Sign returns a token with the claims. Headers replace those that a token usually
// has; the header of a nil value is left out.
func (k *Key) Sign(claims map[string]any, headers ...map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	header := map[string]any{"alg": k.Algorithm, "kid": k.ID, "typ": "JWT"}
	for _, more := range headers {
		for name, v := range more {
			header[name] = v
			if v == nil {
				delete(header, name)
			}
		}
	}
	head, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	return k.SignBytes(head, payload)
}

// SignBytes signs a header and a payload as they are, with the key's algorithm,
// whatever the header says. An honest signer would not: that is what it is for.
func (k *Key) SignBytes(header, payload []byte) (string, error) {
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	var hash crypto.Hash
	switch k.Algorithm[len(k.Algorithm)-3:] {
	case "256":
		hash = crypto.SHA256
	case "384":
		hash = crypto.SHA384
	case "512":
		hash = crypto.SHA512
	}
	digest := []byte(input) // Ed25519 signs the message
	if hash != 0 {
		h := hash.New()
		h.Write(digest)
		digest = h.Sum(nil)
	}
	var signature []byte
	var err error
	switch private := k.Private.(type) {
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, private, digest)
		if e != nil {
			return "", e
		}
		size := (private.Curve.Params().BitSize + 7) / 8
		signature = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		var o crypto.SignerOpts = hash
		if k.Algorithm[0] == 'P' {
			o = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
		}
		signature, err = private.Sign(rand.Reader, digest, o)
	default:
		signature, err = private.Sign(rand.Reader, digest, crypto.Hash(0))
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// Rotate makes a new key, publishes it beside the others, and signs with it from now
// on.
func (i *Issuer) Rotate(alg jose.SignatureAlgorithm) (*Key, error) {
	k, err := NewKey(alg)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.current, i.published = k, append(i.published, k)
	return k, nil
}

// Publish replaces the published keys. What tokens are signed with stays the same.
func (i *Issuer) Publish(keys ...*Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.published = slices.Clone(keys)
}

// Key is what tokens are signed with.
func (i *Issuer) Key() *Key {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}
