package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/internal/store/pgtest"
)

// TestMissingDatabase: data without a database is not taken for garbage.
func TestMissingDatabase(t *testing.T) {
	state := t.TempDir()
	if err := checkDatabase(filepath.Join(state, "new")); err != nil {
		t.Errorf("a state folder that is not there: %v", err)
	}
	for _, dir := range []string{"db", "drives", "snapshots/blobs/ab"} {
		if err := os.MkdirAll(filepath.Join(state, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkDatabase(state); err != nil {
		t.Errorf("a state folder without data: %v", err)
	}
	for _, file := range []string{"drives/drv_1.img", "snapshots/blobs/ab/c"} {
		path := filepath.Join(state, file)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkDatabase(state); err == nil || !strings.Contains(err.Error(), "skerry.db is missing") {
			t.Errorf("with %s: %v", file, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(state, "drives/drv_1.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "db/skerry.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkDatabase(state); err != nil {
		t.Errorf("with a database: %v", err)
	}
}

// TestPostgresDatabase: a state folder keeps to its database.
func TestPostgresDatabase(t *testing.T) {
	server := pgtest.New(t)
	for _, name := range []string{"one", "two"} {
		if err := server.Create(name); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	open := func(state, url string) error {
		db, err := openDatabase(t.Context(), state, url, log)
		if err != nil {
			return err
		}
		return db.Close()
	}
	refused := func(state, url, why string) {
		t.Helper()
		if err := open(state, url); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("opening %q: %v, want an error about %q", url, err, why)
		}
	}
	state := t.TempDir()
	for range 2 {
		if err := open(state, server.URL("one")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(state, "drives"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "drives", "drv_1.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(state, server.URL("one")); err != nil {
		t.Errorf("with data: %v", err)
	}
	refused(state, "", "name it by --database")
	if _, err := os.Stat(filepath.Join(state, "db", "skerry.db")); err == nil {
		t.Error("a database of SQLite was made")
	}
	if err := os.Remove(filepath.Join(state, "db", "skerry.key")); err != nil {
		t.Fatal(err)
	}
	refused(state, server.URL("one"), "skerry.key")
	refused(state, server.URL("two"), "is another than that of")
	if err := os.Remove(filepath.Join(state, "db", "postgres.json")); err != nil {
		t.Fatal(err)
	}
	refused(state, server.URL("two"), "postgres.json is missing")

	state = t.TempDir()
	if err := open(state, ""); err != nil {
		t.Fatal(err)
	}
	refused(state, server.URL("two"), "database of SQLite")
	if err := open(state, ""); err != nil {
		t.Errorf("the database of SQLite after that: %v", err)
	}
}

// TestDatabaseFlag: a password is not for the command line, and is in no message.
func TestDatabaseFlag(t *testing.T) {
	const password = "5ecret-passw0rd"
	for _, test := range []struct{ flag, env, want, wrong string }{
		{"", "", "", ""},
		{"postgres://u@h/db", "", "postgres://u@h/db", ""},
		{"postgres://u@h/db", "postgres://v@i/ec", "postgres://u@h/db", ""},
		{"", "postgresql://u:" + password + "@h/db", "postgresql://u:" + password + "@h/db", ""},
		{"postgres://u:" + password + "@h/db", "", "", "must not have a password"},
		{"postgres://u@h/db?password=" + password, "", "", "must not have a password"},
		{"mysql://u:" + password + "@h/db", "", "", "--database: the database must be a URL"},
		{"", "host=h password=" + password, "", "SKERRY_DATABASE: the database must be a URL"},
		{"", "postgres://u:" + password + "%@h/db", "", "cannot be read"},
		{"", "postgres://u:" + password + "@h/db?sslmode=x", "", "cannot be used"},
	} {
		t.Setenv(databaseEnv, test.env)
		root := newRoot()
		serve, _, err := root.Find([]string{"serve"})
		if err != nil {
			t.Fatal(err)
		}
		if err := serve.ParseFlags([]string{"--database", test.flag}); err != nil {
			t.Fatal(err)
		}
		got, err := databaseURL(serve)
		if got != test.want || (err == nil) != (test.wrong == "") {
			t.Errorf("%q and %q give %q, %v", test.flag, test.env, got, err)
		}
		if err != nil && (!strings.Contains(err.Error(), test.wrong) || strings.Contains(err.Error(), password)) {
			t.Errorf("%q and %q: %v", test.flag, test.env, err)
		}
		if usage := serve.UsageString(); strings.Contains(usage, password) {
			t.Error("the usage tells the password")
		}
	}
}
