package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
)

// programs holds what every test needs built: the sentry, and an image with
// the tests' agent, which is root and agent image at once.
var programs struct{ sentry, image string }

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "sandboxes are started as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "skerry-gvisor-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "tree")
	programs.sentry = filepath.Join(dir, "sentry")
	programs.image = filepath.Join(dir, "image.erofs")
	for _, d := range []string{"tmp", "etc", "proc", "sys", "dev", ".skerry"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for _, args := range [][]string{
		{"go", "build", "-o", programs.sentry, "./testdata/sentry"},
		{"go", "build", "-o", filepath.Join(tree, "agent"), "./testdata/agent"},
		{"mkfs.erofs", "-E", "noinline_data", programs.image, tree},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", cmd, err, out)
			return 1
		}
	}
	// The sentry's user must be able to execute it.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// lab is a driver of one test's own.
type lab struct{ *Driver }

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	groups, err := cgroup.New(fmt.Sprintf("skerry-gvisor-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	in, out, errf := os.Stdin, os.Stdout, os.Stderr
	d, err := New(Config{
		Dir:     filepath.Join(dir, "machines"),
		DiskDir: dir,
		Cgroups: groups,
		Sentry:  programs.sentry,
		Log:     slog.New(slog.NewTextHandler(errf, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		os.Stdin, os.Stdout, os.Stderr = in, out, errf
		if err := groups.Close(); err != nil {
			t.Error(err)
		}
	})
	return &lab{d}
}

func (l *lab) spec(id string) driver.Spec {
	return driver.Spec{
		ID: id, Hostname: "skiff", RootFS: programs.image, Agent: programs.image,
		VCPUs: 2, MemoryBytes: 512 << 20, DiskBytes: 64 << 20, Processes: 512,
	}
}

// guest is a connection to the test's agent.
type guest struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func newGuest(t *testing.T, conn net.Conn) *guest {
	t.Cleanup(func() { conn.Close() })
	return &guest{t: t, conn: conn, r: bufio.NewReader(conn)}
}

func (g *guest) ask(format string, args ...any) string {
	g.t.Helper()
	g.conn.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(g.conn, format+"\n", args...)
	line, err := g.r.ReadString('\n')
	if err != nil {
		g.t.Fatalf("ask %q: %v", format, err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (l *lab) start(t *testing.T, spec driver.Spec) (driver.Machine, *guest) {
	t.Helper()
	m, conn, err := l.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		l.assertNothingLeft(t, spec.ID)
	})
	return m, newGuest(t, conn)
}

func (l *lab) assertNothingLeft(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(l.machineDir(id)); !os.IsNotExist(err) {
		t.Errorf("the machine's folder is still there: %v", err)
	}
	if procs, err := running(l.cfg.Dir); err != nil || procs[id] != (found{}) {
		t.Errorf("it still runs: %v, %v", procs, err)
	}
	groups, err := l.cfg.Cgroups.Groups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g == id {
			t.Error("the cgroup is still there")
		}
	}
}

func TestMachineSeesItsLimits(t *testing.T) {
	l := newLab(t)
	spec := l.spec("limits")
	spec.VCPUs = 4
	m, g := l.start(t, spec)
	if got := g.ask("cpus"); got != "4" {
		t.Errorf("the machine sees %s CPUs, want 4", got)
	}
	if got := g.ask("memory"); got != fmt.Sprintf("%d <nil>", 512<<10) {
		t.Errorf("the machine sees %s KiB, want %d", got, 512<<10)
	}
	if got := g.ask("hostname"); got != "skiff <nil>" {
		t.Errorf("hostname = %s", got)
	}
	if got := g.ask("interfaces"); got != "[lo] <nil>" {
		t.Errorf("without a network the machine has interfaces %s", got)
	}
	if got := g.ask("hostfiles"); strings.Contains(got, "WRITABLE") {
		t.Errorf("the machine can write to a file of the host: %s", got)
	}
	u, err := m.Usage()
	if err != nil || u.CPU <= 0 || u.MemoryBytes <= 0 {
		t.Errorf("Usage() = %+v, %v", u, err)
	}
}

func TestSentryIsUnprivileged(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("unprivileged"))
	g.ask("cpus")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.(*machine).proc.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Seccomp:\t2", "NoNewPrivs:\t1", "Groups:\t\n"} {
		if !strings.Contains(string(b), want) && !strings.Contains(string(b), strings.TrimSuffix(want, "\n")+" \n") {
			t.Errorf("the sentry's status lacks %q:\n%s", want, b)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", m.(*machine).proc.pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("the sentry may leave a core file:\n%s", limits)
	}
}

// TestBundleOfAnotherStays starts a machine whose name is taken.
func TestBundleOfAnotherStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "machine")
	spec := ociSpec(driver.Spec{ID: "x"}, dir)
	if err := writeBundle(dir, spec, 0); err != nil {
		t.Fatal(err)
	}
	if err := writeBundle(dir, spec, 0); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second machine of the same name: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, bundle)); err != nil {
		t.Errorf("the first one's folder: %v", err)
	}
}

func TestDiskLimit(t *testing.T) {
	l := newLab(t)
	_, g := l.start(t, l.spec("disk"))
	if got := g.ask("write /small 16"); got != "ok" {
		t.Errorf("16 MiB on a disk of 64: %s", got)
	}
	got := g.ask("write /big 100")
	if !strings.HasPrefix(got, "ENOSPC after") {
		t.Errorf("100 MiB on a disk of 64: %s", got)
	}
	if got := g.ask("cpus"); got != "2" {
		t.Errorf("after the disk was full the machine says %q", got)
	}
}

func TestOutOfMemoryEndsInside(t *testing.T) {
	l := newLab(t)
	spec := l.spec("memory")
	spec.MemoryBytes = 128 << 20
	m, g := l.start(t, spec)
	_, neighbour := l.start(t, l.spec("neighbour"))
	if got := g.ask("child alloc 2000"); !strings.Contains(got, "signal: killed") {
		t.Errorf("2000 MiB in a machine of 128: %s", got)
	}
	if got := g.ask("cpus"); got != "2" {
		t.Errorf("after running out of memory the machine says %q", got)
	}
	select {
	case <-m.Done():
		t.Errorf("the machine died: %s", m.Reason())
	default:
	}
	if got := neighbour.ask("child alloc 64"); !strings.Contains(got, `"64" <nil>`) {
		t.Errorf("the neighbour could not have its memory: %s", got)
	}
}

func TestForkBombEndsInside(t *testing.T) {
	l := newLab(t)
	spec := l.spec("bomb")
	spec.Processes = 128
	m, g := l.start(t, spec)
	_, neighbour := l.start(t, l.spec("neighbour"))
	t.Log(g.ask("bomb 1000"))
	select {
	case <-m.Done():
		t.Errorf("the machine died: %s", m.Reason())
	default:
	}
	if got := neighbour.ask("child alloc 1"); !strings.Contains(got, `"1" <nil>`) {
		t.Errorf("the neighbour could not start a process: %s", got)
	}
}

func TestAgentsEndEndsTheMachine(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("exit"))
	fmt.Fprintln(g.conn, "exit")
	select {
	case <-m.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the machine outlived its agent")
	}
	if m.Reason() != "the sandbox's guest agent ended" {
		t.Errorf("Reason() = %q", m.Reason())
	}
	if _, err := io.ReadAll(g.r); err != nil {
		t.Errorf("the connection did not end cleanly: %v", err)
	}
}

func TestAttach(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("attach"))
	g.ask("cpus")
	// The host before leaves something unread, in both directions.
	for range 3 {
		fmt.Fprint(g.conn, "cpus\nhalf a li")
		g.conn.Close()
		conn, err := m.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g = newGuest(t, conn)
		if got := g.ask("cpus"); got != "2" {
			t.Errorf("the new connection answers %q", got)
		}
	}
}

func TestRecoverAdoptsAndSweeps(t *testing.T) {
	l := newLab(t)
	_, g := l.start(t, l.spec("kept"))
	g.ask("cpus")
	// What a crash in the middle of a start leaves: a folder and a cgroup.
	if err := os.MkdirAll(filepath.Join(l.machineDir("torn"), rootDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.cfg.Cgroups.Create("torn", cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	machines, err := l.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(machines) != 1 || machines[0].ID() != "kept" {
		t.Fatalf("Recover() = %v", machines)
	}
	l.assertNothingLeft(t, "torn")
	g.conn.Close()
	conn, err := machines[0].Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := newGuest(t, conn).ask("cpus"); got != "2" {
		t.Errorf("the adopted machine answers %q", got)
	}
	if err := machines[0].Stop(t.Context()); err != nil {
		t.Error(err)
	}
	l.assertNothingLeft(t, "kept")
}

func TestFailedStartLeavesNothing(t *testing.T) {
	l := newLab(t)
	spec := l.spec("broken")
	spec.RootFS = "/etc/passwd" // not an image
	if m, _, err := l.Start(t.Context(), spec); err == nil {
		m.Stop(t.Context())
		t.Error("a machine started from a file that is no image")
	} else {
		t.Log(err)
	}
	l.assertNothingLeft(t, "broken")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Start(ctx, l.spec("cancelled")); err == nil {
		t.Error("a machine started for a caller that had gone")
	}
	l.assertNothingLeft(t, "cancelled")
}
