package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/skerry-dev/skerry"
)

// CreateDrive writes a new drive, and returns when that survives a loss of
// power. A name that is taken is CodeConflict; by this drive itself, no error.
func (s *Store) CreateDrive(ctx context.Context, d *skerry.Drive) error {
	document, err := encode(documentOfDrive(d))
	if err != nil {
		return err
	}
	err = s.updateDurably(ctx, func(ctx context.Context, t tx) error {
		if err := mustHaveProject(ctx, t, d.Scope); err != nil {
			return err
		}
		_, err := t.exec(ctx, `INSERT INTO drives (id, team_id, project_id, name, created_at, updated_at, document)
			VALUES (?, ?, ?, ?, ?, ?, ?)`,
			d.ID, d.Scope.TeamID, d.Scope.ProjectID, d.Name, d.CreatedAt.Millis(), d.UpdatedAt.Millis(), string(document))
		return err
	})
	if isUnique(err) {
		err = taken{&skerry.Error{Code: skerry.CodeConflict, Field: "name", Message: fmt.Sprintf("a drive named %q exists already", d.Name)}}
	}
	return wrap(s.unlessWritten(ctx, err, "drives", d.ID), "create drive")
}

// DeleteDrive removes a drive, and returns when that survives a loss of power.
// One that a session has for writing is CodeConflict.
func (s *Store) DeleteDrive(ctx context.Context, id string) error {
	return wrap(s.updateDurably(ctx, func(ctx context.Context, t tx) error {
		if err := mustBeFree(ctx, t, id); err != nil {
			return err
		}
		_, err := t.exec(ctx, "DELETE FROM drives WHERE id = ?", id)
		return err
	}), "delete drive")
}

// driveQuery selects what scanDrive reads, a drive with the session that has it,
// and further columns.
func driveQuery(more string) string {
	return `SELECT drives.id, drives.team_id, drives.project_id, drives.name, drives.created_at, drives.updated_at, drives.document,
		coalesce(sessions.id, ''), coalesce(sandboxes.name, '')` + more + ` FROM drives
		LEFT JOIN sessions ON sessions.id = drives.session_id AND sessions.ended = 0
		LEFT JOIN sandboxes ON sandboxes.id = sessions.sandbox_id `
}

func scanDrive(row scanner) (*skerry.Drive, error) {
	d := &skerry.Drive{}
	var document string
	var created, updated int64
	err := row.Scan(&d.ID, &d.Scope.TeamID, &d.Scope.ProjectID, &d.Name, &created, &updated, &document, &d.CurrentSessionID, &d.CurrentSandboxName)
	if err != nil {
		return nil, err
	}
	d.CreatedAt, d.UpdatedAt = skerry.FromMillis(created), skerry.FromMillis(updated)
	var doc driveDocument
	if err := decode([]byte(document), &doc); err != nil {
		return nil, damaged("drive", d.ID, err)
	}
	doc.into(d)
	return d, nil
}

// saveDrive writes a drive over a version of it; errChanged if there is another.
func saveDrive(ctx context.Context, t tx, d *skerry.Drive, version int64) error {
	document, err := encode(documentOfDrive(d))
	if err != nil {
		return err
	}
	return changed(t.exec(ctx, "UPDATE drives SET updated_at = ?, document = ?, version = version + 1 WHERE id = ? AND version = ?",
		d.UpdatedAt.Millis(), string(document), d.ID, version))
}

// mustBeFree returns CodeConflict with the sandbox that has the drive, or
// CodeNotFound. It stays as it is until the transaction ends.
func mustBeFree(ctx context.Context, t tx, id string) error {
	err := t.row(ctx, "SELECT id FROM drives WHERE id = ?"+t.forUpdate, id).Scan(new(string))
	if err == nil {
		var d *skerry.Drive
		d, err = scanDrive(t.row(ctx, driveQuery("")+"WHERE drives.id = ?", id))
		if err == nil && d.CurrentSessionID != "" {
			return skerry.Errorf(skerry.CodeConflict, "drive %q is attached to sandbox %q", d.Name, d.CurrentSandboxName).About(skerry.ResourceDrive)
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return skerry.Errorf(skerry.CodeNotFound, "there is no drive %s", id).About(skerry.ResourceDrive)
	}
	return err
}

// attachDrives gives a session the drives that it is to have for writing.
func attachDrives(ctx context.Context, t tx, session *skerry.Session) error {
	for i, id := range session.DriveIDs {
		if slices.Contains(session.DriveIDs[:i], id) {
			continue
		}
		if err := mustBeFree(ctx, t, id); err != nil {
			return err
		}
		_, err := t.exec(ctx, "UPDATE drives SET session_id = ?, updated_at = ?, version = version + 1 WHERE id = ?",
			session.ID, session.CreatedAt.Millis(), id)
		if err != nil {
			return err
		}
	}
	return nil
}

// Drive returns a drive of a scope, or CodeNotFound.
func (s *Store) Drive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error) {
	d, err := one(ctx, &s.engine, scanDrive, driveQuery("")+"WHERE drives.project_id = ? AND drives.name = ?", scope.ProjectID, name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "there is no drive named %q", name).About(skerry.ResourceDrive)
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
		// Names are compared by their bytes, so a prefix is a range.
		l.and("drives.name >= ? AND drives.name < ?", f.NamePrefix, f.NamePrefix+"\U0010FFFF")
	}
	return readPage(ctx, l, "drives", func(ctx context.Context, tail string, args ...any) ([]skerry.Drive, error) {
		all, err := list(ctx, &s.engine, values(scanDrive), driveQuery("")+tail, args...)
		return all, wrap(err, "list drives")
	}, func(d *skerry.Drive) (any, string) {
		switch l.key {
		case "name":
			return d.Name, d.ID
		case "updated_at":
			return d.UpdatedAt.Millis(), d.ID
		}
		return d.CreatedAt.Millis(), d.ID
	})
}

// DriveIDs returns the ids of all drives, of every scope.
func (s *Store) DriveIDs(ctx context.Context) ([]string, error) {
	ids, err := s.ids(ctx, "SELECT id FROM drives")
	return ids, wrap(err, "list drives")
}
