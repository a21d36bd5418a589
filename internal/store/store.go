// Package store keeps what should be: teams, projects, tokens, sandboxes,
// sessions and commands, in an embedded SQLite database or in PostgreSQL.
//
// A row has columns for what it is found and ordered by, and a JSON document
// for the rest, which has types of its own (documents.go). Environment
// variables, sources, network policies, the keys of private ports and commands
// are encrypted with a key in a file, which is not in the database, so that a
// copy of the database alone gives none of them away. Sandboxes' names and tags
// are not: they are searched.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/keyfile"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// Store is a database. Its methods may be called concurrently.
type Store struct {
	engine
	seal *sealer
	id   string
}

// engine is a database, and what differs from one kind to the other.
type engine struct {
	// write is the connections that change something, read the others.
	write, read *sql.DB
	// numbered says that parameters are written $1, not ?.
	numbered bool
	// forUpdate and forShare end a SELECT of a row that a transaction decides
	// by, so that the row stays as it is until the transaction ends; forKeyShare,
	// so that it stays.
	forUpdate, forShare, forKeyShare string
	// timeout is how long a transaction or a query may take; 0 is no limit.
	timeout time.Duration
	// again reports whether a transaction failed because of others at the same
	// time, so that it can be repeated.
	again func(error) bool
	// begin is called first in every transaction, if it is not nil.
	begin func(context.Context, *sql.Tx) error
	// durably runs f in a transaction that has reached the disk when it returns,
	// and all transactions before it with it.
	durably func(ctx context.Context, f func(*sql.Tx) error) error
	close   func() error
}

// ID identifies the database: it is random, and made with it.
func (s *Store) ID() string { return s.id }

// Close closes the database.
func (s *Store) Close() error { return s.close() }

// transactions is how often a transaction is tried that fails because of
// others at the same time. The database lets one of them through each time.
const transactions = 10

// tx is a transaction that changes something.
type tx struct {
	*sql.Tx
	*engine
}

func (t tx) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return t.ExecContext(ctx, t.bind(query), args...)
}

func (t tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return t.QueryRowContext(ctx, t.bind(query), args...)
}

// update runs f in a transaction, again if others at the same time were why it
// failed.
func (e *engine) update(ctx context.Context, f func(context.Context, tx) error) error {
	return e.repeat(ctx, f, func(ctx context.Context, f func(*sql.Tx) error) error { return transact(ctx, e.write, f) })
}

// updateDurably is update, and returns when the transaction survives a loss of
// power.
func (e *engine) updateDurably(ctx context.Context, f func(context.Context, tx) error) error {
	return e.repeat(ctx, f, e.durably)
}

func (e *engine) repeat(ctx context.Context, f func(context.Context, tx) error, run func(context.Context, func(*sql.Tx) error) error) (err error) {
	ctx, span := tracing.Start(ctx, tracing.StoreWrite)
	defer func() { span.End(trouble(err)) }()
	ctx, cancel := e.limit(ctx)
	defer cancel()
	for i := 0; ; i++ {
		err := run(ctx, func(t *sql.Tx) error {
			if e.begin != nil {
				if err := e.begin(ctx, t); err != nil {
					return err
				}
			}
			return f(ctx, tx{t, e})
		})
		if err == nil || i+1 == transactions || !e.again(err) {
			return err
		}
		if err := pause(ctx, i); err != nil {
			return err
		}
	}
}

// errSlow is the cause of the end of a context that the database was too slow
// for.
var errSlow = errors.New("the database did not answer in time")

// limit bounds the time of a transaction or a query.
func (e *engine) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, e.timeout, errSlow)
}

// late is errSlow for an error that comes of limit, and not of the caller.
func late(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), errSlow) {
		return errors.Join(errSlow, err)
	}
	return err
}

// beginner is a *sql.DB or one of its connections.
type beginner interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

func transact(ctx context.Context, db beginner, f func(*sql.Tx) error) error {
	t, err := db.BeginTx(ctx, nil)
	if err != nil {
		return late(ctx, err)
	}
	if err := f(t); err != nil {
		_ = t.Rollback() // it is not committed, whether or not this fails
		return late(ctx, err)
	}
	return late(ctx, t.Commit())
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(...any) error }

// one reads one row; it is sql.ErrNoRows if there is none.
func one[T any](ctx context.Context, e *engine, scan func(scanner) (T, error), query string, args ...any) (v T, err error) {
	ctx, span := tracing.Start(ctx, tracing.StoreRead)
	defer func() { span.End(trouble(err)) }()
	ctx, cancel := e.limit(ctx)
	defer cancel()
	v, err = scan(e.read.QueryRowContext(ctx, e.bind(query), args...))
	return v, late(ctx, err)
}

// trouble is err if the database is why a call failed, and not what it has answered.
func trouble(err error) error {
	if errors.Is(err, sql.ErrNoRows) || isUnique(err) || err != nil && !slices.Contains(troubles, skerry.CodeOf(err)) {
		return nil
	}
	return err
}

var troubles = []skerry.Code{skerry.CodeInternal, skerry.CodeUnavailable}

// list reads rows. It is never nil.
func list[T any](ctx context.Context, e *engine, scan func(scanner) (T, error), query string, args ...any) (all []T, err error) {
	ctx, span := tracing.Start(ctx, tracing.StoreRead)
	defer span.Done(&err)
	ctx, cancel := e.limit(ctx)
	defer cancel()
	rows, err := e.read.QueryContext(ctx, e.bind(query), args...)
	if err != nil {
		return nil, late(ctx, err)
	}
	all, err = scanAll(rows, scan)
	return all, late(ctx, err)
}

func scanAll[T any](rows *sql.Rows, scan func(scanner) (T, error)) ([]T, error) {
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// column scans a row of one column.
func column[T any](row scanner) (v T, err error) {
	err = row.Scan(&v)
	return v, err
}

// ids reads a column of texts. It is nil if there are none.
func (e *engine) ids(ctx context.Context, query string, args ...any) ([]string, error) {
	all, err := list(ctx, e, column[string], query, args...)
	if len(all) == 0 {
		return nil, err
	}
	return all, err
}

// bind writes the parameters of a query as the database wants them.
func (e *engine) bind(query string) string {
	if !e.numbered {
		return query
	}
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?") // which is in no literal
		b.WriteString(before)
		if !found {
			return b.String()
		}
		fmt.Fprintf(&b, "$%d", n)
		query = after
	}
}

// bit is how a bool is stored.
func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// wrap says what failed, leaving errors that are for clients as they are. If the
// database or its machine is why it cannot be read or written, that is
// skerry.CodeUnavailable: it may pass.
func wrap(err error, doing string) error {
	if err == nil || skerry.CodeOf(err) != skerry.CodeInternal {
		return err
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if isPostgresText(err) {
		return &skerry.Error{Code: skerry.CodeBadRequest, Message: "a text has a NUL character or is not UTF-8", Err: err}
	}
	for _, of := range []func(error) string{sqliteTrouble, postgresTrouble} {
		if message := of(err); message != "" {
			return &skerry.Error{Code: skerry.CodeUnavailable, Message: message, Err: err}
		}
	}
	return err
}

// Messages of skerry.CodeUnavailable.
const (
	messageFull   = "the disk of the server's database is full"
	messageSilent = "the server's database does not answer"
	messageBusy   = "the server's database is busy"
)

// isUnique reports whether err says that a row with the same key exists.
func isUnique(err error) bool { return isSQLiteUnique(err) || isPostgresUnique(err) }

// keyCheck is the text that is sealed to tell a key by.
const keyCheck = "skerry"

// identify makes the row that identifies the database, or reads it and compares
// the key. keys returns the key of the database, which must exist if it was
// used before.
func (s *Store) identify(ctx context.Context, keys func(mustExist bool) ([]byte, error)) error {
	type row struct {
		id    string
		check []byte
	}
	found, err := one(ctx, &s.engine, func(r scanner) (v row, err error) {
		return v, r.Scan(&v.id, &v.check)
	}, "SELECT id, key_check FROM installation")
	isNew := errors.Is(err, sql.ErrNoRows)
	if err != nil && !isNew {
		return wrap(err, "read the database's identity")
	}
	key, err := keys(!isNew)
	if err != nil {
		return fmt.Errorf("open the key of the database: %w", err)
	}
	if s.seal, err = newSealer(key); err != nil {
		return err
	}
	if isNew {
		s.id = rand.Text()
		return wrap(s.updateDurably(ctx, func(ctx context.Context, t tx) error {
			_, err := t.exec(ctx, "INSERT INTO installation (one, id, generation, key_check) VALUES (1, ?, 0, ?)", s.id, s.seal.seal([]byte(keyCheck), s.id))
			return err
		}), "identify the database")
	}
	s.id = found.id
	if _, err := s.seal.open(found.check, s.id); err != nil {
		return errors.New("the key does not decrypt what is in the database: it is the key of another database")
	}
	return nil
}

// keyIn returns what reads the key in a file, and makes it if it need not exist.
func keyIn(path string) func(mustExist bool) ([]byte, error) {
	return func(mustExist bool) ([]byte, error) { return keyfile.Secret(path, mustExist) }
}
