package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/skerry-dev/skerry"
)

// sandboxColumns are what scanSandbox reads.
const sandboxColumns = `sandboxes.id, sandboxes.team_id, sandboxes.project_id, sandboxes.name, sandboxes.created_at,
	sandboxes.status_updated_at, sandboxes.current_snapshot_id, sandboxes.image, sandboxes.document, sandboxes.secrets`

// CreateSandbox writes a new sandbox with its first session. A name that is
// taken is CodeConflict; by this sandbox itself, no error.
func (s *Store) CreateSandbox(ctx context.Context, sandbox *skerry.Sandbox, session *skerry.Session) error {
	err := s.update(ctx, func(ctx context.Context, t tx) error {
		document, sealed, err := s.encodeSandbox(sandbox)
		if err != nil {
			return err
		}
		if err := mustHaveProject(ctx, t, sandbox.Scope); err != nil {
			return err
		}
		_, err = t.exec(ctx, `INSERT INTO sandboxes
			(id, team_id, project_id, name, created_at, status_updated_at, current_snapshot_id, source_snapshot_id, image, document, secrets, published)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			sandbox.ID, sandbox.Scope.TeamID, sandbox.Scope.ProjectID, sandbox.Name, sandbox.CreatedAt.Millis(), sandbox.StatusUpdatedAt.Millis(),
			sandbox.CurrentSnapshotID, sourceSnapshot(sandbox), sandbox.Image, document, sealed, len(sandbox.Ports))
		if isUnique(err) {
			return taken{&skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a sandbox named %q exists", sandbox.Name)}}
		}
		if err != nil {
			return err
		}
		if err := addTags(ctx, t, sandbox); err != nil {
			return err
		}
		return s.insertSession(ctx, t, session)
	})
	return wrap(s.unlessWritten(ctx, err, "sandboxes", sandbox.ID), "create sandbox")
}

// saveSandbox writes a sandbox over a version of it; errChanged if there is
// another.
func (s *Store) saveSandbox(ctx context.Context, t tx, sandbox *skerry.Sandbox, version int64) error {
	document, sealed, err := s.encodeSandbox(sandbox)
	if err != nil {
		return err
	}
	err = changed(t.exec(ctx, `UPDATE sandboxes SET status_updated_at = ?, current_snapshot_id = ?, source_snapshot_id = ?,
		image = ?, document = ?, secrets = ?, published = ?, version = version + 1 WHERE id = ? AND version = ?`,
		sandbox.StatusUpdatedAt.Millis(), sandbox.CurrentSnapshotID, sourceSnapshot(sandbox),
		sandbox.Image, document, sealed, len(sandbox.Ports), sandbox.ID, version))
	if err != nil {
		return err
	}
	if _, err := t.exec(ctx, "DELETE FROM tags WHERE sandbox_id = ?", sandbox.ID); err != nil {
		return err
	}
	return addTags(ctx, t, sandbox)
}

func sourceSnapshot(sandbox *skerry.Sandbox) string {
	if sandbox.Source == nil {
		return ""
	}
	return sandbox.Source.SnapshotID
}

func addTags(ctx context.Context, t tx, sandbox *skerry.Sandbox) error {
	for name, value := range sandbox.Tags {
		if _, err := t.exec(ctx, "INSERT INTO tags (sandbox_id, name, value) VALUES (?, ?, ?)", sandbox.ID, name, value); err != nil {
			return err
		}
	}
	return nil
}

// DeleteSandbox removes a sandbox with its sessions and their commands.
func (s *Store) DeleteSandbox(ctx context.Context, id string) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "DELETE FROM sandboxes WHERE id = ?", id)
		return err
	}), "delete sandbox")
}

// SandboxByName returns a sandbox of a scope, or CodeNotFound.
func (s *Store) SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error) {
	sandbox, err := one(ctx, &s.engine, s.scanSandbox, "SELECT "+sandboxColumns+" FROM sandboxes WHERE project_id = ? AND name = ?", scope.ProjectID, name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSandbox(name)
	}
	return sandbox, wrap(err, "read sandbox")
}

// Sandbox returns a sandbox by its internal id, or CodeNotFound.
func (s *Store) Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error) {
	sandbox, err := one(ctx, &s.engine, s.scanSandbox, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = ?", id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSandbox(id)
	}
	return sandbox, wrap(err, "read sandbox")
}

func noSandbox(name string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no sandbox named %q", name).About(skerry.ResourceSandbox)
}

func (s *Store) sandboxes(ctx context.Context, tail string, args ...any) ([]skerry.Sandbox, error) {
	all, err := list(ctx, &s.engine, values(s.scanSandbox), "SELECT "+sandboxColumns+" FROM sandboxes "+tail, args...)
	return all, wrap(err, "list sandboxes")
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
		// Names are compared by their bytes, so a prefix is a range.
		l.and("sandboxes.name >= ? AND sandboxes.name < ?", f.NamePrefix, f.NamePrefix+"\U0010FFFF")
	}
	for name, value := range f.Tags {
		l.and("EXISTS (SELECT 1 FROM tags WHERE sandbox_id = sandboxes.id AND name = ? AND value = ?)", name, value)
	}
	return readPage(ctx, l, "sandboxes", s.sandboxes, func(b *skerry.Sandbox) (any, string) {
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
}

// Images returns the names of the images that sandboxes were created from, and
// the digests of those that snapshots stand on.
func (s *Store) Images(ctx context.Context) ([]string, error) {
	names, err := s.ids(ctx, `SELECT image FROM sandboxes
		UNION SELECT base_digest FROM snapshots WHERE status = 'created'
		UNION SELECT image_digest FROM sessions WHERE ended = 0 AND image_digest <> ''`)
	return names, wrap(err, "list images in use")
}

// PublishedSandboxes returns the sandboxes of all scopes that publish ports.
func (s *Store) PublishedSandboxes(ctx context.Context) ([]skerry.Sandbox, error) {
	return s.sandboxes(ctx, "WHERE published > 0")
}

func (s *Store) encodeSandbox(sandbox *skerry.Sandbox) (document string, sealed []byte, err error) {
	d, err := encode(documentOfSandbox(sandbox))
	if err != nil {
		return "", nil, err
	}
	secrets, err := encode(documentOfSecrets(sandbox))
	if err != nil {
		return "", nil, err
	}
	return string(d), s.seal.seal(secrets, sandbox.ID), nil
}

func (s *Store) scanSandbox(row scanner) (*skerry.Sandbox, error) {
	b := &skerry.Sandbox{}
	var document string
	var sealed []byte
	var created, status int64
	err := row.Scan(&b.ID, &b.Scope.TeamID, &b.Scope.ProjectID, &b.Name, &created, &status, &b.CurrentSnapshotID, &b.Image, &document, &sealed)
	if err != nil {
		return nil, err
	}
	b.CreatedAt, b.StatusUpdatedAt = skerry.FromMillis(created), skerry.FromMillis(status)
	var d sandboxDocument
	if err := decode([]byte(document), &d); err != nil {
		return nil, damaged("sandbox", b.ID, err)
	}
	d.into(b)
	plain, err := s.seal.open(sealed, b.ID)
	if err != nil {
		return nil, err
	}
	var secrets secretsDocument
	if err := decode(plain, &secrets); err != nil {
		return nil, damaged("the secrets of sandbox", b.ID, err)
	}
	secrets.into(b)
	return b, nil
}

// values is scan for a list of values.
func values[T any](scan func(scanner) (*T, error)) func(scanner) (T, error) {
	return func(row scanner) (v T, err error) {
		p, err := scan(row)
		if err == nil {
			v = *p
		}
		return v, err
	}
}
