package drive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// These tests need root: they mount real filesystems through real loop devices.

const testSize = 64 << 20

func TestMain(m *testing.M) {
	if dir := os.Getenv("SKERRY_TEST_FREEZE"); dir != "" {
		freezeAndWait(dir, os.Getenv("SKERRY_TEST_DRIVE"))
	}
	os.Exit(m.Run())
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(Options{Dir: filepath.Join(t.TempDir(), "drives"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { assertNoLoops(t, s) })
	return s
}

// assertNoLoops fails if a loop device still has a file of the store.
func assertNoLoops(t *testing.T, s *Store) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := loops(t, s)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("loop devices are left: %v", left)
			return
		}
		time.Sleep(5 * time.Millisecond) // the kernel frees them in its own time
	}
}

func loops(t *testing.T, s *Store) (left []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), s.dir) {
			left = append(left, strings.TrimSpace(string(b)))
		}
	}
	return left
}

func (s *Store) mustCreate(t *testing.T) string {
	t.Helper()
	id := skerry.NewID(skerry.PrefixDrive)
	if err := s.Create(t.Context(), id, testSize); err != nil {
		t.Fatal(err)
	}
	return id
}

func (s *Store) mustAttach(t *testing.T, id string) *Mount {
	t.Helper()
	m, err := s.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Release)
	return m
}

func (s *Store) mustFreeze(t *testing.T, id string) *Mount {
	t.Helper()
	m, err := s.Freeze(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Release)
	return m
}

// open opens a file on a detached mount.
func (m *Mount) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(m.Tree.Fd()), name, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (m *Mount) mustWrite(t *testing.T, name, data string) {
	t.Helper()
	f, err := m.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(data)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (m *Mount) read(name string) string {
	f, err := m.open(name, unix.O_RDONLY)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (m *Mount) names(t *testing.T) []string {
	t.Helper()
	f, err := m.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDriveKeepsWhatIsWritten(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	if err := s.Create(t.Context(), id, 2*testSize); err != nil {
		t.Errorf("creating it again: %v", err)
	}
	m := s.mustAttach(t, id)
	if names := m.names(t); len(names) != 0 {
		t.Errorf("a new drive has %q", names)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(m.Tree.Fd()), "", &st, unix.AT_EMPTY_PATH); err != nil || st.Uid != skerry.DefaultUID || st.Gid != skerry.DefaultGID {
		t.Errorf("the root's owner is %d:%d, %v", st.Uid, st.Gid, err)
	}
	m.mustWrite(t, "file", "kept")
	m.Release()
	if err := s.Settle(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	assertNoLoops(t, s)
	if got := s.mustAttach(t, id).read("file"); got != "kept" {
		t.Errorf("the file has %q", got)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/dev/loop") && strings.Contains(string(mounts), s.dir) {
		t.Errorf("the drive is mounted on the host:\n%s", mounts)
	}
}

func TestDriveHasItsSize(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	f, err := m.open("big", unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(f, io.LimitReader(zeros{}, 2*testSize))
	if !errors.Is(err, unix.ENOSPC) || n < testSize*8/10 || n > testSize {
		t.Errorf("wrote %d bytes to a drive of %d: %v", n, testSize, err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	f.Close()
	used := allocated(t, s.path(id))
	if used < n*9/10 {
		t.Errorf("the image has %d bytes on disk, want %d or so", used, n)
	}
	// Deleted files free space, inside and on the host.
	if err := unix.Unlinkat(int(m.Tree.Fd()), "big", 0); err != nil {
		t.Fatal(err)
	}
	m.mustWrite(t, "small", "fits")
	m.Release()
	if err := s.Settle(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := allocated(t, s.path(id)); left > used/2 {
		t.Errorf("the image of an empty drive has %d bytes on disk, had %d", left, used)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestDriveIsAttachedOnce(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Attach(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second attachment: %v", err)
	}
	if err := s.Delete(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deleting an attached drive: %v", err)
	}
	// A second store, as after a crash, cannot attach it either.
	other, err := Open(Options{Dir: s.dir, Log: s.log})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Settle(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another store: %v", err)
	}
	// It waits until the first is released.
	attached := make(chan error)
	go func() {
		m, err := other.Attach(context.Background(), id)
		if err == nil {
			m.Release()
		}
		attached <- err
	}()
	m.mustWrite(t, "file", "first")
	m.Release()
	if err := <-attached; err != nil {
		t.Error(err)
	}
}

func TestFork(t *testing.T) {
	s := newStore(t)
	source := s.mustCreate(t)
	m := s.mustAttach(t, source)
	m.mustWrite(t, "file", "one")
	fork := skerry.NewID(skerry.PrefixDrive)
	if err := s.Fork(t.Context(), fork, source); err != nil {
		t.Fatal(err)
	}
	m.mustWrite(t, "file", "two")
	other := s.mustAttach(t, fork)
	if got := other.read("file"); got != "one" {
		t.Errorf("the fork has %q", got)
	}
	other.mustWrite(t, "file", "three")
	if got := m.read("file"); got != "two" {
		t.Errorf("the source has %q", got)
	}
	m.Release()
	other.Release()
	if err := s.Fork(t.Context(), skerry.NewID(skerry.PrefixDrive), skerry.NewID(skerry.PrefixDrive)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a fork of nothing: %v", err)
	}
	// Both are complete, and nothing else is left.
	for _, id := range []string{source, fork} {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFrozenCopies(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	m.mustWrite(t, "file", "one")
	first := s.mustFreeze(t, id)
	m.mustWrite(t, "file", "two")
	second := s.mustFreeze(t, id)
	m.mustWrite(t, "file", "three")
	for _, c := range []struct {
		m    *Mount
		want string
	}{{first, "one"}, {second, "two"}, {m, "three"}} {
		if got := c.m.read("file"); got != c.want {
			t.Errorf("the file has %q, want %q", got, c.want)
		}
	}
	if _, err := first.open("file", unix.O_WRONLY); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a copy: %v", err)
	}
	// Copies outlive the drive.
	m.Release()
	if err := s.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := first.read("file"); got != "one" {
		t.Errorf("after the drive was deleted the copy has %q", got)
	}
	if _, err := s.Freeze(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a copy of a deleted drive: %v", err)
	}
	first.Release()
	second.Release()
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("files are left: %v, %v", entries, err)
	}
}

func TestUnchangedDriveIsCopiedOnce(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	m.mustWrite(t, "file", "one")
	m.Release()
	var copies []*Mount
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 12 { // more than the initial number of loop devices
		all.Go(func() {
			c, err := s.Freeze(context.Background(), id)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			copies = append(copies, c)
		})
	}
	all.Wait()
	if c := s.drives[id].copy; c == nil || c.users != 12 {
		t.Errorf("the copies are not one: %+v", c)
	}
	m = s.mustAttach(t, id)
	m.mustWrite(t, "file", "two")
	m.Release()
	for _, c := range copies {
		if got := c.read("file"); got != "one" {
			t.Errorf("a copy has %q", got)
		}
	}
	if got := s.mustFreeze(t, id).read("file"); got != "two" {
		t.Errorf("a later copy has %q", got)
	}
	for _, c := range copies {
		c.Release()
	}
}

// cancelledLater is a context that ends at the nth call of Done.
type cancelledLater struct {
	context.Context
	cancel context.CancelFunc
	n      atomic.Int32
}

func (c *cancelledLater) Done() <-chan struct{} {
	if c.n.Add(-1) == 0 {
		c.cancel()
	}
	return c.Context.Done()
}

// TestCopyOfABusyDrive: a copy fails after all data was copied, because the kernel does
// not unmount the drive. The copy, which is as large as the drive, must be closed.
func TestCopyOfABusyDrive(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The first wait is for the drive before the copy, the second for the one after.
	later := &cancelledLater{Context: ctx, cancel: cancel}
	later.n.Store(2)
	var user, made *os.File
	copied, _, err := s.copyOf(later, id, func() (*os.File, error) {
		var err error
		if user, err = s.loopOf(id); err == nil {
			made, err = nameless(s.dir)
		}
		return made, err
	})
	defer user.Close()
	if !errors.Is(err, context.Canceled) || copied != nil {
		t.Fatalf("a copy of a drive that stays in use: %v, %v", copied, err)
	}
	if _, err := made.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the copy is still open: %v", err)
	}
}

// TestWriterDoesNotWaitForLong: a copy that would block a writer for too long fails, and
// the writer continues. Without a writer, a copy has no such limit.
func TestWriterDoesNotWaitForLong(t *testing.T) {
	s := newStore(t)
	s.pause = time.Nanosecond
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	m.mustWrite(t, "file", "one")
	fork := skerry.NewID(skerry.PrefixDrive)
	_, err := s.Freeze(t.Context(), id)
	for _, err := range []error{err, s.Fork(t.Context(), fork, id)} {
		if skerry.CodeOf(err) != skerry.CodeConflict {
			t.Errorf("a copy that takes too long: %v", err)
		}
	}
	m.mustWrite(t, "file", "two")
	m.Release()
	if err := s.Fork(t.Context(), fork, id); err != nil {
		t.Fatal(err)
	}
	if got := s.mustAttach(t, fork).read("file"); got != "two" {
		t.Errorf("the fork has %q", got)
	}
}

// TestWriterDuringCopies writes records in order during copies. Each copy has a prefix
// of the records.
func TestWriterDuringCopies(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	m := s.mustAttach(t, id)
	f, err := m.open("log", unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		defer f.Close()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := fmt.Fprintf(f, "%08d\n", i); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		lines := strings.Split(strings.TrimSuffix(s.mustFreeze(t, id).read("log"), "\n"), "\n")
		for i, line := range lines[:len(lines)-1] {
			if line != fmt.Sprintf("%08d", i) {
				t.Fatalf("record %d is %q", i, line)
			}
		}
	}
	close(stop)
	writer.Wait()
}

// freezeAndWait stands for a server that dies during the copy of a drive.
func freezeAndWait(dir, id string) {
	fail := func(err error) {
		fmt.Println(err)
		os.Exit(1)
	}
	s, err := Open(Options{Dir: dir, Log: slog.Default()})
	if err != nil {
		fail(err)
	}
	tree, _, err := s.mounted(context.Background(), id)
	if err != nil {
		fail(err)
	}
	root, err := openRoot(tree)
	if err != nil {
		fail(err)
	}
	err = whileFrozen(root, func() error {
		fmt.Println("frozen")
		select {}
	})
	fail(err)
}

func TestDeathWhileFrozen(t *testing.T) {
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprintf("attached=%t", attached), func(t *testing.T) {
			s := newStore(t)
			id := s.mustCreate(t)
			var m *Mount
			if attached {
				m = s.mustAttach(t, id)
				m.mustWrite(t, "file", "before")
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "SKERRY_TEST_FREEZE="+s.dir, "SKERRY_TEST_DRIVE="+id)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64)
			if n, err := out.Read(b); !bytes.HasPrefix(b[:n], []byte("frozen")) {
				t.Fatalf("the other process says %q, %v", b[:n], err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			if attached {
				m.mustWrite(t, "file", "after")
				m.Release()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := s.Settle(ctx, id); err != nil {
				t.Fatal(err)
			}
			if attached {
				if got := s.mustAttach(t, id).read("file"); got != "after" {
					t.Errorf("the file has %q", got)
				}
			}
		})
	}
}

func TestRetain(t *testing.T) {
	s := newStore(t)
	kept, gone := s.mustCreate(t), s.mustCreate(t)
	if err := os.WriteFile(s.path(skerry.NewID(skerry.PrefixDrive))+newSuffix, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Retain(t.Context(), []string{kept}); err != nil {
		t.Fatal(err)
	}
	// The kept drive, and the folder lost.
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 2 {
		t.Errorf("left are %v, %v", entries, err)
	}
	aside := filepath.Join(s.dir, lostDir, gone+imageSuffix)
	if info, err := os.Stat(aside); err != nil || info.Size() == 0 {
		t.Errorf("the drive that was not known: %v", err)
	}
	if _, err := s.Attach(t.Context(), gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attaching a drive that is gone: %v", err)
	}
	if err := s.Delete(t.Context(), gone); err != nil {
		t.Errorf("deleting a drive that is gone: %v", err)
	}
	// It is kept for keepLost, and no longer.
	for _, age := range []time.Duration{keepLost - time.Hour, keepLost + time.Hour} {
		then, left := time.Now().Add(-age), age < keepLost
		if err := os.Chtimes(aside, then, then); err != nil {
			t.Fatal(err)
		}
		if err := s.Retain(t.Context(), []string{kept}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(aside); left != (err == nil) {
			t.Errorf("after %v: %v", age, err)
		}
	}
}

func TestDamagedDrive(t *testing.T) {
	s := newStore(t)
	id := s.mustCreate(t)
	if err := os.WriteFile(s.path(id), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Attach(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("attaching a damaged drive: %v", err)
	}
	t.Log(err)
	_, err = s.Freeze(t.Context(), id)
	if err == nil {
		t.Error("a damaged drive was copied")
	}
}

func TestIDs(t *testing.T) {
	s := newStore(t)
	for _, id := range []string{"", "x", "../../etc", "drv_../../../etc/passwd-0000000"} {
		_, aerr := s.Attach(t.Context(), id)
		_, ferr := s.Freeze(t.Context(), id)
		for _, err := range []error{s.Create(t.Context(), id, testSize), s.Delete(t.Context(), id), s.Settle(t.Context(), id), aerr, ferr} {
			if err == nil {
				t.Errorf("%q was taken for an id", id)
			}
		}
	}
}

// TestHostDiskIsFull: a drive may be larger than the free disk space. A writer that
// calls fsync gets the error. Earlier files and other drives stay intact.
func TestHostDiskIsFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(Options{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { assertNoLoops(t, s) })
	id, other := s.mustCreate(t), s.mustCreate(t)
	m, neighbour := s.mustAttach(t, id), s.mustAttach(t, other)
	neighbour.mustWrite(t, "file", "theirs")
	m.mustWrite(t, "file", "before")
	m.sync(t)
	f, err := m.open("big", unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, io.LimitReader(zeros{}, 50<<20))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		t.Error("50 MiB were written and synced to a disk of 48")
	}
	t.Log(err)
	if got := m.read("file"); got != "before" {
		t.Errorf("the file has %q", got)
	}
	if _, err := s.Freeze(t.Context(), other); err == nil {
		t.Error("a drive was copied to a full disk")
	} else {
		t.Log(err)
	}
	m.Release()
	if err := s.Settle(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	again := s.mustAttach(t, id)
	if got := again.read("file"); got != "before" {
		t.Errorf("afterwards the file has %q", got)
	}
	if err := unix.Unlinkat(int(again.Tree.Fd()), "big", 0); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Errorf("making room: %v", err)
	}
	if got := neighbour.read("file"); got != "theirs" {
		t.Errorf("the other drive has %q", got)
	}
}

func (m *Mount) sync(t *testing.T) {
	t.Helper()
	root, err := openRoot(m.Tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		t.Fatal(err)
	}
}

// TestWaitForADriveEnds: the wait of each operation for another one ends with its
// context.
func TestWaitForADriveEnds(t *testing.T) {
	s := newStore(t)
	id, other := skerry.NewID(skerry.PrefixDrive), skerry.NewID(skerry.PrefixDrive)
	_, unlock, err := s.lock(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, call := range map[string]func() error{
		"create": func() error { return s.Create(ctx, id, 1<<30) },
		"delete": func() error { return s.Delete(ctx, id) },
		"fork":   func() error { return s.Fork(ctx, other, id) },
		"attach": func() error { _, err := s.Attach(ctx, id); return err },
		"freeze": func() error { _, err := s.Freeze(ctx, id); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
