// Package store keeps what should be: teams, projects, tokens, sandboxes,
// sessions and commands, in an embedded SQLite database.
//
// A row has columns for what it is found and ordered by, and a JSON document
// for the rest. Environment variables and the credentials of sources are
// encrypted with a key that lies in a file next to the database, so that a
// copy of the database alone gives none of them away.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // the database/sql driver "sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a database. Its methods may be called concurrently.
type Store struct {
	// write is one connection, since SQLite has one writer at a time and
	// waiting in Go is fairer than waiting in SQLite; read is several.
	write, read *sql.DB
	seal        *sealer
}

// readers is how many queries may run beside each other.
const readers = 4

// Open opens the database in dir and brings its schema up to date, creating
// it (and the key) if there is none.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the database's folder: %w", err)
	}
	seal, err := openSealer(filepath.Join(dir, "skerry.key"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "skerry.db")
	// Created beforehand for its mode: SQLite gives its other files the same.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	s := &Store{seal: seal}
	if s.write, err = open(path, 1, "_txlock=immediate"); err != nil {
		return nil, err
	}
	if s.read, err = open(path, readers, "_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// open opens a pool of connections. synchronous=NORMAL keeps the database
// whole through a power cut, though the last transactions before it may be
// missing: they are about sandboxes that the cut ended too. What must not be
// missing is written by updateDurably.
func open(path string, conns int, extra string) (*sql.DB, error) {
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

// Close closes the database.
func (s *Store) Close() error {
	return errors.Join(s.read.Close(), s.write.Close())
}

// migrate applies the migrations that the database has not seen, each in a
// transaction.
func (s *Store) migrate(ctx context.Context) error {
	entries, err := migrations.ReadDir("migrations") // sorted by name
	if err != nil {
		return err
	}
	var version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("read the database's version: %w", err)
	}
	if version > len(entries) {
		return fmt.Errorf("the database is of version %d, which is newer than this program's %d", version, len(entries))
	}
	for i, e := range entries[version:] {
		stmts, err := migrations.ReadFile("migrations/" + e.Name())
		if err != nil {
			return err
		}
		err = s.update(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, string(stmts)); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+i+1))
			return err
		})
		if err != nil {
			return fmt.Errorf("migrate the database (%s): %w", e.Name(), err)
		}
	}
	return nil
}

// update runs f in a transaction.
func (s *Store) update(ctx context.Context, f func(*sql.Tx) error) error {
	return transact(ctx, s.write, f)
}

// updateDurably runs f in a transaction that has reached the disk when it
// returns, and all transactions before it with it.
func (s *Store) updateDurably(ctx context.Context, f func(*sql.Tx) error) error {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "PRAGMA synchronous = FULL"); err != nil {
		return err
	}
	err = transact(ctx, conn, f)
	_, perr := conn.ExecContext(context.WithoutCancel(ctx), "PRAGMA synchronous = NORMAL")
	return errors.Join(err, perr)
}

// beginner is a *sql.DB or one of its connections.
type beginner interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

func transact(ctx context.Context, db beginner, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// isUnique reports whether err says that a UNIQUE constraint was violated.
func isUnique(err error) bool {
	return err != nil && strings.Contains(err.Error(), "UNIQUE constraint failed")
}
