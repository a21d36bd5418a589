package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/usage"
)

// databaseEnv names the database as --database does. It may have a password,
// which nobody but this user and root reads in a process's environment.
const databaseEnv = "SKERRY_DATABASE"

// databaseURL returns the URL of PostgreSQL that a command is given, or "" for
// SQLite.
func databaseURL(cmd *cobra.Command) (string, error) {
	given, err := cmd.Flags().GetString("database")
	if err != nil {
		panic(err) // the flag is the root command's own
	}
	if given != "" && store.IsPostgres(given) && store.HasPassword(given) {
		return "", usage.Error{Err: errors.New("--database must not have a password, which every user of this machine could read: " +
			"write it to the file that the URL's parameter passfile names, or set " + databaseEnv)}
	}
	where := "--database"
	if given == "" {
		where = databaseEnv
	}
	given = cmp.Or(given, os.Getenv(databaseEnv))
	if given == "" {
		return "", nil
	}
	if _, err := store.PostgresPlace(given); err != nil {
		return "", usage.Error{Err: fmt.Errorf("%s: %w", where, err)}
	}
	return given, nil
}

// forgetDatabase removes what names the database, and its password, from the
// environment, so that no child has it.
func forgetDatabase() {
	for _, name := range []string{databaseEnv, "PGPASSWORD"} {
		os.Unsetenv(name)
	}
}

// databaseMark says which database of PostgreSQL a state folder belongs to. A
// server that used another would not know what is in the folder, and what the
// database does not know is deleted.
type databaseMark struct {
	ID string `json:"id"`
	// Place is for people.
	Place string `json:"place"`
}

// openDatabase opens the database of a state folder: that of PostgreSQL which a
// URL names, or SQLite's for "".
func openDatabase(ctx context.Context, state, url string, log *slog.Logger) (*store.Store, error) {
	dir := filepath.Join(state, "db")
	file := filepath.Join(dir, "postgres.json")
	mark, err := readDatabaseMark(file)
	if err != nil {
		return nil, err
	}
	if url == "" {
		if mark != nil {
			return nil, fmt.Errorf("the database of %s is PostgreSQL's %s: name it by --database or %s (or, to give it up, remove %s)",
				state, mark.Place, databaseEnv, file)
		}
		if err := checkDatabase(state); err != nil {
			return nil, err
		}
		return store.Open(ctx, dir)
	}
	place, err := store.PostgresPlace(url)
	if err != nil {
		return nil, err
	}
	if mark == nil {
		if err := mustBeNew(state); err != nil {
			return nil, err
		}
	}
	db, err := store.OpenPostgres(ctx, store.PostgresOptions{URL: url, KeyFile: filepath.Join(dir, "skerry.key"), Log: log})
	if err != nil {
		return nil, err
	}
	switch {
	case mark == nil:
		b, merr := json.Marshal(databaseMark{ID: db.ID(), Place: place})
		if err = merr; err == nil {
			err = writeWhole(file, append(b, '\n'))
		}
	case mark.ID != db.ID():
		err = fmt.Errorf("the %s is another than that of %s, which was PostgreSQL's %s (to give that up, remove %s)", place, state, mark.Place, file)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	log.Info("the database is PostgreSQL's", "place", place)
	return db, nil
}

func readDatabaseMark(file string) (*databaseMark, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var mark databaseMark
	if err := json.Unmarshal(b, &mark); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &mark, nil
}

// mustBeNew refuses a state folder that belongs to a database of SQLite, or to
// one that is lost.
func mustBeNew(state string) error {
	path := filepath.Join(state, "db", "skerry.db")
	switch _, err := os.Stat(path); {
	case err == nil:
		return fmt.Errorf("%s has a database of SQLite, %s, which is not copied to PostgreSQL: serve without --database and %s, or use another state folder",
			state, path, databaseEnv)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return checkData(state, filepath.Join(state, "db", "postgres.json"))
}

// checkDatabase refuses a state folder that has data but no database: a new one
// knows nothing of drives and snapshots, and what the database does not know is
// deleted.
func checkDatabase(state string) error {
	path := filepath.Join(state, "db", "skerry.db")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkData(state, path)
}

// checkData refuses a state folder that has data, but not the file that says
// where its database is.
func checkData(state, missing string) error {
	for _, data := range []string{"drives", filepath.Join("snapshots", "blobs")} {
		dir := filepath.Join(state, data)
		found, err := anyFile(dir)
		if err != nil {
			return err
		}
		if found {
			return fmt.Errorf("the database %s is missing, but %s has files: restore the database from a backup, or move %s away to begin without what is in it",
				missing, dir, dir)
		}
	}
	return nil
}

var errFound = errors.New("found")

// anyFile reports whether there is a file below a folder, which need not exist.
func anyFile(dir string) (bool, error) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			return errFound
		}
		return err
	})
	switch {
	case errors.Is(err, errFound):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

// withStore opens the database of a state folder, unless a server runs on it
// (errRunning).
func withStore(cmd *cobra.Command, f func(*store.Store) error) (err error) {
	state := stateDir(cmd)
	claimed, err := claim(state, lockPath(state))
	if err != nil {
		return err
	}
	defer closing(&err, claimed.release)
	url, err := databaseURL(cmd)
	if err != nil {
		return err
	}
	db, err := openDatabase(cmd.Context(), state, url, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	return f(db)
}
