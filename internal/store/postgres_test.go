package store

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/store/pgtest"
)

// ownServer is a server of PostgreSQL for a test that ends it, with a database.
func ownServer(t *testing.T, flags ...string) (*pgtest.Server, PostgresOptions) {
	t.Helper()
	s := pgtest.New(t, flags...)
	if err := s.Create("skerry"); err != nil {
		t.Fatal(err)
	}
	return s, PostgresOptions{URL: s.URL("skerry"), KeyFile: filepath.Join(t.TempDir(), "skerry.key"), Log: slog.New(slog.DiscardHandler)}
}

func openPostgres(t *testing.T, o PostgresOptions) *Store {
	t.Helper()
	s, err := OpenPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return withProject(t, s)
}

// eventually waits until a call succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestPostgresAway ends the server of PostgreSQL under the store: calls say that
// the database is unavailable, and succeed when it is there again. What was
// written is there.
func TestPostgresAway(t *testing.T) {
	server, o := ownServer(t)
	s := openPostgres(t, o)
	c := &clock{}
	for name, end := range map[string]func() error{"stopped": server.Stop, "killed": server.Kill} {
		before := create(t, s, c, name)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		for call, f := range map[string]func() error{
			"a read": func() error { _, err := s.Sandbox(t.Context(), before.ID); return err },
			"a list": func() error { _, err := s.LiveSessions(t.Context()); return err },
			"a write": func() error {
				box, run := c.box("lost-" + name)
				return s.CreateSandbox(t.Context(), box, run)
			},
			"an update": func() error {
				_, err := s.UpdateSandbox(t.Context(), before.ID, func(*skerry.Sandbox) error { return nil })
				return err
			},
			"a durable write": func() error { return s.CreateDrive(t.Context(), fullDrive()) },
		} {
			for range 3 { // with a connection that broke, and without one
				if err := f(); skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), messageSilent) {
					t.Errorf("%s from a server that was %s: %v", call, name, err)
				}
			}
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a read after the start", func() error { _, err := s.Sandbox(t.Context(), before.ID); return err })
		eventually(t, "a write after the start", func() error {
			_, err := s.UpdateSandbox(t.Context(), before.ID, func(b *skerry.Sandbox) error { b.Cwd = "/again"; return nil })
			return err
		})
	}
	// The lock is held again: nobody else gets the database.
	eventually(t, "the lock after the start", func() error {
		got, err := server.Query("skerry", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
		if err == nil && got != "1" {
			err = errors.New(got + " locks")
		}
		return err
	})
}

// TestSecondServerIsRefused: a database has one server.
func TestSecondServerIsRefused(t *testing.T) {
	_, o := ownServer(t)
	s := openPostgres(t, o)
	o.lockTime = time.Nanosecond
	if _, err := OpenPostgres(t.Context(), o); !errors.Is(err, errInUseElsewhere) {
		t.Fatalf("a second server: %v", err)
	}
	create(t, s, &clock{}, "one")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o.lockTime = 0
	openPostgres(t, o)
}

// TestServerThatLostItsLock: one that lost its connection, and was followed by
// another, changes nothing any more.
func TestServerThatLostItsLock(t *testing.T) {
	server, o := ownServer(t)
	c := &clock{}
	old := openPostgres(t, o)
	box := create(t, old, c, "one")
	// Its connections end, and it does not get the lock again in time.
	old.close() // its lock is freed, as it is when its machine is cut off
	old.write, old.read = openPool(mustConfig(t, o), 1), openPool(mustConfig(t, o), 1)
	defer func() { old.write.Close(); old.read.Close() }()
	if _, err := old.UpdateSandbox(t.Context(), box.ID, func(*skerry.Sandbox) error { return nil }); err != nil {
		t.Errorf("before there is another: %v", err)
	}
	follower := openPostgres(t, o)
	_, err := old.UpdateSandbox(t.Context(), box.ID, func(b *skerry.Sandbox) error { b.Cwd = "/old"; return nil })
	if skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a change by the server that was followed: %v", err)
	}
	if err := old.TouchToken(t.Context(), "tok", at(1)); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a write by the server that was followed: %v", err)
	}
	got, err := follower.UpdateSandbox(t.Context(), box.ID, func(b *skerry.Sandbox) error { b.Region = "new"; return nil })
	if err != nil || got.Cwd == "/old" {
		t.Errorf("the follower has %+v, %v", got, err)
	}
	// The connection of the lock is cut alone: the server gets it again.
	if _, err := server.Query("skerry", "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lock again", func() error {
		got, err := server.Query("skerry", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
		if err == nil && got != "1" {
			err = errors.New(got + " locks")
		}
		return err
	})
	if _, err := follower.UpdateSandbox(t.Context(), box.ID, func(b *skerry.Sandbox) error { return nil }); err != nil {
		t.Errorf("after the lock was lost and regained: %v", err)
	}
}

// TestPostgresTrouble has PostgreSQL itself refuse, in ways that pass.
func TestPostgresTrouble(t *testing.T) {
	server, o := ownServer(t)
	u, err := url.Parse(o.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("lock_timeout", "50ms")
	u.RawQuery = q.Encode()
	o.URL = u.String()
	s := openPostgres(t, o)
	c := &clock{}
	box := create(t, s, c, "one")
	touch := func() error {
		_, err := s.UpdateSandbox(t.Context(), box.ID, func(b *skerry.Sandbox) error { b.TotalEgressBytes++; return nil })
		return err
	}

	// A row that another transaction keeps to itself.
	locked, err := s.read.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := locked.ExecContext(t.Context(), "SELECT * FROM sandboxes FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	if err := touch(); skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), messageBusy) {
		t.Errorf("a row that is locked: %v", err)
	}
	if err := locked.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := touch(); err != nil {
		t.Errorf("a row that was locked: %v", err)
	}

	// A standby, or a server whose disk is about to be full.
	if _, err := server.Query("postgres", "ALTER DATABASE skerry SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	s.write.SetMaxIdleConns(0) // new connections have the setting
	if err := touch(); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a write to a database that is read only: %v", err)
	}
	if _, err := server.Query("postgres", "ALTER DATABASE skerry RESET default_transaction_read_only"); err != nil {
		t.Fatal(err)
	}
	if err := touch(); err != nil {
		t.Errorf("a write when it can be written again: %v", err)
	}

	// Texts that PostgreSQL does not have.
	if _, err := s.SandboxByName(t.Context(), scope, "a\x00b"); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("a name with a NUL: %v", err)
	}
}

// TestPostgresDeadlock has transactions that want each other's rows: one of each
// two is ended by PostgreSQL, and is repeated.
func TestPostgresDeadlock(t *testing.T) {
	_, o := ownServer(t, "-c", "deadlock_timeout=10ms")
	s := openPostgres(t, o)
	c := &clock{}
	ids := []string{create(t, s, c, "one").ID, create(t, s, c, "two").ID}
	var mu sync.Mutex
	var tries int
	var wg sync.WaitGroup
	both := make(chan struct{})
	var first sync.WaitGroup
	first.Add(2)
	go func() { first.Wait(); close(both) }()
	for w := range 2 {
		wg.Go(func() {
			tried := false
			err := s.update(t.Context(), func(ctx context.Context, tr tx) error {
				mu.Lock()
				tries++
				mu.Unlock()
				for i := range ids {
					if _, err := tr.exec(ctx, "UPDATE sandboxes SET version = version + 1 WHERE id = ?", ids[(i+w)%2]); err != nil {
						return err
					}
					if !tried { // each has one row, and wants the other's
						tried = true
						first.Done()
						<-both
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if tries < 3 {
		t.Errorf("%d transactions met no deadlock", tries)
	}
}

// TestPostgresIsSlow has a query take longer than it may.
func TestPostgresIsSlow(t *testing.T) {
	_, o := ownServer(t)
	s := openPostgres(t, o)
	s.timeout = 50 * time.Millisecond
	for what, f := range map[string]func() error{
		"query": func() error {
			_, err := s.ids(t.Context(), "SELECT pg_sleep(60)::text")
			return wrap(err, "sleep")
		},
		"transaction": func() error {
			return wrap(s.update(t.Context(), func(ctx context.Context, tr tx) error {
				_, err := tr.exec(ctx, "SELECT pg_sleep(60)")
				return err
			}), "sleep")
		},
	} {
		if err := f(); skerry.CodeOf(err) != skerry.CodeUnavailable {
			t.Errorf("a slow %s: %v", what, err)
		}
	}
	// A caller that does not wait any more is another matter.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sandbox(ctx, "sb"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was canceled: %v", err)
	}
}

// TestPostgresNewerSchemaIsRefused: so is a database that cannot be used.
func TestPostgresNewerSchemaIsRefused(t *testing.T) {
	server, o := ownServer(t)
	s := openPostgres(t, o)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Query("skerry", "INSERT INTO schema_migrations (version_id, is_applied) VALUES (99, true)"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPostgres(t.Context(), o); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a database of version 99 was opened: %v", err)
	}
	if _, err := server.Query("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	o.URL = server.URL("latin")
	if _, err := OpenPostgres(t.Context(), o); err == nil || !strings.Contains(err.Error(), "UTF8") {
		t.Errorf("a database of another encoding was opened: %v", err)
	}
	o.URL = server.URL("absent")
	if _, err := OpenPostgres(t.Context(), o); err == nil || !strings.Contains(err.Error(), `"absent" does not exist`) {
		t.Errorf("a database that is not there: %v", err)
	}
}

// TestPasswordsAreNotTold looks for a password in what goes wrong with it.
func TestPasswordsAreNotTold(t *testing.T) {
	const password = "5ecret-passw0rd"
	server, o := ownServer(t)
	conf := filepath.Join(server.Dir(), "data", "pg_hba.conf")
	if err := os.WriteFile(conf, []byte("local all all scram-sha-256\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Query("postgres", "ALTER USER skerry PASSWORD '"+password+"'; SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	passfile := filepath.Join(t.TempDir(), "passfile")
	if err := os.WriteFile(passfile, []byte("*:*:*:*:"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := strings.Replace(o.URL, "skerry@", "skerry:"+password+"@", 1)
	wrong := strings.Replace(o.URL, "skerry@", "skerry:not-"+password+"@", 1)
	if !HasPassword(in) || HasPassword(o.URL) || !HasPassword(o.URL+"&password="+password) || !HasPassword(o.URL+"&sslpassword="+password) || HasPassword(o.URL+"&passfile="+passfile) {
		t.Error("HasPassword is wrong")
	}
	for _, bad := range []string{
		wrong, in + "&port=x", "postgres://u:" + password + "%@host/db", "postgres://u:" + password + "@host:port/db",
		"mysql://u:" + password + "@host/db", in + "x&host=/nowhere", in + "&unknown_parameter=1", in + "&passfile=/nowhere",
	} {
		o.URL = bad
		if s, err := OpenPostgres(t.Context(), o); err == nil {
			s.Close()
			if !strings.Contains(bad, "passfile") { // which is not needed then
				t.Errorf("%s was opened", bad)
			}
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("the error tells the password: %v", err)
		}
		if p, err := PostgresPlace(bad); strings.Contains(p, password) || err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the place tells the password: %s, %v", p, err)
		}
	}
	for _, good := range []string{in, strings.Replace(in, ":"+password, "", 1) + "&passfile=" + url.QueryEscape(passfile)} {
		o.URL = good
		s, err := OpenPostgres(t.Context(), o)
		if err != nil {
			t.Error(err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func mustConfig(t *testing.T, o PostgresOptions) *pgx.ConnConfig {
	t.Helper()
	cfg, err := postgresConfig(o.URL)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}
