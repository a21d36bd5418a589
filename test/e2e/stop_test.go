package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// says runs a command of sandboxd and returns what it says, and whether it went
// well.
func (s *server) says(args ...string) (string, bool) {
	out, err := s.sandboxd(args...).CombinedOutput()
	if err == nil && s.split && args[0] == "stop" {
		s.stopNode()
	}
	return strings.TrimSpace(string(out)), err == nil
}

// failedStops counts the attempts to stop a session that the log tells of.
func (s *server) failedStops() int {
	s.t.Helper()
	log, err := os.ReadFile(s.path("state/sandboxd.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Count(string(log), "cannot stop a session")
}

// TestStopSaysWhatItDid stops a server as its operator does.
func TestStopSaysWhatItDid(t *testing.T) {
	s := newServer(t)
	volatile := false
	s.create(client.CreateOptions{Name: "volatile", Persistent: &volatile})
	kept := s.create(client.CreateOptions{Name: "kept"})
	if err := kept.WriteFile(t.Context(), "precious", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, ok := s.says("stop"); !ok || out != "stopped the server and 2 sandboxes (1 saved, 1 not persistent)" {
		t.Errorf("stop: %v, %s", ok, out)
	}
	if out, ok := s.says("stop"); !ok || out != "no server is running" {
		t.Errorf("a second stop: %v, %s", ok, out)
	}

	// A server that has no room to save: it tries, until it is told not to.
	s.start()
	kept = s.get("kept")
	if err := kept.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := kept.Session().ID
	if out, ok := s.says("stop", "--keep-sandboxes"); !ok || !strings.Contains(out, "keep running") {
		t.Errorf("stop --keep-sandboxes: %v, %s", ok, out)
	}
	s.flags = []string{"--disk-reserve", "1000000000"}
	s.start()
	// Half of the time is for the end of the server itself.
	if out, ok := s.says("stop", "--timeout", "20s"); ok || !strings.Contains(out, `"kept"`) {
		t.Errorf("a stop that cannot save in time: %v, %s", ok, out)
	}
	s.start()
	if got := s.get("kept").Session(); got.ID != running || got.Status != skerry.StatusRunning {
		t.Errorf("the next server has session %s, %s, want %s running", got.ID, got.Status, running)
	}
	failed := s.failedStops()
	waiting := make(chan string, 1)
	go func() {
		out, _ := s.says("stop")
		waiting <- out
	}()
	s.waitFor("a save to fail", func() bool { return s.failedStops() > failed })
	s.says("stop", "--force")
	if out := <-waiting; !strings.Contains(out, "1 sandbox (1 not saved)") || !strings.Contains(out, `"kept"`) {
		t.Errorf("a stop that another forced: %s", out)
	}
	s.assertNothingLeft()
	s.flags = nil
	s.start()
	if run := s.get("kept").Session(); run.Status != skerry.StatusStopped || run.Reason == "" {
		t.Errorf("the session ended as %s: %q", run.Status, run.Reason)
	}
	if out, err := s.get("kept").Command(t.Context(), "cat", "precious").Output(); err != nil || string(out) != "mine" {
		t.Errorf("its last snapshot has %q, %v", out, err)
	}
}

// TestRunningServerIsAsked has commands that need the database ask the server
// that has it open, and refuse if it cannot be asked.
func TestRunningServerIsAsked(t *testing.T) {
	s := newServer(t)
	token, ok := s.says("token", "create", "alice")
	if !ok {
		t.Fatalf("token create: %s", token)
	}
	for name, expires := range map[string]string{"gone": "1ms", "later": "30d"} {
		if out, ok := s.says("token", "create", name, "--expires", expires); !ok {
			t.Errorf("token create --expires %s: %s", expires, out)
		}
	}
	list, ok := s.says("token", "ls")
	for line := range strings.Lines(list) {
		if strings.Contains(line, "(expired)") != strings.Contains(line, "gone") {
			t.Errorf("token ls: %s", line)
		}
	}
	if !ok || !strings.Contains(list, "alice") || !strings.Contains(list, "gone") {
		t.Fatalf("token ls: %s", list)
	}
	url := s.config().URL
	alice := s.connect("http://"+s.address, token, false)
	defer alice.Close()
	if _, err := alice.ListSandboxesPage(t.Context(), client.ListOptions{}); err != nil {
		t.Errorf("with a new token at %s: %v", url, err)
	}
	for line := range strings.Lines(list) {
		if id, rest, _ := strings.Cut(line, " "); strings.Contains(rest, "alice") {
			if out, ok := s.says("token", "revoke", id); !ok || out != "revoked token "+id+" (alice)" {
				t.Errorf("token revoke: %s", out)
			}
		}
	}
	if _, err := alice.ListSandboxesPage(t.Context(), client.ListOptions{}); err == nil {
		t.Error("a token that was revoked is good still")
	}
	if out, ok := s.says("image", "gc"); !ok {
		t.Errorf("image gc: %s", out)
	}
	if out, ok := s.says("status"); !ok || !strings.HasPrefix(out, "running at http://"+s.address+", process ") {
		t.Errorf("status: %s", out)
	}
	// A server that cannot be asked, as one of an earlier version.
	if err := os.Remove(s.path("state/sandboxd.sock")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"token", "ls"}, {"image", "gc"}, {"stop", "--force"}} {
		if out, ok := s.says(args...); ok || !strings.Contains(out, "another version") {
			t.Errorf("%v: %v, %s", args, ok, out)
		}
	}
	if out, ok := s.says("stop"); !ok || out != "stopped the server" {
		t.Errorf("stop by a signal: %v, %s", ok, out)
	}
	// Without a server the database is opened.
	if out, ok := s.says("token", "ls"); !ok || !strings.Contains(out, "first token") {
		t.Errorf("token ls without a server: %s", out)
	}
}

// TestStopEndsWhatFollowsCommands: who follows a command learns that it has ended
// with its sandbox, and does not wait for the next server.
func TestStopEndsWhatFollowsCommands(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "box"})
	wait := func(cmd *client.Cmd) (ended chan error) {
		cmd.Reconnect = func(err error) { t.Errorf("a connection broke: %v", err) }
		ended = make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return ended
	}
	begun := make(chan struct{})
	attached := sb.Command(t.Context(), "sh", "-c", "echo; exec sleep 1000")
	attached.Stdout = writerFunc(func(b []byte) (int, error) {
		close(begun)
		return len(b), nil
	})
	detached := sb.Command(t.Context(), "sleep", "1001")
	detached.Stdout, detached.Detached = new(bytes.Buffer), true
	for _, cmd := range []*client.Cmd{attached, detached} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ends := map[string]chan error{"attached": wait(attached), "detached": wait(detached)}
	<-begun
	var said bytes.Buffer
	tool := exec.Command(filepath.Join(programs, "sandbox"), "exec", "box", "--", "sleep", "1002")
	tool.Env = append(os.Environ(), "XDG_CONFIG_HOME="+s.path("config"))
	tool.Stderr = &said
	if err := tool.Start(); err != nil {
		t.Fatal(err)
	}
	s.waitFor("the commands to run", func() bool {
		list, err := sb.Commands(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(list) == 3
	})
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for what, end := range ends {
		err := <-end
		if exit, is := errors.AsType[*client.ExitError](err); !is || exit.Code != 128+int(client.SIGKILL) {
			t.Errorf("%s: %v, want the exit code of a killed command", what, err)
		}
	}
	_ = tool.Wait()
	if code := tool.ProcessState.ExitCode(); code != 128+int(client.SIGKILL) || !strings.Contains(said.String(), "the session of box ended while the command ran: it was stopped") {
		t.Errorf("the tool: %d, %s", code, &said)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
