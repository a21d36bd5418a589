package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// TestVisibleSize: programs size themselves by what they see.
func TestVisibleSize(t *testing.T) {
	s := newServer(t)
	for _, vcpus := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(vcpus), func(t *testing.T) {
			s := s.in(t)
			sb := s.create(client.CreateOptions{VCPUs: vcpus})
			defer s.delete(sb)
			for _, count := range []string{"nproc", "grep -c ^processor /proc/cpuinfo", `node -p "os.cpus().length"`, "getconf _NPROCESSORS_ONLN"} {
				if got := s.output(sb, "sh", "-c", count); got != strconv.Itoa(vcpus) {
					t.Errorf("%s: %s, want %d", count, got, vcpus)
				}
			}
			want := vcpus * 2048
			if got := s.output(sb, "sh", "-c", "free -m | awk '/^Mem:/{print $2}'"); got != strconv.Itoa(want) {
				t.Errorf("free: %s MiB, want %d", got, want)
			}
			if run := sb.Session(); run.VCPUs != vcpus || run.MemoryMB != want {
				t.Errorf("the session has %d vCPUs and %d MiB", run.VCPUs, run.MemoryMB)
			}
		})
	}
}

// TestExhaustion: what a sandbox uses up it lacks itself. It lives on, and so
// does its neighbour.
func TestExhaustion(t *testing.T) {
	s := newServer(t, "--disk", "1", "--max-processes", "200")
	sb, neighbour := s.create(client.CreateOptions{VCPUs: 1}), s.create(client.CreateOptions{VCPUs: 1})
	stays := s.detach(neighbour, "exec sleep 1000")
	for name, exhaust := range map[string]func(*server, *client.Sandbox){
		"memory": exhaustMemory, "processes": exhaustProcesses, "disk": exhaustDisk,
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			exhaust(s, sb)
			s.assertAlive(sb)
			s.assertAlive(neighbour)
			if got := s.output(neighbour, "sh", "-c", "echo x >there && cat there"); got != "x" {
				t.Errorf("the neighbour's file holds %q", got)
			}
		})
	}
	cmd, err := neighbour.FindCommand(t.Context(), stays.ID())
	if err != nil {
		t.Fatal(err)
	}
	if info := cmd.Info(); info.Finished() {
		t.Errorf("the neighbour's command has ended with %d", *info.ExitCode)
	}
}

// exhaustMemory: the greediest process ends and its command is told why;
// bystanders and what is in memory stay.
func exhaustMemory(s *server, sb *client.Sandbox) {
	s.t.Helper()
	bystander := s.detach(sb, "exec sleep 1000")
	if code, out := s.shell(sb, "head -c 100M /dev/zero >/dev/shm/kept"); code != 0 {
		s.t.Fatalf("100 MiB into /dev/shm: exit code %d\n%s", code, out)
	}
	const greedy = `python3 -c '
kept = []
while True: kept.append(bytearray(b"x" * (16 << 20)))'`
	told := 0
	for what, script := range map[string]string{"a command": "exec " + greedy, "a child of a command": greedy + "; echo child ended with $?"} {
		code, out := s.shell(sb, script)
		if code != 137 && !strings.Contains(out, "child ended with 137") {
			s.t.Errorf("%s that takes memory without end: exit code %d\n%s", what, code, out)
		}
		if code == 137 && !strings.Contains(out, "skerry: out of memory: ") {
			s.t.Errorf("%s that was killed for want of memory is not told so:\n%s", what, out)
		}
		if strings.Contains(out, `skerry: out of memory: "python3"`) && strings.Contains(out, "the sandbox has 2048 MiB") {
			told++
		}
	}
	// If a sandbox is quicker than its guard, the host's kernel kills, and does
	// not say what.
	log, err := os.ReadFile(s.path("state/sandboxd.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	if killed := strings.Count(string(log), "a process of a sandbox was killed: out of memory"); told != killed {
		s.t.Errorf("%d commands were told that they lost a process for want of memory, of %d that did", told, killed)
	}
	if code, out := s.shell(sb, "head -c 3G /dev/zero >/dev/shm/more"); code == 0 || !strings.Contains(out, "No space left on device") {
		s.t.Errorf("3 GiB into /dev/shm: exit code %d\n%s", code, out)
	}
	if got := s.output(sb, "sh", "-c", "stat -c %s /dev/shm/kept; rm /dev/shm/more"); got != fmt.Sprint(100<<20) {
		s.t.Errorf("what was in /dev/shm has %s bytes", got)
	}
	cmd, err := sb.FindCommand(s.t.Context(), bystander.ID())
	if err != nil {
		s.t.Fatal(err)
	}
	if info := cmd.Info(); info.Finished() {
		s.t.Errorf("a bystander ended with %d", *info.ExitCode)
	}
}

func exhaustProcesses(s *server, sb *client.Sandbox) {
	s.t.Helper()
	// Forks until it cannot, tells how often, and ends its children.
	out := s.output(sb, "python3", "-c", `
import os, signal
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except BlockingIOError as e:
    print(len(children), e.strerror)
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)`)
	n, why, _ := strings.Cut(out, " ")
	if made, err := strconv.Atoi(n); err != nil || made < 100 || made > 220 || why != "Resource temporarily unavailable" {
		s.t.Errorf("a program that forks without end: %s", out)
	}
	// A real bomb, and the way to end it: the command's process group. Tasks
	// that are on their way out still cost gVisor host processes, so that a bomb
	// may reach the host's limit and end its own sandbox; nothing else may.
	before := sb.Session().ID
	bomb := s.detach(sb, "b() { b | b & }; b; sleep 1000")
	s.waitFor("the bomb to fill the sandbox", func() bool {
		err := sb.Command(s.t.Context(), "true").Run()
		return err != nil || sb.Session().ID != before
	})
	if err := bomb.Kill(s.t.Context(), client.SIGKILL); err != nil {
		s.t.Error(err)
	}
	s.waitFor("the sandbox to be usable after the bomb", func() bool {
		return sb.Command(s.t.Context(), "true").Run() == nil
	})
	if now := sb.Session().ID; now != before {
		s.t.Logf("the bomb ended session %s", before)
	}
}

func exhaustDisk(s *server, sb *client.Sandbox) {
	s.t.Helper()
	code, out := s.shell(sb, "dd if=/dev/zero of=big bs=1M count=2000 2>&1")
	if code == 0 || !strings.Contains(out, "No space left on device") {
		s.t.Errorf("a full disk: exit code %d\n%s", code, out)
	}
	size, err := strconv.ParseInt(s.output(sb, "stat", "-c", "%s", "big"), 10, 64)
	if err != nil || size < 900<<20 || size > 1<<30 {
		s.t.Errorf("a disk of 1 GiB took a file of %d bytes, %v", size, err)
	}
	more := bytes.Repeat([]byte("more"), 2<<20) // zeros would take no room
	err = sb.WriteFile(s.t.Context(), "more", more, 0o644)
	assertError(s.t, "write to a full disk", err, 422, skerry.CodeDiskFull)
	if e, ok := errors.AsType[*client.Error](err); ok && !strings.Contains(e.Message, "more") {
		s.t.Errorf("the message does not name the file: %s", e.Message)
	}
	s.assertAlive(sb)
	s.output(sb, "rm", "-f", "big", "more")
	if err := sb.WriteFile(s.t.Context(), "more", more, 0o644); err != nil {
		s.t.Errorf("write to a disk with room again: %v", err)
	}
}

// TestInheritedFiles: what the server's starter left open does not reach the
// sandboxes' kernels.
func TestInheritedFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	info, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s := prepareServer(t)
	s.files = []*os.File{w, w, w}
	s.start()
	s.create(client.CreateOptions{})
	sentries := 0
	for pid := range s.processes() {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) > 0 {
			sentries++
		}
		for _, f := range files {
			if target, _ := os.Readlink(f); target == info {
				t.Errorf("%s is the starter's %s", f, info)
			}
		}
	}
	if sentries == 0 {
		t.Error("no process of the sandbox was found")
	}
}
