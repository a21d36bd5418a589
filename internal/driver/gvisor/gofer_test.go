package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
)

// tree returns a detached mount of a folder. What a machine writes to it is
// seen in the folder.
func tree(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMounts(t *testing.T) {
	l := newLab(t)
	written, frozen := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(frozen, "old"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(written), "secret"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := l.spec("mounts")
	spec.Volumes = []driver.Volume{
		{Path: "/srv/deep/data", Kind: driver.Tree, Source: tree(t, written)},
		{Path: "/frozen", Kind: driver.Tree, Source: tree(t, frozen), ReadOnly: true},
	}
	_, g := l.start(t, spec)
	for _, c := range []struct{ ask, want string }{
		{"path append /srv/deep/data/new hello", "<nil>"},
		{"path read /srv/deep/data/new", `"hello"`},
		{"path read /frozen/old", `"kept"`},
		{"path append /frozen/old more", "open /frozen/old: read-only file system"},
		{"path append /frozen/other more", "open /frozen/other: read-only file system"},
		{"path chown /srv/deep/data/new 1000", "<nil>"},
		{"path owner /srv/deep/data/new", "1000:1000 100644 <nil>"},
		// A program on a mount can be executed.
		{"path copy /agent /srv/deep/data/agent", "<nil>"},
		{"path exec /srv/deep/data/agent alloc 1", `"1" <nil>`},
		// Links lead within the sandbox, and not out of it.
		{"path symlink /srv/deep/data/up ../secret", "<nil>"},
		{"path read /srv/deep/data/up", "open /srv/deep/data/up: no such file or directory"},
		{"path symlink /srv/deep/data/passwd /etc/passwd", "<nil>"},
		{"path read /srv/deep/data/passwd", "open /srv/deep/data/passwd: no such file or directory"},
		{"path chmod /srv/deep/data/agent 6755", "<nil>"},
		{"path mkfifo /srv/deep/data/fifo", "<nil>"},
	} {
		if got := g.ask("%s", c.ask); got != c.want {
			t.Errorf("%s: %s, want %s", c.ask, got, c.want)
		}
	}
	t.Log("a device:", g.ask("path mknod /srv/deep/data/device"))
	if b, err := os.ReadFile(filepath.Join(written, "new")); err != nil || string(b) != "hello" {
		t.Errorf("the host's file is %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(written, "device"), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		t.Error("the machine made a device node on the host")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), l.cfg.Dir) {
		t.Errorf("the mounts are seen on the host:\n%s", mounts)
	}
}

func TestMountOnAFile(t *testing.T) {
	l := newLab(t)
	spec := l.spec("misplaced")
	spec.Volumes = []driver.Volume{{Path: "/fine", Kind: driver.Tree, Source: tree(t, t.TempDir())}, {Path: "/agent", Kind: driver.Tree, Source: tree(t, t.TempDir())}}
	_, err := l.Start(t.Context(), spec)
	if at, ok := errors.AsType[*driver.VolumeError](err); !ok || at.Path != "/agent" {
		t.Errorf("a mount on a file: %v", err)
	}
	l.assertNothingLeft(t, spec.ID)
}

func TestSnapshotLeavesMountsOut(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	spec := l.spec("before")
	spec.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, dir)}}
	m, g := l.start(t, spec)
	for _, ask := range []string{"path append /data/file shared", "path append /own mine"} {
		if got := g.ask("%s", ask); got != "<nil>" {
			t.Fatal(got)
		}
	}
	saved := snapshot(t, m)
	// From the snapshot without the mount, and with it at the old place and at
	// a new one.
	bare := l.spec("bare")
	bare.Source.Files = saved
	_, g = l.start(t, bare)
	if got := g.ask("path list /data"); got != "[] <nil>" {
		t.Errorf("without the mount its place has %s", got)
	}
	if got := g.ask("read /own"); got != "mine <nil>" {
		t.Errorf("the machine's own file is %s", got)
	}
	again := l.spec("again")
	again.Source.Files = saved
	again.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, dir)}, {Path: "/new/place", Kind: driver.Tree, Source: tree(t, dir), ReadOnly: true}}
	_, g = l.start(t, again)
	for ask, want := range map[string]string{
		"path read /own":            `"mine"`,
		"path read /data/file":      `"shared"`,
		"path read /new/place/file": `"shared"`,
	} {
		if got := g.ask("%s", ask); got != want {
			t.Errorf("%s: %s, want %s", ask, got, want)
		}
	}
}

func TestRecoverAdoptsMounts(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	spec := l.spec("kept")
	spec.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, dir)}}
	m, g := l.start(t, spec)
	g.ask("cpus")
	machines, err := l.Recover(t.Context())
	if err != nil || len(machines) != 1 {
		t.Fatalf("Recover() = %v, %v", machines, err)
	}
	if machines[0].(*machine).gofer.pid != m.(*machine).gofer.pid {
		t.Error("the adopted machine has another gofer")
	}
	if got := g.ask("path append /data/file x"); got != "<nil>" {
		t.Error(got)
	}
	if err := machines[0].Stop(t.Context()); err != nil {
		t.Error(err)
	}
	l.assertNothingLeft(t, "kept")
}

func TestGofersEndEndsTheMachine(t *testing.T) {
	l := newLab(t)
	spec := l.spec("orphan")
	spec.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, t.TempDir())}}
	m, g := l.start(t, spec)
	g.ask("cpus")
	if err := m.(*machine).gofer.signal(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the machine outlived its gofer")
	}
	if !strings.Contains(m.Reason(), "drives") {
		t.Errorf("Reason() = %q", m.Reason())
	}
}

func TestGoferIsConfined(t *testing.T) {
	l := newLab(t)
	spec := l.spec("confined")
	spec.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, t.TempDir())}}
	m, g := l.start(t, spec)
	g.ask("cpus")
	pid := m.(*machine).gofer.pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_CHROOT.
	for _, want := range []string{"Seccomp:\t2", "CapEff:\t000000000004001f", "CapBnd:\t000000000004001f"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the gofer's status lacks %q:\n%s", want, status)
		}
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); theirs == ours {
			t.Errorf("the gofer is in the host's %s namespace", ns)
		}
	}
	root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil || len(root) != 1 || root[0].Name() != "data" {
		t.Errorf("the gofer's root has %v, %v", root, err)
	}
	in, err := m.(*machine).group.Processes()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fmt.Sprint(in), fmt.Sprint(pid)) {
		t.Errorf("the gofer (%d) is not in the machine's cgroup: %v", pid, in)
	}
}

// TestOpenFilesOnMounts opens so many files on a mount that the gofer, which has
// two of the host's open for each, may have no more.
func TestOpenFilesOnMounts(t *testing.T) {
	l := newLab(t)
	spec := l.spec("open")
	spec.Volumes = []driver.Volume{{Path: "/data", Kind: driver.Tree, Source: tree(t, t.TempDir())}}
	m, g := l.start(t, spec)
	// Less than it may have, which takes a while to open.
	limit := unix.Rlimit{Cur: maxSentryFiles / 16, Max: maxSentryFiles / 16}
	for _, pid := range []int{m.(*machine).proc.pid, m.(*machine).gofer.pid} {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			t.Fatal(err)
		}
	}
	said := g.ask("pin open /data %d", limit.Max)
	var opened uint64
	if _, err := fmt.Sscan(said, &opened); err != nil || opened > limit.Max/2 || opened < limit.Max/2-100 || !strings.HasSuffix(said, "too many open files") {
		t.Errorf("files on a mount: %s", said)
	}
	if got := g.ask("pin open /tmp 10"); got != "10 all" {
		t.Errorf("others beside them: %s", got)
	}
	// It can be saved all the same.
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), dir, driver.Saving{}); err != nil {
		t.Error(err)
	}
	g.ask("unpin")
	if got := g.ask("pin open /data 10"); got != "10 all" {
		t.Errorf("after those were closed: %s", got)
	}
}
