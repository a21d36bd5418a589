// Package auth knows who may call: access tokens, each bound to a team and a
// project.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/store"
)

// Store is where tokens and accounts are kept.
type Store interface {
	CreateAccount(ctx context.Context, t skerry.Team, p skerry.Project) error
	FirstProject(ctx context.Context) (*skerry.Project, error)
	CreateToken(ctx context.Context, t store.Token) error
	TokenByHash(ctx context.Context, hash []byte) (*store.Token, *skerry.Identity, error)
	Tokens(ctx context.Context) ([]store.Token, error)
	DeleteToken(ctx context.Context, id string) error
	TouchToken(ctx context.Context, id string, at skerry.Time) error
}

// tokenPrefix makes a token recognisable, to people and to secret scanners.
const tokenPrefix = "sk_"

// maxToken bounds what is looked at as a token, in bytes.
const maxToken = 256

// cacheFor is how long a token that was found is trusted without a look into
// the store, and so how long a token that another process revoked still works.
const cacheFor = 2 * time.Second

// touchEvery is how exactly a token's last use is noted.
const touchEvery = time.Hour

// Auth authenticates and manages tokens.
type Auth struct {
	store Store

	mu    sync.Mutex
	cache map[[sha256.Size]byte]cached
}

type cached struct {
	id        *skerry.Identity
	expiresAt skerry.Time
	checked   time.Time
}

// maxCached bounds the cache; it is emptied when it is full.
const maxCached = 4096

// New returns an Auth over a store.
func New(s Store) *Auth {
	return &Auth{store: s, cache: map[[sha256.Size]byte]cached{}}
}

// errToken is the same whatever is wrong with a token: what differs would
// tell an attacker something.
var errToken = &skerry.Error{Code: skerry.CodeUnauthorized, Message: "the access token is missing, unknown, expired or revoked"}

// hash is plain SHA-256: a token has 192 random bits, so there is nothing that
// a slow hash would protect from guessing. Looking a token up by its hash is
// also what makes the comparison's timing tell nothing of the token.
func hash(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// Authenticate returns whom a token belongs to, or CodeUnauthorized.
func (a *Auth) Authenticate(ctx context.Context, token string) (*skerry.Identity, error) {
	if len(token) > maxToken || !strings.HasPrefix(token, tokenPrefix) {
		return nil, errToken
	}
	h, now := hash(token), time.Now()
	a.mu.Lock()
	c, ok := a.cache[h]
	a.mu.Unlock()
	if !ok || now.Sub(c.checked) > cacheFor {
		t, id, err := a.store.TokenByHash(ctx, h[:])
		switch {
		case skerry.CodeOf(err) == skerry.CodeNotFound:
			a.forget(h)
			return nil, errToken
		case err != nil:
			return nil, fmt.Errorf("authenticate: %w", err)
		}
		c = cached{id: id, expiresAt: t.ExpiresAt, checked: now}
		a.remember(h, c)
		if now.Sub(t.LastUsedAt.Time) > touchEvery {
			a.touch(ctx, t.ID, now)
		}
	}
	if !c.expiresAt.IsZero() && !now.Before(c.expiresAt.Time) {
		return nil, errToken
	}
	return c.id, nil
}

// touchTimeout bounds the wait for a database that is busy.
const touchTimeout = time.Second

// touch notes when a token was last used. Nobody is turned away because that
// cannot be written, least of all who frees a disk that is full; the next look
// into the store tries again.
func (a *Auth) touch(ctx context.Context, id string, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, touchTimeout)
	defer cancel()
	_ = a.store.TouchToken(ctx, id, skerry.At(now))
}

// Ended returns those of the tokens, by their ids, that were revoked or have
// expired.
func (a *Auth) Ended(ctx context.Context, ids []string) ([]string, error) {
	tokens, err := a.store.Tokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for tokens: %w", err)
	}
	now, good := time.Now(), map[string]bool{}
	for _, t := range tokens {
		good[t.ID] = t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt.Time)
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return good[id] }), nil
}

func (a *Auth) remember(h [sha256.Size]byte, c cached) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.cache) >= maxCached {
		clear(a.cache)
	}
	a.cache[h] = c
}

func (a *Auth) forget(h [sha256.Size]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.cache, h)
}

// Names of what Bootstrap creates.
const (
	firstTeam    = "default"
	firstProject = "default"
)

// Bootstrap returns the first project, creating it and its team in an empty
// store.
func (a *Auth) Bootstrap(ctx context.Context) (*skerry.Project, error) {
	p, err := a.store.FirstProject(ctx)
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return p, err
	}
	now := skerry.At(time.Now())
	t := skerry.Team{ID: skerry.NewID(skerry.PrefixTeam), Slug: firstTeam, Name: firstTeam, CreatedAt: now, UpdatedAt: now}
	p = &skerry.Project{ID: skerry.NewID(skerry.PrefixProject), TeamID: t.ID, Name: firstProject, CreatedAt: now, UpdatedAt: now}
	return p, a.store.CreateAccount(ctx, t, *p)
}

// CreateToken makes a token for a project and returns it; it cannot be had
// again. A zero lifetime means that it does not expire.
func (a *Auth) CreateToken(ctx context.Context, projectID, name string, lifetime time.Duration) (string, error) {
	if err := skerry.ValidateTokenName("name", name); err != nil {
		return "", err
	}
	if lifetime < 0 {
		return "", skerry.Invalid("expires", "must not be negative")
	}
	token := tokenPrefix + rand.Text() + rand.Text()[:13]
	h, now := hash(token), time.Now()
	t := store.Token{ID: skerry.NewID(skerry.PrefixToken), Name: name, Hash: h[:], ProjectID: projectID, CreatedAt: skerry.At(now)}
	if lifetime > 0 {
		t.ExpiresAt = skerry.At(now.Add(lifetime))
	}
	if err := a.store.CreateToken(ctx, t); err != nil {
		return "", err
	}
	return token, nil
}

// Tokens lists the tokens.
func (a *Auth) Tokens(ctx context.Context) ([]store.Token, error) { return a.store.Tokens(ctx) }

// RevokeToken ends a token at once in this process, and within cacheFor in
// others.
func (a *Auth) RevokeToken(ctx context.Context, id string) error {
	if err := a.store.DeleteToken(ctx, id); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.cache)
	return nil
}
