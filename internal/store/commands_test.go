package store

import (
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestCommandsAreSealed looks for what a command was called with in the files,
// while the database is open and when it is closed.
func TestCommandsAreSealed(t *testing.T) { onEach(t, testCommandsAreSealed) }

func testCommandsAreSealed(t *testing.T, openIn opener) {
	dir := t.TempDir()
	s := openIn(t, dir)
	box, run := (&clock{}).box("one")
	if err := s.CreateSandbox(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	cmd := skerry.Command{ID: "cmd_1", SessionID: run.ID, Name: "psql-name", Args: []string{"--password=5ecret-arg"}, Cwd: "/secret-folder"}
	if err := s.SaveCommands(t.Context(), []skerry.Command{cmd}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Command(t.Context(), run.ID, cmd.ID)
	if err != nil || !reflect.DeepEqual(*got, cmd) {
		t.Errorf("read back as %+v, %v", got, err)
	}
	mustNotHold(t, dir, "psql-name", "5ecret-arg", "secret-folder")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotHold(t, dir, "psql-name", "5ecret-arg", "secret-folder")
}

// TestEarlierCommandsAreSealed opens a database of version 6, which has commands
// in the clear: they are read as before, and are in the clear no more.
func TestEarlierCommandsAreSealed(t *testing.T) {
	dir := t.TempDir()
	run := earlierDatabase(t, dir)
	s := openIn(t, dir)
	var list []skerry.Command
	for page, more := (skerry.Page{Ascending: true, Limit: skerry.MaxPageSize}), true; more; more = page.Cursor != "" {
		part, next, err := s.ListCommands(t.Context(), run, page)
		if err != nil {
			t.Fatal(err)
		}
		list, page.Cursor = append(list, part...), next
	}
	if len(list) != earlierCommands {
		t.Fatalf("%d commands", len(list))
	}
	for i, cmd := range list {
		if want := fmt.Sprintf("5ecret-%04d", i); len(cmd.Args) != 2 || cmd.Args[0] != want {
			t.Errorf("command %d is %.80v", i, cmd)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotHold(t, dir, "5ecret")
}

const earlierCommands = 300

// earlierDatabase makes a database of version 6 with a session's commands.
func earlierDatabase(t *testing.T, dir string) (session string) {
	t.Helper()
	if err := openIn(t, dir).Close(); err != nil { // for the key
		t.Fatal(err)
	}
	path := filepath.Join(dir, "skerry.db")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatal(err)
		}
	}
	files, err := fs.Glob(migrations, "migrations/sqlite/00[1-6]_*.sql")
	if err != nil || len(files) != 6 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		stmts, err := migrations.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		exec(string(stmts))
	}
	exec("PRAGMA user_version = 6")
	exec("INSERT INTO sandboxes (id, team_id, project_id, name, created_at, status_updated_at, document, secrets) VALUES ('sb_1', 't', 'p', 'box', 0, 0, '{}', x'00')")
	exec("INSERT INTO sessions (id, sandbox_id, project_id, created_at, ended, document) VALUES ('sbx_1', 'sb_1', 'p', 0, 1, '{}')")
	for i := range earlierCommands {
		// Some are longer than a page of the database.
		document := fmt.Sprintf(`{"name":"psql","args":["5ecret-%04d","%s"]}`, i, strings.Repeat("5ecret", i*20))
		exec("INSERT INTO commands (id, session_id, started_at, document) VALUES (?, 'sbx_1', ?, ?)", fmt.Sprintf("cmd_%04d", i), i, document)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return "sbx_1"
}
