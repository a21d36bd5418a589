package store

import (
	"context"
	"database/sql"
	"errors"
	"math"

	"github.com/skerry-dev/skerry"
)

// saveSession writes a session over a version of it; errChanged if there is
// another.
func (s *Store) saveSession(ctx context.Context, t tx, session *skerry.Session, version int64) error {
	document, sealed, err := s.encodeSession(session)
	if err != nil {
		return err
	}
	return changed(t.exec(ctx, "UPDATE sessions SET ended = ?, image_digest = ?, document = ?, policy = ?, version = version + 1 WHERE id = ? AND version = ?",
		bit(session.Status.Ended()), session.ImageDigest, document, sealed, session.ID, version))
}

// encodeSession returns what is written of a session. What it may reach is
// sealed, and not kept when it has ended.
func (s *Store) encodeSession(session *skerry.Session) (document string, sealed []byte, err error) {
	d, err := encode(documentOfSession(session))
	if err != nil || session.Status.Ended() {
		return string(d), nil, err
	}
	policy := session.Policy
	if policy == nil { // it would be read as one of an earlier version
		policy = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	}
	p, err := encode(documentOfPolicy(*policy))
	if err != nil {
		return "", nil, err
	}
	return string(d), s.seal.seal(p, session.ID), nil
}

func (s *Store) insertSession(ctx context.Context, t tx, session *skerry.Session) error {
	document, sealed, err := s.encodeSession(session)
	if err != nil {
		return err
	}
	// First, since one that is there already has its drives.
	_, err = t.exec(ctx, "INSERT INTO sessions (id, sandbox_id, project_id, created_at, ended, image_digest, document, policy) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		session.ID, session.SandboxID, session.Scope.ProjectID, session.CreatedAt.Millis(), bit(session.Status.Ended()), session.ImageDigest, document, sealed)
	if isUnique(err) {
		return taken{err}
	}
	if err != nil {
		return err
	}
	if err := mustBeThere(ctx, t, session.SourceSnapshotID); err != nil {
		return err
	}
	return attachDrives(ctx, t, session)
}

// sessionQuery selects what scanSession reads, and further columns.
func sessionQuery(more string) string {
	return `SELECT sessions.id, sessions.sandbox_id, sandboxes.team_id, sessions.project_id, sandboxes.name, sessions.created_at,
		sessions.image_digest, sessions.document, sessions.policy` + more + `
		FROM sessions JOIN sandboxes ON sandboxes.id = sessions.sandbox_id `
}

// Session returns a session of a scope, or CodeNotFound.
func (s *Store) Session(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	session, err := one(ctx, &s.engine, s.scanSession, sessionQuery("")+"WHERE sessions.id = ? AND sessions.project_id = ?", id, scope.ProjectID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSession(id)
	}
	return session, wrap(err, "read session")
}

// LiveSessions returns every session that has not ended.
func (s *Store) LiveSessions(ctx context.Context) ([]skerry.Session, error) {
	return s.sessions(ctx, "WHERE sessions.ended = 0")
}

// ListSessions returns one page of a scope's sessions and the next cursor.
func (s *Store) ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error) {
	l := &listing{page: f.Page, key: "created_at"}
	l.and("sessions.project_id = ?", scope.ProjectID)
	if f.SandboxName != "" {
		l.and("sandboxes.name = ?", f.SandboxName)
	}
	return readPage(ctx, l, "sessions", s.sessions, func(r *skerry.Session) (any, string) { return r.CreatedAt.Millis(), r.ID })
}

func (s *Store) sessions(ctx context.Context, tail string, args ...any) ([]skerry.Session, error) {
	all, err := list(ctx, &s.engine, values(s.scanSession), sessionQuery("")+tail, args...)
	return all, wrap(err, "list sessions")
}

func (s *Store) scanSession(row scanner) (*skerry.Session, error) {
	r := &skerry.Session{}
	var document string
	var sealed []byte
	var created int64
	err := row.Scan(&r.ID, &r.SandboxID, &r.Scope.TeamID, &r.Scope.ProjectID, &r.SandboxName, &created, &r.ImageDigest, &document, &sealed)
	if err != nil {
		return nil, err
	}
	r.CreatedAt = skerry.FromMillis(created)
	var d sessionDocument
	if err := decode([]byte(document), &d); err != nil {
		return nil, damaged("session", r.ID, err)
	}
	d.into(r)
	if r.Status.Ended() {
		return r, nil
	}
	if sealed == nil { // of a version that knew no other
		r.Policy = skerry.AllowAll()
		return r, nil
	}
	plain, err := s.seal.open(sealed, r.ID)
	if err != nil {
		return nil, err
	}
	var p policyDocument
	if err := decode(plain, &p); err != nil {
		return nil, damaged("the network policy of session", r.ID, err)
	}
	r.Policy = maybe(&p, policyDocument.policy)
	return r, nil
}

// PruneSessions removes a sandbox's ended sessions but for the newest keep,
// and returns the removed ones' ids.
func (s *Store) PruneSessions(ctx context.Context, sandboxID string, keep int) (removed []string, err error) {
	err = s.update(ctx, func(ctx context.Context, t tx) error {
		rows, err := t.QueryContext(ctx, t.bind(`DELETE FROM sessions WHERE ended = 1 AND id IN (
			SELECT id FROM sessions WHERE sandbox_id = ? ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?) RETURNING id`),
			sandboxID, int64(math.MaxInt64), keep)
		if err != nil {
			return err
		}
		removed, err = scanAll(rows, column[string])
		return err
	})
	if err != nil || len(removed) == 0 {
		return nil, wrap(err, "prune sessions")
	}
	return removed, nil
}

// SessionIDs returns the ids of all sessions of a sandbox, or of all
// sandboxes if sandboxID is "".
func (s *Store) SessionIDs(ctx context.Context, sandboxID string) ([]string, error) {
	query, args := "SELECT id FROM sessions", []any(nil)
	if sandboxID != "" {
		query, args = query+" WHERE sandbox_id = ?", []any{sandboxID}
	}
	ids, err := s.ids(ctx, query, args...)
	return ids, wrap(err, "list sessions")
}

// SessionScope returns where a session of a team is, or CodeNotFound.
func (s *Store) SessionScope(ctx context.Context, teamID, id string) (skerry.Scope, error) {
	project, err := one(ctx, &s.engine, column[string], `SELECT sessions.project_id FROM sessions
		JOIN projects ON projects.id = sessions.project_id WHERE sessions.id = ? AND projects.team_id = ?`, id, teamID)
	if errors.Is(err, sql.ErrNoRows) {
		return skerry.Scope{}, noSession(id)
	}
	return skerry.Scope{TeamID: teamID, ProjectID: project}, wrap(err, "read session")
}

func noSession(id string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no session %q", id).About(skerry.ResourceSession)
}
