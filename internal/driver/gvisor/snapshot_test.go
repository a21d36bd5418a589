package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"

	"github.com/skerry-dev/skerry/internal/driver"
)

// snapshot takes one of m.
func snapshot(t *testing.T, m driver.Machine) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), dir, driver.Saving{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSnapshot(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("before"))
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	sum := g.ask("sum /data")
	attributes := g.ask("attributes /tree")
	if !strings.HasPrefix(attributes, ". ") {
		t.Fatal(attributes)
	}
	// Two lives: what was restored is saved as well as what was made.
	for _, id := range []string{"second", "third"} {
		dir := snapshot(t, m)
		// The machine goes on, and what it writes now is not in the snapshot.
		if got := g.ask("write /data 1"); got != "ok" {
			t.Fatal(got)
		}
		spec := l.spec(id)
		spec.Source.Files = dir
		m, g = l.start(t, spec)
		if got := g.ask("sum /data"); got != sum {
			t.Errorf("%s: the file is %s, was %s", id, got, sum)
		}
		got := strings.Split(g.ask("attributes /tree"), "; ")
		for i, want := range strings.Split(attributes, "; ") {
			if got[i] != want {
				t.Errorf("%s:\n%s, was\n%s", id, got[i], want)
			}
		}
	}
}

// TestAttributesAreBounded fills the kernel's memory with extended attributes, in
// a machine that starts from nothing and in one that was restored.
func TestAttributesAreBounded(t *testing.T) {
	l := newLab(t)
	spec := l.spec("filled")
	m, g := l.start(t, spec)
	// 256 bytes for each inode, of which there is one for 8 KiB of memory.
	want := fmt.Sprintf("%d no space left on device; again: <nil>", spec.MemoryBytes/(8<<10)*256/(60<<10+64+int64(len("user.large"))))
	if got := g.ask("fill-attributes"); got != want {
		t.Errorf("attributes: %s, want %s", got, want)
	}
	spec = l.spec("restored")
	spec.Source.Files = snapshot(t, m)
	_, g = l.start(t, spec)
	// The files that are there have theirs already.
	if got := g.ask("fill-attributes"); got != want {
		t.Errorf("attributes, where they were restored: %s, want %s", got, want)
	}
}

// TestUnsavable makes a tree whose description would be as large as the square
// of its depth.
func TestUnsavable(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("deep"))
	if got := g.ask("deep 3000"); got != "ok" {
		t.Fatal(got)
	}
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := m.Save(t.Context(), dir, driver.Saving{})
	var unsavable *driver.UnsavableError
	if !errors.As(err, &unsavable) || unsavable.Why != "a path in it is longer than 8,192 bytes" {
		t.Errorf("Snapshot() = %v", err)
	}
	// What the host fails in is not the sandbox's doing.
	if err := m.Save(t.Context(), filepath.Join(dir, "pages.img"), driver.Saving{}); err == nil || errors.As(err, &unsavable) {
		t.Errorf("Snapshot() into a file: %v", err)
	}
	if got := g.ask("cpus"); got != "2" {
		t.Errorf("after a failed snapshot the machine says %q", got)
	}
}

// TestSaveOnAFullDisk: a disk that is full is not the sandbox's doing, in whatever part of
// a save it is.
func TestSaveOnAFullDisk(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("full"))
	for _, memory := range []bool{false, true} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
			t.Fatal(err)
		}
		err := m.Save(t.Context(), dir, driver.Saving{Memory: memory})
		var unsavable *driver.UnsavableError
		if !errors.Is(err, unix.ENOSPC) || errors.As(err, &unsavable) {
			t.Errorf("memory %v: %v", memory, err)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // the sandbox may still have a file open
			t.Error(err)
		}
	}
	if got := g.ask("cpus"); got != "2" {
		t.Errorf("after failed saves the machine says %q", got)
	}
	// A cause that a sandbox has named counts for nothing.
	for said, host := range map[string]bool{
		"error serializing object &wire.Struct{}: no space left on device:\ngoroutine 68 [running]:\n": true,
		"error serializing type or ID: no space left on device:\ngoroutine 68 [running]:\n":            true,
		"error serializing object \"x: no space left on device:\\ngoroutine \": odd:\ngoroutine 1":     false,
		"odd: x: no space left on device:\ngoroutine 1":                                                false,
	} {
		if err := refusal(urpc.RemoteError{Message: said}); errors.Is(err, unix.ENOSPC) != host {
			t.Errorf("%q is %v", said, err)
		}
	}
}

// TestSilentSentry asks a kernel that does not answer.
func TestSilentSentry(t *testing.T) {
	l := newLab(t)
	m, _ := l.start(t, l.spec("silent"))
	if err := m.(*machine).proc.send(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	// The second call does not wait for the answer to the first.
	for _, call := range []func() error{
		func() error { return m.Save(ctx, dir, driver.Saving{}) },
		func() error { return m.Save(ctx, dir, driver.Saving{Memory: true}) },
	} {
		var unsavable *driver.UnsavableError
		if err := call(); !errors.As(err, &unsavable) {
			t.Errorf("a call to a silent kernel: %v", err)
		}
	}
	// It can be stopped all the same: the test's end does.
}

func TestDamagedSnapshotEndsTheMachine(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("before"))
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	dir := snapshot(t, m)
	if err := os.Truncate(filepath.Join(dir, "pages.img"), 1<<20); err != nil {
		t.Fatal(err)
	}
	spec := l.spec("after")
	spec.Source.Files = dir
	after, err := l.Start(t.Context(), spec)
	if err != nil {
		l.assertNothingLeft(t, spec.ID)
		return // refused at once is as good
	}
	select {
	case <-after.Done():
		if !strings.Contains(after.Reason(), "snapshot") {
			t.Errorf("Reason() = %q", after.Reason())
		}
	case <-time.After(30 * time.Second):
		t.Error("the machine runs on without its files")
	}
	if err := after.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestPause(t *testing.T) {
	l := newLab(t)
	spec := l.spec("paused")
	m, g := l.start(t, spec)
	g.ask("cpus")
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := m.Usage()
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan string)
	go func() { answer <- g.ask("cpus") }()
	select {
	case got := <-answer:
		t.Errorf("a paused machine answered %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	// The kernel itself has timers, and no more.
	if after, err := m.Usage(); err != nil || after.CPU-before.CPU > 20*time.Millisecond {
		t.Errorf("a machine used %v in 200 ms of its pause, %v", after.CPU-before.CPU, err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "2" {
		t.Errorf("after its pause the machine says %q", got)
	}
	// Again and again, with nothing in between.
	for range 5 {
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if got := g.ask("child alloc 1"); !strings.Contains(got, `"1" <nil>`) {
			t.Errorf("after many pauses a child says %q", got)
		}
	}
	// An earlier process has paused it, or was about to.
	for _, pause := range []func(context.Context) error{m.Pause, func(context.Context) error {
		m.(*machine).paused = true
		return m.(*machine).save()
	}, func(context.Context) error {
		return m.(*machine).box.Pause(spec.ID)
	}} {
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		machines, err := l.Recover(t.Context())
		if err != nil || len(machines) != 1 {
			t.Fatal(machines, err)
		}
		if got := g.ask("cpus"); got != "2" {
			t.Errorf("after it was adopted the machine says %q", got)
		}
		m.(*machine).paused = true
		if err := m.(*machine).save(); err != nil {
			t.Fatal(err)
		}
	}
	m.(*machine).paused = false
	// A paused machine can be stopped: the test's end does.
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
}
