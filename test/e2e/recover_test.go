package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// leave are the ways in which a server leaves its sandboxes behind.
var leave = map[string]func(*server){
	"stopped": func(s *server) {
		if err := s.stop("--keep-sandboxes"); err != nil {
			s.t.Fatal(err)
		}
	},
	"killed": func(s *server) { s.kill() },
}

// counter prints numbers until a file appears, and then how many.
const counter = `i=0; until [ -e /tmp/enough ]; do echo $i; i=$((i+1)); done; echo end $i; exit 7`

// TestRestart: what runs in a sandbox does not notice that the server is
// another one, and neither does who reads it later.
func TestRestart(t *testing.T) {
	for how, leave := range leave {
		t.Run(how, func(t *testing.T) {
			s := newServer(t, "--ready-networks", "0")
			sb := s.create(client.CreateOptions{Name: "survivor", Env: map[string]string{"KEPT": "yes"}, Tags: map[string]string{"a": "b"}})
			if err := sb.WriteFile(t.Context(), "notes/a.txt", []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			count := s.detach(sb, counter)
			// Ends about when there is no server; its end must not be lost.
			brief := s.detach(sb, "echo begun; sleep 0.3; echo over; exit 5")
			done := s.detach(sb, "echo out; echo more; exit 3") // on one stream, whose order counts
			if err := done.Wait(); err == nil {
				t.Fatal("exit code 3 is no error")
			}
			followed := follow(t, count)
			attached := s.execCLI("survivor", "sh", "-c", counter)
			terminal, screen := openTerminal(t, sb)

			leave(s)

			<-screen
			if code, err := terminal.Wait(); err == nil && code == 0 {
				t.Error("the terminal's reader was told that the command succeeded")
			}
			terminal.Close()

			s.start()
			s.assertOwned(0)
			again := s.get("survivor")
			if got, want := again.Session().ID, sb.Session().ID; got != want || again.Session().Status != skerry.StatusRunning {
				t.Fatalf("session %s is now %s, %s", want, got, again.Session().Status)
			}
			if got := s.output(again, "cat", "notes/a.txt"); got != "before" {
				t.Errorf("the file holds %q", got)
			}
			if got := s.output(again, "printenv", "KEPT"); got != "yes" {
				t.Errorf("the sandbox's environment holds %q", got)
			}
			s.waitFor("the terminal's command to be hung up", func() bool {
				code, _ := s.shell(again, "pgrep -f terminal-marke[r]")
				return code == 1
			})
			s.output(again, "touch", "/tmp/enough")
			checkCounter(t, s, again, count.ID())
			if end := <-followed; end.err != nil {
				t.Errorf("who followed the output: %v", end.err)
			} else {
				checkNumbers(t, end.out)
			}
			if err := attached.Wait(); attached.ProcessState.ExitCode() != 7 {
				t.Errorf("sandbox exec: %v, %s", err, attached.Stderr)
			} else {
				checkNumbers(t, attached.Stdout.(*output).String())
			}
			checkCommand(t, again, brief.ID(), 5, "begun\nover\n")
			checkCommand(t, again, done.ID(), 3, "out\nmore\n")

			// It is stopped and started as any other.
			if run, err := again.Stop(t.Context()); err != nil || run.Session.Status != skerry.StatusStopped {
				t.Errorf("stop: %v, %v", run.Session.Status, err)
			}
			s.assertOwned(0)
		})
	}
}

// followed is what was read of a command's output, and why that ended.
type followed struct {
	out string
	err error
}

// follow reads a running command's output and sends what it came to. It
// returns once something was read.
func follow(t *testing.T, cmd *client.Cmd) <-chan followed {
	t.Helper()
	first, end := make(chan struct{}), make(chan followed, 1)
	go func() {
		var got followed
		n := 0
		for log, err := range cmd.Logs(t.Context()) {
			if err != nil {
				got.err = err
				break
			}
			got.out += string(log.Data)
			if n++; n == 3 {
				close(first)
			}
		}
		end <- got
	}()
	select {
	case <-first:
	case got := <-end:
		t.Fatalf("the output ended early: %v", got.err)
	}
	return end
}

// output is what a process of the test has printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// execCLI starts "sandbox exec", and returns once the command has printed.
func (s *server) execCLI(args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "sandbox"), append([]string{"exec"}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+s.path("config"), "SKERRY_URL="+s.URL())
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, &output{}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	s.waitFor("sandbox exec to print", func() bool { return out.String() != "" })
	return cmd
}

// openTerminal opens a terminal on a command that goes on until it is hung up,
// and sends what it has shown by its end.
func openTerminal(t *testing.T, sb *client.Sandbox) (*client.Terminal, <-chan string) {
	t.Helper()
	term, err := sb.Terminal(t.Context(), client.TerminalOptions{Command: "sh", Args: []string{"-c", "echo terminal-marker; sleep 1000; true"}})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("terminal-marker"))
	if _, err := io.ReadFull(term, buf); err != nil || string(buf) != "terminal-marker" {
		t.Fatalf("the terminal shows %q, %v", buf, err)
	}
	end := make(chan string, 1)
	go func() {
		var shown strings.Builder
		_, _ = io.Copy(&shown, term) // Wait tells of an error
		end <- shown.String()
	}()
	return term, end
}

// checkCounter checks that no line of the counter is missing or comes twice.
func checkCounter(t *testing.T, s *server, sb *client.Sandbox, id string) {
	t.Helper()
	code, out := commandEnd(t, sb, id)
	if code != 7 {
		t.Errorf("the counter ended with %d, want 7", code)
	}
	checkNumbers(t, out)
}

// checkNumbers checks what a counter has printed.
func checkNumbers(t *testing.T, out string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d of %d is %q", i, len(lines), line)
		}
	}
	if want := fmt.Sprintf("end %d", len(lines)-1); lines[len(lines)-1] != want {
		t.Errorf("the counter ended with %q, want %q", lines[len(lines)-1], want)
	}
}

// commandEnd waits for a command of another process's and reads its output.
func commandEnd(t *testing.T, sb *client.Sandbox, id string) (int, string) {
	t.Helper()
	cmd, err := sb.FindCommand(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Wait()
	if exit, ok := errors.AsType[*client.ExitError](err); ok {
		return exit.Code, out.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String()
}

func checkCommand(t *testing.T, sb *client.Sandbox, id string, code int, output string) {
	t.Helper()
	if c, out := commandEnd(t, sb, id); c != code || out != output {
		t.Errorf("command %s ended with %d and %q, want %d and %q", id, c, out, code, output)
	}
}

// TestRestartWithoutSandbox: a sandbox that died while there was no server is
// said to have, and starts again.
func TestRestartWithoutSandbox(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	sb, other := s.create(client.CreateOptions{Name: "victim"}), s.create(client.CreateOptions{Name: "neighbour"})
	if err := sb.WriteFile(t.Context(), "mine", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := s.detach(sb, "echo printed; exec sleep 1000")
	for _, err := range cmd.Logs(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	sentry := s.sentry(sb.Session().ID)
	s.kill()
	if err := syscall.Kill(sentry, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.assertOwned(0)

	again := s.get("victim")
	run := again.Session()
	if run.ID != sb.Session().ID || run.Status != skerry.StatusAborted || run.Reason == "" || run.AbortedAt.IsZero() {
		t.Errorf("the lost session is %+v", run)
	}
	past, err := again.FindCommand(t.Context(), cmd.ID())
	if err != nil {
		t.Fatal(err)
	}
	if code := past.Info().ExitCode; code == nil || *code != 137 {
		t.Errorf("the lost command's exit code is %v", code)
	}
	s.assertAlive(s.get(other.Name()))

	anew, err := s.GetSandbox(t.Context(), "victim", client.GetOptions{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	if anew.Session().ID == run.ID || anew.Session().Status != skerry.StatusRunning || !anew.Resumed() {
		t.Errorf("the sandbox was not started anew: %+v", anew.Session())
	}
	if _, err := anew.ReadFile(t.Context(), "mine"); !client.IsNotFound(err) {
		t.Errorf("a new session of a sandbox that is not persistent has the old one's file: %v", err)
	}
	s.assertAlive(anew)
	s.assertOwned(0)
}

// TestLostWhileServing: what kills a sandbox ends its session and nothing
// else, and who calls it is told so.
func TestLostWhileServing(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	strict := s.connect(s.URL(), s.config().Token, true)
	defer strict.Close()
	for name, kill := range map[string]func(*server, *client.Sandbox){
		"the kernel is killed from outside": func(s *server, sb *client.Sandbox) {
			if err := syscall.Kill(s.sentry(sb.Session().ID), syscall.SIGKILL); err != nil {
				s.t.Fatal(err)
			}
		},
		"the agent crashes": func(s *server, sb *client.Sandbox) {
			// Root inside has the right to trouble the first process, whose
			// kernel shields it from SIGKILL as Linux does; SIGSEGV it takes.
			cmd := sb.Command(s.t.Context(), "kill", "-SEGV", "1")
			cmd.Sudo = true
			_ = cmd.Run() // the sandbox is gone before it can end
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			sb := s.create(client.CreateOptions{})
			defer s.delete(sb)
			neighbour := s.create(client.CreateOptions{})
			defer s.delete(neighbour)
			detached := s.detach(sb, "exec sleep 1000")
			term, screen := openTerminal(t, sb)
			defer term.Close()

			kill(s, sb)

			if shown := <-screen; !strings.Contains(shown, "sandbox: ") {
				t.Errorf("the terminal does not tell of the end: %q", shown)
			}
			if code, err := term.Wait(); !client.IsStopped(err) {
				t.Errorf("the terminal's command ended with %d, %v", code, err)
			}
			var exit *client.ExitError
			if err := detached.Wait(); !errors.As(err, &exit) || exit.Code != 137 {
				t.Errorf("the command ended with %v", err)
			}
			var said string
			for log, err := range detached.Logs(t.Context()) {
				if err != nil {
					t.Errorf("the command's output: %v", err)
					break
				}
				said += string(log.Data)
			}
			if !strings.HasPrefix(said, "skerry: the sandbox was lost: ") {
				t.Errorf("the command's output is %q", said)
			}
			s.waitFor("the session to be aborted", func() bool {
				return s.get(sb.Name()).Session().Status == skerry.StatusAborted
			})
			if run := s.get(sb.Name()).Session(); run.Reason == "" {
				t.Error("no reason is given")
			}
			dead, err := strict.GetSandbox(t.Context(), sb.Name(), client.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			// Clients go on in a new session when they are told of a stop: once
			// they are told of the loss instead.
			told := dead.Command(t.Context(), "true").Run()
			assertError(t, "the first call", told, 409, skerry.CodeConflict)
			if told == nil || !strings.Contains(told.Error(), "was lost") {
				t.Errorf("the first call is told %v", told)
			}
			for call, err := range map[string]error{
				"cmd":    dead.Command(t.Context(), "true").Run(),
				"write":  dead.WriteFile(t.Context(), "a", nil, 0o644),
				"read":   second(dead.ReadFile(t.Context(), "a")),
				"mkdir":  dead.Mkdir(t.Context(), "a"),
				"extend": dead.ExtendTimeout(t.Context(), time.Minute),
			} {
				assertError(t, call, err, 410, skerry.CodeSandboxStopped)
			}
			s.assertAlive(neighbour)
			s.assertOwned(0)
		})
	}
}

// TestKillEverythingInside: root in a sandbox can end it, its first process
// included, and then nothing is left of it but its name.
func TestKillEverythingInside(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	sb := s.create(client.CreateOptions{Name: "suicidal"})
	neighbour := s.create(client.CreateOptions{})
	for _, args := range [][]string{{"-9", "1"}, {"-9", "--", "-1"}, {"-TERM", "1"}, {"-SEGV", "1"}} {
		before := sb.Session().ID
		kill := sb.Command(t.Context(), "kill", args...)
		kill.Sudo = true
		_ = kill.Run() // it may end itself
		// The SDK asks for a new session when it hears that this one is over.
		s.output(sb, "true")
		if sb.Session().ID != before {
			run, err := s.ListSessionsPage(t.Context(), "suicidal", client.SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if past := run.Items[1]; past.ID != before || past.Status != skerry.StatusAborted || past.Reason == "" {
				t.Errorf("kill %v: the session before is %+v", args, past)
			}
		}
		s.assertAlive(neighbour)
		s.assertOwned(0)
	}
}

func second[T any](_ T, err error) error { return err }

func assertError(t *testing.T, what string, err error, status int, code skerry.Code) {
	t.Helper()
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Status != status || e.Code != code || e.Message == "" {
		t.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

// TestSecondServer: a state folder has one server, and asking for one that
// runs is no error.
func TestSecondServer(t *testing.T) {
	s := newServer(t)
	pid := s.pid()
	out, err := s.sandboxd("serve", "--run-dir", s.path("run"), "--listen", "127.0.0.1:0", "--background").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "is already running") || !strings.Contains(string(out), "sandboxd.log; to start one with other flags, stop it first") {
		t.Errorf("a second server in the background: %v: %s", err, out)
	}
	out, err = s.sandboxd("serve", "--run-dir", s.path("run"), "--listen", "127.0.0.1:0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is already running on this state folder") {
		t.Errorf("a second server: %v: %s", err, out)
	}
	if s.pid() != pid {
		t.Error("the first server is not the one that runs")
	}
	if got := s.output(s.create(client.CreateOptions{}), "echo", "alive"); got != "alive" {
		t.Errorf("the first server's sandbox says %q", got)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.path("run/" + s.instance())); !os.IsNotExist(err) {
		t.Errorf("the folder of what ran is still there: %v", err)
	}
}
