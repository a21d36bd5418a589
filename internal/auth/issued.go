package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/store"
)

// OpenIssuer makes the server an issuer of development tokens.
func (a *Auth) OpenIssuer(ctx context.Context, url string, log *slog.Logger) (err error) {
	a.issuer, err = issuer.Open(ctx, keeper{a.store}, url, log)
	return err
}

// keeper keeps the keys of the issuer in the store.
type keeper struct{ store Store }

func (k keeper) Keys(ctx context.Context) ([]issuer.StoredKey, error) {
	stored, err := k.store.SigningKeys(ctx)
	all := make([]issuer.StoredKey, 0, len(stored))
	for _, s := range stored {
		all = append(all, issuer.StoredKey(s))
	}
	return all, err
}

func (k keeper) Add(ctx context.Context, key issuer.StoredKey) error {
	return k.store.AddSigningKey(ctx, store.SigningKey(key))
}

func (k keeper) Remove(ctx context.Context, id string) error {
	return k.store.DeleteSigningKey(ctx, id)
}

// PublicKeys returns the keys that verify development tokens, as a JWKS document.
func (a *Auth) PublicKeys(ctx context.Context) ([]byte, error) { return a.issuer.PublicKeys(ctx) }

// SigningKeys returns the states of the keys that sign development tokens.
func (a *Auth) SigningKeys(ctx context.Context) ([]issuer.KeyState, error) {
	ring, err := a.ring(ctx)
	if err != nil {
		return nil, err
	}
	return ring.Keys(ctx)
}

// RotateKeys makes a new key; see issuer.Ring.Rotate.
func (a *Auth) RotateKeys(ctx context.Context, revoke bool) ([]issuer.KeyState, error) {
	ring, err := a.ring(ctx)
	if err != nil {
		return nil, err
	}
	defer a.developers.clear()
	return ring.Rotate(ctx, revoke)
}

// ring returns the keys, also those of a server that does not run.
func (a *Auth) ring(ctx context.Context) (*issuer.Ring, error) {
	if a.issuer != nil {
		return a.issuer.Ring(), nil
	}
	return issuer.OpenRing(ctx, keeper{a.store}, slog.Default())
}

var errNoIssuer = errors.New("this process is no issuer of tokens")

// DevelopmentToken returns a token for one project, and when it ends. It allows at most what
// the caller's access token allows there, and at most what a developer may do. It ends with that
// token, or after issuer.DevelopmentLifetime.
func (a *Auth) DevelopmentToken(ctx context.Context, id *skerry.Identity, teamID, project string) (token string, expires time.Time, err error) {
	if a.issuer == nil {
		return "", expires, errNoIssuer
	}
	if id.Rule != "" || id.Development {
		return "", expires, skerry.Errorf(skerry.CodeForbidden, `a development token cannot be made with a JWT; use an access token (--token, SKERRY_TOKEN or "sandbox login")`)
	}
	grant := id.Grant(teamID)
	if grant == nil {
		return "", expires, skerry.Errorf(skerry.CodeForbidden, "the access token is for managing teams, and not for what is in them")
	}
	p, err := a.Project(ctx, teamID, project)
	if err != nil {
		return "", expires, err
	}
	d := issuer.Development{Team: grant.Team.Slug, TeamID: teamID, Project: p.Name, ProjectID: p.ID, TokenID: id.TokenID}
	if id.User != nil {
		d.UserID = id.User.ID
	}
	return a.issuer.Development(ctx, d, id.ExpiresAt.Time)
}

// errDeveloper is the same whatever is wrong with a development token.
var errDeveloper = &skerry.Error{Code: skerry.CodeUnauthorized, Message: `the development token has expired or was revoked; run "sandbox env pull" for a new one`}

// developer authenticates a development token: what it was made with is looked at each time,
// so that its revocation, a changed role and a deleted project end the token too.
func (a *Auth) developer(ctx context.Context, token string) (*skerry.Identity, error) {
	h, now := hash(token), time.Now()
	k, ok := a.developers.get(h, now)
	if !ok {
		id, err := a.verifyDeveloper(ctx, token, now)
		if err != nil {
			a.developers.remove(h)
			return nil, err
		}
		k = known{id: id, expiresAt: id.ExpiresAt}
		a.developers.put(h, k, now)
	}
	if k.expired(now) {
		return nil, errDeveloper
	}
	return k.id, nil
}

func (a *Auth) verifyDeveloper(ctx context.Context, token string, now time.Time) (*skerry.Identity, error) {
	d, err := a.issuer.VerifyDevelopment(ctx, token)
	if err != nil {
		return nil, errDeveloper
	}
	parent, id, err := a.store.TokenByID(ctx, d.TokenID)
	switch {
	case skerry.CodeOf(err) == skerry.CodeNotFound:
		return nil, errDeveloper
	case err != nil:
		return nil, fmt.Errorf("authenticate: %w", err)
	case known{expiresAt: parent.ExpiresAt}.expired(now):
		return nil, errDeveloper
	}
	grant := id.Grant(d.TeamID)
	if grant == nil || grant.Project != nil && grant.Project.ID != d.ProjectID {
		return nil, errDeveloper
	}
	p, err := a.Project(ctx, d.TeamID, d.ProjectID)
	switch {
	case skerry.CodeOf(err) == skerry.CodeNotFound:
		return nil, errDeveloper
	case err != nil:
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	role := grant.Role
	if role.Includes(skerry.RoleDeveloper) {
		role = skerry.RoleDeveloper
	}
	return &skerry.Identity{
		TokenID: id.TokenID, TokenName: id.TokenName, User: id.User, Development: true, Key: d.KeyID, ExpiresAt: skerry.At(d.Expires),
		Grants: []skerry.Grant{{Team: grant.Team, Project: p, Role: role}},
	}, nil
}
