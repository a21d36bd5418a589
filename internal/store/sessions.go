package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skerry-dev/skerry"
)

// CreateSession writes a further session of a sandbox, which becomes its
// current one.
func (s *Store) CreateSession(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error {
		if err := s.saveSandbox(ctx, tx, box); err != nil {
			return err
		}
		return s.insertSession(ctx, tx, run)
	}), "create session")
}

// SaveSession writes a session that exists together with its sandbox, whose
// status is the session's.
func (s *Store) SaveSession(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error { return s.saveSession(ctx, tx, box, run) }), "save session")
}

func (s *Store) saveSession(ctx context.Context, tx *sql.Tx, box *skerry.Sandbox, run *skerry.Session) error {
	if err := s.saveSandbox(ctx, tx, box); err != nil {
		return err
	}
	document, sealed, err := s.encodeSession(run)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "UPDATE sessions SET ended = ?, document = ?, policy = ? WHERE id = ?", run.Status.Ended(), document, sealed, run.ID)
	return err
}

// encodeSession returns what is written of a session. What it may reach is
// sealed, and not kept when it has ended.
func (s *Store) encodeSession(run *skerry.Session) (document string, sealed []byte, err error) {
	d, err := json.Marshal(run)
	if err != nil || run.Status.Ended() {
		return string(d), nil, err
	}
	policy := run.Policy
	if policy == nil { // it would be read as one of an earlier version
		policy = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	}
	p, err := json.Marshal(policy)
	if err != nil {
		return "", nil, err
	}
	return string(d), s.seal.seal(p, run.ID), nil
}

func (s *Store) insertSession(ctx context.Context, tx *sql.Tx, run *skerry.Session) error {
	if err := attachDrives(ctx, tx, run); err != nil {
		return err
	}
	document, sealed, err := s.encodeSession(run)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO sessions (id, sandbox_id, project_id, created_at, ended, document, policy) VALUES (?, ?, ?, ?, ?, ?, ?)",
		run.ID, run.SandboxID, run.Scope.ProjectID, run.CreatedAt.Millis(), run.Status.Ended(), document, sealed)
	return err
}

const sessionQuery = `SELECT sessions.id, sessions.sandbox_id, sandboxes.team_id, sessions.project_id, sandboxes.name, sessions.document, sessions.policy
	FROM sessions JOIN sandboxes ON sandboxes.id = sessions.sandbox_id `

// Session returns a session of a scope, or CodeNotFound.
func (s *Store) Session(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	run, err := s.scanSession(s.read.QueryRowContext(ctx, sessionQuery+"WHERE sessions.id = ? AND sessions.project_id = ?", id, scope.ProjectID))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no session %q", id)
	}
	return run, wrap(err, "read session")
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
	tail, args, err := l.build("sessions")
	if err != nil {
		return nil, "", err
	}
	list, err := s.sessions(ctx, tail, args...)
	if err != nil {
		return nil, "", err
	}
	list, next := cut(l, list, func(r *skerry.Session) (any, string) { return r.CreatedAt.Millis(), r.ID })
	return list, next, nil
}

func (s *Store) sessions(ctx context.Context, tail string, args ...any) ([]skerry.Session, error) {
	rows, err := s.read.QueryContext(ctx, sessionQuery+tail, args...)
	if err != nil {
		return nil, wrap(err, "list sessions")
	}
	defer rows.Close()
	list := []skerry.Session{}
	for rows.Next() {
		run, err := s.scanSession(rows)
		if err != nil {
			return nil, wrap(err, "list sessions")
		}
		list = append(list, *run)
	}
	return list, wrap(rows.Err(), "list sessions")
}

func (s *Store) scanSession(row scanner) (*skerry.Session, error) {
	run := &skerry.Session{}
	var id, box, team, project, name, document string
	var sealed []byte
	if err := row.Scan(&id, &box, &team, &project, &name, &document, &sealed); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(document), run); err != nil {
		return nil, fmt.Errorf("session %s is damaged: %w", id, err)
	}
	run.ID, run.SandboxID, run.SandboxName = id, box, name
	run.Scope = skerry.Scope{TeamID: team, ProjectID: project}
	if run.Status.Ended() {
		return run, nil
	}
	if sealed == nil { // of a version that knew no other
		run.Policy = skerry.AllowAll()
		return run, nil
	}
	plain, err := s.seal.open(sealed, id)
	if err == nil {
		err = json.Unmarshal(plain, &run.Policy)
	}
	if err != nil {
		return nil, fmt.Errorf("the network policy of session %s is damaged: %w", id, err)
	}
	return run, nil
}

// PruneSessions removes a sandbox's ended sessions but for the newest keep,
// and returns the removed ones' ids.
func (s *Store) PruneSessions(ctx context.Context, sandboxID string, keep int) ([]string, error) {
	rows, err := s.write.QueryContext(ctx, `DELETE FROM sessions WHERE ended = 1 AND id IN (
		SELECT id FROM sessions WHERE sandbox_id = ? ORDER BY created_at DESC, id DESC LIMIT -1 OFFSET ?) RETURNING id`, sandboxID, keep)
	if err != nil {
		return nil, wrap(err, "prune sessions")
	}
	return scanIDs(rows, "prune sessions")
}

// SessionIDs returns the ids of all sessions of a sandbox, or of all
// sandboxes if sandboxID is "".
func (s *Store) SessionIDs(ctx context.Context, sandboxID string) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT id FROM sessions WHERE ?1 = '' OR sandbox_id = ?1", sandboxID)
	if err != nil {
		return nil, wrap(err, "list sessions")
	}
	return scanIDs(rows, "list sessions")
}

func scanIDs(rows *sql.Rows, doing string) ([]string, error) {
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, wrap(err, doing)
		}
		ids = append(ids, id)
	}
	return ids, wrap(rows.Err(), doing)
}

// SaveCommands writes commands, new ones and ones that are there.
func (s *Store) SaveCommands(ctx context.Context, cmds []skerry.Command) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error {
		for i := range cmds {
			document, err := json.Marshal(&cmds[i])
			if err != nil {
				return err
			}
			// A session that was deleted meanwhile takes its commands along.
			_, err = tx.ExecContext(ctx, `INSERT INTO commands (id, session_id, started_at, document)
				SELECT ?1, id, ?3, ?4 FROM sessions WHERE id = ?2
				ON CONFLICT (id) DO UPDATE SET document = excluded.document`,
				cmds[i].ID, cmds[i].SessionID, cmds[i].StartedAt.Millis(), string(document))
			if err != nil {
				return err
			}
		}
		return nil
	}), "save commands")
}

// Command returns a command of a session, or CodeNotFound.
func (s *Store) Command(ctx context.Context, sessionID, id string) (*skerry.Command, error) {
	list, err := s.commands(ctx, "WHERE session_id = ? AND id = ?", sessionID, id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %q in session %q", id, sessionID)
	}
	return &list[0], nil
}

// Commands returns a session's commands, the oldest first.
func (s *Store) Commands(ctx context.Context, sessionID string) ([]skerry.Command, error) {
	return s.commands(ctx, "WHERE session_id = ? ORDER BY started_at, id", sessionID)
}

func (s *Store) commands(ctx context.Context, tail string, args ...any) ([]skerry.Command, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT document FROM commands "+tail, args...)
	if err != nil {
		return nil, wrap(err, "read commands")
	}
	defer rows.Close()
	var list []skerry.Command
	for rows.Next() {
		var document string
		var cmd skerry.Command
		if err := rows.Scan(&document); err != nil {
			return nil, wrap(err, "read commands")
		}
		if err := json.Unmarshal([]byte(document), &cmd); err != nil {
			return nil, fmt.Errorf("a command is damaged: %w", err)
		}
		list = append(list, cmd)
	}
	return list, wrap(rows.Err(), "read commands")
}

// DeleteCommands removes commands.
func (s *Store) DeleteCommands(ctx context.Context, ids []string) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, "DELETE FROM commands WHERE id = ?", id); err != nil {
				return err
			}
		}
		return nil
	}), "delete commands")
}
