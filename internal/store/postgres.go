package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/skerry-dev/skerry"
)

// PostgresOptions configure OpenPostgres.
type PostgresOptions struct {
	// URL is postgres://user@host:port/database?name=value, with the parameters
	// of libpq. Its password is better in the file that the parameter passfile
	// names.
	URL string
	// KeyFile has the key that secrets are encrypted with. It is created if the
	// database is new.
	KeyFile string
	Log     *slog.Logger

	// lockTime is shorter in tests.
	lockTime time.Duration
}

const (
	// postgresConns is how many connections write, and how many read. Another one
	// holds the lock.
	postgresConns = 8
	// connectTime bounds one attempt to connect.
	connectTime = 10 * time.Second
	// postgresTime bounds a transaction or a query, with the wait for a connection.
	postgresTime = 30 * time.Second
	// connIdle and connLife are when a connection is closed, so that it does not
	// outlive a failover behind a proxy.
	connIdle = 5 * time.Minute
	connLife = time.Hour
	// lockTime is how long the lock of a server that has just died may take to be
	// free. PostgreSQL has to see that its connection is closed.
	lockTime = 10 * time.Second
	// lockPoll is how often it is tried, and how often a server tries to get back
	// the lock that it has lost with its connection.
	lockPoll = 500 * time.Millisecond
	// oldestPostgres is the oldest version of PostgreSQL that is tested.
	oldestPostgres = 13
)

// postgresParams are parameters of a connection, unless the URL has them.
var postgresParams = map[string]string{
	"application_name":                    "skerry",
	"statement_timeout":                   "20s",
	"lock_timeout":                        "10s",
	"idle_in_transaction_session_timeout": "30s",
	// PostgreSQL sees within a minute that the machine of a server is gone, and
	// frees its lock.
	"tcp_keepalives_idle":     "20",
	"tcp_keepalives_interval": "10",
	"tcp_keepalives_count":    "3",
}

// IsPostgres reports whether a database is named by a URL of PostgreSQL.
func IsPostgres(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

// HasPassword reports whether a URL of PostgreSQL has a password in it.
func HasPassword(database string) bool {
	u, err := url.Parse(database)
	if err != nil {
		return true // it may
	}
	_, set := u.User.Password()
	return set || u.Query().Has("password") || u.Query().Has("sslpassword")
}

// PostgresPlace checks a URL of PostgreSQL, and returns which database it names
// in a form without secrets.
func PostgresPlace(database string) (string, error) {
	cfg, err := postgresConfig(database)
	if err != nil {
		return "", err
	}
	return place(cfg), nil
}

func place(cfg *pgx.ConnConfig) string {
	host := cfg.Host
	if !strings.HasPrefix(host, "/") {
		host = net.JoinHostPort(host, fmt.Sprint(cfg.Port))
	}
	return fmt.Sprintf("database %q of user %q at %s", cfg.Database, cfg.User, host)
}

// postgresConfig reads a URL. No error of it has a part of the URL, which may be
// a password.
func postgresConfig(database string) (*pgx.ConnConfig, error) {
	if !IsPostgres(database) {
		return nil, errors.New("the database must be a URL of the form postgres://user@host:port/database")
	}
	if _, err := url.Parse(database); err != nil {
		return nil, errors.New("the URL of the database cannot be read: special characters of its user and password must be written as %XX")
	}
	cfg, err := pgx.ParseConfig(database)
	if err != nil {
		return nil, errors.New("the URL of the database has a parameter or a part that cannot be used; " +
			"files that it names must exist, and parameters are those of PostgreSQL's libpq")
	}
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > connectTime {
		cfg.ConnectTimeout = connectTime
	}
	for name, value := range postgresParams {
		if _, set := cfg.RuntimeParams[name]; !set {
			cfg.RuntimeParams[name] = value
		}
	}
	if cfg.ValidateConnect == nil { // not a standby
		cfg.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 20 * time.Second, Interval: 10 * time.Second, Count: 3}}).DialContext
	return cfg, nil
}

// OpenPostgres opens a database of PostgreSQL and brings its schema up to date,
// creating it (and the key) if there is none. The database must exist. Only one
// server may have it open: a second is refused.
func OpenPostgres(ctx context.Context, o PostgresOptions) (_ *Store, err error) {
	cfg, err := postgresConfig(o.URL)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.KeyFile), 0o700); err != nil {
		return nil, fmt.Errorf("create the folder of the database's key: %w", err)
	}
	lock, err := lockPostgres(ctx, cfg, cmp.Or(o.lockTime, lockTime))
	if err != nil {
		return nil, fmt.Errorf("open the %s: %w", place(cfg), err)
	}
	g := &guard{cfg: cfg, log: o.Log}
	s := &Store{}
	s.numbered, s.timeout = true, postgresTime
	s.forUpdate, s.forShare, s.forKeyShare = " FOR UPDATE", " FOR SHARE", " FOR KEY SHARE"
	s.again = func(err error) bool {
		switch sqlState(err) {
		case "40001", "40P01", "55P03": // serialization failure, deadlock, lock not available
			return true
		}
		return false
	}
	s.durably = func(ctx context.Context, f func(*sql.Tx) error) error { return transact(ctx, s.write, f) } // as all are
	s.write, s.read = openPool(cfg, postgresConns), openPool(cfg, postgresConns)
	s.close = func() error {
		return errors.Join(s.read.Close(), s.write.Close(), g.close())
	}
	g.hold(lock)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the %s: %w", place(cfg), err), s.Close())
		}
	}()
	if err := migratePostgres(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.identify(ctx, keyIn(o.KeyFile)); err != nil {
		return nil, err
	}
	// From here on a server that had the lock before can change nothing.
	err = s.update(ctx, func(ctx context.Context, t tx) error {
		return t.row(ctx, "UPDATE installation SET generation = generation + 1 RETURNING generation").Scan(&g.generation)
	})
	if err != nil {
		return nil, wrap(err, "take over the database")
	}
	s.begin = g.check
	return s, nil
}

func openPool(cfg *pgx.ConnConfig, conns int) *sql.DB {
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(connIdle)
	db.SetConnMaxLifetime(connLife)
	return db
}

// migratePostgres migrates on a connection of its own: a migration may take
// longer than a statement usually may.
func migratePostgres(ctx context.Context, cfg *pgx.ConnConfig) error {
	patient := cfg.Copy()
	patient.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	patient.RuntimeParams["statement_timeout"] = "0"
	db := openPool(patient, 2)
	err := migrate(ctx, db, goose.DialectPostgres, "postgres", goose.WithTableName("schema_migrations"))
	return errors.Join(err, db.Close())
}

// errInUseElsewhere is why a second server is refused.
var errInUseElsewhere = errors.New("another server is using it: stop that one first")

// advisory is the first half of the key of our lock, "SKRY". The second is the
// schema's.
const advisory = 0x534b5259

// lockPostgres returns a connection that holds the lock of the database, which
// lasts as long as the connection. It waits for the lock for a while.
func lockPostgres(ctx context.Context, cfg *pgx.ConnConfig, wait time.Duration) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+connectTime)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, wrap(err, "connect")
	}
	if err := suits(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	for begin := time.Now(); ; {
		locked, err := tryLock(ctx, conn)
		if locked {
			return conn, nil
		}
		if err == nil && time.Since(begin) < wait {
			select {
			case <-time.After(lockPoll):
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		if err == nil {
			err = errInUseElsewhere
		}
		return nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
}

func tryLock(ctx context.Context, conn *pgx.Conn) (locked bool, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1::int, hashtext(current_schema()))", advisory).Scan(&locked)
	return locked, err
}

// suits returns an error if a server of PostgreSQL cannot be used.
func suits(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var encoding string
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')").Scan(&version, &encoding)
	if err != nil {
		return err
	}
	if version < oldestPostgres {
		return fmt.Errorf("it is PostgreSQL %d, which is older than version %d", version, oldestPostgres)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("its encoding is %s, not UTF8", encoding)
	}
	return nil
}

// guard keeps other servers from the database. It holds a lock, and every
// transaction that changes something compares the generation: a server that
// has lost its connection, and with it the lock, may have been followed by
// another.
type guard struct {
	cfg        *pgx.ConnConfig
	log        *slog.Logger
	generation int64
	cancel     context.CancelFunc
	done       chan struct{}
}

// hold holds the lock of conn until close.
func (g *guard) hold(conn *pgx.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan struct{})
	go g.keep(ctx, conn)
}

func (g *guard) close() error {
	g.cancel()
	<-g.done
	return nil
}

// keep waits for the end of the connection, and then gets the lock again.
func (g *guard) keep(ctx context.Context, conn *pgx.Conn) {
	defer close(g.done)
	for ctx.Err() == nil {
		_, err := conn.WaitForNotification(ctx) // nobody sends one
		if err == nil {
			continue
		}
		// The connection cannot be used any more, also if it was interrupted.
		ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTime)
		_ = conn.Close(ended)
		cancel()
		if ctx.Err() != nil {
			return
		}
		g.log.Warn("lost the connection that locks the database", "err", err)
		if conn = g.regain(ctx); conn == nil {
			return
		}
		g.log.Info("locked the database again")
	}
}

// regain returns a connection with the lock, or nil at the end of ctx.
func (g *guard) regain(ctx context.Context) *pgx.Conn {
	for told := false; ; {
		conn, err := lockPostgres(ctx, g.cfg, lockTime)
		if err == nil {
			return conn
		}
		if !told && errors.Is(err, errInUseElsewhere) {
			g.log.Error("another server has locked the database; this one cannot change anything any more if it has begun")
			told = true
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil
		}
	}
}

// check begins a transaction that changes something.
func (g *guard) check(ctx context.Context, t *sql.Tx) error {
	var generation int64
	if err := t.QueryRowContext(ctx, "SELECT generation FROM installation FOR SHARE").Scan(&generation); err != nil {
		return err
	}
	if generation != g.generation {
		return skerry.Errorf(skerry.CodeUnavailable, "another server uses the database of this one")
	}
	return nil
}

// sqlState is the code of an error of PostgreSQL, "" for other errors.
func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

func isPostgresUnique(err error) bool { return sqlState(err) == "23505" }

// isPostgresText reports whether PostgreSQL cannot have a text, which SQLite can.
func isPostgresText(err error) bool {
	code := sqlState(err)
	return code == "22021" || code == "22P05"
}

// postgresTrouble is what is wrong with the server of PostgreSQL or with the
// way to it, "" if it is neither.
func postgresTrouble(err error) string {
	switch code := sqlState(err); {
	case code == "53100":
		return messageFull
	case code == "40001", code == "40P01", code == "55P03", code == "57014", strings.HasPrefix(code, "53"):
		return messageBusy // too much at once: conflicts, deadlocks, time, memory, connections
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "58"), code == "25006", code == "25P03", code == "57P05":
		return messageSilent // connection, shutdown, its disk, a standby, idle for too long
	case code != "":
		return ""
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	_, call := errors.AsType[*os.SyscallError](err)
	switch {
	case connecting, call, network && !errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, errSlow), errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE), pgconn.SafeToRetry(err):
		return messageSilent
	}
	return ""
}
