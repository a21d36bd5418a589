package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/keyfile"
)

var scope = skerry.Scope{TeamID: "team_a", ProjectID: "prj_a"}

// clock hands out times that differ, so that order is known.
type clock struct{ ms int64 }

func (c *clock) next() skerry.Time {
	c.ms++
	return skerry.FromMillis(1790000000000 + c.ms)
}

func (c *clock) box(name string) (*skerry.Sandbox, *skerry.Session) {
	now := c.next()
	run := &skerry.Session{ID: skerry.NewID(skerry.PrefixSession), SandboxName: name, Scope: scope, Status: skerry.StatusPending, CreatedAt: now}
	box := &skerry.Sandbox{
		ID: skerry.NewID(skerry.PrefixSandbox), Scope: scope, Name: name, CreatedAt: now, StatusUpdatedAt: now,
		CurrentSessionID: run.ID, Status: run.Status,
		Env:    map[string]string{"API_KEY": "hunter2-secret-value"},
		Tags:   map[string]string{"kind": name[:1]},
		Source: &skerry.Source{Type: "git", URL: "https://example.com/r.git", Password: "s3cret-password"},
	}
	run.SandboxID = box.ID
	return box, run
}

func create(t *testing.T, s *Store, c *clock, name string) *skerry.Sandbox {
	t.Helper()
	box, run := c.box(name)
	if err := s.CreateSandbox(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	return box
}

func TestReopenKeepsEverythingAndSecretsSecret(t *testing.T) {
	onEach(t, testReopenKeepsEverythingAndSecretsSecret)
}

func testReopenKeepsEverythingAndSecretsSecret(t *testing.T, openIn opener) {
	dir := t.TempDir()
	s := openIn(t, dir)
	c := &clock{}
	box := create(t, s, c, "one")
	id := s.ID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotHold(t, dir, "hunter2", "s3cret")
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", filepath.Base(f), info.Mode(), err)
		}
	}
	s = openIn(t, dir)
	if s.ID() != id || id == "" {
		t.Errorf("the database is %q, and was %q", s.ID(), id)
	}
	got, err := s.SandboxByName(t.Context(), scope, "one")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != box.ID || got.Env["API_KEY"] != box.Env["API_KEY"] || got.Source.Password != box.Source.Password || got.Tags["kind"] != "o" {
		t.Errorf("read back as %+v", got)
	}
	if _, err := s.SandboxByName(t.Context(), skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}, "one"); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("another project sees the sandbox: %v", err)
	}
}

// mustNotHold fails if a file of the database of a folder holds a secret in the
// clear.
func mustNotHold(t *testing.T, dir string, secrets ...string) {
	t.Helper()
	if _, ok := databases.of[dir]; ok {
		s, err := shared()
		if err == nil {
			_, err = s.Query("postgres", "CHECKPOINT")
		}
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(s.Dir(), "data")
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // the server removes some
			return nil
		}
		for _, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %q in the clear", path, secret)
			}
		}
		files++
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files in %s, %v", files, dir, err)
	}
}

func TestAnotherKeyIsAnError(t *testing.T) {
	onEach(t, func(t *testing.T, openIn opener) {
		dir := t.TempDir()
		s := openIn(t, dir)
		create(t, s, &clock{}, "one")
		s.Close()
		again := func() error {
			var s *Store
			var err error
			if _, ok := databases.of[dir]; ok {
				s, err = OpenPostgres(t.Context(), optionsIn(t, dir))
			} else {
				s, err = Open(t.Context(), dir)
			}
			if err == nil {
				s.Close()
			}
			return err
		}
		key := filepath.Join(dir, "skerry.key")
		was, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(key, bytes.Repeat([]byte{1}, keyfile.SecretBytes), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again(); err == nil || !strings.Contains(err.Error(), "key of another database") {
			t.Errorf("opening with another key: %v", err)
		}
		if err := os.WriteFile(key, []byte("short"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again(); err == nil {
			t.Error("a key of 5 bytes was taken")
		}
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
		if err := again(); !errors.Is(err, keyfile.ErrMissing) {
			t.Errorf("opening without the key: %v", err)
		}
		if err := os.WriteFile(key, was, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again(); err != nil {
			t.Errorf("opening with the key: %v", err)
		}
	})
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a database of version 99 was opened: %v", err)
	}
}

func TestNameConflict(t *testing.T) { onEach(t, testNameConflict) }

func testNameConflict(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	create(t, s, c, "one")
	box, run := c.box("one")
	err := s.CreateSandbox(t.Context(), box, run)
	if skerry.CodeOf(err) != skerry.CodeConflict {
		t.Fatalf("the second sandbox of a name: %v", err)
	}
	if ids, err := s.SessionIDs(t.Context(), box.ID); err != nil || len(ids) != 0 {
		t.Errorf("a refused sandbox left sessions %v, %v", ids, err)
	}
	box.Scope.ProjectID, run.Scope.ProjectID = "prj_b", "prj_b"
	if err := s.CreateSandbox(t.Context(), box, run); err != nil {
		t.Errorf("the same name in another project: %v", err)
	}
}

// names lists all pages and checks that pages are full and end.
func names(t *testing.T, s *Store, f skerry.SandboxFilter, between func(page int)) []string {
	t.Helper()
	var all []string
	for page := 0; ; page++ {
		list, next, err := s.ListSandboxes(t.Context(), scope, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			all = append(all, b.Name)
		}
		if next == "" {
			return all
		}
		if len(list) != f.Size() || page > 100 {
			t.Fatalf("page %d has %d of %d and goes on", page, len(list), f.Size())
		}
		f.Cursor = next
		if between != nil {
			between(page)
		}
	}
}

func TestListing(t *testing.T) { onEach(t, testListing) }

func testListing(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	for _, n := range []string{"b", "a%x", "d", "a_y", "e", "axz", "c"} {
		create(t, s, c, n)
	}
	for _, tt := range []struct {
		sort string
		asc  bool
		want string
	}{
		{"", true, "b a%x d a_y e axz c"},
		{"createdAt", false, "c axz e a_y d a%x b"},
		{"name", true, "a%x a_y axz b c d e"},
		{"name", false, "e d c b axz a_y a%x"},
		{"statusUpdatedAt", true, "b a%x d a_y e axz c"},
	} {
		f := skerry.SandboxFilter{SortBy: tt.sort, Page: skerry.Page{Limit: 2, Ascending: tt.asc}}
		if got := strings.Join(names(t, s, f, nil), " "); got != tt.want {
			t.Errorf("sorted by %q, ascending %v: %s, want %s", tt.sort, tt.asc, got, tt.want)
		}
	}
	// None has a snapshot; the pages go on by id all the same.
	if got := names(t, s, skerry.SandboxFilter{SortBy: "currentSnapshotId", Page: skerry.Page{Limit: 2}}, nil); len(got) != 7 {
		t.Errorf("sorted by currentSnapshotId: %v", got)
	}
	if got := names(t, s, skerry.SandboxFilter{SortBy: "name", NamePrefix: "a%", Page: skerry.Page{Ascending: true}}, nil); len(got) != 1 || got[0] != "a%x" {
		t.Errorf("prefix a%%: %v", got)
	}
	if got := names(t, s, skerry.SandboxFilter{NamePrefix: "a"}, nil); len(got) != 3 {
		t.Errorf("prefix a: %v", got)
	}
	if got := names(t, s, skerry.SandboxFilter{Tags: map[string]string{"kind": "a"}, NamePrefix: "ax"}, nil); len(got) != 1 {
		t.Errorf("tag and prefix: %v", got)
	}
	if got := names(t, s, skerry.SandboxFilter{Tags: map[string]string{"kind": "z"}}, nil); len(got) != 0 {
		t.Errorf("a tag that none has: %v", got)
	}
}

// TestPageSizes: a page has as many as its reader asks for, up to a bound.
func TestPageSizes(t *testing.T) { onEach(t, testPageSizes) }

func testPageSizes(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	for i := range skerry.MaxPageSize + 1 {
		create(t, s, c, fmt.Sprint("n", i))
	}
	for limit, want := range map[int]int{0: skerry.DefaultPageSize, skerry.MaxPageSize: skerry.MaxPageSize, skerry.MaxPageSize + 1: skerry.MaxPageSize} {
		f := skerry.SandboxFilter{Page: skerry.Page{Limit: limit}}
		list, next, err := s.ListSandboxes(t.Context(), scope, f)
		if err != nil || len(list) != want || next == "" {
			t.Errorf("asked for %d, a page has %d and the cursor %q, %v", limit, len(list), next, err)
		}
		if got := names(t, s, f, nil); len(got) != skerry.MaxPageSize+1 {
			t.Errorf("asked for %d, all pages have %d", limit, len(got))
		}
	}
}

func TestPagesAreStableWhileSandboxesComeAndGo(t *testing.T) {
	onEach(t, testPagesAreStableWhileSandboxesComeAndGo)
}

func testPagesAreStableWhileSandboxesComeAndGo(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	boxes := map[string]*skerry.Sandbox{}
	for i := range 9 {
		n := fmt.Sprintf("old%d", i)
		boxes[n] = create(t, s, c, n)
	}
	got := names(t, s, skerry.SandboxFilter{Page: skerry.Page{Limit: 3}}, func(page int) {
		create(t, s, c, fmt.Sprintf("new%d", page))
		if page == 0 {
			// One that was seen already.
			if err := s.DeleteSandbox(t.Context(), boxes["old7"].ID); err != nil {
				t.Fatal(err)
			}
		}
	})
	if want := "old8 old7 old6 old5 old4 old3 old2 old1 old0"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestBadCursors(t *testing.T) { onEach(t, testBadCursors) }

func testBadCursors(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	for i := range 3 {
		create(t, s, c, fmt.Sprint("n", i))
	}
	_, next, err := s.ListSandboxes(t.Context(), scope, skerry.SandboxFilter{Page: skerry.Page{Limit: 1}})
	if err != nil || next == "" {
		t.Fatal(next, err)
	}
	for _, f := range []skerry.SandboxFilter{
		{Page: skerry.Page{Cursor: "garbage!"}},
		{Page: skerry.Page{Cursor: "e30"}},
		{Page: skerry.Page{Cursor: next, Ascending: true}},
		{SortBy: "name", Page: skerry.Page{Cursor: next}},
	} {
		_, _, err := s.ListSandboxes(t.Context(), scope, f)
		if e, ok := err.(*skerry.Error); !ok || e.Code != skerry.CodeBadRequest || e.Field != "cursor" {
			t.Errorf("cursor %.20q: %v", f.Cursor, err)
		}
	}
}

func TestSessionsAndCommands(t *testing.T) { onEach(t, testSessionsAndCommands) }

func testSessionsAndCommands(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	c := &clock{}
	ctx := t.Context()
	box := create(t, s, c, "one")
	for range 3 {
		_, run := c.box("one")
		run.SandboxID, run.Status = box.ID, skerry.StatusStopped
		_, _, err := s.AddSession(ctx, box.ID, func(b *skerry.Sandbox) (*skerry.Session, error) {
			b.CurrentSessionID = run.ID
			return run, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	live, err := s.LiveSessions(ctx)
	if err != nil || len(live) != 1 || live[0].SandboxID != box.ID || live[0].Scope != scope || live[0].SandboxName != "one" {
		t.Fatalf("LiveSessions() = %+v, %v", live, err)
	}
	code := 3
	cmd := skerry.Command{ID: skerry.NewID(skerry.PrefixCommand), SessionID: live[0].ID, Name: "true", Args: []string{}, StartedAt: c.next()}
	if err := s.SaveCommands(ctx, []skerry.Command{cmd}); err != nil {
		t.Fatal(err)
	}
	cmd.ExitCode = &code
	stray := skerry.Command{ID: skerry.NewID(skerry.PrefixCommand), SessionID: "sbx_gone", StartedAt: c.next()}
	if err := s.SaveCommands(ctx, []skerry.Command{cmd, stray}); err != nil {
		t.Fatalf("a command of a session that is gone: %v", err)
	}
	got, err := s.Command(ctx, live[0].ID, cmd.ID)
	if err != nil || got.ExitCode == nil || *got.ExitCode != 3 {
		t.Errorf("Command() = %+v, %v", got, err)
	}
	if _, err := s.Command(ctx, live[0].ID, stray.ID); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("the stray command: %v", err)
	}
	pruned, err := s.PruneSessions(ctx, box.ID, 2)
	if err != nil || len(pruned) != 1 {
		t.Errorf("PruneSessions() = %v, %v: want the oldest ended one", pruned, err)
	}
	if err := s.DeleteSandbox(ctx, box.ID); err != nil {
		t.Fatal(err)
	}
	if ids, err := s.SessionIDs(ctx, ""); err != nil || len(ids) != 0 {
		t.Errorf("sessions outlive their sandbox: %v, %v", ids, err)
	}
	if cmds, _, err := s.ListCommands(ctx, live[0].ID, skerry.Page{Ascending: true}); err != nil || len(cmds) != 0 {
		t.Errorf("commands outlive their session: %v, %v", cmds, err)
	}
}

func TestConcurrentWritersAndReaders(t *testing.T) { onEach(t, testConcurrentWritersAndReaders) }

func testConcurrentWritersAndReaders(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for w := range 8 {
		wg.Go(func() {
			c := &clock{ms: int64(w) * 1000}
			for i := range 20 {
				box, run := c.box(fmt.Sprintf("w%d-%d", w, i))
				if err := s.CreateSandbox(ctx, box, run); err != nil {
					errs <- err
					return
				}
				if _, _, err := s.ListSandboxes(ctx, scope, skerry.SandboxFilter{}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if n := len(names(t, s, skerry.SandboxFilter{}, nil)); n != 160 {
		t.Errorf("%d of 160 sandboxes were written", n)
	}
}
