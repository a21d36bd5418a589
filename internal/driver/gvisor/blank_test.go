//go:build gvisor_patched

package gvisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

// TestBlankIsConfined compares the sentry of a machine that was prepared with that of one
// that was started at once: it has the same privileges, limits and files.
func TestBlankIsConfined(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("at-once"))
	b, err := l.Prepare(t.Context(), l.spec("prepared"))
	if err != nil {
		t.Fatal(err)
	}
	// Before it starts it has no privileges either, and no connection to anything.
	waiting := b.(*blank).m.proc.pid
	for _, cap := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if got := status(t, waiting, cap)[0]; strings.Trim(got, "0") != "" {
			t.Errorf("a waiting sentry has %s %s", cap, got)
		}
	}
	for _, ns := range []string{"user", "mnt", "pid", "ipc", "uts", "net"} {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", waiting, ns))
		host, herr := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || herr != nil || own == host {
			t.Errorf("a waiting sentry is in the host's namespace %s: %v, %v", ns, err, herr)
		}
	}
	started, err := b.Start(t.Context(), l.spec("prepared"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		l.assertNothingLeft(t, "prepared")
	})
	conn, err := started.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := newGuest(t, conn)
	for _, question := range []string{"cpus", "child sparse 1"} {
		if a, b := g.ask(question), other.ask(question); a != b {
			t.Errorf("%s: %q, of the one that was prepared %q", question, a, b)
		}
	}
	was, is := confinement(t, m), confinement(t, started)
	for what, a := range was {
		if b := is[what]; !slices.Equal(a, b) {
			t.Errorf("%s: %q, of the one that was prepared %q", what, a, b)
		}
	}
	weight := func(m driver.Machine) string {
		paths, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/skerry-gvisor-test-%d/%s/cpu.shares", os.Getpid(), m.ID()))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := os.ReadFile(append(paths, fmt.Sprintf("/sys/fs/cgroup/skerry-gvisor-test-%d/%s/cpu.weight", os.Getpid(), m.ID()))[0])
		return string(b)
	}
	if a, b := weight(m), weight(started); a == "" || a != b {
		t.Errorf("the weights are %q and %q", a, b)
	}
}

// numbers differ between machines and between runs.
var numbers = regexp.MustCompile(`[0-9]+`)

// confinement returns what the host allows a machine's sentry.
func confinement(t *testing.T, m driver.Machine) map[string][]string {
	t.Helper()
	pid := m.(*machine).proc.pid
	all := map[string][]string{}
	for _, field := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups"} {
		for _, p := range append(descendants(pid), pid) {
			all[field] = append(all[field], strings.Join(status(t, p, field), " "))
		}
		slices.Sort(all[field])
		all[field] = slices.Compact(all[field])
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	all["limits"] = strings.Split(string(limits), "\n")
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		t.Fatal(err)
	}
	all["mounts"] = strings.Split(numbers.ReplaceAllString(string(mounts), "N"), "\n")
	// A connection of the control server may be on its way to its end.
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all["files"] = nil
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		sockets := 0
		for _, e := range entries {
			file, _ := os.Readlink(filepath.Join(dir, e.Name()))
			file = numbers.ReplaceAllString(strings.ReplaceAll(file, m.ID(), "ID"), "N")
			if strings.HasPrefix(file, "socket:") {
				sockets++
			}
			all["files"] = append(all["files"], file)
		}
		if sockets <= 1 || time.Now().After(end) {
			break
		}
	}
	slices.Sort(all["files"])
	return all
}
