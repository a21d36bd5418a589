package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// readers is how many queries of SQLite may run beside each other.
const readers = 4

// Open opens the SQLite database in dir and brings its schema up to date,
// creating it (and the key) if there is none.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the database's folder: %w", err)
	}
	path := filepath.Join(dir, "skerry.db")
	_, err := os.Lstat(path)
	// The key is made before the database: one that is there had it.
	key, err := keyIn(filepath.Join(dir, "skerry.key"))(!errors.Is(err, fs.ErrNotExist))
	if err != nil {
		return nil, fmt.Errorf("open the key of the database: %w", err)
	}
	// Created beforehand for its mode: SQLite gives its other files the same.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	s := &Store{}
	s.again = func(error) bool { return false } // there is one writer
	s.durably = s.sqliteDurably
	s.close = func() error { return errors.Join(s.read.Close(), s.write.Close()) }
	// One connection writes, since SQLite has one writer at a time and waiting in
	// Go is fairer than waiting in SQLite.
	if s.write, err = openSQLite(path, 1, "_txlock=immediate"); err != nil {
		return nil, err
	}
	if s.read, err = openSQLite(path, readers, "_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := migrateSQLite(ctx, s.write, key); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.identify(ctx, func(bool) ([]byte, error) { return key, nil }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openSQLite opens a pool of connections. synchronous=NORMAL keeps the database
// whole through a power cut, though the last transactions before it may be
// missing: they are about sandboxes that the cut ended too. What must not be
// missing is written by updateDurably.
func openSQLite(path string, conns int, extra string) (*sql.DB, error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)&" + extra
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (e *engine) sqliteDurably(ctx context.Context, f func(*sql.Tx) error) error {
	conn, err := e.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "PRAGMA synchronous = FULL"); err != nil {
		return err
	}
	err = transact(ctx, conn, f)
	// What was committed is: if this fails, later transactions are synced too.
	_, _ = conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA synchronous = NORMAL")
	return err
}

func sqliteTrouble(err error) string {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return ""
	}
	switch e.Code() & 0xff { // the rest of the code says more exactly what
	case sqlite3.SQLITE_FULL:
		return messageFull
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
		return messageSilent
	}
	return ""
}

func isSQLiteUnique(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}
