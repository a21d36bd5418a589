package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/skerry-dev/skerry"
)

// Token is what is known of an access token.
type Token struct {
	ID         string
	Name       string
	Hash       []byte
	ProjectID  string
	CreatedAt  skerry.Time
	ExpiresAt  skerry.Time
	LastUsedAt skerry.Time
}

// CreateAccount writes a team and a project in it.
func (s *Store) CreateAccount(ctx context.Context, team skerry.Team, p skerry.Project) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO teams (id, slug, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
			team.ID, team.Slug, team.Name, team.CreatedAt.Millis(), team.UpdatedAt.Millis())
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "INSERT INTO projects (id, team_id, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
			p.ID, p.TeamID, p.Name, p.CreatedAt.Millis(), p.UpdatedAt.Millis())
		return err
	}), "create account")
}

// FirstProject returns the oldest project, or CodeNotFound in an empty store.
func (s *Store) FirstProject(ctx context.Context) (*skerry.Project, error) {
	p, err := one(ctx, &s.engine, func(row scanner) (*skerry.Project, error) {
		var p skerry.Project
		var created, updated int64
		err := row.Scan(&p.ID, &p.TeamID, &p.Name, &created, &updated)
		p.CreatedAt, p.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
		return &p, err
	}, "SELECT id, team_id, name, created_at, updated_at FROM projects ORDER BY created_at, id LIMIT 1")
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no project yet")
	}
	return p, wrap(err, "read project")
}

// CreateToken writes a token.
func (s *Store) CreateToken(ctx context.Context, token Token) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO tokens (id, hash, name, project_id, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
			token.ID, token.Hash, token.Name, token.ProjectID, token.CreatedAt.Millis(), token.ExpiresAt.Millis())
		return err
	}), "create token")
}

// TokenByHash returns a token with whom it is bound to, or CodeNotFound.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (*Token, *skerry.Identity, error) {
	id := &skerry.Identity{}
	t, err := one(ctx, &s.engine, func(row scanner) (*Token, error) {
		t := &Token{Hash: hash}
		var created, expires, used, teamCreated, teamUpdated, projectCreated, projectUpdated int64
		err := row.Scan(&t.ID, &t.Name, &created, &expires, &used,
			&id.Project.ID, &id.Project.Name, &projectCreated, &projectUpdated,
			&id.Team.ID, &id.Team.Slug, &id.Team.Name, &teamCreated, &teamUpdated)
		t.ProjectID = id.Project.ID
		t.CreatedAt, t.ExpiresAt, t.LastUsedAt = skerry.FromMillis(created), skerry.FromMillis(expires), skerry.FromMillis(used)
		id.TokenID, id.Project.TeamID = t.ID, id.Team.ID
		id.Project.CreatedAt, id.Project.UpdatedAt = skerry.FromMillis(projectCreated), skerry.FromMillis(projectUpdated)
		id.Team.CreatedAt, id.Team.UpdatedAt = skerry.FromMillis(teamCreated), skerry.FromMillis(teamUpdated)
		return t, err
	}, `SELECT tokens.id, tokens.name, tokens.created_at, tokens.expires_at, tokens.last_used_at,
		projects.id, projects.name, projects.created_at, projects.updated_at,
		teams.id, teams.slug, teams.name, teams.created_at, teams.updated_at
		FROM tokens JOIN projects ON projects.id = tokens.project_id JOIN teams ON teams.id = projects.team_id
		WHERE tokens.hash = ?`, hash)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, skerry.Errorf(skerry.CodeNotFound, "there is no such token")
	}
	if err != nil {
		return nil, nil, wrap(err, "read token")
	}
	return t, id, nil
}

// Tokens returns all tokens, the oldest first.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	all, err := list(ctx, &s.engine, func(row scanner) (t Token, err error) {
		var created, expires, used int64
		err = row.Scan(&t.ID, &t.Name, &t.ProjectID, &created, &expires, &used)
		t.CreatedAt, t.ExpiresAt, t.LastUsedAt = skerry.FromMillis(created), skerry.FromMillis(expires), skerry.FromMillis(used)
		return t, err
	}, "SELECT id, name, project_id, created_at, expires_at, last_used_at FROM tokens ORDER BY created_at, id")
	return all, wrap(err, "list tokens")
}

// DeleteToken removes a token by id.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		err := changed(t.exec(ctx, "DELETE FROM tokens WHERE id = ?", id))
		if errors.Is(err, errChanged) {
			return skerry.Errorf(skerry.CodeNotFound, "there is no token %q", id)
		}
		return err
	}), "delete token")
}

// TouchToken notes when a token was last used.
func (s *Store) TouchToken(ctx context.Context, id string, at skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "UPDATE tokens SET last_used_at = ? WHERE id = ?", at.Millis(), id)
		return err
	}), "touch token")
}
