package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testManager(t testing.TB) *Manager {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("cgroups are made as root")
	}
	m, err := New(fmt.Sprintf("skerry-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestGroupLimitsAndMeters(t *testing.T) {
	m := testManager(t)
	g, err := m.Create("one", Limits{CPUs: 1, MemoryBytes: 64 << 20, Processes: 8})
	if err != nil {
		t.Fatal(err)
	}
	// The shell waits for a line, so that it allocates only inside the group.
	cmd := exec.Command("sh", "-c", "read x; head -c 200m /dev/zero | tail; true")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("Processes() = %v, %v; want the shell alone", pids, err)
	}
	fmt.Fprintln(in)
	cmd.Wait()
	u, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.OOMKills == 0 {
		t.Error("200 MiB in a group of 64 MiB met no limit")
	}
	if u.CPU <= 0 {
		t.Error("no CPU time was metered")
	}
	if names, err := m.Groups(); err != nil || len(names) != 1 || names[0] != "one" {
		t.Errorf("Groups() = %v, %v", names, err)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestProcessLimit(t *testing.T) {
	m := testManager(t)
	g, err := m.Create("few", Limits{Processes: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove(context.Background())
	cmd := exec.Command("sh", "-c", "read x; for i in 1 2 3 4 5 6 7 8; do sleep 100 & done")
	in, _ := cmd.StdinPipe()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	if err := cmd.Wait(); err == nil {
		t.Error("eight children started in a group of four processes")
	}
}

// TestWeights has two groups compute on one CPU.
func TestWeights(t *testing.T) {
	m := testManager(t)
	var own, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if own.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	busy := func(weight int) *Group {
		g, err := m.Create(fmt.Sprint(weight), Limits{Weight: weight})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := g.Remove(context.Background()); err != nil {
				t.Error(err)
			}
		})
		cmd := exec.Command("sh", "-c", "read x; while :; do :; done")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if err := errors.Join(g.Add(cmd.Process.Pid), unix.SchedSetaffinity(cmd.Process.Pid, &one)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in)
		return g
	}
	light, heavy := busy(100), busy(1000)
	used := func(g *Group) time.Duration {
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u.CPU
	}
	first := [2]time.Duration{used(light), used(heavy)}
	for {
		if a, b := used(light)-first[0], used(heavy)-first[1]; a+b > 500*time.Millisecond {
			if b < 3*a {
				t.Errorf("with weights 100 and 1,000 two groups used %v and %v", a, b)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestRemoveKills(t *testing.T) {
	m := testManager(t)
	g, err := m.Create("busy", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the process outlived its group")
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Errorf("removing twice: %v", err)
	}
}

func TestCreateRefusesPaths(t *testing.T) {
	m := testManager(t)
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		if _, err := m.Create(name, Limits{}); err == nil {
			t.Errorf("Create(%q) succeeded", name)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
	m, err := parseMounts(hybrid)
	if err != nil {
		t.Fatal(err)
	}
	if m.v2 != "/sys/fs/cgroup/unified" || m.v1["cpuacct"] != "/sys/fs/cgroup/cpu,cpuacct" || m.v1["memory"] != "/sys/fs/cgroup/memory" {
		t.Errorf("parseMounts = %+v", m)
	}
	if _, err := parseMounts("nonsense\n"); err == nil {
		t.Error("a malformed line was accepted")
	}
}

func TestBoundHoldsAllGroupsTogether(t *testing.T) {
	m := testManager(t)
	if err := m.Bound(Limits{Processes: 3}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	for _, name := range []string{"one", "two"} {
		g, err := m.Create(name, Limits{Processes: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Remove(context.Background())
		cmd := exec.Command("sh", "-c", "read x; sleep 100 & exec sleep 100")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- cmd.Wait() }()
		defer cmd.Process.Kill()
		if err := g.Add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in)
		in.Close()
	}
	// Four are wanted, three can be had, whichever comes last.
	deadline := time.After(10 * time.Second)
	for {
		one, err := m.Open("one").Processes()
		if err != nil {
			t.Fatal(err)
		}
		two, err := m.Open("two").Processes()
		if err != nil {
			t.Fatal(err)
		}
		if len(one)+len(two) > 3 {
			t.Fatalf("%d processes run under a bound of 3", len(one)+len(two))
		}
		if len(one)+len(two) == 3 {
			return
		}
		select {
		case err := <-ended:
			// A shell that cannot fork ends.
			if err == nil {
				t.Error("a shell ended without an error")
			}
			return
		case <-deadline:
			t.Fatalf("%d processes run, want 3", len(one)+len(two))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestBoundOfMemoryHoldsAllGroupsTogether(t *testing.T) {
	m := testManager(t)
	if limit, err := m.MemoryLimit(); err != nil || limit != 0 {
		t.Errorf("without a bound the limit is %d, %v", limit, err)
	}
	if err := m.Bound(Limits{MemoryBytes: 64 << 20, Weight: 50}); err != nil {
		t.Fatal(err)
	}
	if limit, err := m.MemoryLimit(); err != nil || limit != 64<<20 {
		t.Errorf("under a bound of 64 MiB the limit is %d, %v", limit, err)
	}
	g, err := m.Create("greedy", Limits{MemoryBytes: 1 << 30, Weight: 400})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove(context.Background())
	// A line without an end, which tail has to hold.
	cmd := exec.Command("sh", "-c", "read x; head -c 134217728 /dev/zero | tail -n 1 >/dev/null; echo $?; read y")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	var code int
	if _, err := fmt.Fscan(out, &code); err != nil {
		// The kernel may take the shell, too.
		code = 137
	}
	if code != 137 {
		t.Errorf("128 MiB under a bound of 64 ended with %d", code)
	}
	if err := m.Bound(Limits{MemoryBytes: 1}); err == nil {
		t.Error("a bound below what is held was set")
	}
}

// BenchmarkMemory reads what a group holds, as the node does for each machine.
func BenchmarkMemory(b *testing.B) {
	m := testManager(b)
	g, err := m.Create("one", Limits{MemoryBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			b.Error(err)
		}
	})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.PinnedMemory(1 << 20); err != nil {
			b.Fatal(err)
		}
	}
}
