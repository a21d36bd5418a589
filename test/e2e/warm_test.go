package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// awaitReady waits until that many sandboxes are ready.
func (s *server) awaitReady(n int) {
	s.t.Helper()
	s.waitFor(fmt.Sprintf("%d sandboxes to be ready", n), func() bool { return len(s.ready()) == n })
}

// isWarm reports whether a sandbox was started ahead.
func (s *server) isWarm(sb *client.Sandbox) bool {
	s.t.Helper()
	return strings.HasPrefix(s.machine(sb.Session().ID), "warm_")
}

// TestWarm creates sandboxes that were started ahead.
func TestWarm(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "3", "--metrics-listen", addr)
	s.awaitReady(3)
	s.assertOwned(5)
	one := s.create(client.CreateOptions{Name: "one", Env: map[string]string{"WHO": "one"}})
	two := s.create(client.CreateOptions{Name: "two", NetworkPolicy: &client.NetworkPolicy{Mode: "deny-all"}})
	three := s.create(client.CreateOptions{Name: "three", Runtime: "python3.13", Persistent: new(bool)})
	identities := map[string]bool{}
	for name, sb := range map[string]*client.Sandbox{"one": one, "two": two, "three": three} {
		if !s.isWarm(sb) {
			t.Errorf("%s was not started ahead", name)
		}
		if got := s.output(sb, "sh", "-c", "hostname; cat /etc/hostname; hostname -f"); got != name+"\n"+name+"\n"+name {
			t.Errorf("%s has the names %q", name, got)
		}
		if got := s.output(sb, "sh", "-c", "grep -c warm /etc/hosts /etc/hostname /proc/sys/kernel/hostname; true"); strings.Contains(got, ":1") {
			t.Errorf("%s has traces of its earlier name: %q", name, got)
		}
		// Randomness, and what is made of it.
		for _, what := range []string{"cat /proc/sys/kernel/random/uuid", "head -c16 /dev/urandom | od -An -tx1", "hostname -I", "node -p 'crypto.randomUUID()'"} {
			got := s.output(sb, "sh", "-c", what)
			if identities[what+got] {
				t.Errorf("%s: two sandboxes have %q", what, got)
			}
			identities[what+got] = true
		}
	}
	if got := s.output(one, "sh", "-c", "echo $WHO; which node"); got != "one\n/vercel/runtimes/node24/bin/node" {
		t.Errorf("the first has %q", got)
	}
	if got := s.output(three, "sh", "-c", "echo $WHO; which python3"); got != "\n/vercel/runtimes/python/bin/python3" && got != "/vercel/runtimes/python/bin/python3" {
		t.Errorf("the third has %q", got)
	}
	if code, out := s.shell(two, "curl -sS -m 3 http://192.0.2.1/"); code == 0 {
		t.Errorf("a sandbox without a network reaches %q", out)
	}
	status, body := get(t, "http://"+addr+"/metrics")
	if status != http.StatusOK || !strings.Contains(body, "\nskerry_warm_starts_total{result=\"hit\"} 3\n") {
		t.Errorf("the metrics (%d) do not have three hits", status)
	}
	// They stop and resume as all others.
	s.shell(one, "echo kept >kept")
	s.stopSaved(one)
	if got := s.output(one, "cat", "kept"); got != "kept" {
		t.Errorf("after a resume there is %q", got)
	}
	s.awaitReady(3)
	s.assertOwned(5)
}

// TestWarmLeavesNoTrace compares the files of a sandbox that was started ahead with those
// of one that was not.
func TestWarmLeavesNoTrace(t *testing.T) {
	s := newServer(t, "--warm", "1")
	s.awaitReady(1)
	warm := s.create(client.CreateOptions{Name: "warm-a"})
	cold := s.create(client.CreateOptions{Name: "cold-a", VCPUs: 1})
	if !s.isWarm(warm) || s.isWarm(cold) {
		t.Fatal("the test needs one of each")
	}
	list := func(sb *client.Sandbox) string {
		return s.output(sb, "sudo", "find", "/", "-xdev", "-not", "-path", "/proc/*", "-not", "-path", "/sys/*", "-printf", `%p %y %m %u %g %s %l\n`)
	}
	a, b := strings.Split(list(warm), "\n"), strings.Split(list(cold), "\n")
	if len(a) < 1000 {
		t.Fatalf("only %d files", len(a))
	}
	seen := map[string]bool{}
	for _, line := range b {
		seen[line] = true
	}
	for _, line := range a {
		if !seen[line] {
			t.Errorf("only the one that was started ahead has %s", line)
		}
		delete(seen, line)
	}
	for line := range seen {
		t.Errorf("only the other one has %s", line)
	}
	const look = "ls -A /tmp /var/tmp /dev/shm /home/vercel-sandbox /root; ps -e -o args="
	if a, b := s.output(warm, "sudo", "sh", "-c", look), s.output(cold, "sudo", "sh", "-c", look); a != b {
		t.Errorf("one that was started ahead has\n%s\nthe other has\n%s", a, b)
	}
}

// TestWarmSurvives kills and ends servers that have sandboxes ready.
func TestWarmSurvives(t *testing.T) {
	s := newServer(t, "--warm", "2")
	s.awaitReady(2)
	sb := s.create(client.CreateOptions{Name: "kept"})
	if !s.isWarm(sb) {
		t.Error("it was not started ahead")
	}
	s.awaitReady(2)
	before := s.ready()
	s.kill()
	s.start()
	s.assertAlive(s.get("kept"))
	for id := range s.ready() {
		if _, was := before[id]; !was {
			t.Errorf("%s was not ready before", id)
		}
	}
	s.awaitReady(2)
	s.assertOwned(5)
	again := s.create(client.CreateOptions{Name: "again", Env: map[string]string{"A": "a"}})
	if id := s.machine(again.Session().ID); before[id] == "" {
		t.Errorf("machine %s was not ready before the crash", id)
	}
	if got := s.output(again, "sh", "-c", "echo $A; hostname"); got != "a\nagain" {
		t.Errorf("it prints %q", got)
	}
	if err := s.stop("--keep-sandboxes"); err != nil {
		t.Fatal(err)
	}
	if n := len(s.ready()); n == 0 {
		t.Error("the sandboxes that were ready ended, though others were kept")
	}
	s.flags = []string{"--warm", "0"}
	s.start()
	s.waitFor("the sandboxes that were ready to end", func() bool { return len(s.ready()) == 0 })
	s.assertAlive(s.get("kept"))
	s.assertOwned(5)
}

// TestWarmSentryDies has the kernel of a sandbox that is ready end.
func TestWarmSentryDies(t *testing.T) {
	s := newServer(t, "--warm", "1")
	s.awaitReady(1)
	for id := range s.ready() {
		if err := syscall.Kill(s.sentryOf(id), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		sb := s.create(client.CreateOptions{})
		if got := s.machine(sb.Session().ID); got == id {
			t.Error("the sandbox has the machine that has ended")
		}
		s.assertAlive(sb)
	}
	s.awaitReady(1)
	s.assertOwned(5)
}

// TestWarmBurst creates more sandboxes at once than are ready.
func TestWarmBurst(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "3", "--metrics-listen", addr)
	s.awaitReady(3)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			sb, err := s.CreateSandbox(t.Context(), client.CreateOptions{Name: fmt.Sprintf("burst-%d", i)})
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := sb.Command(t.Context(), "hostname").CombinedOutput(); err != nil || string(out) != fmt.Sprintf("burst-%d\n", i) {
				t.Errorf("%d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
	hits := 0
	for i := range 6 {
		if s.isWarm(s.get(fmt.Sprintf("burst-%d", i))) {
			hits++
		}
	}
	if hits < 3 {
		t.Errorf("%d of 3 that were ready were used", hits)
	}
	s.waitFor("as many to be ready as are wanted", func() bool {
		_, body := get(t, "http://"+addr+"/metrics")
		var ready, wanted int
		for line := range strings.Lines(body) {
			_, _ = fmt.Sscanf(line, "skerry_warm_ready %d", &ready)
			_, _ = fmt.Sscanf(line, "skerry_warm_wanted %d", &wanted)
		}
		return wanted >= 3 && ready == wanted
	})
	s.assertOwned(5)
}
