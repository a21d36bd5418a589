package issuer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/skerry-dev/skerry"
)

// When keys change. All of it follows from when keys were made, so that servers with
// one database agree without talking to each other.
const (
	// RotateEvery is how long a key signs. The first one, which need not wait, signs for
	// PublishedBefore longer.
	RotateEvery = 30 * 24 * time.Hour
	// PublishedBefore is how long a key is published before it signs: verifiers may keep
	// what they have fetched for hours.
	PublishedBefore = 24 * time.Hour
	// PublishedAfter is how long a key is published after it has signed last. No token
	// lives that long.
	PublishedAfter = 24 * time.Hour

	// lookEvery is how often a ring that is in use looks for what others have done with its
	// keys, and so how long a key that another server has revoked is still good here.
	lookEvery = 500 * time.Millisecond
	// lookTimeout bounds the wait for a keeper that does not answer.
	lookTimeout = 5 * time.Second
)

// StoredKey is a private key as it is kept.
type StoredKey struct {
	// ID is the thumbprint of the public key (RFC 7638), which tokens name as "kid".
	ID      string
	Created time.Time
	// PEM is secret.
	PEM []byte
}

// Keeper keeps the keys of a ring.
type Keeper interface {
	Keys(ctx context.Context) ([]StoredKey, error)
	// Add keeps one more key.
	Add(ctx context.Context, k StoredKey) error
	// Remove forgets a key; it need not exist.
	Remove(ctx context.Context, id string) error
}

// key is a key in use.
type key struct {
	id      string
	created time.Time
	private *rsa.PrivateKey
	signer  jose.Signer
}

// Ring are the keys with which an issuer signs: one signs, and those before and after it
// are published too. It is safe for concurrent use.
type Ring struct {
	keeper Keeper
	log    *slog.Logger
	clock  func() time.Time

	// looking is held by who asks the keeper.
	looking sync.Mutex

	mu     sync.Mutex
	keys   []*key // the oldest first
	looked time.Time
}

// OpenRing returns the ring of a keeper, with a first key if it has none.
func OpenRing(ctx context.Context, k Keeper, log *slog.Logger) (*Ring, error) {
	return openRing(ctx, k, log, time.Now)
}

func openRing(ctx context.Context, k Keeper, log *slog.Logger, clock func() time.Time) (*Ring, error) {
	r := &Ring{keeper: k, log: log, clock: clock}
	r.looking.Lock()
	defer r.looking.Unlock()
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// look reads the keys, and makes and removes those for which it is time. What cannot be
// made or removed is tried again later, as long as there is a key.
func (r *Ring) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	now := r.clock()
	keys, err := r.read(ctx)
	if err != nil {
		return err
	}
	if n := len(keys); n == 0 || now.Sub(keys[n-1].created) >= RotateEvery {
		switch err := r.add(ctx, now); {
		case err != nil && n == 0:
			return err
		case err != nil:
			r.log.Error("cannot rotate the keys that sign tokens", "error", err)
		default:
			if keys, err = r.read(ctx); err != nil {
				return err
			}
		}
	}
	all := slices.Clone(keys)
	keys = slices.DeleteFunc(keys, func(k *key) bool {
		next := successor(all, k)
		if next == nil || now.Sub(next.created) < PublishedBefore+PublishedAfter {
			return false
		}
		if err := r.keeper.Remove(ctx, k.id); err != nil {
			r.log.Error("cannot remove a key that signed tokens", "key", k.id, "error", err)
		}
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.looked = keys, now
	return nil
}

// successor returns the key that was made next after one.
func successor(keys []*key, k *key) *key {
	for _, other := range keys {
		if other.created.After(k.created) {
			return other
		}
	}
	return nil
}

// read returns the keys that are kept.
func (r *Ring) read(ctx context.Context) ([]*key, error) {
	stored, err := r.keeper.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the keys that sign tokens: %w", err)
	}
	r.mu.Lock()
	known := r.keys
	r.mu.Unlock()
	keys := make([]*key, 0, len(stored))
	for _, s := range stored {
		if n := slices.IndexFunc(known, func(k *key) bool { return k.id == s.ID && k.created.Equal(s.Created) }); n >= 0 {
			keys = append(keys, known[n])
			continue
		}
		k, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("read the key %s that signs tokens: %w", s.ID, err)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *key) int {
		if c := a.created.Compare(b.created); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return keys, nil
}

// add makes a key.
func (r *Ring) add(ctx context.Context, created time.Time) error {
	k, err := newKey(created)
	if err != nil {
		return fmt.Errorf("make a key that signs tokens: %w", err)
	}
	if err := r.keeper.Add(ctx, k); err != nil {
		return fmt.Errorf("keep a key that signs tokens: %w", err)
	}
	return nil
}

// current returns the keys. It asks the keeper every lookEvery, in one call at a time; the
// others go on with what is known, as all do while the keeper does not answer.
func (r *Ring) current(ctx context.Context) []*key {
	r.mu.Lock()
	old := r.clock().Sub(r.looked) >= lookEvery
	r.mu.Unlock()
	if old && r.looking.TryLock() {
		if err := r.look(context.WithoutCancel(ctx)); err != nil {
			r.log.Error("cannot read the keys that sign tokens", "error", err)
			r.mu.Lock()
			r.looked = r.clock() // again after a while, or each call would wait for it
			r.mu.Unlock()
		}
		r.looking.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys
}

// signing returns the key that signs: the newest that has been published for long enough,
// or the oldest if none has.
func signing(keys []*key, now time.Time) *key {
	for _, k := range slices.Backward(keys) {
		if now.Sub(k.created) >= PublishedBefore {
			return k
		}
	}
	return keys[0]
}

// sign signs claims.
func (r *Ring) sign(ctx context.Context, claims ...any) (string, error) {
	b := jwt.Signed(signing(r.current(ctx), r.clock()).signer)
	for _, c := range claims {
		b = b.Claims(c)
	}
	return b.Serialize()
}

var algorithms = []jose.SignatureAlgorithm{jose.RS256}

// verify returns the claims of a token that a key of the ring has signed, and the key's id. It
// says nothing of what they are, nor of their times.
func (r *Ring) verify(ctx context.Context, token string, claims ...any) (keyID string, err error) {
	t, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return "", err
	}
	k := r.find(ctx, t)
	if k == nil {
		return "", errors.New("its signature is not of a key of this issuer")
	}
	return k.id, t.Claims(k.private.Public(), claims...)
}

// Has reports whether a key with an id is in the ring.
func (r *Ring) Has(ctx context.Context, id string) bool {
	return slices.ContainsFunc(r.current(ctx), func(k *key) bool { return k.id == id })
}

// find returns the key that a token names.
func (r *Ring) find(ctx context.Context, t *jwt.JSONWebToken) *key {
	for _, k := range r.current(ctx) {
		if len(t.Headers) == 1 && t.Headers[0].KeyID == k.id {
			return k
		}
	}
	return nil
}

// PublicKeys returns the public keys as a JWKS document.
func (r *Ring) PublicKeys(ctx context.Context) ([]byte, error) {
	keys := r.current(ctx)
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(keys))}
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: string(jose.RS256), Use: "sig"})
	}
	return json.Marshal(set)
}

// KeyState is what is known of a key, without the key.
type KeyState struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// State is "next" before the key signs, "signing", and "retired" after that.
	State string `json:"state"`
}

const (
	stateNext    = "next"
	stateSigning = "signing"
	stateRetired = "retired"
)

// Keys returns the states of the keys, the oldest first, as they are in the keeper now.
func (r *Ring) Keys(ctx context.Context) ([]KeyState, error) {
	r.looking.Lock()
	defer r.looking.Unlock()
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	return r.states(), nil
}

func (r *Ring) states() []KeyState {
	r.mu.Lock()
	defer r.mu.Unlock()
	signs, state := signing(r.keys, r.clock()), stateRetired
	all := make([]KeyState, 0, len(r.keys))
	for _, k := range r.keys {
		if k == signs {
			state = stateSigning
		}
		all = append(all, KeyState{k.id, k.created, state})
		if k == signs {
			state = stateNext
		}
	}
	return all
}

// Rotate makes a new key now. It signs after PublishedBefore. With revoke, all other keys
// are forgotten, and it signs at once: what the others have signed is not valid any more,
// here at once, elsewhere when the keys are fetched again.
func (r *Ring) Rotate(ctx context.Context, revoke bool) ([]KeyState, error) {
	r.looking.Lock()
	defer r.looking.Unlock()
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	before := r.states()
	if last := before[len(before)-1]; last.State == stateNext && !revoke {
		return nil, skerry.Errorf(skerry.CodeConflict, "the key %s is the next one already: it signs from %s", last.ID, last.Created.Add(PublishedBefore).UTC().Format(time.RFC3339))
	}
	if err := r.add(ctx, r.clock()); err != nil {
		return nil, err
	}
	if revoke {
		for _, k := range before {
			if err := r.keeper.Remove(ctx, k.ID); err != nil {
				return nil, fmt.Errorf("remove a key that signs tokens: %w", err)
			}
		}
	}
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	return r.states(), nil
}

const typeKey = "PRIVATE KEY"

// newKey makes an RSA key of 2048 bits: RS256 is what the public clients verify.
func newKey(created time.Time) (StoredKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return StoredKey{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return StoredKey{}, err
	}
	id, err := thumbprint(private)
	return StoredKey{ID: id, Created: created, PEM: pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der})}, err
}

func thumbprint(private *rsa.PrivateKey) (string, error) {
	public := jose.JSONWebKey{Key: private.Public()}
	sum, err := public.Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(sum), err
}

func parsePrivate(b []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != typeKey {
		return nil, errors.New("there is no private key in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key is not readable")
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok || private.N.BitLen() < 2048 {
		return nil, errors.New("the private key must be RSA with 2048 bits or more")
	}
	return private, nil
}

func parse(s StoredKey) (*key, error) {
	private, err := parsePrivate(s.PEM)
	if err != nil {
		return nil, err
	}
	k := &key{created: s.Created, private: private}
	if k.id, err = thumbprint(private); err != nil {
		return nil, err
	}
	if k.id != s.ID {
		return nil, errors.New("it is another key than its id says")
	}
	k.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: private, KeyID: k.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	return k, err
}
