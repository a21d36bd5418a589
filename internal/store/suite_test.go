package store

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/store/pgtest"
)

// opener opens the database that belongs to a folder, and makes it if there is
// none.
type opener func(t testing.TB, dir string) *Store

// onEach runs a test on a database of each kind.
func onEach(t *testing.T, test func(t *testing.T, openIn opener)) {
	t.Run("sqlite", func(t *testing.T) { test(t, openIn) })
	t.Run("postgres", func(t *testing.T) { test(t, openPostgresIn) })
}

// openIn opens a database of SQLite.
func openIn(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return withProject(t, s)
}

// withProject makes the projects that things of tests are in.
func withProject(t testing.TB, s *Store) *Store {
	t.Helper()
	for i, in := range []skerry.Scope{scope, fullScope, {TeamID: "team_1", ProjectID: "prj_1"}} {
		name := fmt.Sprint("team", i)
		err := s.CreateAccount(t.Context(), skerry.Team{ID: in.TeamID, Slug: name}, skerry.Project{ID: in.ProjectID, TeamID: in.TeamID, Name: name})
		if err != nil && skerry.CodeOf(err) != skerry.CodeConflict {
			t.Fatal(err)
		}
	}
	err := s.CreateProject(t.Context(), skerry.Project{ID: "prj_b", TeamID: scope.TeamID, Name: "b"})
	if err != nil && skerry.CodeOf(err) != skerry.CodeConflict {
		t.Fatal(err)
	}
	return s
}

// shared is a server of PostgreSQL for the tests that do not end it.
var shared = sync.OnceValues(func() (*pgtest.Server, error) {
	sharing = true
	return pgtest.Start()
})

// sharing is whether a test has asked for the shared server.
var sharing bool

func TestMain(m *testing.M) {
	code := m.Run()
	if !sharing {
		os.Exit(code)
	}
	if s, err := shared(); err == nil {
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// databases are the names of those that folders have.
var databases struct {
	sync.Mutex
	of map[string]string
}

// databaseOf returns the URL of the database of a folder.
func databaseOf(t testing.TB, dir string) string {
	t.Helper()
	pgtest.NotShort(t)
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	databases.Lock()
	defer databases.Unlock()
	name, ok := databases.of[dir]
	if !ok {
		name = fmt.Sprint("test", len(databases.of))
		if err := s.Create(name); err != nil {
			t.Fatal(err)
		}
		if databases.of == nil {
			databases.of = map[string]string{}
		}
		databases.of[dir] = name
	}
	return s.URL(name)
}

// openPostgresIn opens a database of PostgreSQL, whose key is in the folder.
func openPostgresIn(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenPostgres(t.Context(), optionsIn(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return withProject(t, s)
}

func optionsIn(t testing.TB, dir string) PostgresOptions {
	return PostgresOptions{URL: databaseOf(t, dir), KeyFile: filepath.Join(dir, "skerry.key"), Log: slog.New(slog.DiscardHandler)}
}

// addSnapshot writes a snapshot that changes nothing else.
func addSnapshot(ctx context.Context, s *Store, snap *skerry.Snapshot) error {
	_, _, err := s.AddSnapshot(ctx, snap, savedFor(ctx, s, snap), "", nil)
	return err
}

// savedFor begins a save, which is that of a snapshot. If it cannot, to add the
// snapshot fails.
func savedFor(ctx context.Context, s *Store, snap *skerry.Snapshot) nodeapi.SavedFiles {
	_ = s.AddLease(ctx, snap.ID, skerry.FromMillis(2))
	return nodeapi.SavedFiles{Manifest: snap.Manifest, Lease: snap.ID, Chunks: []byte("chunks of " + snap.ID)}
}
