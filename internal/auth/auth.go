// Package auth knows who may call, and keeps teams, projects, members and access tokens.
//
// A token is for a team, for one project of it, or for a user, who may do with it what
// their memberships allow. Its role limits that. With it, development tokens can be made,
// which this server signs, and which allow no more than it does. What a token grants is read from the
// store at most twice a second, so a change is seen by every server within a second.
package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/federation"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/store"
)

// Store is where accounts are kept. *store.Store is one.
type Store interface {
	CreateTeam(ctx context.Context, team skerry.Team) error
	Team(ctx context.Context, ref string) (*skerry.Team, error)
	Teams(ctx context.Context, page skerry.Page) ([]skerry.Team, string, error)
	SetTeam(ctx context.Context, team skerry.Team) error
	DeleteTeam(ctx context.Context, id string) error

	CreateAccount(ctx context.Context, t skerry.Team, p skerry.Project) error
	CreateProject(ctx context.Context, p skerry.Project) error
	FirstProject(ctx context.Context) (*skerry.Project, error)
	Project(ctx context.Context, teamID, ref string) (*skerry.Project, error)
	Projects(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Project, string, error)
	SetProject(ctx context.Context, p skerry.Project) error
	DeleteProject(ctx context.Context, teamID, id string) error

	AddMember(ctx context.Context, teamID string, m skerry.Member) (*skerry.Member, error)
	Member(ctx context.Context, teamID, user string) (*skerry.Member, error)
	Members(ctx context.Context, teamID string, page skerry.Page) ([]skerry.Member, string, error)
	SetMember(ctx context.Context, teamID string, m skerry.Member) error
	RemoveMember(ctx context.Context, teamID, userID string) error
	User(ctx context.Context, ref string) (*skerry.User, error)

	CreateToken(ctx context.Context, t skerry.AccessToken, hash []byte) error
	TokenByHash(ctx context.Context, hash []byte) (*skerry.AccessToken, *skerry.Identity, error)
	TokenByID(ctx context.Context, id string) (*skerry.AccessToken, *skerry.Identity, error)
	Tokens(ctx context.Context, f store.TokenFilter) ([]skerry.AccessToken, string, error)
	DeleteToken(ctx context.Context, id string) error
	TouchToken(ctx context.Context, id string, at skerry.Time) error

	Quotas(ctx context.Context, teamID string) ([]store.Quota, error)
	SetQuota(ctx context.Context, q store.Quota) error

	SigningKeys(ctx context.Context) ([]store.SigningKey, error)
	AddSigningKey(ctx context.Context, k store.SigningKey) error
	DeleteSigningKey(ctx context.Context, id string) error

	Issuers(ctx context.Context) ([]store.Issuer, error)
	SetIssuer(ctx context.Context, i store.Issuer) error
	DeleteIssuer(ctx context.Context, id string) error
}

// cacheFor is how long what was read is trusted without a look into the store, and so
// how long a token that another process revoked still works.
const cacheFor = 500 * time.Millisecond

// touchEvery is how exactly a token's last use is noted.
const touchEvery = time.Hour

// Auth authenticates, and manages accounts.
type Auth struct {
	store    Store
	tokens   cache[[sha256.Size]byte, known]
	projects cache[[2]string, skerry.Project]
	teams    cache[string, skerry.Team]

	quotas cache[skerry.Scope, skerry.Quotas]
	// usage returns what a team or a project uses; nil if no server runs.
	usage atomic.Pointer[func(skerry.Scope) skerry.Use]

	// issuer signs development tokens; nil before OpenIssuer. developers are the ones in use.
	issuer     *issuer.Issuer
	developers cache[[sha256.Size]byte, known]

	verifier *federation.Verifier
	// changing is held while an issuer or a quota changes.
	changing sync.Mutex
	// rules are the digests of the rules in force, by the issuer's id and the rule's.
	issuersMu sync.Mutex
	rules     map[string]string
	changes   int
}

// known is a token that was found.
type known struct {
	id        *skerry.Identity
	expiresAt skerry.Time
}

func (k known) expired(now time.Time) bool {
	return !k.expiresAt.IsZero() && !now.Before(k.expiresAt.Time)
}

// New returns an Auth over a store. Tokens of other issuers are accepted after LoadIssuers.
func New(s Store) *Auth { return &Auth{store: s, verifier: federation.New(federation.Options{})} }

// Close ends connections to issuers.
func (a *Auth) Close() { a.verifier.Close() }

// errToken is the same whatever is wrong with a token: what differs would
// tell an attacker something.
var errToken = &skerry.Error{Code: skerry.CodeUnauthorized, Message: "the access token is missing or not valid"}

// Authenticate returns what a token grants, or CodeUnauthorized. The identity is not to be
// changed.
func (a *Auth) Authenticate(ctx context.Context, token string) (*skerry.Identity, error) {
	if federation.IsJWT(token) {
		if a.issuer != nil && a.issuer.Signed(ctx, token) {
			return a.developer(ctx, token)
		}
		return a.federated(ctx, token)
	}
	if !wellFormed(token) {
		return nil, errToken
	}
	h, now := hash(token), time.Now()
	k, ok := a.tokens.get(h, now)
	if !ok {
		t, id, err := a.store.TokenByHash(ctx, h[:])
		switch {
		case skerry.CodeOf(err) == skerry.CodeNotFound:
			a.tokens.remove(h)
			return nil, errToken
		case err != nil:
			return nil, fmt.Errorf("authenticate: %w", err)
		}
		id.ExpiresAt = t.ExpiresAt
		k = known{id: id, expiresAt: t.ExpiresAt}
		a.tokens.put(h, k, now)
		if now.Sub(t.LastUsedAt.Time) > touchEvery {
			a.touch(ctx, t.ID, now)
		}
	}
	if k.expired(now) {
		return nil, errToken
	}
	return k.id, nil
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

// Ended returns those of the accesses that are not allowed any more: the token was revoked
// or has expired, or the role, the project or the team is gone. With an error, it returns
// those of which that is known.
func (a *Auth) Ended(ctx context.Context, accesses []skerry.Access) (ended []skerry.Access, err error) {
	type answer struct {
		id  *skerry.Identity // nil if the token is not valid
		err error
	}
	now, answers := time.Now(), map[string]answer{}
	look := func(token string) (*skerry.Identity, error) {
		found, ok := answers[token]
		if !ok {
			t, id, err := a.store.TokenByID(ctx, token)
			switch {
			case skerry.CodeOf(err) == skerry.CodeNotFound:
			case err != nil:
				found.err = fmt.Errorf("look for tokens: %w", err)
			case !(known{expiresAt: t.ExpiresAt}).expired(now):
				found.id = id
			}
			answers[token] = found
		}
		return found.id, found.err
	}
	allowed := func(access skerry.Access) (bool, error) {
		if access.ExpiresAt != 0 && now.UnixMilli() > access.ExpiresAt+federation.DefaultSkew.Milliseconds() {
			return false, nil
		}
		if access.Key != "" && (a.issuer == nil || !a.issuer.Ring().Has(ctx, access.Key)) {
			return false, nil
		}
		if access.Rule != "" {
			if !a.inForce(access.Rule) {
				return false, nil
			}
		} else if id, err := look(access.TokenID); err != nil || id == nil || !id.Allows(access) {
			return false, err
		}
		// A grant for all projects says nothing about whether one still exists.
		gone, err := a.projectGone(ctx, access.Scope)
		return !gone, err
	}
	var errs []error
	for _, access := range accesses {
		switch ok, err := allowed(access); {
		case err != nil:
			errs = append(errs, err)
		case !ok:
			ended = append(ended, access)
		}
	}
	return ended, errors.Join(errs...)
}

// projectGone reports whether a project does not exist any more.
func (a *Auth) projectGone(ctx context.Context, scope skerry.Scope) (bool, error) {
	if scope.ProjectID == "" {
		return false, nil
	}
	_, err := a.Project(ctx, scope.TeamID, scope.ProjectID)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for projects: %w", err)
	}
	return false, nil
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

// maxCached bounds a cache; it is emptied when it is full.
const maxCached = 4096

// cache has what was read from the store in the last cacheFor.
type cache[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]cached[V]
}

type cached[V any] struct {
	value   V
	checked time.Time
}

func (c *cache[K, V]) get(key K, now time.Time) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok || now.Sub(e.checked) > cacheFor {
		return v, false
	}
	return e.value, true
}

// put keeps what was asked for at now.
func (c *cache[K, V]) put(key K, v V, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil || len(c.entries) >= maxCached {
		c.entries = map[K]cached[V]{}
	}
	c.entries[key] = cached[V]{v, now}
}

func (c *cache[K, V]) remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
}

func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = nil
}

// forget makes what was changed seen at once in this process. A request that has read the
// store before still puts what it has read, for cacheFor.
func (a *Auth) forget() {
	a.tokens.clear()
	a.developers.clear()
	a.quotas.clear()
	a.projects.clear()
	a.teams.clear()
}

// All returns the pages of a listing as one list.
func All[T any](ctx context.Context, page func(context.Context, skerry.Page) ([]T, string, error)) ([]T, error) {
	list := []T{}
	for p := (skerry.Page{Limit: skerry.MaxPageSize, Ascending: true}); ; {
		some, next, err := page(ctx, p)
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
		if p.Cursor = next; next == "" {
			return slices.Clip(list), nil
		}
	}
}
