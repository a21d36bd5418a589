package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/cgroup/cgrouptest"
)

// holding is how many bytes the process of startHolder holds.
const holding = 64 << 20

// startHolder starts a process in a group that holds one long line. The returned
// function has it print the line, and returns what was printed.
func startHolder(t *testing.T, g *Group) (line func() []byte) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `read x; { seq 1 20000000 | tr -d '\n' | head -c 64m; echo held >&2; read x; } | tail -n 1`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		cmd.Wait()
	})
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	if s, err := bufio.NewReader(said).ReadString('\n'); s != "held\n" {
		t.Fatalf("the process says %q, %v", s, err)
	}
	return func() []byte {
		fmt.Fprintln(in)
		b, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestReclaim(t *testing.T) {
	cgrouptest.Swap(t, 2*holding)
	m := testManager(t)
	g, err := m.Create("cold", Limits{MemoryBytes: 4 * holding})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove(context.Background())
	line := startHolder(t, g)
	before, err := g.PinnedMemory(0)
	if err != nil || before < holding {
		t.Fatalf("it holds %d bytes, %v", before, err)
	}
	freed, err := g.Reclaim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after, err := g.PinnedMemory(0)
	if err != nil {
		t.Fatal(err)
	}
	if freed < holding*3/4 || after > before-holding*3/4 {
		t.Errorf("%d bytes were given back: it held %d before and %d afterwards", freed, before, after)
	}
	swapped, err := g.Swapped()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.usage_in_bytes"); err == nil && swapped < holding*3/4 {
		t.Errorf("%d bytes are in swap", swapped) // the kernel counts them
	}
	// The pages are those that they were.
	want, err := exec.Command("sh", "-c", `seq 1 20000000 | tr -d '\n' | head -c 64m`).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := line(); len(got) != len(want) || crc32.ChecksumIEEE(got) != crc32.ChecksumIEEE(want) {
		t.Errorf("the process has %d bytes, and they are not those that it had", len(got))
	}
	// A group without processes has nothing to give.
	if _, err := g.Reclaim(t.Context()); err != nil {
		t.Errorf("an empty group: %v", err)
	}
}

// TestReclaimEnds: the kernel is interrupted when the time is up, and a group that has gone
// is an error.
func TestReclaimEnds(t *testing.T) {
	cgrouptest.Swap(t, 2*holding)
	m := testManager(t)
	g, err := m.Create("cold", Limits{MemoryBytes: 4 * holding})
	if err != nil {
		t.Fatal(err)
	}
	startHolder(t, g)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if freed, err := g.Reclaim(ended); err != nil || freed > holding/2 {
		t.Errorf("no time: %d bytes, %v", freed, err)
	}
	for _, left := range []time.Duration{time.Microsecond, time.Millisecond, 5 * time.Millisecond} {
		short, cancel := context.WithTimeout(t.Context(), left)
		if _, err := g.Reclaim(short); err != nil {
			t.Errorf("%v: %v", left, err)
		}
		cancel()
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Reclaim(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a group that was removed: %v", err)
	}
}

// TestWriteIsInterrupted has the write stand still in the kernel until the time is up.
func TestWriteIsInterrupted(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	full := fmt.Sprintf("/proc/self/fd/%d", w.Fd())
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := writeUntil(short, full, string(make([]byte, 1<<20))); err != nil {
		t.Error(err)
	}
	if err := writeUntil(t.Context(), filepath.Join(t.TempDir(), "memory.reclaim"), "1"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a kernel without the file: %v", err)
	}
}

// TestReclaimOfVersion2 reads what a kernel with version 2 would be told.
func TestReclaimOfVersion2(t *testing.T) {
	h := &v2{base: t.TempDir()}
	if err := os.Mkdir(h.dir("one"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := newManager("parent", h)
	write := func(file, value string) {
		if err := os.WriteFile(filepath.Join(h.dir("one"), file), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(file string) string {
		b, err := os.ReadFile(filepath.Join(h.dir("one"), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	write("memory.current", "4096000\n")
	write("memory.swap.max", "0")
	write("memory.reclaim", "")
	if _, err := m.Open("one").Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read("memory.reclaim"); got != "4096000" {
		t.Errorf("memory.reclaim got %q", got)
	}
	if n, err := h.swapped("one"); n != 0 || err != nil {
		t.Errorf("without the file, %d bytes are in swap, %v", n, err)
	}
	write("memory.swap.current", "8192\n")
	if n, err := h.swapped("one"); n != 8192 || err != nil {
		t.Errorf("%d bytes are in swap, %v", n, err)
	}
	if err := h.allowSwap("one", 7654321); err != nil || read("memory.swap.max") != "7654321" {
		t.Errorf("memory.swap.max is %q, %v", read("memory.swap.max"), err)
	}
}
