package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/store/pgtest"
)

// onPostgres has servers keep their data in PostgreSQL. With
// SKERRY_TEST_DATABASE=postgres all tests do.
var onPostgres = os.Getenv("SKERRY_TEST_DATABASE") == "postgres"

// usePostgres gives a server that was not started a PostgreSQL of its own, which
// ends with the test.
func (s *server) usePostgres() {
	s.t.Helper()
	db, err := pgtest.Start()
	if err != nil {
		s.t.Fatal(err)
	}
	s.database = db
	if err := db.Create("skerry"); err != nil {
		s.t.Fatal(err)
	}
	s.env = append(s.env, "SKERRY_DATABASE="+db.URL("skerry"))
}

// TestOnPostgres runs tests of what the database matters to: lives, crashes,
// recovery and stops.
func TestOnPostgres(t *testing.T) {
	was := onPostgres
	onPostgres = true
	defer func() { onPostgres = was }()
	t.Run("restart", TestRestart)
	t.Run("lost", TestLostWhileServing)
	t.Run("stop", TestStopSaysWhatItDid)
	t.Run("commands", TestRunningServerIsAsked)
}

// TestDatabaseAway: without its database the server says so, sandboxes keep
// running, and nothing is lost.
func TestDatabaseAway(t *testing.T) {
	s := prepareServer(t)
	if s.database == nil {
		s.usePostgres()
	}
	db := s.database
	s.start()
	sb := s.create(client.CreateOptions{Name: "survivor"})
	if err := sb.WriteFile(t.Context(), "precious", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	count := s.detach(sb, counter)
	if err := db.Stop(); err != nil {
		t.Fatal(err)
	}
	_, err := s.ListSandboxesPage(t.Context(), client.ListOptions{})
	assertError(t, "a list without the database", err, 503, skerry.CodeUnavailable)
	_, err = s.CreateSandbox(t.Context(), client.CreateOptions{Name: "another"})
	assertError(t, "a create without the database", err, 503, skerry.CodeUnavailable)
	// A stop succeeds only when it is written.
	stopped := make(chan error, 1)
	go func() {
		_, err := sb.Stop(t.Context())
		stopped <- err
	}()
	s.waitFor("the stop to return or to wait", func() bool {
		log, err := os.ReadFile(s.path("state/sandboxd.log"))
		return err == nil && strings.Contains(string(log), "lost the connection that locks the database")
	})
	if err := db.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		assertError(t, "a stop without the database", err, 503, skerry.CodeUnavailable)
	}
	var again *client.Sandbox
	s.waitFor("the server to reach the database again", func() bool {
		again, err = s.GetSandbox(t.Context(), "survivor", client.GetOptions{})
		return err == nil
	})
	if again.Session().Status == skerry.StatusRunning {
		// The command went on all the time.
		s.output(again, "touch", "/tmp/enough")
		checkCounter(t, s, again, count.ID())
	}
	s.waitFor("the stop", func() bool {
		_, err = again.Stop(t.Context())
		return err == nil
	})
	again = s.get("survivor")
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.output(again, "cat", "precious"); got != "mine" {
		t.Errorf("the file holds %q", got)
	}

	// A server that crashes leaves the database to the next at once, but nobody
	// else has it: another state folder is refused.
	other := *s
	other.dir = filepath.Join(s.dir, "other")
	if err := os.Mkdir(other.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	out, err := other.sandboxd("serve", "--run-dir", other.path("run"), "--listen", "127.0.0.1:0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another server is using it") {
		t.Errorf("a second server after %s: %v: %s", time.Since(begin), err, out)
	}
	s.kill()
	s.start()
	if got := s.output(s.get("survivor"), "cat", "precious"); got != "mine" {
		t.Errorf("the file holds %q after the crash", got)
	}

	// What names the database is in no child's environment, and no password is
	// taken from the command line.
	environ, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range environ {
		exe, err := os.Readlink(filepath.Join(filepath.Dir(file), "exe"))
		if err != nil || exe != filepath.Join(programs, "sandboxd") || filepath.Dir(file) == fmt.Sprintf("/proc/%d", s.pid()) {
			continue
		}
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), db.URL("skerry")) {
			t.Errorf("%s has the URL of the database", file)
		}
	}
	out, err = s.sandboxd("token", "ls", "--database", "postgres://skerry:5ecret@localhost/skerry").CombinedOutput()
	if strings.Contains(string(out), "5ecret") {
		t.Errorf("a password on the command line: %v: %s", err, out)
	}
}
