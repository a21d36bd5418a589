package e2e

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// idles waits until the server has paused a session that nobody uses. Everybody sees
// that it runs.
func (s *server) idles(sb *client.Sandbox) {
	s.t.Helper()
	s.waitFor("sandbox "+sb.Name()+" to be idle", func() bool {
		now := s.get(sb.Name())
		if now.Session().Status != skerry.StatusRunning || !now.Session().PausedAt.IsZero() {
			s.t.Fatalf("sandbox %s is %+v", sb.Name(), now.Session())
		}
		return now.Session().IdleState == skerry.IdlePaused && now.Info().IdleState == skerry.IdlePaused
	})
	if s.usesCPU(sb.Session().ID) {
		s.t.Errorf("sandbox %s uses CPU, and is idle", sb.Name())
	}
}

// staysAwake fails if a session is paused within several times --idle-pause.
func (s *server) staysAwake(sb *client.Sandbox) {
	s.t.Helper()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if s.get(sb.Name()).Session().IdleState != "" {
			s.t.Fatalf("sandbox %s is paused", sb.Name())
		}
	}
}

// cli runs the command-line tool and returns what it prints.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(programs, "sandbox"), args...)
	cmd.Env = append(cmd.Environ(), "XDG_CONFIG_HOME="+s.path("config"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("sandbox %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestIdleSessions: a session that nobody uses is paused, everything that can happen to
// a session can happen to it, and nobody notices.
func TestIdleSessions(t *testing.T) {
	metrics := freeAddress(t)
	s := newServer(t, "--idle-pause", "1s", "--metrics-listen", metrics)
	newIdle := func(t *testing.T, opts client.CreateOptions) *client.Sandbox {
		t.Helper()
		s := s.in(t)
		opts.VCPUs = 1
		sb := s.create(opts)
		s.output(sb, "sh", "-c", "echo kept > file")
		s.idles(sb)
		return sb
	}
	kept := func(t *testing.T, sb *client.Sandbox) {
		t.Helper()
		if got := s.in(t).output(sb, "cat", "file"); got != "kept" {
			t.Errorf("the file has %q", got)
		}
	}
	t.Run("commands", func(t *testing.T) {
		s := s.in(t)
		sb := newIdle(t, client.CreateOptions{Name: "used"})
		if out := s.cli("ls"); !strings.Contains(out, "used") || !strings.Contains(out, "idle") {
			t.Errorf("sandbox ls prints %q", out)
		}
		if out := s.cli("exec", "used", "cat", "file"); out != "kept\n" {
			t.Errorf("sandbox exec prints %q", out)
		}
		if now := s.get("used"); now.Session().IdleState != "" || now.Session().ID != sb.Session().ID {
			t.Errorf("after a command it is %+v", now.Session())
		}
		s.idles(sb)
		if b, err := sb.ReadFile(t.Context(), "file"); err != nil || string(b) != "kept\n" {
			t.Errorf("a file: %q, %v", b, err)
		}
		s.idles(sb)
		// The clock is right, and a command that waits is waited for.
		before := time.Now().Unix()
		out := s.output(sb, "sh", "-c", "sleep 3; date +%s")
		if at, err := strconv.ParseInt(out, 10, 64); err != nil || at < before+3 || at > time.Now().Unix() {
			t.Errorf("its clock is at %s, and was not before %d", out, before)
		}
		s.idles(sb)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if out, err := sb.Command(t.Context(), "echo", "on").CombinedOutput(); err != nil || string(out) != "on\n" {
					t.Errorf("one of a hundred commands: %q, %v", out, err)
				}
			})
		}
		wg.Wait()
		s.idles(sb)
		if err := sb.ExtendTimeout(t.Context(), time.Minute); err != nil {
			t.Error(err)
		}
		if err := sb.SetNetworkPolicy(t.Context(), client.NetworkPolicy{Mode: "deny-all"}); err != nil {
			t.Error(err)
		}
		kept(t, sb)
		_, body := get(t, "http://"+metrics+"/metrics")
		for _, series := range []string{`skerry_step_duration_seconds_count{result="ok",step="wake"}`, `skerry_sessions{state="idle"}`} {
			if !strings.Contains(body, series) {
				t.Errorf("there is no metric %s", series)
			}
		}
		s.delete(sb)
	})
	t.Run("server in it", func(t *testing.T) {
		s := s.in(t)
		sb := s.create(client.CreateOptions{VCPUs: 1, Ports: []int{8000}})
		s.detach(sb, "echo hello > index.html; exec python3 -m http.server 8000")
		at, err := sb.Domain(8000)
		if err != nil {
			t.Fatal(err)
		}
		s.waitFor("the server in it", func() bool { return fetch(t, at).status == http.StatusOK })
		s.staysAwake(sb)
		pause := skerry.IdlePause
		if err := sb.Update(t.Context(), client.UpdateOptions{Idle: &pause}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			s.idles(sb)
			if got := fetch(t, at+"/index.html"); got.status != http.StatusOK || got.body != "hello\n" {
				t.Errorf("it answers %+v", got)
			}
		}
		s.idles(sb)
		s.cli("config", "idle", sb.Name(), "never")
		s.waitFor("the session to be resumed", func() bool { return s.get(sb.Name()).Session().IdleState == "" })
		s.staysAwake(sb)
		s.delete(sb)
	})
	t.Run("program at work", func(t *testing.T) {
		s := s.in(t)
		sb := s.create(client.CreateOptions{VCPUs: 1, Idle: skerry.IdlePause})
		s.busy(sb)
		s.staysAwake(sb)
		s.delete(sb)
	})
	t.Run("timeout", func(t *testing.T) {
		sb := newIdle(t, client.CreateOptions{Timeout: 8 * time.Second})
		s.in(t).waitFor("the session to time out", func() bool { return s.get(sb.Name()).Session().Status == skerry.StatusStopped })
		kept(t, s.get(sb.Name()))
		s.in(t).delete(sb)
	})
	t.Run("stop", func(t *testing.T) {
		sb := newIdle(t, client.CreateOptions{})
		s.in(t).stopSaved(sb)
		if now := s.get(sb.Name()); now.Session().IdleState != "" || now.Session().Status != skerry.StatusStopped {
			t.Errorf("after the stop it is %+v", now.Session())
		}
		kept(t, sb)
		s.in(t).delete(sb)
	})
	t.Run("fork", func(t *testing.T) {
		sb := newIdle(t, client.CreateOptions{})
		for _, opts := range []client.ForkOptions{{Memory: true}, {Live: true}} {
			fork, err := sb.Fork(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			kept(t, fork)
			s.in(t).idles(fork)
			s.in(t).idles(sb)
			kept(t, fork)
			s.in(t).delete(fork)
		}
		for _, memory := range []bool{false, true} {
			s.in(t).idles(sb)
			if _, err := sb.Snapshot(t.Context(), client.TakeOptions{Memory: memory}); err != nil {
				t.Errorf("a snapshot, memory %v: %v", memory, err)
			}
			sb = s.get(sb.Name())
			kept(t, sb)
		}
		s.in(t).delete(sb)
	})
	t.Run("pause", func(t *testing.T) {
		sb := newIdle(t, client.CreateOptions{})
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.get(sb.Name()).Session(); now.PausedAt.IsZero() || now.IdleState != "" {
			t.Errorf("it is %+v", now)
		}
		kept(t, sb)
		s.in(t).delete(sb)
	})
	t.Run("restart", func(t *testing.T) {
		s := s.in(t)
		sb := newIdle(t, client.CreateOptions{})
		id := sb.Session().ID
		if err := s.stop("--keep-sandboxes"); err != nil {
			t.Fatal(err)
		}
		s.start()
		kept(t, s.get(sb.Name()))
		s.idles(s.get(sb.Name()))
		s.kill()
		s.start()
		s.idles(s.get(sb.Name()))
		s.kill()
		s.start()
		sb = s.get(sb.Name())
		kept(t, sb)
		if sb.Session().ID != id {
			t.Error("it is another session")
		}
		s.delete(sb)
	})
	s.assertOwned(5)
}

// TestIdleTimers: a session that is paused although programs run in it is resumed for
// what they wait for, and paused again. Programs that look for work all the time do not
// prevent that. A command ends when its time is up.
func TestIdleTimers(t *testing.T) {
	metrics := freeAddress(t)
	s := newServer(t, "--idle-pause", "1s", "--metrics-listen", metrics)
	sb := s.create(client.CreateOptions{VCPUs: 1, Idle: skerry.IdlePause})
	s.detach(sb, "exec python3 -m http.server 8000")
	began := time.Now()
	for i, script := range []string{
		"sleep 14",
		`python3 -c 'import os, time
fd = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(fd, initial=29)
os.read(fd, 8)'`,
	} {
		s.detach(sb, script+"; date +%s >> done; echo "+strconv.Itoa(i)+" >> done")
	}
	limited := sb.Command(t.Context(), "sleep", "1000")
	limited.Detached, limited.Timeout = true, 44*time.Second
	if err := limited.Start(); err != nil {
		t.Fatal(err)
	}
	wakes := func() int {
		_, body := get(t, "http://"+metrics+"/metrics")
		for line := range strings.Lines(body) {
			if n, ok := strings.CutPrefix(line, `skerry_step_duration_seconds_count{result="ok",step="wake"} `); ok {
				count, err := strconv.Atoi(strings.TrimSpace(n))
				if err != nil {
					t.Fatal(err)
				}
				return count
			}
		}
		return 0
	}
	s.waitFor("the session to be resumed three times", func() bool { return wakes() >= 3 })
	s.idles(sb)
	lines := strings.Fields(s.output(sb, "cat", "done"))
	if len(lines) != 4 {
		t.Fatalf("what has ended: %q", lines)
	}
	for i := 0; i < len(lines); i += 2 {
		at, err := strconv.ParseInt(lines[i], 10, 64)
		due := began.Add(time.Duration(14+15*i/2) * time.Second)
		if late := time.Unix(at, 0).Sub(due); err != nil || lines[i+1] != strconv.Itoa(i/2) || late < -2*time.Second || late > 4*time.Second {
			t.Errorf("program %s has ended %s after its time, %v", lines[i+1], late, err)
		}
	}
	if err := limited.Wait(); err == nil {
		t.Error("the command whose time is up has succeeded")
	}
	s.delete(sb)
	s.assertOwned(5)
}
