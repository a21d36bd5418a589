//go:build gvisor_patched

package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/seccheck"
)

// TestSentryDropsItsCapabilities checks every thread of a sentry and of the
// processes below it: a sentry drops its capabilities without an exec, so that a
// thread could be forgotten.
func TestSentryDropsItsCapabilities(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("bare"))
	g.ask("child sparse 1") // has the sentry start helpers
	sentry := m.(*machine).proc.pid
	threads := 0
	for _, pid := range append(descendants(sentry), sentry) {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended
			}
			threads++
			for _, want := range []string{
				"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
				"CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
			} {
				if !strings.Contains(string(b), want+"\n") {
					t.Errorf("%s lacks %q:\n%s", file, want, b)
				}
			}
		}
	}
	if threads < 5 {
		t.Errorf("found %d threads", threads)
	}
}

// TestSentryHasNoFilesOfTheHost: the program is not executed again, which would close
// what it has open for itself, such as its cgroup's limits.
func TestSentryHasNoFilesOfTheHost(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("few-files"))
	g.ask("cpus")
	dir := fmt.Sprintf("/proc/%d/fd", m.(*machine).proc.pid)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 5 {
		t.Fatalf("the sentry has %d descriptors: %v", len(entries), err)
	}
	for _, e := range entries {
		if file, _ := os.Readlink(filepath.Join(dir, e.Name())); strings.HasPrefix(filepath.Base(file), "cpu.") {
			t.Errorf("the sentry has %s open", file)
		}
	}
}

// TestSentryUnmountsProc: nothing of /proc is mounted in a sentry's namespace, and
// the process that unmounted it has gone.
func TestSentryUnmountsProc(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("unmounted"))
	g.ask("cpus")
	sentry := m.(*machine).proc.pid
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", sentry))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; at != "/" {
			t.Errorf("mounted in the sentry's namespace: %s", line)
		}
	}
	for _, pid := range descendants(sentry) {
		if status(t, pid, "Seccomp")[0] != "2" {
			t.Errorf("process %d below the sentry has no filter", pid)
		}
	}
}

// TestStartExecutesOnce: the sentry is the program that the driver has started, and
// did not execute itself with other arguments.
func TestStartExecutesOnce(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("once"))
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.(*machine).proc.pid))
	if err != nil {
		t.Fatal(err)
	}
	if args := strings.Split(string(cmdline), "\x00"); !slices.Contains(args, "--setup-root") {
		t.Errorf("the sentry runs with %q", args)
	}
}

// TestDeadSentryLeavesNoUmounter kills sentries while they start, when a child of
// theirs waits to unmount /proc.
func TestDeadSentryLeavesNoUmounter(t *testing.T) {
	l := newLab(t)
	for i := range 5 {
		id := "dead-" + strconv.Itoa(i)
		killed := make(chan []int, 1)
		go func() {
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
				procs, err := running(l.cfg.Dir)
				if err != nil || procs[id].sentry == 0 {
					continue
				}
				below := descendants(procs[id].sentry)
				if len(below) == 0 {
					continue
				}
				if p, err := openProcess(procs[id].sentry); err == nil {
					_ = p.signal()
					p.close()
				}
				killed <- below
				return
			}
			killed <- nil
		}()
		if m, err := l.Start(t.Context(), l.spec(id)); err == nil {
			if err := m.Stop(t.Context()); err != nil { // it was killed too late
				t.Error(err)
			}
		}
		for _, pid := range <-killed {
			for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("process %d outlives its sentry", pid)
				}
			}
		}
		l.assertNothingLeft(t, id)
	}
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

// TestTraceSession: trace points are registered for it.
func TestTraceSession(t *testing.T) {
	err := seccheck.Create(&seccheck.SessionConfig{Name: seccheck.DefaultSessionName, Points: []seccheck.PointConfig{{Name: "syscall/openat/enter"}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := seccheck.Delete(seccheck.DefaultSessionName); err != nil {
		t.Error(err)
	}
}

// TestFilesAreReadByOneThread: reading the files of a snapshot in the background does
// not take the CPU time of what runs.
func TestFilesAreReadByOneThread(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("saved"))
	if got := g.ask("write /data 60"); got != "ok" {
		t.Fatal(got)
	}
	sum := g.ask("sum /data")
	spec := l.spec("resumed")
	spec.Source.Files = snapshot(t, m)
	m, g = l.start(t, spec)
	if got := g.ask("sum /data"); got != sum {
		t.Errorf("the file is %s, was %s", got, sum)
	}
	// Threads that have read something stay.
	if n, err := strconv.Atoi(status(t, m.(*machine).proc.pid, "Threads")[0]); err != nil || n > 25 { // 40 to 60 with many readers
		t.Errorf("the sentry has %d threads: %v", n, err)
	}
}
