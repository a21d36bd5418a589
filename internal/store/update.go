package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// The calls in this file change a document from what is stored. They read it,
// have the caller's function change it, and write it in one transaction if its
// version is still the one that was read. If it is not, they begin again with
// the document as it is now, so the function may be called more than once. It
// should do nothing else than look at the document, change it or refuse. No
// transaction is open meanwhile.
//
// An error of the function is returned as it is, and nothing is written. Too
// many changes at the same time are CodeConflict. After CodeUnavailable it is
// not known whether the change was written: a function that is called again
// sees what is stored, and what is added again, with the same id, is there.

// attempts is how often a change begins again. Each time another change of the
// same document has succeeded, so this many meet only if something is wrong.
const attempts = 20

// errChanged says that a document is not the one that was read.
var errChanged = errors.New("the document has changed")

// retry calls f until its documents are those that it read.
func retry(ctx context.Context, what string, f func() error) error {
	for i := range attempts {
		err := f()
		if !errors.Is(err, errChanged) {
			return err
		}
		if err := pause(ctx, i); err != nil {
			return err
		}
	}
	return skerry.Errorf(skerry.CodeConflict, "%s is changed by too many requests at once; try again", what)
}

// pause waits before another attempt: longer each time, and not as long as
// others who lost.
func pause(ctx context.Context, attempt int) error {
	select {
	case <-time.After(rand.N(time.Millisecond << min(attempt, 6))):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// changed is errChanged unless a statement that compares the version met its row.
func changed(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return errChanged
	}
	return err
}

// UpdateSandbox changes a sandbox and returns it as it was written. Its id,
// scope and name do not change. One that is gone is CodeNotFound, and another
// CurrentSnapshotID that was deleted CodeSnapshotNotFound.
func (s *Store) UpdateSandbox(ctx context.Context, id string, change func(*skerry.Sandbox) error) (*skerry.Sandbox, error) {
	var out *skerry.Sandbox
	err := retry(ctx, "the sandbox", func() error {
		sandbox, version, err := s.versionedSandbox(ctx, id)
		if err != nil {
			return err
		}
		was := sandbox.identity()
		if err := change(sandbox.Sandbox); err != nil {
			return refusal{err}
		}
		if sandbox.identity() != was {
			return fmt.Errorf("a change of sandbox %s changes what it is", id)
		}
		out = sandbox.Sandbox
		return s.update(ctx, func(ctx context.Context, t tx) error { return s.saveChanged(ctx, t, sandbox, version) })
	})
	return result(out, err, "update sandbox")
}

// UpdateSession changes a session together with its sandbox, and returns both
// as they were written. What they are does not change. A session that is gone
// is CodeNotFound.
func (s *Store) UpdateSession(ctx context.Context, id string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error) {
	var sandbox *skerry.Sandbox
	var session *skerry.Session
	err := retry(ctx, "the session", func() error {
		p, err := s.changedPair(ctx, id, change)
		if err != nil {
			return err
		}
		sandbox, session = p.sandbox.Sandbox, p.session
		return s.update(ctx, func(ctx context.Context, t tx) error { return s.savePair(ctx, t, p) })
	})
	if sandbox, err = result(sandbox, err, "update session"); err != nil {
		return nil, nil, err
	}
	return sandbox, session, nil
}

// AddSession writes the session that start returns, which is a new one of a
// sandbox, together with the sandbox as start leaves it. The session has its
// DriveIDs from then to its end: a drive that another session has is
// CodeConflict, and a SourceSnapshotID that was deleted CodeSnapshotNotFound.
func (s *Store) AddSession(ctx context.Context, sandboxID string, start func(*skerry.Sandbox) (*skerry.Session, error)) (*skerry.Sandbox, *skerry.Session, error) {
	var sandbox *skerry.Sandbox
	var session *skerry.Session
	err := retry(ctx, "the sandbox", func() error {
		b, version, err := s.versionedSandbox(ctx, sandboxID)
		if err != nil {
			return err
		}
		was := b.identity()
		if session, err = start(b.Sandbox); err != nil {
			return refusal{err}
		}
		if b.identity() != was || session.SandboxID != b.ID || session.Scope != b.Scope {
			return fmt.Errorf("a session of sandbox %s is another's", sandboxID)
		}
		sandbox = b.Sandbox
		return s.update(ctx, func(ctx context.Context, t tx) error {
			if err := s.saveChanged(ctx, t, b, version); err != nil {
				return err
			}
			return s.insertSession(ctx, t, session)
		})
	})
	if errors.As(err, new(taken)) {
		return s.written(ctx, session.ID, err)
	}
	if sandbox, err = result(sandbox, err, "add session"); err != nil {
		return nil, nil, err
	}
	return sandbox, session, nil
}

// AddSnapshot writes a new snapshot, together with the change that it makes to
// the session that it was taken of and to its sandbox, and returns when that
// survives a loss of power. Without a session (""), it writes the snapshot
// alone, and both results are nil. The lease of the saved files ends with it; if it
// has ended before, that is CodeConflict and nothing is written.
func (s *Store) AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, sessionID string, change func(*skerry.Sandbox, *skerry.Session) error) (sandbox *skerry.Sandbox, session *skerry.Session, err error) {
	err = retry(ctx, "the session", func() error {
		if sessionID == "" {
			return s.updateDurably(ctx, func(ctx context.Context, t tx) error { return insertSaved(ctx, t, snap, saved) })
		}
		p, err := s.changedPair(ctx, sessionID, change)
		if err != nil {
			return err
		}
		sandbox, session = p.sandbox.Sandbox, p.session
		return s.updateDurably(ctx, func(ctx context.Context, t tx) error {
			if err := insertSaved(ctx, t, snap, saved); err != nil {
				return err
			}
			return s.savePair(ctx, t, p)
		})
	})
	if errors.As(err, new(taken)) {
		if sessionID == "" {
			return nil, nil, wrap(s.unlessWritten(ctx, err, "snapshots", snap.ID), "add snapshot")
		}
		return s.written(ctx, sessionID, err)
	}
	if sandbox, err = result(sandbox, err, "add snapshot"); err != nil {
		return nil, nil, err
	}
	return sandbox, session, nil
}

// UpdateSnapshot changes a snapshot's status and times, and returns it as it
// was written. One that is not known any more is CodeNotFound.
func (s *Store) UpdateSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (*skerry.Snapshot, error) {
	return s.updateSnapshot(ctx, id, "", change)
}

// UpdateUnusedSnapshot is UpdateSnapshot, unless a sandbox would start from the
// snapshot: then nothing changes, and updated is false. Between the look and
// the change no sandbox comes to use it.
func (s *Store) UpdateUnusedSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (updated bool, err error) {
	_, err = s.updateSnapshot(ctx, id, unused, change)
	if errors.Is(err, errInUse) {
		return false, nil
	}
	return err == nil, err
}

// unused is the condition that no sandbox would start from a snapshot.
const unused = ` AND NOT EXISTS
	(SELECT 1 FROM sandboxes WHERE current_snapshot_id = snapshots.id OR source_snapshot_id = snapshots.id)`

// errInUse says that sandboxes would start from a snapshot.
var errInUse = errors.New("the snapshot is in use")

func (s *Store) updateSnapshot(ctx context.Context, id, cond string, change func(*skerry.Snapshot) error) (*skerry.Snapshot, error) {
	var out *skerry.Snapshot
	err := retry(ctx, "the snapshot", func() error {
		snap, version, err := versioned(ctx, &s.engine, scanSnapshot, snapshotQuery(", snapshots.version")+"WHERE id = ?", id)
		if errors.Is(err, sql.ErrNoRows) {
			return noSnapshot(id)
		}
		if err != nil {
			return err
		}
		was := [...]string{snap.ID, snap.Scope.TeamID, snap.Scope.ProjectID, snap.SandboxID, snap.Manifest, snap.ParentID}
		if err := change(snap); err != nil {
			return refusal{err}
		}
		if was != [...]string{snap.ID, snap.Scope.TeamID, snap.Scope.ProjectID, snap.SandboxID, snap.Manifest, snap.ParentID} {
			return fmt.Errorf("a change of snapshot %s changes what it is", id)
		}
		out = snap
		return s.update(ctx, func(ctx context.Context, t tx) error {
			err := saveSnapshot(ctx, t, snap, version, cond)
			if !errors.Is(err, errChanged) || cond == "" {
				return err
			}
			var now int64
			if err := t.row(ctx, "SELECT version FROM snapshots WHERE id = ?", id).Scan(&now); err != nil || now != version {
				return errChanged // and what is there now is read again
			}
			return errInUse
		})
	})
	return result(out, err, "update snapshot")
}

// UpdateDrive changes a drive, and returns it as it was written. Its id, scope
// and name do not change, nor which session has it. One that is gone is
// CodeNotFound.
func (s *Store) UpdateDrive(ctx context.Context, id string, change func(*skerry.Drive) error) (*skerry.Drive, error) {
	var out *skerry.Drive
	err := retry(ctx, "the drive", func() error {
		d, version, err := versioned(ctx, &s.engine, scanDrive, driveQuery(", drives.version")+"WHERE drives.id = ?", id)
		if errors.Is(err, sql.ErrNoRows) {
			return skerry.Errorf(skerry.CodeNotFound, "there is no drive %s", id).About(skerry.ResourceDrive)
		}
		if err != nil {
			return err
		}
		was := [...]string{d.ID, d.Scope.TeamID, d.Scope.ProjectID, d.Name, d.CurrentSessionID}
		if err := change(d); err != nil {
			return refusal{err}
		}
		if was != [...]string{d.ID, d.Scope.TeamID, d.Scope.ProjectID, d.Name, d.CurrentSessionID} {
			return fmt.Errorf("a change of drive %s changes what it is", id)
		}
		out = d
		return s.update(ctx, func(ctx context.Context, t tx) error { return saveDrive(ctx, t, d, version) })
	})
	return result(out, err, "update drive")
}

// taken says that a row with the same id or name is there.
type taken struct{ error }

func (t taken) Unwrap() error { return t.error }

// unlessWritten returns err, or nil if it says that a row is there which has the
// id that it was to have: an earlier call has written it, and its caller was not
// told.
func (s *Store) unlessWritten(ctx context.Context, err error, table, id string) error {
	t, ok := errors.AsType[taken](err)
	if !ok {
		return err
	}
	switch _, rerr := one(ctx, &s.engine, column[string], "SELECT id FROM "+table+" WHERE id = ?", id); {
	case rerr == nil:
		return nil
	case errors.Is(rerr, sql.ErrNoRows):
		return t.error
	default:
		return rerr
	}
}

// written returns a session and its sandbox as they are, after what was to be
// added with them turned out to be there.
func (s *Store) written(ctx context.Context, sessionID string, err error) (*skerry.Sandbox, *skerry.Session, error) {
	p, rerr := s.changedPair(ctx, sessionID, func(*skerry.Sandbox, *skerry.Session) error { return nil })
	if skerry.CodeOf(rerr) == skerry.CodeNotFound {
		rerr = err
	}
	if rerr != nil {
		return nil, nil, wrap(rerr, "add what is there")
	}
	return p.sandbox.Sandbox, p.session, nil
}

// refusal is an error of a caller's function, which is returned as it is.
type refusal struct{ error }

// result returns what was written, or why it was not.
func result[T any](written *T, err error, doing string) (*T, error) {
	if r, ok := err.(refusal); ok {
		return nil, r.error
	}
	if err != nil {
		return nil, wrap(err, doing)
	}
	return written, nil
}

// storedSandbox is a sandbox that is to be changed.
type storedSandbox struct {
	*skerry.Sandbox
	// current was its CurrentSnapshotID when it was read.
	current string
}

// identity is what of a sandbox never changes.
func (b storedSandbox) identity() [4]string {
	return [...]string{b.ID, b.Scope.TeamID, b.Scope.ProjectID, b.Name}
}

func (s *Store) versionedSandbox(ctx context.Context, id string) (storedSandbox, int64, error) {
	sandbox, version, err := versioned(ctx, &s.engine, s.scanSandbox, "SELECT "+sandboxColumns+", sandboxes.version FROM sandboxes WHERE id = ?", id)
	if errors.Is(err, sql.ErrNoRows) {
		err = noSandbox(id)
	}
	if err != nil {
		return storedSandbox{}, 0, err
	}
	return storedSandbox{sandbox, sandbox.CurrentSnapshotID}, version, nil
}

// saveChanged writes a sandbox that was changed.
func (s *Store) saveChanged(ctx context.Context, t tx, b storedSandbox, version int64) error {
	if b.CurrentSnapshotID != b.current {
		if err := mustBeThere(ctx, t, b.CurrentSnapshotID); err != nil {
			return err
		}
	}
	return s.saveSandbox(ctx, t, b.Sandbox, version)
}

// pair is a session and its sandbox as they were changed, with the versions
// that were read.
type pair struct {
	sandbox                        storedSandbox
	session                        *skerry.Session
	sandboxVersion, sessionVersion int64
}

// changedPair reads a session with its sandbox and changes them.
func (s *Store) changedPair(ctx context.Context, id string, change func(*skerry.Sandbox, *skerry.Session) error) (p pair, err error) {
	p.session, p.sessionVersion, err = versioned(ctx, &s.engine, s.scanSession, sessionQuery(", sessions.version")+"WHERE sessions.id = ?", id)
	if errors.Is(err, sql.ErrNoRows) {
		err = noSession(id)
	}
	if err != nil {
		return p, err
	}
	// Both are as at one moment if both versions are still there at the write.
	if p.sandbox, p.sandboxVersion, err = s.versionedSandbox(ctx, p.session.SandboxID); err != nil {
		return p, err
	}
	sandbox, session := p.sandbox.identity(), [...]string{p.session.ID, p.session.SandboxID}
	if err := change(p.sandbox.Sandbox, p.session); err != nil {
		return p, refusal{err}
	}
	if p.sandbox.identity() != sandbox || [...]string{p.session.ID, p.session.SandboxID} != session {
		return p, fmt.Errorf("a change of session %s changes what it is", id)
	}
	return p, nil
}

func (s *Store) savePair(ctx context.Context, t tx, p pair) error {
	if err := s.saveChanged(ctx, t, p.sandbox, p.sandboxVersion); err != nil {
		return err
	}
	return s.saveSession(ctx, t, p.session, p.sessionVersion)
}

// versioned reads a document; the query's last column is its version.
func versioned[T any](ctx context.Context, e *engine, scan func(scanner) (*T, error), query, id string) (document *T, version int64, err error) {
	document, err = one(ctx, e, func(row scanner) (*T, error) { return scan(lastColumn{row, &version}) }, query, id)
	return document, version, err
}

// lastColumn scans a row with one more column than its reader knows.
type lastColumn struct {
	row  scanner
	last any
}

func (l lastColumn) Scan(dest ...any) error { return l.row.Scan(append(dest, l.last)...) }
