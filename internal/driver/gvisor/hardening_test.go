package gvisor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// status returns a field of a process's /proc/PID/status.
func status(t *testing.T, pid int, field string) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Fields(v)
		}
	}
	t.Fatalf("process %d has no %s", pid, field)
	return nil
}

// TestEachSentryHasItsUser: no two run as the same, none as one that daemons of
// the host run as, and all that belongs to a sentry runs as its user.
func TestEachSentryHasItsUser(t *testing.T) {
	if !Patched {
		t.Fatal("the tests are built without the patches to gVisor: GOFLAGS=$(scripts/gvisor)")
	}
	l := newLab(t)
	seen := map[string]bool{}
	for _, id := range []string{"one", "two"} {
		m, g := l.start(t, l.spec(id))
		g.ask("child sparse 1") // has the sentry start helpers
		sentry := m.(*machine).proc.pid
		user := status(t, sentry, "Uid")[0]
		if n, err := strconv.Atoi(user); err != nil || n < firstUser || n >= firstUser+userCount || seen[user] {
			t.Errorf("%s runs as %s, others as %v", id, user, seen)
		}
		seen[user] = true
		for _, pid := range append(descendants(sentry), sentry) {
			for _, field := range []string{"Uid", "Gid"} {
				if got := strings.Join(status(t, pid, field), " "); got != strings.Join([]string{user, user, user, user}, " ") {
					t.Errorf("process %d of %s has %s %s, want %s", pid, id, field, got, user)
				}
			}
		}
	}
	// The next process knows whose they are.
	next := &lab{&Driver{cfg: l.cfg, null: l.null}}
	machines, err := next.Recover(t.Context())
	if err != nil || len(machines) != len(seen) {
		t.Fatalf("recovered %v, %v", machines, err)
	}
	for _, m := range machines {
		m := m.(*machine)
		if user := strconv.Itoa(m.user); !seen[user] || m.box.UID != m.user || !next.users.taken[m.user] {
			t.Errorf("%s is adopted as of %s, %d; there are %v", m.id, user, m.box.UID, seen)
		}
	}
}

// TestSentryRlimits: the limits of a sentry and all that belongs to it.
func TestSentryRlimits(t *testing.T) {
	l := newLab(t)
	spec := l.spec("rlimits")
	m, g := l.start(t, spec)
	g.ask("child sparse 1")
	for _, pid := range append(descendants(m.(*machine).proc.pid), m.(*machine).proc.pid) {
		for resource, want := range map[int]uint64{
			unix.RLIMIT_FSIZE:  uint64(spec.MemoryBytes * sparseFactor),
			unix.RLIMIT_NOFILE: maxSentryFiles,
			unix.RLIMIT_CORE:   0, unix.RLIMIT_MSGQUEUE: 0, unix.RLIMIT_RTPRIO: 0,
		} {
			var got unix.Rlimit
			if err := unix.Prlimit(pid, resource, nil, &got); err != nil {
				t.Fatal(err)
			}
			if got.Max > want || got.Cur > want {
				t.Errorf("process %d has rlimit %d of %+v, want at most %d", pid, resource, got, want)
			}
		}
	}
}

// TestSparseMemory touches memory in so many places that the file behind it would
// be larger than the sentry's files may be: that ends inside.
func TestSparseMemory(t *testing.T) {
	l := newLab(t)
	spec := l.spec("sparse")
	spec.MemoryBytes = 64 << 20 // so 4 GiB of places
	_, g := l.start(t, spec)
	if got := g.ask("child sparse 1"); got != `"512" <nil>` {
		t.Errorf("a program that touches a page in every 2 MiB of 1 GiB: %s", got)
	}
	var touched int
	said := g.ask("child sparse 8")
	if _, err := fmt.Sscanf(said, `"%d" <nil>`, &touched); err != nil || touched < 512 || touched > 4<<9 {
		t.Errorf("a program that does so in 8 GiB comes to %s", said)
	}
	if got := g.ask("child sparse 1"); got != `"512" <nil>` {
		t.Errorf("afterwards: %s", got)
	}
}

// TestSentryFillsTheDisk stands in for a sentry that was taken over: its
// writable layer takes up more of the host's disk than the sandbox may.
func TestSentryFillsTheDisk(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("overrun"))
	// The machine's server is another by then.
	next := &lab{&Driver{cfg: l.cfg, null: l.null}}
	machines, err := next.Recover(t.Context())
	if err != nil || len(machines) != 1 {
		t.Fatalf("recovered %v, %v", machines, err)
	}
	adopted := machines[0].(*machine)
	disk, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", adopted.disk.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := unix.Fallocate(int(disk.Fd()), 0, 0, adopted.diskLimit+diskSlack+1<<20); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	<-adopted.Done()
	// Each of the two has noticed, or seen the other's kill.
	if want := "the sandbox's kernel wrote more than the sandbox's disk holds"; m.Reason() != want && adopted.Reason() != want {
		t.Errorf("reasons %q and %q, want %q", m.Reason(), adopted.Reason(), want)
	}
	if err := adopted.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestSentryFillsTheDiskByASave stands in for a sentry that was taken over: it
// writes more to the files of a save than it has.
func TestSentryFillsTheDiskByASave(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("overrun"))
	dir := t.TempDir()
	end, err := m.(*machine).saves.begin(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	pages, err := os.Create(filepath.Join(dir, "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	most := m.(*machine).diskLimit + diskSlack + m.(*machine).memory + sentryMemory
	if err := unix.Fallocate(int(pages.Fd()), 0, 0, most+1<<20); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("the sentry runs on")
	}
	if want := "the sandbox's kernel wrote more than the sandbox's disk holds"; m.Reason() != want {
		t.Errorf("it ended because %q, want %q", m.Reason(), want)
	}
}

// TestFilesOfASaveAreKeptOpen stands in for a sentry that was taken over and keeps
// the files of a save open, which have no names any more.
func TestFilesOfASaveAreKeptOpen(t *testing.T) {
	dir := t.TempDir()
	kept, err := os.Create(filepath.Join(dir, "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	read, err := os.Open(kept.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{read, kept}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var s saves
	end, err := s.begin(dir)
	if err != nil {
		t.Fatal(err)
	}
	const size = 3 << 20
	if err := unix.Fallocate(int(kept.Fd()), 0, 0, size); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "closed.img"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.bytes(cmd.Process.Pid, fileID{}); got != 2*size {
		t.Errorf("the files of a save in progress take %d bytes, want %d", got, 2*size)
	}
	end()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := s.bytes(cmd.Process.Pid, fileID{}); got != size {
			t.Errorf("a file that is kept open takes %d bytes, want %d", got, size)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := s.bytes(cmd.Process.Pid, fileID{}); got != 0 || s.open {
		t.Errorf("after its end %d bytes are counted; looked for: %v", got, s.open)
	}
}

// TestSaveClosesItsFiles: after its saves a sentry is not looked at any more.
func TestSaveClosesItsFiles(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("saved"))
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	snapshot(t, m)
	snapshotMemory(t, m)
	mach := m.(*machine)
	id, _, err := look(mach.disk)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		mach.saves.bytes(mach.proc.pid, id)
		mach.saves.mu.Lock()
		open := mach.saves.open
		mach.saves.mu.Unlock()
		if !open {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sentry has files of its saves open: %v", openForWriting(mach.proc.pid))
		}
	}
}

// TestLastWords: what a sentry says when it dies is taken in, however much it is,
// and takes up nothing on the host.
func TestLastWords(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("words"))
	// A descriptor of the sentry's, through which it says them.
	pipe := l.machineDir("words") + "/" + panicLog
	out, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	said := append([]byte("panic: the end\n"), bytes.Repeat([]byte("goroutine 1 [running]\n"), 1<<16)...)
	if _, err := out.Write(said); err != nil {
		t.Fatal(err)
	}
	info, err := out.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the sentry's words go to %v, %v", info.Mode(), err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.(*machine).proc.signal(); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if got := m.(*machine).words.last(); got != string(said[:maxWords]) {
		t.Errorf("%d bytes of its words are kept: %.100q", len(got), got)
	}
	if m.Reason() != "the sandbox's kernel failed" {
		t.Errorf("it ended because %q", m.Reason())
	}
}

// TestSentryInheritsNothing: a sentry has no file under the number that it has
// in the process that started it. Some numbers are the sentry's own, and it would
// not start.
func TestSentryInheritsNothing(t *testing.T) {
	l := newLab(t)
	const first, past = 100, 200 // beyond what a sentry has by itself
	var held []*os.File
	for len(held) == 0 || held[len(held)-1].Fd() < first-1 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, f)
		defer f.Close()
	}
	m, _ := l.start(t, l.spec("inherits"))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.(*machine).proc.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if n, err := strconv.Atoi(f.Name()); err != nil || n >= first && n < past {
			target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", m.(*machine).proc.pid, f.Name()))
			t.Errorf("the sentry has descriptor %s: %s", f.Name(), target)
		}
	}
}

// TestDebugLogIsBounded: a debug log that has become too large begins anew.
func TestDebugLogIsBounded(t *testing.T) {
	l := newLab(t)
	m := &machine{d: l.Driver, id: "debug"}
	dir := filepath.Join(l.machineDir(m.id), debugDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(l.machineDir(m.id))
	for size, want := range map[int64]int64{maxDebugLog: maxDebugLog, maxDebugLog + 1: 0} {
		path := filepath.Join(dir, "boot.txt")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		m.boundDebugLogs()
		if info, err := os.Stat(path); err != nil || info.Size() != want {
			t.Errorf("a log of %d bytes: %v, want %d", size, info.Size(), want)
		}
	}
}
