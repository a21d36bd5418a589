// Package controllertest starts a controller for the tests of other packages: the
// real one, over SQLite in a folder and a node whose commands are plain processes of
// this machine (see package processnode).
package controllertest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
	"github.com/skerry-dev/skerry/internal/store"
)

// The team and the project that everything in tests belongs to.
var (
	Team    = skerry.Team{ID: "team_1", Slug: "acme", Name: "Acme", CreatedAt: skerry.FromMillis(1), UpdatedAt: skerry.FromMillis(2)}
	Project = skerry.Project{ID: "prj_1", TeamID: Team.ID, Name: "web", CreatedAt: skerry.FromMillis(1), UpdatedAt: skerry.FromMillis(2)}
	Scope   = skerry.Scope{TeamID: Team.ID, ProjectID: Project.ID}
)

// Service is a controller with what is below it.
type Service struct {
	*controller.Controller
	Node  *processnode.Node
	Store *store.Store
}

// empty returns the files of a database with nothing but the team and the project. To
// copy it takes a fraction of the time that it takes to make one.
var empty = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "controllertest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	db, err := store.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(db.CreateAccount(ctx, Team, Project), db.Close()); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
})

// openStore opens a new database in a folder.
func openStore(ctx context.Context, dir string) (*store.Store, error) {
	files, err := empty()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	return store.Open(ctx, dir)
}

// Start returns a Service that keeps everything in a folder. change changes the
// configuration of its controller.
func Start(ctx context.Context, dir string, change ...func(*controller.Config)) (*Service, error) {
	db, err := openStore(ctx, filepath.Join(dir, "db"))
	if err != nil {
		return nil, err
	}
	s := &Service{Node: processnode.New(filepath.Join(dir, "node")), Store: db}
	conf := controller.Config{
		Store: db, Node: s.Node, Collector: s.Node, Images: processnode.Images{}, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&conf)
	}
	s.Controller = controller.New(conf)
	if err := s.Recover(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the sessions, without saving them, and the controller.
func (s *Service) Close() error {
	err := s.Controller.Close()
	s.Node.Kill()
	return errors.Join(err, s.Store.Close())
}

// New starts a Service that ends with the test.
func New(t testing.TB, change ...func(*controller.Config)) *Service {
	t.Helper()
	s, err := Start(context.Background(), t.TempDir(), change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
