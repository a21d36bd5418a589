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
func (s *Store) CreateAccount(ctx context.Context, t skerry.Team, p skerry.Project) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO teams (id, slug, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
			t.ID, t.Slug, t.Name, t.CreatedAt.Millis(), t.UpdatedAt.Millis())
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO projects (id, team_id, name, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
			p.ID, p.TeamID, p.Name, p.CreatedAt.Millis(), p.UpdatedAt.Millis())
		return err
	}), "create account")
}

// FirstProject returns the oldest project, or CodeNotFound in an empty store.
func (s *Store) FirstProject(ctx context.Context) (*skerry.Project, error) {
	var p skerry.Project
	var created, updated int64
	err := s.read.QueryRowContext(ctx, "SELECT id, team_id, name, created_at, updated_at FROM projects ORDER BY created_at, id LIMIT 1").
		Scan(&p.ID, &p.TeamID, &p.Name, &created, &updated)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no project yet")
	}
	p.CreatedAt, p.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
	return &p, wrap(err, "read project")
}

// CreateToken writes a token.
func (s *Store) CreateToken(ctx context.Context, t Token) error {
	_, err := s.write.ExecContext(ctx, "INSERT INTO tokens (id, hash, name, project_id, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
		t.ID, t.Hash, t.Name, t.ProjectID, t.CreatedAt.Millis(), t.ExpiresAt.Millis())
	return wrap(err, "create token")
}

// TokenByHash returns a token with whom it is bound to, or CodeNotFound.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (*Token, *skerry.Identity, error) {
	t := &Token{Hash: hash}
	id := &skerry.Identity{}
	var created, expires, used, teamCreated, teamUpdated, projectCreated, projectUpdated int64
	err := s.read.QueryRowContext(ctx, `SELECT tokens.id, tokens.name, tokens.created_at, tokens.expires_at, tokens.last_used_at,
		projects.id, projects.name, projects.created_at, projects.updated_at,
		teams.id, teams.slug, teams.name, teams.created_at, teams.updated_at
		FROM tokens JOIN projects ON projects.id = tokens.project_id JOIN teams ON teams.id = projects.team_id
		WHERE tokens.hash = ?`, hash).Scan(&t.ID, &t.Name, &created, &expires, &used,
		&id.Project.ID, &id.Project.Name, &projectCreated, &projectUpdated,
		&id.Team.ID, &id.Team.Slug, &id.Team.Name, &teamCreated, &teamUpdated)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, skerry.Errorf(skerry.CodeNotFound, "there is no such token")
	}
	if err != nil {
		return nil, nil, wrap(err, "read token")
	}
	t.ProjectID = id.Project.ID
	t.CreatedAt, t.ExpiresAt, t.LastUsedAt = skerry.FromMillis(created), skerry.FromMillis(expires), skerry.FromMillis(used)
	id.TokenID, id.Project.TeamID = t.ID, id.Team.ID
	id.Project.CreatedAt, id.Project.UpdatedAt = skerry.FromMillis(projectCreated), skerry.FromMillis(projectUpdated)
	id.Team.CreatedAt, id.Team.UpdatedAt = skerry.FromMillis(teamCreated), skerry.FromMillis(teamUpdated)
	return t, id, nil
}

// Tokens returns all tokens, the oldest first.
func (s *Store) Tokens(ctx context.Context) ([]Token, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT id, name, project_id, created_at, expires_at, last_used_at FROM tokens ORDER BY created_at, id")
	if err != nil {
		return nil, wrap(err, "list tokens")
	}
	defer rows.Close()
	var list []Token
	for rows.Next() {
		var t Token
		var created, expires, used int64
		if err := rows.Scan(&t.ID, &t.Name, &t.ProjectID, &created, &expires, &used); err != nil {
			return nil, wrap(err, "list tokens")
		}
		t.CreatedAt, t.ExpiresAt, t.LastUsedAt = skerry.FromMillis(created), skerry.FromMillis(expires), skerry.FromMillis(used)
		list = append(list, t)
	}
	return list, wrap(rows.Err(), "list tokens")
}

// DeleteToken removes a token by id.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	res, err := s.write.ExecContext(ctx, "DELETE FROM tokens WHERE id = ?", id)
	if err != nil {
		return wrap(err, "delete token")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, skerry.Errorf(skerry.CodeNotFound, "there is no token %q", id))
	}
	return nil
}

// TouchToken notes when a token was last used.
func (s *Store) TouchToken(ctx context.Context, id string, at skerry.Time) error {
	_, err := s.write.ExecContext(ctx, "UPDATE tokens SET last_used_at = ? WHERE id = ?", at.Millis(), id)
	return wrap(err, "touch token")
}
