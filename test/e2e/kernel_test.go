package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestKernel holds a sandbox's kernel against Linux: the programs in
// testdata/kernel pass on both, but for absent.py, which holds
// docs/compatibility.md against it, and limits.py, which does so with
// docs/limits.md.
func TestKernel(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	s.drive("data", 64<<20)
	sb := s.create(client.CreateOptions{Mounts: mountAt("/data", "data", "")})
	if err := sb.WriteFiles(t.Context(), "kernel", os.DirFS("testdata/kernel")); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"terminal", "loopback", "process", "drive", "absent", "limits"} {
		t.Run(program, func(t *testing.T) {
			s.in(t).assertChecks(s.output(sb, "python3", "kernel/"+program+".py"))
		})
	}
	t.Run("root", func(t *testing.T) {
		s.in(t).assertChecks(s.asRoot(sb, "python3", "kernel/loopback.py"))
		s.in(t).assertChecks(s.asRoot(sb, "python3", "kernel/fuse.py"))
	})
}

// assertChecks makes a test of each check that a program of testdata/kernel
// tells the outcome of.
func (s *server) assertChecks(out string) {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := lines[len(lines)-1]; last != "end" {
		s.t.Errorf("the checks did not come to their end: %q", last)
	}
	for _, line := range lines[:len(lines)-1] {
		outcome, rest, _ := strings.Cut(line, " ")
		name, why, _ := strings.Cut(rest, " ")
		s.t.Run(name, func(t *testing.T) {
			if outcome != "ok" {
				t.Error(why)
			}
		})
	}
}

// TestTerminalInMemorySnapshot: what was typed ahead on a terminal is there when
// the sandbox goes on from its memory.
func TestTerminalInMemorySnapshot(t *testing.T) {
	s := newServer(t, "--ready-networks", "0")
	sb := s.create(client.CreateOptions{})
	s.detach(sb, `exec python3 -c '
import os, termios, time
m, r = os.openpty()
os.write(m, b"one\nab\x04\x04\x16")
termios.tcflow(r, termios.TCOOFF)
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
os.write(m, b"\x03\n")
read = [os.read(r, 100) for _ in range(4)]
os.set_blocking(r, False)
try: os.write(r, b"x"); read.append("written")
except BlockingIOError: read.append("stopped")
with open("new", "w") as f: print(read, file=f)
os.rename("new", "done")'`)
	s.shell(sb, "until [ -e ready ]; do sleep 0.01; done")
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range []*client.Sandbox{sb, fork} {
		const want = `[b'one\n', b'ab', b'', b'\x03\n', 'stopped']`
		if code, got := s.shell(sb, "touch go; until [ -e done ]; do sleep 0.01; done; cat done"); code != 0 || strings.TrimSpace(got) != want {
			t.Errorf("%s: %d, %q, want %q", sb.Info().Name, code, got, want)
		}
	}
}
