package guest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

func TestCommandResults(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "echo 'echo no interpreter line' > /tmp/script; chmod 755 /tmp/script; echo x > /tmp/plain; chmod 644 /tmp/plain; "+
		"printf '#!/no/such\\n' > /tmp/bad; chmod 755 /tmp/bad; mkdir -m 700 /tmp/closed")
	tests := []struct {
		name   string
		spec   guest.StartSpec
		code   int
		stdout string
		stderr string // contained in it
	}{
		{name: "success", spec: guest.StartSpec{Name: "true"}},
		{name: "exit code", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "exit 42"}}, code: 42},
		{name: "streams", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "echo out; echo err >&2"}}, stdout: "out\n", stderr: "err\n"},
		{name: "signal", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "kill -TERM $$"}}, code: 128 + 15},
		{name: "not executable", spec: guest.StartSpec{Name: "/tmp/plain"}, code: 126, stderr: "permission denied"},
		{name: "directory", spec: guest.StartSpec{Name: "/tmp"}, code: 126, stderr: "is a directory"},
		{name: "script without interpreter", spec: guest.StartSpec{Name: "/tmp/script"}, stdout: "no interpreter line\n"},
		{name: "cwd missing", spec: guest.StartSpec{Name: "true", Cwd: "/no/such/dir"}, code: 126, stderr: "cannot enter working directory /no/such/dir"},
		{name: "cwd closed", spec: guest.StartSpec{Name: "true", Cwd: "/tmp/closed"}, code: 126, stderr: "cannot enter working directory /tmp/closed"},
		{name: "cwd relative", spec: guest.StartSpec{Name: "pwd", Cwd: "."}, stdout: "/vercel/sandbox\n"},
		{name: "PATH relative to cwd", spec: guest.StartSpec{Name: "script", Cwd: "/tmp", Env: map[string]string{"PATH": "."}}, stdout: "no interpreter line\n"},
		{name: "PATH goes on after a closed file", spec: guest.StartSpec{Name: "plain", Env: map[string]string{"PATH": "/tmp"}}, code: 126, stderr: "permission denied"},
		{name: "stdin is empty", spec: guest.StartSpec{Name: "cat"}},
		{name: "user", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "echo $USER $LOGNAME $HOME $(id -u)"}},
			stdout: "vercel-sandbox vercel-sandbox /home/vercel-sandbox 1000\n"},
		{name: "root", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "echo $USER $HOME $FROM_SETUP $(id -u) $(id -G)"}, Root: true},
			stdout: "root /root yes 0 0\n"},
		{name: "environment", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "echo $FROM_SETUP $OWN"}, Env: map[string]string{"FROM_SETUP": "no", "OWN": "x"}},
			stdout: "no x\n"},
		{name: "own session", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "test $(ps -o sid= -p $$) = $$"}}},
		{name: "nothing inherited", spec: guest.StartSpec{Name: "sh", Args: []string{"-c", "ls /proc/self/fd | wc -l; umask"}}, stdout: "4\n0022\n"},
		{name: "no capabilities", spec: guest.StartSpec{Name: "grep", Args: []string{"CapEff", "/proc/self/status"}}, stdout: "CapEff:\t0000000000000000\n"},
		{name: "killable", spec: guest.StartSpec{Name: "cat", Args: []string{"/proc/self/oom_score_adj"}}, stdout: "0\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := run(t, c, tt.spec)
			if r.Code != tt.code || r.stdout != tt.stdout || !strings.Contains(r.stderr, tt.stderr) || (tt.stderr == "" && r.stderr != "") {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", r.Code, r.stdout, r.stderr, tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}

func TestStartRefusesWhatIsNotThere(t *testing.T) {
	_, c := start(t)
	sh(t, c, "printf '#!/no/such\\n' > /tmp/bad; chmod 755 /tmp/bad")
	for says, spec := range map[string]guest.StartSpec{
		"no-such-command: command not found":   {ID: "a", Name: "no-such-command"},
		"./nothing: no such file or directory": {ID: "a", Name: "./nothing"},
		"/tmp/bad: no such file or directory":  {ID: "a", Name: "/tmp/bad"},
		"true: command not found":              {ID: "a", Name: "true", Env: map[string]string{"PATH": "/nowhere"}},
	} {
		_, err := c.Start(testContext(t), spec)
		if skerry.CodeOf(err) != skerry.CodeExecutableNotFound || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s", spec.Name, err, says)
		}
	}
	// The id of a refused command is free.
	if p, err := c.Start(testContext(t), guest.StartSpec{ID: "a", Name: "true"}); err != nil {
		t.Error(err)
	} else if _, err := finish(testContext(t), p); err != nil {
		t.Error(err)
	}
}

func TestStartRefusesWhatNoProcessCanHave(t *testing.T) {
	_, c := start(t)
	for field, spec := range map[string]guest.StartSpec{
		"command": {ID: "a", Name: "a\x00b"},
		"args[1]": {ID: "a", Name: "a", Args: []string{"", "\x00"}},
		"env":     {ID: "a", Name: "a", Env: map[string]string{"A=B": ""}},
		"env.A":   {ID: "a", Name: "a", Env: map[string]string{"A": "\x00"}},
		"cwd":     {ID: "a", Name: "a", Cwd: "\x00"},
	} {
		_, err := c.Start(testContext(t), spec)
		if skerry.CodeOf(err) != skerry.CodeBadRequest || !strings.Contains(err.Error(), field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := c.Start(testContext(t), guest.StartSpec{ID: "a", Name: "a", Args: []string{strings.Repeat("x", 17<<20)}}); skerry.CodeOf(err) != skerry.CodeTooLarge {
		t.Errorf("17 MiB of arguments: %v", err)
	}
	if r := run(t, c, guest.StartSpec{Name: "true", Args: []string{strings.Repeat("x", 1<<20)}}); r.Code != 126 || !strings.Contains(r.stderr, "argument list too long") {
		t.Errorf("an argument of 1 MiB: %d %q", r.Code, r.stderr)
	}
	p := mustStart(t, c, guest.StartSpec{ID: "twice", Name: "sleep", Args: []string{"100"}})
	if _, err := c.Start(testContext(t), guest.StartSpec{ID: "twice", Name: "true"}); skerry.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("the same id again: %v", err)
	}
	p.Signal(syscall.SIGKILL)
	if exit, err := p.Wait(testContext(t)); err != nil || exit.Code != 137 || exit.Signal != syscall.SIGKILL {
		t.Errorf("killed: %+v, %v", exit, err)
	}
}

func TestHugeArguments(t *testing.T) {
	_, c := start(t)
	args := []string{"-c", "echo $#", "sh"}
	for range 15 {
		args = append(args, strings.Repeat("\x01é", 40<<10)) // 120 KiB each, more in JSON
	}
	if r := run(t, c, guest.StartSpec{Name: "sh", Args: args}); r.stdout != "15\n" {
		t.Errorf("%d %q %q", r.Code, r.stdout, r.stderr)
	}
}

func TestSignalReachesTheGroup(t *testing.T) {
	_, c := start(t)
	p := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "sleep 1000 & echo $!; wait"}})
	chunk, err := p.Next(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	child := strings.TrimSpace(string(chunk.Data))
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(testContext(t)); err != nil || exit.Code != 128+15 {
		t.Fatalf("%+v, %v", exit, err)
	}
	waitFor(t, func() bool { return sh(t, c, "test -d /proc/"+child+" || echo gone") == "gone" })
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal after the end: %v", err)
	}
}

// waitFor repeats ok, which runs a command each time, until it returns true.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not become so")
		}
	}
}

func TestTimeout(t *testing.T) {
	_, c := start(t)
	r := run(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "trap '' TERM; echo before; sleep 1000"}, Timeout: 200 * time.Millisecond})
	if r.Code != 137 || !r.TimedOut || r.stdout != "before\n" || r.Duration < 200*time.Millisecond || r.Duration > 10*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestStdin(t *testing.T) {
	_, c := start(t)
	p := mustStart(t, c, guest.StartSpec{Name: "sha1sum", Stdin: true})
	for range 64 {
		if _, err := p.Stdin().Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	r, err := finish(testContext(t), p)
	if want := sh(t, c, "head -c 6553600 /dev/zero | sha1sum"); err != nil || strings.TrimSpace(r.stdout) != want {
		t.Errorf("%q, %v; want %q", r.stdout, err, want)
	}
	// A process that does not read must not hold the writer for ever.
	p = mustStart(t, c, guest.StartSpec{Name: "sleep", Args: []string{"0.2"}, Stdin: true})
	for err == nil {
		_, err = p.Stdin().Write(make([]byte, 1<<20))
	}
	if exit, err := p.Wait(testContext(t)); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	_, c := start(t)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			p, err := c.Start(ctx, guest.StartSpec{ID: newID(), Name: "sh", Args: []string{"-c", fmt.Sprintf("echo %d; head -c 300000 /dev/zero; exit %d", i, i%100)}})
			if err != nil {
				t.Error(err)
				return
			}
			r, err := finish(ctx, p)
			if err != nil || r.Code != i%100 || len(r.stdout) != 300000+len(fmt.Sprintln(i)) {
				t.Errorf("command %d: exit %d, %d bytes, %v", i, r.Code, len(r.stdout), err)
			}
		})
	}
	wg.Wait()
	if procs, err := c.Processes(ctx); err != nil || len(procs) != 0 {
		t.Errorf("left: %+v, %v", procs, err)
	}
}

// TestAbandonedStarts: callers give up before their commands have started. The agent
// must not keep the commands, or it would reach its limit one day.
func TestAbandonedStarts(t *testing.T) {
	_, c := start(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	abandoned := 0
	for i := range 100 {
		name := "sleep"
		if i%10 == 0 {
			name = "no-such-program"
		}
		p, err := c.Start(gone, guest.StartSpec{ID: newID(), Name: name, Args: []string{"1000"}})
		switch {
		case errors.Is(err, context.Canceled):
			abandoned++
		case err == nil: // the answer came before the cancel
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, err := finish(testContext(t), p); err != nil {
				t.Fatal(err)
			}
		case name == "sleep":
			t.Fatalf("a start that nobody waits for: %v", err)
		}
	}
	if abandoned < 50 {
		t.Errorf("%d of 100 starts were abandoned", abandoned)
	}
	// A listing does not include commands that have not started yet.
	waitFor(t, func() bool {
		running := sh(t, c, "pgrep -x sleep || echo none")
		procs, err := c.Processes(testContext(t))
		return err == nil && len(procs) == 0 && running == "none"
	})
}

func TestZombiesAreReaped(t *testing.T) {
	_, c := start(t)
	sh(t, c, "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'exit 3' &) ; done; sleep 0.1")
	waitFor(t, func() bool {
		return sh(t, c, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || echo none") == "none"
	})
}

func TestGrandchildKeepsTheOutputOpen(t *testing.T) {
	_, c := start(t)
	r := run(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "head -c 3000000 /dev/zero; (while sleep 0.01; do echo later; done) & echo $! >&2"}})
	if r.Code != 0 || len(r.stdout) < 3000000 {
		t.Fatalf("exit %d, %d bytes", r.Code, len(r.stdout))
	}
	// The process that is left must neither get SIGPIPE nor block.
	pid := strings.TrimSpace(r.stderr)
	sh(t, c, "sleep 0.2; test -d /proc/"+pid)
	asRoot(t, c, "kill -9 "+pid)
	// The command ends, even if a process that is left never stops writing.
	r = run(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "yes & echo $! >&2; exit 7"}})
	if r.Code != 7 {
		t.Fatalf("exit %d", r.Code)
	}
	asRoot(t, c, "kill -9 "+strings.TrimSpace(r.stderr))
}

func TestShutdown(t *testing.T) {
	_, c := start(t)
	gentle := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done"}})
	stubborn := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"}})
	for _, p := range []*guest.Process{gentle, stubborn} {
		if _, err := p.Next(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Shutdown(testContext(t), 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for p, code := range map[*guest.Process]int{gentle: 5, stubborn: 137} {
		if exit, err := p.Wait(testContext(t)); err != nil || exit.Code != code {
			t.Errorf("%+v, %v; want %d", exit, err, code)
		}
	}
	if got := sh(t, c, "echo again"); got != "again" {
		t.Errorf("after the shutdown: %q", got)
	}
}

func TestTerminal(t *testing.T) {
	_, c := start(t)
	ctx := testContext(t)
	p := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "tty; stty size; read x; stty size; echo got $x"}, TTY: &guest.Size{Cols: 80, Rows: 24}})
	var out strings.Builder
	read := func(until string) {
		t.Helper()
		for !strings.Contains(out.String(), until) {
			chunk, err := p.Next(ctx)
			if err != nil {
				t.Fatalf("%v after %q", err, out.String())
			}
			out.Write(chunk.Data)
		}
	}
	read("24 80")
	if err := p.Resize(guest.Size{Cols: 132, Rows: 50}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdin().Write([]byte("word\r")); err != nil {
		t.Fatal(err)
	}
	read("50 132")
	read("got word")
	if exit, err := p.Wait(ctx); err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	if !strings.HasPrefix(out.String(), "/dev/pts/") {
		t.Errorf("no terminal: %q", out.String())
	}
	if r := run(t, c, guest.StartSpec{Name: "no-such", TTY: &guest.Size{Cols: 80, Rows: 24}}); r.Code != 127 || r.stdout != "no-such: command not found\r\n" {
		t.Errorf("%+v", r)
	}
	// Everything written before the end arrives.
	if r := run(t, c, guest.StartSpec{Name: "seq", Args: []string{"20000"}, TTY: &guest.Size{Cols: 80, Rows: 24}}); strings.Count(r.stdout, "\r\n") != 20000 {
		t.Errorf("%d lines of 20000", strings.Count(r.stdout, "\r\n"))
	}
}

func TestTerminalHangsUp(t *testing.T) {
	_, c := start(t)
	p := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "echo ready; sleep 1000"}, TTY: &guest.Size{Cols: 80, Rows: 24}})
	if _, err := p.Next(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(testContext(t)); err != nil || exit.Signal != syscall.SIGHUP {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestGroupsAreThoseOfTheMoment(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "groupadd -g 4242 late && usermod -aG late vercel-sandbox")
	if got := sh(t, c, "id -G"); !strings.Contains(got, "4242") {
		t.Errorf("groups %q", got)
	}
}

func TestSetupPreparesTheSandbox(t *testing.T) {
	_, c := start(t)
	for script, want := range map[string]string{
		"hostname":                           "box",
		"cat /etc/hostname":                  "box",
		"cat /etc/resolv.conf":               "nameserver 192.0.2.1",
		"grep -c box /etc/hosts":             "2",
		"stat -c '%U %a' /vercel/sandbox":    "vercel-sandbox 755",
		"stat -c '%U' /home/vercel-sandbox":  "vercel-sandbox",
		"stat -c '%a' /tmp":                  "1777",
		"getent passwd vercel-sandbox":       "vercel-sandbox:x:1000:1000::/home/vercel-sandbox:/bin/bash",
		"getent group vercel-sandbox":        "vercel-sandbox:x:1000:",
		"touch here && pwd":                  "/vercel/sandbox",
		"tr '\\0' ' ' < /proc/1/cmdline":     "/.agent",
		"cat /proc/1/environ 2>&1 | wc -c":   fmt.Sprint(len("cat: /proc/1/environ: Permission denied\n")),
		"kill -9 1 2>/dev/null || echo safe": "safe",
	} {
		if got := sh(t, c, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func TestInitSurvivesItsOwnRoot(t *testing.T) {
	_, c := start(t)
	asRoot(t, c, "kill -9 1; kill -HUP 1; kill -USR1 1; kill -PIPE 1; kill -QUIT 1; true")
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestOutputIsNotHeldBack(t *testing.T) {
	_, c := start(t)
	p := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "printf a; read x; printf b"}, Stdin: true})
	chunk, err := p.Next(testContext(t))
	if err != nil || string(chunk.Data) != "a" {
		t.Fatalf("%q, %v", chunk.Data, err)
	}
	if _, err := p.Stdin().Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if r, err := finish(testContext(t), p); err != nil || r.stdout != "b" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAgentIsSmall(t *testing.T) {
	s, c := start(t)
	st, err := os.Stat(agentBinary)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, c, "true")
	rss, data := memory(t, s.pid)
	t.Logf("binary %d KiB, RSS %d KiB of which %d KiB its own", st.Size()>>10, rss, data)
	if st.Size() > 4<<20 || data > 8<<10 {
		t.Errorf("binary %d bytes, RSS %d KiB of its own", st.Size(), data)
	}
}

// memory returns the resident set of a process and its anonymous part, in KiB.
func memory(t testing.TB, pid int) (rss, anon int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "VmRSS: %d", &rss)
		fmt.Sscanf(line, "RssAnon: %d", &anon)
	}
	if rss == 0 {
		t.Fatal(errors.New("no VmRSS"))
	}
	return rss, anon
}
