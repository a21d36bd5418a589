package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/skerry-dev/skerry"
)

func insertSnapshot(ctx context.Context, t tx, snap *skerry.Snapshot) error {
	document, err := encode(documentOfSnapshot(snap))
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, `INSERT INTO snapshots (id, team_id, project_id, sandbox_id, sandbox_name, parent_id, status,
		created_at, updated_at, expires_at, last_used_at, base_image, base_digest, base_runtime, manifest, document, memory, base_vcpus, base_memory_mb)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		snap.ID, snap.Scope.TeamID, snap.Scope.ProjectID, snap.SandboxID, snap.SandboxName, snap.ParentID, string(snap.Status),
		snap.CreatedAt.Millis(), snap.UpdatedAt.Millis(), snap.ExpiresAt.Millis(), snap.LastUsedAt.Millis(),
		snap.Base.Image, snap.Base.Digest, snap.Base.Runtime, snap.Manifest, string(document),
		bit(snap.Memory), snap.Base.VCPUs, snap.Base.MemoryMB)
	if isUnique(err) {
		return taken{err}
	}
	return err
}

// saveSnapshot writes a snapshot over a version of it, if a further condition
// holds; errChanged if not.
func saveSnapshot(ctx context.Context, t tx, snap *skerry.Snapshot, version int64, cond string) error {
	document, err := encode(documentOfSnapshot(snap))
	if err != nil {
		return err
	}
	if cond != "" { // from here on no sandbox comes to use it; see mustBeThere
		err := t.row(ctx, "SELECT id FROM snapshots WHERE id = ?"+t.forUpdate, snap.ID).Scan(new(string))
		if errors.Is(err, sql.ErrNoRows) {
			return errChanged
		}
		if err != nil {
			return err
		}
	}
	return changed(t.exec(ctx, `UPDATE snapshots SET status = ?, updated_at = ?, expires_at = ?, last_used_at = ?, document = ?, version = version + 1
		WHERE id = ? AND version = ?`+cond, string(snap.Status), snap.UpdatedAt.Millis(), snap.ExpiresAt.Millis(), snap.LastUsedAt.Millis(),
		string(document), snap.ID, version))
}

// mustBeThere returns CodeSnapshotNotFound for a snapshot that has been deleted,
// so that no sandbox comes to start from one while it is being deleted. One that
// is still to be written is no error.
func mustBeThere(ctx context.Context, t tx, id string) error {
	if id == "" {
		return nil
	}
	var status string
	err := t.row(ctx, "SELECT status FROM snapshots WHERE id = ?"+t.forShare, id).Scan(&status)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil && skerry.SnapshotStatus(status) == skerry.SnapshotDeleted {
		return skerry.Errorf(skerry.CodeSnapshotNotFound, "snapshot %s was deleted", id)
	}
	return err
}

// TouchSnapshot records when a snapshot was last used.
func (s *Store) TouchSnapshot(ctx context.Context, id string, now skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "UPDATE snapshots SET last_used_at = ?, version = version + 1 WHERE id = ?", now.Millis(), id)
		return err
	}), "save snapshot")
}

// snapshotQuery selects what scanSnapshot reads, and further columns.
func snapshotQuery(more string) string {
	return `SELECT snapshots.id, snapshots.team_id, snapshots.project_id, snapshots.sandbox_id, snapshots.sandbox_name, snapshots.parent_id,
		snapshots.status, snapshots.created_at, snapshots.updated_at, snapshots.expires_at, snapshots.last_used_at,
		snapshots.base_image, snapshots.base_digest, snapshots.base_runtime, snapshots.manifest, snapshots.memory,
		snapshots.base_vcpus, snapshots.base_memory_mb, snapshots.document` + more + " FROM snapshots "
}

func scanSnapshot(row scanner) (*skerry.Snapshot, error) {
	s := &skerry.Snapshot{}
	var status, document string
	var created, updated, expires, used int64
	err := row.Scan(&s.ID, &s.Scope.TeamID, &s.Scope.ProjectID, &s.SandboxID, &s.SandboxName, &s.ParentID,
		&status, &created, &updated, &expires, &used,
		&s.Base.Image, &s.Base.Digest, &s.Base.Runtime, &s.Manifest, &s.Memory, &s.Base.VCPUs, &s.Base.MemoryMB, &document)
	if err != nil {
		return nil, err
	}
	s.Status = skerry.SnapshotStatus(status)
	s.CreatedAt, s.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
	s.ExpiresAt, s.LastUsedAt = skerry.FromMillis(expires), skerry.FromMillis(used)
	var d snapshotDocument
	if err := decode([]byte(document), &d); err != nil {
		return nil, damaged("snapshot", s.ID, err)
	}
	d.into(s)
	return s, nil
}

func (s *Store) snapshots(ctx context.Context, tail string, args ...any) ([]skerry.Snapshot, error) {
	all, err := list(ctx, &s.engine, values(scanSnapshot), snapshotQuery("")+tail, args...)
	return all, wrap(err, "read snapshots")
}

// Snapshot returns a snapshot of a scope, deleted ones too, or CodeNotFound.
func (s *Store) Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	snap, err := one(ctx, &s.engine, scanSnapshot, snapshotQuery("")+"WHERE id = ? AND project_id = ?", id, scope.ProjectID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSnapshot(id)
	}
	return snap, wrap(err, "read snapshot")
}

// ListSnapshots returns one page of a scope's snapshots and the next cursor.
func (s *Store) ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error) {
	l := &listing{page: f.Page, key: "created_at"}
	l.and("snapshots.project_id = ?", scope.ProjectID)
	if !f.Deleted {
		l.and("snapshots.status = ?", string(skerry.SnapshotCreated))
	}
	if f.SandboxName != "" {
		l.and("snapshots.sandbox_name = ?", f.SandboxName)
	}
	return readPage(ctx, l, "snapshots", s.snapshots, func(s *skerry.Snapshot) (any, string) { return s.CreatedAt.Millis(), s.ID })
}

// SnapshotsOf returns the snapshots of a sandbox that are not deleted, the
// newest first. The sandbox itself may be gone.
func (s *Store) SnapshotsOf(ctx context.Context, sandboxID string) ([]skerry.Snapshot, error) {
	return s.snapshots(ctx, "WHERE sandbox_id = ? AND status = ? ORDER BY created_at DESC, id DESC", sandboxID, string(skerry.SnapshotCreated))
}

// SnapshotChildren returns the newest snapshots whose parent is parentID, at
// most limit, and how many there are. Deleted ones do not count.
func (s *Store) SnapshotChildren(ctx context.Context, scope skerry.Scope, parentID string, limit int) ([]skerry.Snapshot, int, error) {
	const where = "WHERE parent_id = ? AND project_id = ? AND status = ?"
	args := []any{parentID, scope.ProjectID, string(skerry.SnapshotCreated)}
	children, err := s.snapshots(ctx, where+" ORDER BY created_at DESC, id DESC LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, 0, err
	}
	count, err := one(ctx, &s.engine, column[int], "SELECT count(*) FROM snapshots "+where, args...)
	return children, count, wrap(err, "count snapshots")
}

// ExpiredSnapshots returns the snapshots whose time is up, of every scope.
func (s *Store) ExpiredSnapshots(ctx context.Context, now skerry.Time) ([]skerry.Snapshot, error) {
	return s.snapshots(ctx, "WHERE status = 'created' AND expires_at > 0 AND expires_at <= ?", now.Millis())
}

// ForgetSnapshots removes what is remembered of snapshots that were deleted
// before a moment.
func (s *Store) ForgetSnapshots(ctx context.Context, before skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "DELETE FROM snapshots WHERE status = ? AND updated_at < ?", string(skerry.SnapshotDeleted), before.Millis())
		return err
	}), "forget snapshots")
}

// SnapshotScope returns where a snapshot of a team is, or CodeNotFound.
func (s *Store) SnapshotScope(ctx context.Context, teamID, id string) (skerry.Scope, error) {
	project, err := one(ctx, &s.engine, column[string], "SELECT project_id FROM snapshots WHERE id = ? AND team_id = ?", id, teamID)
	if errors.Is(err, sql.ErrNoRows) {
		return skerry.Scope{}, noSnapshot(id)
	}
	return skerry.Scope{TeamID: teamID, ProjectID: project}, wrap(err, "read snapshot")
}

func noSnapshot(id string) error {
	return skerry.Errorf(skerry.CodeNotFound, "there is no snapshot %q", id).About(skerry.ResourceSnapshot)
}
