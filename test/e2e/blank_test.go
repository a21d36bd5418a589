package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// blanks returns the blank machines: they have a folder, and no state.
func (s *server) blanks() (ids []string) {
	s.t.Helper()
	dir := filepath.Join(s.runDir(), "machines")
	for _, id := range s.list(dir) {
		if _, err := os.Stat(filepath.Join(dir, id, "machine.json")); strings.HasPrefix(id, "blk_") && errors.Is(err, os.ErrNotExist) {
			ids = append(ids, id)
		}
	}
	return ids
}

// metric returns the value of a metric.
func metric(t *testing.T, addr, name string) (value float64) {
	t.Helper()
	_, body := get(t, "http://"+addr+"/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// awaitBlank waits until as many blank machines are ready as are wanted, at least one.
func (s *server) awaitBlank(addr string) {
	s.t.Helper()
	s.waitFor("blank machines", func() bool {
		ready := metric(s.t, addr, "skerry_blank_ready")
		return ready > 0 && ready == metric(s.t, addr, "skerry_blank_wanted")
	})
}

func (s *server) isBlank(sb *client.Sandbox) bool {
	s.t.Helper()
	return strings.HasPrefix(s.machine(sb.Session().ID), "blk_")
}

// TestBlank resumes, restores and forks sandboxes in machines that were blank.
func TestBlank(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "1", "--metrics-listen", addr)
	s.awaitBlank(addr)
	sb := s.create(client.CreateOptions{Name: "one", NetworkPolicy: &client.NetworkPolicy{Mode: "deny-all"}})
	s.shell(sb, "echo kept >kept; echo $(hostname) >name")
	s.stopSaved(sb)
	if got := s.output(sb, "sh", "-c", "cat kept name; hostname; cat /etc/hostname"); got != "kept\none\none\none" {
		t.Errorf("after a resume there is %q", got)
	}
	if !s.isBlank(s.get("one")) {
		t.Error("the resume had no blank machine")
	}
	if code, out := s.shell(sb, "curl -sS -m 3 http://192.0.2.1/"); code == 0 {
		t.Errorf("a sandbox without a network reaches %q", out)
	}
	s.shell(sb, "(while :; do date +%s%N >tick; sleep 0.05; done) >/dev/null 2>&1 &")
	s.awaitBlank(addr)
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Memory: true, Name: "two"})
	if err != nil {
		t.Fatal(err)
	}
	if !s.isBlank(fork) {
		t.Error("the fork had no blank machine")
	}
	for _, box := range []*client.Sandbox{sb, fork} {
		before := s.output(box, "cat", "tick")
		s.waitFor("the process to go on", func() bool { return s.output(box, "cat", "tick") != before })
	}
	if got := s.output(fork, "hostname"); got != "two" {
		t.Errorf("the fork's name is %q", got)
	}
	s.awaitBlank(addr)
	if hits := metric(t, addr, `skerry_blank_starts_total{result="hit"}`); hits != 2 {
		t.Errorf("%v hits", hits)
	}
	s.assertOwned(5)
	// Kernel, folder and network of what was a blank machine end with their session.
	for _, box := range []*client.Sandbox{fork, s.get("one")} {
		if err := box.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.assertOwned(5)
}

// TestBlankDies has the kernels of blank machines end, or stop.
func TestBlankDies(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "1", "--metrics-listen", addr)
	sb := s.create(client.CreateOptions{Name: "one"})
	s.shell(sb, "echo kept >kept")
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		s.stopSaved(sb)
		s.awaitBlank(addr)
		ids := s.blanks()
		for _, id := range ids {
			if err := syscall.Kill(s.sentryOf(id), sig); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.output(sb, "cat", "kept"); got != "kept" {
			t.Errorf("after a resume there is %q", got)
		}
		for _, id := range ids {
			if s.machine(s.get("one").Session().ID) == id {
				t.Errorf("signal %v: the session has a machine that does not answer", sig)
			}
			s.waitFor("the machine to be removed", func() bool {
				_, err := os.Stat(filepath.Join(s.runDir(), "machines", id))
				return errors.Is(err, os.ErrNotExist)
			})
		}
	}
	s.awaitBlank(addr)
	s.assertOwned(5)
}

// TestBlankOfAKilledServer: a server that was killed leaves its blank machines to the next
// one, which removes them. A session in what was one goes on.
func TestBlankOfAKilledServer(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "1", "--metrics-listen", addr)
	s.awaitBlank(addr)
	sb := s.create(client.CreateOptions{Name: "one"})
	s.stopSaved(sb)
	s.output(sb, "true") // resumes it
	if !s.isBlank(s.get("one")) {
		t.Error("the resume had no blank machine")
	}
	s.awaitBlank(addr)
	left := s.blanks()
	s.kill()
	s.flags = []string{"--warm", "0"}
	s.start()
	for _, id := range left {
		if got := s.blanks(); len(got) > 0 {
			t.Errorf("%v are left, %s of the server that was killed", got, id)
		}
	}
	s.assertAlive(s.get("one"))
	s.assertOwned(5)
	s.flags = []string{"--warm", "1", "--metrics-listen", addr}
	if err := s.stop("--keep-sandboxes"); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.awaitBlank(addr)
	// They end with a server that is stopped, also if its sandboxes go on.
	if err := s.stop("--keep-sandboxes"); err != nil {
		t.Fatal(err)
	}
	if got := s.blanks(); len(got) > 0 {
		t.Errorf("%v are left", got)
	}
	s.start()
	s.assertAlive(s.get("one"))
}
