package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skerry-dev/skerry"
)

// secrets is what of a sandbox is encrypted.
type secrets struct {
	Env    map[string]string     `json:"env,omitempty"`
	Source *skerry.Source        `json:"source,omitempty"`
	Policy *skerry.NetworkPolicy `json:"policy,omitempty"`
	// Ports have the keys of private routes.
	Ports []skerry.PublishedPort `json:"ports,omitempty"`
}

// sandboxColumns are what scanSandbox reads.
const sandboxColumns = "sandboxes.id, sandboxes.team_id, sandboxes.project_id, sandboxes.document, sandboxes.secrets"

// CreateSandbox writes a new sandbox with its first session. A name that is
// taken is CodeConflict.
func (s *Store) CreateSandbox(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error {
	err := s.update(ctx, func(tx *sql.Tx) error {
		document, sealed, err := s.encode(box)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO sandboxes
			(id, team_id, project_id, name, created_at, status_updated_at, current_snapshot_id, source_snapshot_id, document, secrets, published)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			box.ID, box.Scope.TeamID, box.Scope.ProjectID, box.Name, box.CreatedAt.Millis(), box.StatusUpdatedAt.Millis(),
			box.CurrentSnapshotID, sourceSnapshot(box), document, sealed, len(box.Ports))
		if err != nil {
			return err
		}
		if err := writeTags(ctx, tx, box); err != nil {
			return err
		}
		return s.insertSession(ctx, tx, run)
	})
	if isUnique(err) {
		return &skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a sandbox named %q exists", box.Name)}
	}
	return wrap(err, "create sandbox")
}

// SaveSandbox writes a sandbox that exists. One that was deleted meanwhile
// is CodeNotFound.
func (s *Store) SaveSandbox(ctx context.Context, box *skerry.Sandbox) error {
	return wrap(s.update(ctx, func(tx *sql.Tx) error { return s.saveSandbox(ctx, tx, box) }), "save sandbox")
}

func (s *Store) saveSandbox(ctx context.Context, tx *sql.Tx, box *skerry.Sandbox) error {
	document, sealed, err := s.encode(box)
	if err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, `UPDATE sandboxes SET status_updated_at = ?, current_snapshot_id = ?, source_snapshot_id = ?,
		document = ?, secrets = ?, published = ? WHERE id = ?`,
		box.StatusUpdatedAt.Millis(), box.CurrentSnapshotID, sourceSnapshot(box), document, sealed, len(box.Ports), box.ID)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, noSandbox(box.Name))
	}
	return writeTags(ctx, tx, box)
}

func sourceSnapshot(box *skerry.Sandbox) string {
	if box.Source == nil {
		return ""
	}
	return box.Source.SnapshotID
}

func writeTags(ctx context.Context, tx *sql.Tx, box *skerry.Sandbox) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM tags WHERE sandbox_id = ?", box.ID); err != nil {
		return err
	}
	for name, value := range box.Tags {
		if _, err := tx.ExecContext(ctx, "INSERT INTO tags (sandbox_id, name, value) VALUES (?, ?, ?)", box.ID, name, value); err != nil {
			return err
		}
	}
	return nil
}

// DeleteSandbox removes a sandbox with its sessions and their commands.
func (s *Store) DeleteSandbox(ctx context.Context, id string) error {
	_, err := s.write.ExecContext(ctx, "DELETE FROM sandboxes WHERE id = ?", id)
	return wrap(err, "delete sandbox")
}

// SandboxByName returns a sandbox of a scope, or CodeNotFound.
func (s *Store) SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error) {
	row := s.read.QueryRowContext(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE project_id = ? AND name = ?", scope.ProjectID, name)
	box, err := s.scanSandbox(row)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSandbox(name)
	}
	return box, wrap(err, "read sandbox")
}

// Sandbox returns a sandbox by its internal id, or CodeNotFound.
func (s *Store) Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error) {
	box, err := s.scanSandbox(s.read.QueryRowContext(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSandbox(id)
	}
	return box, wrap(err, "read sandbox")
}

func noSandbox(name string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no sandbox named %q", name)
}

// ListSandboxes returns one page of a scope's sandboxes and the next cursor.
func (s *Store) ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error) {
	l := &listing{page: f.Page}
	switch f.SortBy {
	case "", "createdAt":
		l.key = "created_at"
	case "statusUpdatedAt":
		l.key = "status_updated_at"
	case "name":
		l.key, l.text = "name", true
	case "currentSnapshotId":
		l.key, l.text = "current_snapshot_id", true
	default:
		return nil, "", skerry.Invalid("sortBy", "is %q, want createdAt, name, statusUpdatedAt or currentSnapshotId", f.SortBy)
	}
	l.and("sandboxes.project_id = ?", scope.ProjectID)
	if f.NamePrefix != "" {
		// Names are bytes to SQLite's default collation, so a prefix is a range.
		l.and("sandboxes.name >= ? AND sandboxes.name < ?", f.NamePrefix, f.NamePrefix+"\U0010FFFF")
	}
	for name, value := range f.Tags {
		l.and("EXISTS (SELECT 1 FROM tags WHERE sandbox_id = sandboxes.id AND name = ? AND value = ?)", name, value)
	}
	tail, args, err := l.build("sandboxes")
	if err != nil {
		return nil, "", err
	}
	rows, err := s.read.QueryContext(ctx, "SELECT "+sandboxColumns+" FROM sandboxes "+tail, args...)
	if err != nil {
		return nil, "", wrap(err, "list sandboxes")
	}
	defer rows.Close()
	list := []skerry.Sandbox{}
	for rows.Next() {
		box, err := s.scanSandbox(rows)
		if err != nil {
			return nil, "", wrap(err, "list sandboxes")
		}
		list = append(list, *box)
	}
	if err := rows.Err(); err != nil {
		return nil, "", wrap(err, "list sandboxes")
	}
	list, next := cut(l, list, func(b *skerry.Sandbox) (any, string) {
		switch l.key {
		case "name":
			return b.Name, b.ID
		case "current_snapshot_id":
			return b.CurrentSnapshotID, b.ID
		case "status_updated_at":
			return b.StatusUpdatedAt.Millis(), b.ID
		}
		return b.CreatedAt.Millis(), b.ID
	})
	return list, next, nil
}

// Images returns the names of the images that sandboxes were created from, and
// the digests of those that snapshots stand on.
func (s *Store) Images(ctx context.Context) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT coalesce(json_extract(document, '$.image'), '') FROM sandboxes
		UNION SELECT base_digest FROM snapshots WHERE status = 'created'
		UNION SELECT json_extract(document, '$.imageDigest') FROM sessions WHERE ended = 0 AND json_extract(document, '$.imageDigest') <> ''`)
	if err != nil {
		return nil, wrap(err, "list images in use")
	}
	return scanIDs(rows, "list images in use")
}

// PublishedSandboxes returns the sandboxes of all scopes that publish ports.
func (s *Store) PublishedSandboxes(ctx context.Context) ([]skerry.Sandbox, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE published > 0")
	if err != nil {
		return nil, wrap(err, "list published ports")
	}
	defer rows.Close()
	var list []skerry.Sandbox
	for rows.Next() {
		box, err := s.scanSandbox(rows)
		if err != nil {
			return nil, wrap(err, "list published ports")
		}
		list = append(list, *box)
	}
	return list, wrap(rows.Err(), "list published ports")
}

func (s *Store) encode(box *skerry.Sandbox) (document string, sealed []byte, err error) {
	d, err := json.Marshal(box)
	if err != nil {
		return "", nil, err
	}
	p, err := json.Marshal(secrets{Env: box.Env, Source: box.Source, Ports: box.Ports, Policy: box.Policy})
	if err != nil {
		return "", nil, err
	}
	return string(d), s.seal.seal(p, box.ID), nil
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(...any) error }

func (s *Store) scanSandbox(row scanner) (*skerry.Sandbox, error) {
	var id, team, project, document string
	var sealed []byte
	if err := row.Scan(&id, &team, &project, &document, &sealed); err != nil {
		return nil, err
	}
	box := &skerry.Sandbox{}
	if err := json.Unmarshal([]byte(document), box); err != nil {
		return nil, fmt.Errorf("sandbox %s is damaged: %w", id, err)
	}
	plain, err := s.seal.open(sealed, id)
	if err != nil {
		return nil, err
	}
	var sec secrets
	if err := json.Unmarshal(plain, &sec); err != nil {
		return nil, fmt.Errorf("the secrets of sandbox %s are damaged: %w", id, err)
	}
	box.ID, box.Scope = id, skerry.Scope{TeamID: team, ProjectID: project}
	box.Env, box.Source, box.Ports = sec.Env, sec.Source, sec.Ports
	if sec.Policy == nil { // of a version that knew no other
		sec.Policy = skerry.AllowAll()
	}
	box.Policy = sec.Policy
	return box, nil
}

// wrap says what failed, leaving errors that are for clients as they are.
func wrap(err error, doing string) error {
	if err == nil || skerry.CodeOf(err) != skerry.CodeInternal {
		return err
	}
	return fmt.Errorf("%s: %w", doing, err)
}
