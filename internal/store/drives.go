package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skerry-dev/skerry"
)

// CreateDrive writes a new drive, and returns when that survives a loss of
// power. A name that is taken is CodeConflict.
func (s *Store) CreateDrive(ctx context.Context, d *skerry.Drive) error {
	document, err := json.Marshal(d)
	if err != nil {
		return err
	}
	err = s.updateDurably(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO drives (id, team_id, project_id, name, created_at, updated_at, document)
			VALUES (?, ?, ?, ?, ?, ?, ?)`,
			d.ID, d.Scope.TeamID, d.Scope.ProjectID, d.Name, d.CreatedAt.Millis(), d.UpdatedAt.Millis(), string(document))
		return err
	})
	if isUnique(err) {
		return &skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a drive named %q exists", d.Name)}
	}
	return wrap(err, "create drive")
}

// DeleteDrive removes a drive, and returns when that survives a loss of power.
// One that a session has for writing is CodeConflict.
func (s *Store) DeleteDrive(ctx context.Context, id string) error {
	return wrap(s.updateDurably(ctx, func(tx *sql.Tx) error {
		if err := mustBeFree(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM drives WHERE id = ?", id)
		return err
	}), "delete drive")
}

// driveQuery is what scanDrive reads: a drive with the session that has it.
const driveQuery = `SELECT drives.id, drives.team_id, drives.project_id, drives.updated_at, drives.document,
	coalesce(sessions.id, ''), coalesce(sandboxes.name, '') FROM drives
	LEFT JOIN sessions ON sessions.id = drives.session_id AND sessions.ended = 0
	LEFT JOIN sandboxes ON sandboxes.id = sessions.sandbox_id `

func scanDrive(row scanner) (*skerry.Drive, error) {
	d := &skerry.Drive{}
	var id, document, session, box string
	var updated int64
	var scope skerry.Scope
	if err := row.Scan(&id, &scope.TeamID, &scope.ProjectID, &updated, &document, &session, &box); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(document), d); err != nil {
		return nil, fmt.Errorf("drive %s is damaged: %w", id, err)
	}
	d.ID, d.Scope, d.UpdatedAt = id, scope, skerry.FromMillis(updated)
	d.CurrentSessionID, d.CurrentSandboxName = session, box
	return d, nil
}

// mustBeFree returns CodeConflict with the sandbox that has the drive, or
// CodeNotFound.
func mustBeFree(ctx context.Context, tx *sql.Tx, id string) error {
	d, err := scanDrive(tx.QueryRowContext(ctx, driveQuery+"WHERE drives.id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return skerry.Errorf(skerry.CodeNotFound, "there is no drive %s", id)
	}
	if err == nil && d.CurrentSessionID != "" {
		return skerry.Errorf(skerry.CodeConflict, "drive %q is attached to sandbox %q", d.Name, d.CurrentSandboxName)
	}
	return err
}

// attachDrives gives a session the drives that it is to have for writing.
func attachDrives(ctx context.Context, tx *sql.Tx, run *skerry.Session) error {
	for _, id := range run.DriveIDs {
		if err := mustBeFree(ctx, tx, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE drives SET session_id = ?, updated_at = ? WHERE id = ?", run.ID, run.CreatedAt.Millis(), id)
		if err != nil {
			return err
		}
	}
	return nil
}

// Drive returns a drive of a scope, or CodeNotFound.
func (s *Store) Drive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	d, err := scanDrive(s.read.QueryRowContext(ctx, driveQuery+"WHERE drives.project_id = ? AND drives.name = ?", scope.ProjectID, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no drive named %q", name)
	}
	return d, wrap(err, "read drive")
}

// ListDrives returns one page of a scope's drives and the next cursor.
func (s *Store) ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error) {
	l := &listing{page: f.Page}
	switch f.SortBy {
	case "", "createdAt":
		l.key = "created_at"
	case "updatedAt":
		l.key = "updated_at"
	case "name":
		l.key, l.text = "name", true
	default:
		return nil, "", skerry.Invalid("sortBy", "is %q, want createdAt, updatedAt or name", f.SortBy)
	}
	l.and("drives.project_id = ?", scope.ProjectID)
	if f.NamePrefix != "" {
		// Names are bytes to SQLite's default collation, so a prefix is a range.
		l.and("drives.name >= ? AND drives.name < ?", f.NamePrefix, f.NamePrefix+"\U0010FFFF")
	}
	tail, args, err := l.build("drives")
	if err != nil {
		return nil, "", err
	}
	rows, err := s.read.QueryContext(ctx, driveQuery+tail, args...)
	if err != nil {
		return nil, "", wrap(err, "list drives")
	}
	defer rows.Close()
	list := []skerry.Drive{}
	for rows.Next() {
		d, err := scanDrive(rows)
		if err != nil {
			return nil, "", wrap(err, "list drives")
		}
		list = append(list, *d)
	}
	if err := rows.Err(); err != nil {
		return nil, "", wrap(err, "list drives")
	}
	list, next := cut(l, list, func(d *skerry.Drive) (any, string) {
		switch l.key {
		case "name":
			return d.Name, d.ID
		case "updated_at":
			return d.UpdatedAt.Millis(), d.ID
		}
		return d.CreatedAt.Millis(), d.ID
	})
	return list, next, nil
}

// DriveIDs returns the ids of all drives, of every scope.
func (s *Store) DriveIDs(ctx context.Context) ([]string, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT id FROM drives")
	if err != nil {
		return nil, wrap(err, "list drives")
	}
	return scanIDs(rows, "list drives")
}
