package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skerry-dev/skerry"
)

// CreateSnapshot writes a snapshot, together with the sandbox and the session
// that it changes unless they are nil. It survives a loss of power when this
// returns.
func (s *Store) CreateSnapshot(ctx context.Context, snap *skerry.Snapshot, box *skerry.Sandbox, run *skerry.Session) error {
	return wrap(s.updateDurably(ctx, func(tx *sql.Tx) error {
		document, err := json.Marshal(snap)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO snapshots (id, team_id, project_id, sandbox_id, sandbox_name, parent_id, status,
			created_at, expires_at, base_image, base_digest, base_runtime, manifest, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			snap.ID, snap.Scope.TeamID, snap.Scope.ProjectID, snap.SandboxID, snap.SandboxName, snap.ParentID, snap.Status,
			snap.CreatedAt.Millis(), snap.ExpiresAt.Millis(), snap.Base.Image, snap.Base.Digest, snap.Base.Runtime, snap.Manifest, string(document))
		if err != nil || box == nil {
			return err
		}
		return s.saveSession(ctx, tx, box, run)
	}), "create snapshot")
}

// SaveSnapshot writes what can change of a snapshot: its status and its times.
func (s *Store) SaveSnapshot(ctx context.Context, snap *skerry.Snapshot) error {
	document, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	_, err = s.write.ExecContext(ctx, "UPDATE snapshots SET status = ?, expires_at = ?, document = ? WHERE id = ?",
		snap.Status, snap.ExpiresAt.Millis(), string(document), snap.ID)
	return wrap(err, "save snapshot")
}

// TouchSnapshot records when a snapshot was last used.
func (s *Store) TouchSnapshot(ctx context.Context, id string, now skerry.Time) error {
	_, err := s.write.ExecContext(ctx, "UPDATE snapshots SET document = json_set(document, '$.lastUsedAt', ?) WHERE id = ?", now.Millis(), id)
	return wrap(err, "save snapshot")
}

// snapshotQuery is what scanSnapshot reads.
const snapshotQuery = `SELECT snapshots.id, snapshots.team_id, snapshots.project_id, snapshots.sandbox_id, snapshots.base_image,
	snapshots.base_digest, snapshots.base_runtime, snapshots.manifest, snapshots.document FROM snapshots `

func scanSnapshot(row scanner) (*skerry.Snapshot, error) {
	snap := &skerry.Snapshot{}
	var id, document string
	var scope skerry.Scope
	var base skerry.Base
	var box, manifest string
	err := row.Scan(&id, &scope.TeamID, &scope.ProjectID, &box, &base.Image, &base.Digest, &base.Runtime, &manifest, &document)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(document), snap); err != nil {
		return nil, fmt.Errorf("snapshot %s is damaged: %w", id, err)
	}
	snap.ID, snap.Scope, snap.SandboxID, snap.Base, snap.Manifest = id, scope, box, base, manifest
	return snap, nil
}

func (s *Store) snapshots(ctx context.Context, tail string, args ...any) ([]skerry.Snapshot, error) {
	rows, err := s.read.QueryContext(ctx, snapshotQuery+tail, args...)
	if err != nil {
		return nil, wrap(err, "read snapshots")
	}
	defer rows.Close()
	list := []skerry.Snapshot{}
	for rows.Next() {
		snap, err := scanSnapshot(rows)
		if err != nil {
			return nil, wrap(err, "read snapshots")
		}
		list = append(list, *snap)
	}
	return list, wrap(rows.Err(), "read snapshots")
}

// Snapshot returns a snapshot of a scope, deleted ones too, or CodeNotFound.
func (s *Store) Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	snap, err := scanSnapshot(s.read.QueryRowContext(ctx, snapshotQuery+"WHERE id = ? AND project_id = ?", id, scope.ProjectID))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no snapshot %q", id)
	}
	return snap, wrap(err, "read snapshot")
}

// ListSnapshots returns one page of a scope's snapshots that are not deleted,
// and the next cursor.
func (s *Store) ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error) {
	l := &listing{page: f.Page, key: "created_at"}
	l.and("snapshots.project_id = ? AND snapshots.status = ?", scope.ProjectID, skerry.SnapshotCreated)
	if f.SandboxName != "" {
		l.and("snapshots.sandbox_name = ?", f.SandboxName)
	}
	tail, args, err := l.build("snapshots")
	if err != nil {
		return nil, "", err
	}
	list, err := s.snapshots(ctx, tail, args...)
	if err != nil {
		return nil, "", err
	}
	list, next := cut(l, list, func(s *skerry.Snapshot) (any, string) { return s.CreatedAt.Millis(), s.ID })
	return list, next, nil
}

// SnapshotsOf returns the snapshots of a sandbox that are not deleted, the
// newest first. The sandbox itself may be gone.
func (s *Store) SnapshotsOf(ctx context.Context, sandboxID string) ([]skerry.Snapshot, error) {
	return s.snapshots(ctx, "WHERE sandbox_id = ? AND status = ? ORDER BY created_at DESC, id DESC", sandboxID, skerry.SnapshotCreated)
}

// SnapshotChildren returns the newest snapshots whose parent is parentID, at
// most limit, and how many there are. Deleted ones do not count.
func (s *Store) SnapshotChildren(ctx context.Context, scope skerry.Scope, parentID string, limit int) ([]skerry.Snapshot, int, error) {
	const where = "WHERE parent_id = ? AND project_id = ? AND status = ?"
	list, err := s.snapshots(ctx, where+" ORDER BY created_at DESC, id DESC LIMIT ?", parentID, scope.ProjectID, skerry.SnapshotCreated, limit)
	if err != nil {
		return nil, 0, err
	}
	var count int
	err = s.read.QueryRowContext(ctx, "SELECT count(*) FROM snapshots "+where, parentID, scope.ProjectID, skerry.SnapshotCreated).Scan(&count)
	return list, count, wrap(err, "count snapshots")
}

// SnapshotUsed reports whether a sandbox would start from the snapshot.
func (s *Store) SnapshotUsed(ctx context.Context, id string) (bool, error) {
	var used bool
	err := s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sandboxes WHERE current_snapshot_id = ?1 OR source_snapshot_id = ?1)`, id).Scan(&used)
	return used, wrap(err, "look for users of a snapshot")
}

// ExpiredSnapshots returns the snapshots whose time is up, of every scope.
func (s *Store) ExpiredSnapshots(ctx context.Context, now skerry.Time) ([]skerry.Snapshot, error) {
	return s.snapshots(ctx, "WHERE status = 'created' AND expires_at > 0 AND expires_at <= ?", now.Millis())
}

// Manifests returns where the bytes of all snapshots are that are not deleted.
func (s *Store) Manifests(ctx context.Context) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT DISTINCT manifest FROM snapshots WHERE status = ?", skerry.SnapshotCreated)
	if err != nil {
		return nil, wrap(err, "list manifests")
	}
	return scanIDs(rows, "list manifests")
}
