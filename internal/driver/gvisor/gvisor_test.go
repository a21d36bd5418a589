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
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/drivertest"
)

// programs holds what every test needs built: the sentry, and an image with
// the tests' agent, which is root and agent image at once. root and agent are the
// images of package drivertest.
var programs struct{ sentry, image, root, agent string }

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
	rootTree, agentTree := filepath.Join(dir, "root"), filepath.Join(dir, "real-agent")
	programs.root, programs.agent = rootTree+".erofs", agentTree+".erofs"
	for _, d := range []string{"tmp", "etc", "proc", "sys", "dev", ".skerry"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(tree, d), 0o755), os.MkdirAll(filepath.Join(rootTree, d), 0o755), os.MkdirAll(agentTree, 0o755)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := drivertest.BuildTool(filepath.Join(rootTree, "tool")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, args := range [][]string{
		{"go", "build", "-o", programs.sentry, "./testdata/sentry"},
		{"go", "build", "-o", filepath.Join(tree, "agent"), "./testdata/agent"},
		{"go", "build", "-o", filepath.Join(agentTree, "agent"), "../../../cmd/skerry-agent"},
		{"mkfs.erofs", "-E", "noinline_data", programs.image, tree},
		{"mkfs.erofs", "-E", "noinline_data", programs.root, rootTree},
		{"mkfs.erofs", "-E", "noinline_data", programs.agent, agentTree},
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
	groups, err := cgroup.New(fmt.Sprintf("skerry-gvisor-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := groups.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	return openLab(t, Config{
		Dir:     filepath.Join(dir, "machines"),
		DiskDir: dir,
		Cgroups: groups,
		Sentry:  programs.sentry,
	})
}

// openLab returns a driver on folders that another one may have used.
func openLab(t *testing.T, cfg Config) *lab {
	t.Helper()
	in, out, errf := os.Stdin, os.Stdout, os.Stderr
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		os.Stdin, os.Stdout, os.Stderr = in, out, errf
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
	m, err := l.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		l.assertNothingLeft(t, spec.ID)
	})
	conn, err := m.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m, newGuest(t, conn)
}

func (l *lab) assertNothingLeft(t *testing.T, id string) {
	t.Helper()
	for _, left := range l.left(t, id) {
		t.Error(left)
	}
}

// left returns what is left of a machine.
func (l *lab) left(t *testing.T, id string) (left []string) {
	t.Helper()
	if _, err := os.Stat(l.machineDir(id)); !os.IsNotExist(err) {
		left = append(left, fmt.Sprintf("the machine's folder is still there: %v", err))
	}
	if procs, err := running(l.cfg.Dir); err != nil || procs[id] != (found{}) {
		left = append(left, fmt.Sprintf("it still runs: %v, %v", procs, err))
	}
	groups, err := l.cfg.Cgroups.Groups()
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(groups, id) {
		left = append(left, "the cgroup is still there")
	}
	return left
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
	weight, inKernel := "cpu.weight", 400
	if l.cfg.Cgroups.Version() == 1 {
		weight, inKernel = "cpu.shares", 4*1024
	}
	in := fmt.Sprintf("skerry-gvisor-test-%d/%s/%s", os.Getpid(), spec.ID, weight)
	paths, err := filepath.Glob("/sys/fs/cgroup/*/" + in) // version 1
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(append(paths, "/sys/fs/cgroup/"+in)[0])
	if got := strings.TrimSpace(string(b)); err != nil || got != fmt.Sprint(inKernel) {
		t.Errorf("%s of a machine with 4 vCPUs is %s, %v, want %d", weight, got, err, inKernel)
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
	for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1", "Groups:\t\n"} {
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

// TestForkBombEndsInside has a bomb meet the host's limit, as the driver sets no
// other. The sentry keeps the threads that it needs, in a machine that was started
// and in one that goes on from a memory snapshot.
func TestForkBombEndsInside(t *testing.T) {
	l := newLab(t)
	spec := l.spec("bomb")
	spec.Processes = 128
	m, g := l.start(t, spec)
	_, neighbour := l.start(t, l.spec("neighbour"))
	g.ask("cpus")
	dir := snapshotMemory(t, m)
	explode := func(m driver.Machine, g *guest) {
		t.Helper()
		var started int
		said := g.ask("bomb 1000")
		if _, err := fmt.Sscan(said, &started); err != nil || started < 8 || started >= spec.Processes || !strings.HasSuffix(said, "cannot allocate memory") {
			t.Errorf("a bomb of 1,000 where the host allows %d processes: %s", spec.Processes, said)
		}
		if got := g.ask("child alloc 1"); got != `"1" <nil>` {
			t.Errorf("after the bomb: %s", got)
		}
		select {
		case <-m.Done():
			t.Errorf("the machine died: %s", m.Reason())
		default:
		}
		if got := neighbour.ask("child alloc 1"); !strings.Contains(got, `"1" <nil>`) {
			t.Errorf("the neighbour could not start a process: %s", got)
		}
	}
	explode(m, g)
	spec.ID = "restored"
	explode(l.restored(t, spec, dir))
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

// TestStopCanBeRepeated has the end of a machine fail when its processes have
// gone already, and does the rest again.
func TestStopCanBeRepeated(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("stubborn"))
	busy := filepath.Join(l.machineDir("stubborn"), "busy")
	if err := os.Mkdir(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("busy", busy, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context()); err == nil {
		t.Error("a stop that left a folder says nothing")
	}
	select {
	case <-m.Done():
	default:
		t.Error("the machine runs on")
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.assertNothingLeft(t, "stubborn")
}

// TestStopEndsWithItsContext has a killed process, a call into the sentry and what
// serves it not end.
func TestStopEndsWithItsContext(t *testing.T) {
	// stop has the context end while the stop is in progress.
	stop := func(m *machine) error {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for len(m.stopping) == 0 && ctx.Err() == nil {
				runtime.Gosched()
			}
			cancel()
		}()
		return m.Stop(ctx)
	}
	// The machine's end is told late: nothing watches it.
	cmd := exec.Command("sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	proc, err := openProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.close()
	m := &machine{proc: proc, done: make(chan struct{}), stopping: make(chan struct{}, 1)}
	if err := stop(m); !errors.Is(err, context.Canceled) {
		t.Errorf("with a process that does not end: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}

	l := newLab(t)
	started, _ := l.start(t, l.spec("held"))
	m = started.(*machine)
	m.calling <- struct{}{}
	if err := stop(m); !errors.Is(err, context.Canceled) {
		t.Errorf("with a call that does not end: %v", err)
	}
	<-m.calling
	held := make(chan struct{})
	m.work.Go(func() { <-held })
	// The context may end before the stop has come that far.
	for there := false; !there; {
		err := stop(m)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("with a server of the sentry that does not end: %v", err)
			break
		}
		there = strings.Contains(err.Error(), "wait for what served the sentry")
	}
	m.stopping <- struct{}{}
	if err := stop(m); !errors.Is(err, context.Canceled) {
		t.Errorf("beside another stop: %v", err)
	}
	<-m.stopping
	close(held)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOutOfMemoryIsToldWithFigures has the host's kernel find the machine's cgroup
// full, and the sentry killed.
func TestOutOfMemoryIsToldWithFigures(t *testing.T) {
	l := newLab(t)
	spec := l.spec("greedy")
	spec.MemoryBytes = 32 << 20
	started, _ := l.start(t, spec)
	m := started.(*machine)
	greedy := exec.Command("sh", "-c", "read line; exec tail /dev/zero")
	in, err := greedy.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := greedy.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.group.Add(greedy.Process.Pid); err != nil {
		t.Error(err)
		greedy.Process.Kill()
	}
	in.Close()
	if err := greedy.Wait(); err == nil {
		t.Error("a process that takes all memory was not killed")
	}
	if err := m.proc.signal(); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	var used, size, kernel int64
	_, err = fmt.Sscanf(m.Reason(), "out of memory: the sandbox used %d MiB, its limit is %d MiB and %d MiB for its kernel", &used, &size, &kernel)
	if limit := (spec.MemoryBytes + sentryMemory) >> 20; err != nil || used < limit*9/10 || used > limit || size != spec.MemoryBytes>>20 || kernel != sentryMemory>>20 {
		t.Errorf("the reason is %q", m.Reason())
	}
}
