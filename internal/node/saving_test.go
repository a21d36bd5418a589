package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/room"
)

// shelf keeps snapshots, unless it fails.
type shelf struct {
	Snapshots
	fails error
}

func (s shelf) Add(_ context.Context, dir, _, _ string) (nodeapi.SavedFiles, error) {
	if s.fails != nil {
		return nodeapi.SavedFiles{}, s.fails
	}
	return nodeapi.SavedFiles{Manifest: "m"}, os.RemoveAll(dir)
}

// TestFailedSaveLeavesNothing fails a save at each of its steps.
func TestFailedSaveLeavesNothing(t *testing.T) {
	failure := errors.New("a step failed")
	for _, c := range []struct {
		name    string
		machine earlier
		shelf   shelf
		how     nodeapi.Saving
		code    skerry.Code
	}{
		{name: "write", machine: earlier{write: failure}, code: skerry.CodeInternal},
		{name: "write to a full disk", machine: earlier{write: unix.ENOSPC}, code: skerry.CodeDiskFull},
		{name: "write of a sandbox that cannot be saved", machine: earlier{write: &driver.UnsavableError{Why: "it is odd", Err: failure}}, code: skerry.CodeSandboxUnsavable},
		{name: "write of memory", machine: earlier{write: failure}, how: nodeapi.Saving{Memory: true}, code: skerry.CodeInternal},
		{name: "hold", machine: earlier{pause: failure}, how: nodeapi.Saving{Hold: true}, code: skerry.CodeInternal},
		{name: "keep", shelf: shelf{fails: failure}, code: skerry.CodeInternal},
		{name: "keep on a full disk", shelf: shelf{fails: unix.ENOSPC}, how: nodeapi.Saving{Hold: true}, code: skerry.CodeDiskFull},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			m := &c.machine
			m.keys = []string{}
			n, ids := nodeAfter(t, dir, time.Minute, m)
			if _, err := n.Recover(t.Context(), ids); err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			n.cfg.Snapshots = c.shelf
			_, err := n.Snapshot(t.Context(), m.id, c.how)
			if got := skerry.CodeOf(err); err == nil || got != c.code {
				t.Errorf("Snapshot() = %v, of code %s", err, got)
			}
			left, err := os.ReadDir(filepath.Join(dir, "work"))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

// TestDiskReserve has a disk with less room than is to be left free.
func TestDiskReserve(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.cfg.Snapshots = shelf{}
	var st unix.Statfs_t
	if err := unix.Statfs(n.cfg.Dir, &st); err != nil {
		t.Fatal(err)
	}
	// Three quarters of the reserve are free, more or less.
	reserve := int64(st.Bavail) * st.Bsize / 3 * 4
	n.cfg.Disk = room.New(n.cfg.Dir, reserve)
	refused := func(what string, err error) {
		t.Helper()
		if skerry.CodeOf(err) != skerry.CodeDiskFull {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a start", n.Start(t.Context(), nodeapi.SessionSpec{ID: skerry.NewID(skerry.PrefixSession)}))
	refused("a drive", n.CreateDrive(t.Context(), skerry.NewID(skerry.PrefixDrive), 1<<30))
	if _, err := n.Snapshot(t.Context(), m.id, nodeapi.Saving{}); err != nil {
		t.Errorf("a save that half of the reserve is there for: %v", err)
	}
	n.cfg.Disk = room.New(n.cfg.Dir, 8*reserve)
	_, err := n.Snapshot(t.Context(), m.id, nodeapi.Saving{})
	refused("a save", err)
	if _, err := n.Stop(t.Context(), m.id); err != nil {
		t.Errorf("a stop needs no room: %v", err)
	}
}

// TestSavesShareTheRoom has two sessions of which one can be saved at a time: the
// room is there for each of them, but not for both.
func TestSavesShareTheRoom(t *testing.T) {
	one, other := &earlier{keys: []string{}}, &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, one, other)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.cfg.Snapshots = shelf{}
	var st unix.Statfs_t
	if err := unix.Statfs(n.cfg.Dir, &st); err != nil {
		t.Fatal(err)
	}
	// A quarter of what is free is to stay free; a save needs half of it.
	free := int64(st.Bavail) * st.Bsize
	n.cfg.Disk = room.New(n.cfg.Dir, free/2)
	one.size, other.size = free/2, free/2
	for _, memory := range []bool{false, true} {
		how := nodeapi.Saving{Memory: memory}
		one.saving = func() {
			if _, err := n.Snapshot(t.Context(), other.id, how); skerry.CodeOf(err) != skerry.CodeDiskFull {
				t.Errorf("a save beside another that needs all the room: %v", err)
			}
		}
		if _, err := n.Snapshot(t.Context(), one.id, how); err != nil {
			t.Errorf("a save that there is room for: %v", err)
		}
		if _, err := n.Snapshot(t.Context(), other.id, how); err != nil {
			t.Errorf("a save after another: %v", err)
		}
	}
	one.saving = nil
	one.write = errors.New("a step failed")
	if _, err := n.Snapshot(t.Context(), one.id, nodeapi.Saving{}); !errors.Is(err, one.write) {
		t.Errorf("a save that fails: %v", err)
	}
	one.write = nil
	if _, err := n.Snapshot(t.Context(), one.id, nodeapi.Saving{}); err != nil {
		t.Errorf("after a save that failed: %v", err)
	}
	one.size = free * 7 / 8
	if _, err := n.Snapshot(t.Context(), one.id, nodeapi.Saving{}); skerry.CodeOf(err) != skerry.CodeDiskFull {
		t.Errorf("a save that needs more than there is: %v", err)
	}
}

// TestForgottenSessionLeavesNoSaves has what a server leaves that is killed while
// it saves.
func TestForgottenSessionLeavesNoSaves(t *testing.T) {
	one, other := &earlier{keys: []string{}}, &earlier{keys: []string{}}
	dir := t.TempDir()
	n, ids := nodeAfter(t, dir, time.Minute, one, other)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	work := func(m *earlier) string { return filepath.Join(dir, "work", m.id+"-123") }
	for _, m := range []*earlier{one, other} {
		if err := os.Mkdir(work(m), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work(m), "pages.img"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Forget(t.Context(), one.id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(work(one)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished save of a forgotten session: %v", err)
	}
	if _, err := os.Stat(work(other)); err != nil {
		t.Errorf("another session's: %v", err)
	}
}
