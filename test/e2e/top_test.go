package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/client"
)

// screenText collects what a program writes to its terminal.
type screenText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screenText) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// last returns what was written since the last drawing began.
func (s *screenText) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.text.String()
	return text[max(strings.LastIndex(text, "\x1b[H"), 0):]
}

// TestTop looks at busy and idle sandboxes with "sandboxd top", as a person and as a
// script.
func TestTop(t *testing.T) {
	s := prepareServer(t)
	if out, err := s.sandboxd("top").CombinedOutput(); err == nil || !strings.Contains(string(out), "the server is not running") {
		t.Errorf("without a server: %v, %s", err, out)
	}
	s.start()
	busy := s.create(client.CreateOptions{Name: "busy"})
	paused := s.create(client.CreateOptions{Name: "standing"})
	if err := paused.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := s.detach(busy, "while :; do :; done")

	var table struct {
		CPUs      int
		Sandboxes []struct {
			Name, State, Session string
			Commands             int
			CPUPercent           float64
			MemoryBytes          int64
		}
	}
	s.waitFor("a table with a busy sandbox", func() bool {
		out, err := s.sandboxd("top", "--json").Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &table); err != nil {
			t.Fatal(err)
		}
		return len(table.Sandboxes) == 2 && table.Sandboxes[0].CPUPercent > 5
	})
	first, second := table.Sandboxes[0], table.Sandboxes[1]
	if first.Name != "busy" || first.Session != busy.Session().ID || first.Commands != 1 || first.MemoryBytes <= 0 || table.CPUs < 1 ||
		second.Name != "standing" || second.State != "paused" || second.CPUPercent > first.CPUPercent {
		t.Errorf("the table is %+v", table)
	}
	out, err := s.sandboxd("top", "--once", "--sort", "name").Output()
	if lines := strings.Split(string(out), "\n"); err != nil || !strings.HasPrefix(lines[0], "2 sandboxes: 1 running, 1 paused") || !strings.HasPrefix(lines[4], "busy ") || !strings.HasPrefix(lines[5], "standing ") || strings.Contains(string(out), "\x1b") {
		t.Errorf("once: %v\n%s", err, out)
	}
	if out, err := s.sandboxd("top", "--sort", "luck").CombinedOutput(); err == nil || !strings.Contains(string(out), `--sort must be one of name, state, cpu, memory, in, out, commands, age, not "luck"`) {
		t.Errorf("sorted by luck: %v, %s", err, out)
	}
	s.live(cmd)
}

// live looks at the live table in a terminal.
func (s *server) live(cmd *client.Cmd) {
	t := s.t
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(master, &pty.Winsize{Cols: 100, Rows: 20}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	top := exec.Command(filepath.Join(programs, "sandboxd"), "--state", s.path("state"), "top")
	top.Stdin, top.Stdout, top.Stderr = slave, slave, slave
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	var screen screenText
	copied := make(chan error, 1)
	go func() { _, err := io.Copy(&screen, master); copied <- err }()
	shows := func(what string, all ...string) {
		t.Helper()
		s.waitFor(what, func() bool {
			for _, text := range all {
				if !strings.Contains(screen.last(), text) {
					return false
				}
			}
			return strings.Contains(screen.last(), "\x1b[J") // the last line
		})
	}
	press := func(keys string) {
		t.Helper()
		if _, err := master.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	shows("the table", "2 sandboxes: 1 running, 1 paused", "busy ", "standing ", "\x1b[7m  CPU%\x1b[0m", "q quit")
	press("\x1b[C")
	shows("another column", "\x1b[7m  MEMORY\x1b[0m")
	press("\x1b[D\x1b[D\x1b[D")
	shows("the names", "\x1b[7mNAME")
	order := func() bool {
		text := screen.last()
		return strings.Index(text, "busy ") < strings.Index(text, "standing ")
	}
	s.waitFor("the order of letters", order)
	press("r")
	s.waitFor("the other order", func() bool { return !order() && strings.Contains(screen.last(), "busy ") })
	if err := pty.Setsize(master, &pty.Winsize{Cols: 30, Rows: 5}); err != nil {
		t.Fatal(err)
	}
	s.waitFor("a small table", func() bool {
		return strings.Count(screen.last(), "\r\n") <= 4 && strings.Contains(screen.last(), "busy ")
	})
	if err := cmd.Kill(t.Context(), client.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Cols: 100, Rows: 20}); err != nil {
		t.Fatal(err)
	}
	shows("that nothing runs any more", "commands 0")
	if err := s.stop("--keep-sandboxes"); err != nil {
		t.Fatal(err)
	}
	shows("that the server has gone", "no answer: the server is not running", "busy ")
	s.start()
	s.waitFor("the next server", func() bool {
		return !strings.Contains(screen.last(), "no answer") && strings.Contains(screen.last(), "busy ")
	})
	press("q")
	if err := top.Wait(); err != nil {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Errorf("the terminal is left as %+v, was %+v", after, before)
	}
	slave.Close()
	if err := <-copied; err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if !strings.HasSuffix(screen.last(), "\x1b[?7h\x1b[?25h\x1b[?1049l") {
		t.Errorf("the terminal was told at the end %q", screen.last())
	}
}

// TestTopIsNoUse looks at a sandbox that nobody uses until it is paused for that, and on.
func TestTopIsNoUse(t *testing.T) {
	s := newServer(t, "--idle-pause", "2s")
	s.create(client.CreateOptions{Name: "left-alone"})
	state := func() string {
		out, err := s.sandboxd("top", "--json").Output()
		if err != nil {
			t.Fatal(err)
		}
		var table struct{ Sandboxes []struct{ State string } }
		if err := json.Unmarshal(out, &table); err != nil || len(table.Sandboxes) != 1 {
			t.Fatalf("%v: %s", err, out)
		}
		return table.Sandboxes[0].State
	}
	s.waitFor("the sandbox to be idle", func() bool { return state() == "idle" })
	for range 3 {
		if got := state(); got != "idle" {
			t.Errorf("a look has it be %s", got)
		}
	}
}
