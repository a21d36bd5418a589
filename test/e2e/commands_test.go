package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// TestSlowReader: a command that prints more than anyone keeps waits for its
// reader, and neither the server nor the sandbox holds what is on the way.
func TestSlowReader(t *testing.T) {
	const blocks, block, bound = 1 << 10, 1 << 20, 128 << 20
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	cmd := sb.Command(t.Context(), "python3", "-c", `
import sys
lines = "".join(f"{i:063d}\n" for i in range(1, 16384))
for i in range(1024):
    sys.stdout.write(f"block {i:057d}\n" + lines)`)
	var lines strings.Builder
	for i := 1; i < block/64; i++ {
		fmt.Fprintf(&lines, "%063d\n", i)
	}
	want := sha256.New()
	for i := range blocks {
		fmt.Fprintf(want, "block %057d\n%s", i, lines.String())
	}
	server, box := rss(t, s.pid()), groupMemory(t, s, sb)
	sum := sha256.New()
	read, peakServer, peakBox, samples := int64(0), int64(0), int64(0), 0
	cmd.Stdout = writer(func(p []byte) (int, error) {
		read += int64(len(p))
		// Nothing is read while this looks.
		if int(read/(16*block)) > samples {
			samples++
			peakServer, peakBox = max(peakServer, rss(t, s.pid())-server), max(peakBox, groupMemory(t, s, sb)-box)
		}
		return sum.Write(p)
	})
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got := sum.Sum(nil); read != blocks*block || !bytes.Equal(got, want.Sum(nil)) {
		t.Errorf("%d bytes with hash %x arrived, want %d with %x", read, got, blocks*block, want.Sum(nil))
	}
	if samples < 60 {
		t.Errorf("memory was looked at %d times", samples)
	}
	t.Logf("the server grew by %d MiB, the sandbox by %d MiB", peakServer>>20, peakBox>>20)
	if peakServer > bound || peakBox > bound {
		t.Errorf("the server grew by %d MiB, the sandbox by %d MiB, more than %d", peakServer>>20, peakBox>>20, bound>>20)
	}
}

// TestStalledReader: a reader that takes nothing holds its command up, and
// nothing else.
func TestStalledReader(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	server := rss(t, s.pid())
	cmd := sb.Command(t.Context(), "sh", "-c", "echo $$; yes | head -c 60000000; echo end")
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var out bytes.Buffer
	cmd.Stdout = writer(func(p []byte) (int, error) {
		once.Do(func() { close(held) })
		<-release
		return out.Write(p)
	})
	end := make(chan error, 1)
	go func() { end <- cmd.Run() }()
	<-held
	// Other commands of the sandbox print as much meanwhile.
	for range 3 {
		if code, got := s.shell(sb, "yes | head -c 5000000 | wc -c"); code != 0 || strings.TrimSpace(got) != "5000000" {
			t.Errorf("beside a stalled reader: %d, %q", code, got)
		}
		if n := len(s.output(sb, "sh", "-c", "yes | head -c 5000000")); n < 4999999 {
			t.Errorf("beside a stalled reader: %d bytes", n)
		}
	}
	if grown := rss(t, s.pid()) - server; grown > 128<<20 {
		t.Errorf("the server grew by %d MiB", grown>>20)
	}
	close(release)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(out.Bytes(), []byte("y\nend\n")) || out.Len() < 60000000 {
		t.Errorf("%d bytes came, and they end %q", out.Len(), out.Bytes()[max(0, out.Len()-20):])
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// rss is how much memory of a process is its own, in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// groupMemory is what the kernel charges a sandbox for, in bytes.
func groupMemory(t *testing.T, s *server, sb *client.Sandbox) int64 {
	t.Helper()
	for _, dir := range s.groups()[sb.Session().ID] {
		for _, name := range []string{"memory.current", "memory.usage_in_bytes"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the sandbox has no memory cgroup")
	return 0
}

// TestManyCommands: no command gets a byte of another's.
func TestManyCommands(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			var stdout, stderr bytes.Buffer
			cmd := sb.Command(t.Context(), "sh", "-c", fmt.Sprintf(
				"i=0; while [ $i -lt 300 ]; do echo out %d $i; echo err %d $i >&2; i=$((i+1)); done; exit %d", i, i, i))
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			code := 0
			if exit, ok := errors.AsType[*client.ExitError](err); ok {
				code, err = exit.Code, nil
			}
			if err != nil || code != i {
				t.Errorf("command %d: exit code %d, %v", i, code, err)
			}
			var out, errs strings.Builder
			for n := range 300 {
				fmt.Fprintf(&out, "out %d %d\n", i, n)
				fmt.Fprintf(&errs, "err %d %d\n", i, n)
			}
			if stdout.String() != out.String() || stderr.String() != errs.String() {
				t.Errorf("command %d printed %.100q… and %.100q…", i, stdout.String(), stderr.String())
			}
		})
	}
	all.Wait()
}

// TestCommandEnds: every way in which a command ends, or cannot begin.
func TestCommandEnds(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{})
	for _, c := range []struct {
		name    string
		argv    []string
		dir     string
		timeout time.Duration
		code    int
		says    string
	}{
		{name: "its own code", argv: []string{"sh", "-c", "exit 42"}, code: 42},
		{name: "a signal", argv: []string{"sh", "-c", "kill -TERM $$"}, code: 143},
		{name: "its timeout", argv: []string{"sh", "-c", "echo waits; trap '' TERM; sleep 1000; sleep 1000"}, timeout: time.Second, code: 137, says: "waits"},
		{name: "not executable", argv: []string{"/etc/passwd"}, code: 126, says: "/etc/passwd"},
		{name: "a folder", argv: []string{"/etc"}, code: 126, says: "/etc"},
		{name: "no such directory", argv: []string{"true"}, dir: "/no/such", code: 126, says: "/no/such"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := sb.Command(t.Context(), c.argv[0], c.argv[1:]...)
			cmd.Dir, cmd.Timeout = c.dir, c.timeout
			out, err := cmd.CombinedOutput()
			var exit *client.ExitError
			if !errors.As(err, &exit) || exit.Code != c.code || !strings.Contains(string(out), c.says) {
				t.Errorf("%v, %q; want %d with %q", err, out, c.code, c.says)
			}
		})
	}
}

// TestNoSuchProgram: it is an error of the call, also of one that does not wait,
// and no command is left.
func TestNoSuchProgram(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	sb := s.create(client.CreateOptions{})
	for _, name := range []string{"no-such-program", "/no/such/program", "./nothing"} {
		for _, detached := range []bool{false, true} {
			cmd := sb.Command(t.Context(), name)
			cmd.Detached = detached
			err := cmd.Run()
			var refused *client.Error
			if !errors.As(err, &refused) || refused.Code != skerry.CodeExecutableNotFound || refused.Status != 400 || !strings.Contains(refused.Message, name+": ") {
				t.Errorf("%s, detached %v: %v", name, detached, err)
			}
		}
	}
	if list, err := sb.Commands(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("commands %v, %v", list, err)
	}
	for variable, want := range map[string]string{"SUDO_USER": "vercel-sandbox", "SUDO_UID": "1000", "SUDO_GID": "1000", "USER": "root", "HOME": "/root", "MINE": "kept"} {
		cmd := sb.Command(t.Context(), "printenv", variable)
		cmd.Sudo, cmd.Env = true, map[string]string{"MINE": "kept"}
		if out, err := cmd.Output(); err != nil || string(out) != want+"\n" {
			t.Errorf("with sudo, %s is %q, %v; want %q", variable, out, err, want)
		}
	}
	if path := s.output(sb, "printenv", "PATH"); !strings.Contains(":"+path+":", ":/vercel/bin:") || !strings.Contains(":"+path+":", ":/usr/local/bin:") {
		t.Errorf("PATH is %s", path)
	}
	if out := s.output(sb, "git", "init", "-q", "repo"); out != "" {
		t.Errorf("git init: %s", out)
	}
	status := sb.Command(t.Context(), "git", "-C", "repo", "status", "--short")
	status.Sudo = true
	if out, err := status.CombinedOutput(); err != nil {
		t.Errorf("git with sudo in the user's repository: %v, %s", err, out)
	}
}

// TestSessionTimeout: a session whose time is up ends by itself, as one that
// was stopped, and not before an extension is over.
func TestSessionTimeout(t *testing.T) {
	s := newServer(t, "--max-timeout", "1h")
	brief, extended := s.create(client.CreateOptions{Timeout: time.Second}), s.create(client.CreateOptions{Timeout: 3 * time.Second})
	if err := extended.ExtendTimeout(t.Context(), 10*time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := extended.Session().Timeout.Std(); got != 10*time.Minute+3*time.Second {
		t.Errorf("the extended timeout is %s", got)
	}
	assertError(t, "extend beyond the maximum", extended.ExtendTimeout(t.Context(), time.Hour), 400, skerry.CodeTimeoutInvalid)
	var run skerry.Session
	s.waitFor("the session to end", func() bool {
		run = s.get(brief.Name()).Session()
		return run.Status.Ended()
	})
	if run.Status != skerry.StatusStopped || run.Duration.Std() < time.Second || run.StoppedAt.Before(run.StartedAt.Add(time.Second)) {
		t.Errorf("the session timed out as %+v", run)
	}
	s.waitFor("the other's first timeout to pass", func() bool {
		return time.Since(extended.Session().StartedAt.Time) > 3*time.Second
	})
	s.assertAlive(extended)
	// The next session has its whole time again.
	s.output(brief, "true")
	if !brief.Resumed() || brief.Session().ID == run.ID {
		t.Error("a call after the timeout did not start a new session")
	}
}
