package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// fussy makes connections to a real database, which cannot be told that they need
// not wait for the disk any more.
type fussy struct {
	drv driver.Driver
	dsn string
}

// sqliteConn is what database/sql uses of a connection to SQLite.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
}

type fussyConn struct{ sqliteConn }

func (f fussy) Driver() driver.Driver { return f.drv }

func (f fussy) Connect(context.Context) (driver.Conn, error) {
	c, err := f.drv.Open(f.dsn)
	if err != nil {
		return nil, err
	}
	return fussyConn{c.(sqliteConn)}, nil
}

func (c fussyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == "PRAGMA synchronous = NORMAL" {
		return nil, errors.New("disk I/O error")
	}
	return c.sqliteConn.ExecContext(ctx, query, args)
}

// TestCommittedIsDone has what follows a commit fail: what was committed is not
// told as failed.
func TestCommittedIsDone(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	usual := s.write
	defer usual.Close()
	s.write = sql.OpenDB(fussy{usual.Driver(), "file:" + filepath.Join(dir, "skerry.db") + "?_txlock=immediate"})
	s.write.SetMaxOpenConns(1)
	now := skerry.At(time.Now())
	scope := skerry.Scope{TeamID: "team_1", ProjectID: "prj_1"}
	for range 2 {
		snap := &skerry.Snapshot{ID: skerry.NewID(skerry.PrefixSnapshot), Scope: scope, Status: skerry.SnapshotCreated, CreatedAt: now, UpdatedAt: now}
		if err := addSnapshot(t.Context(), s, snap); err != nil {
			t.Errorf("a snapshot that was committed: %v", err)
		}
		if _, err := s.Snapshot(t.Context(), scope, snap.ID); err != nil {
			t.Errorf("it is not there: %v", err)
		}
	}
}
