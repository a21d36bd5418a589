package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
)

// forkable is a machine whose saves last until the test ends them.
type forkable struct {
	earlier
	saves []*slowSave
}

type slowSave struct {
	standing atomic.Bool
	done     chan struct{}
	err      error
}

func (m *forkable) Fork(ctx context.Context, dir string, goesOn func()) (driver.Fork, error) {
	f := &slowSave{done: make(chan struct{})}
	f.standing.Store(true)
	m.saves = append(m.saves, f)
	context.AfterFunc(ctx, func() {
		select {
		case <-f.done:
		default:
			f.finish(ctx.Err())
		}
	})
	return f, os.WriteFile(filepath.Join(dir, "pages"), []byte{byte(len(m.saves))}, 0o600)
}

func (f *slowSave) finish(err error) {
	f.err = err
	f.standing.Store(false)
	close(f.done)
}

func (f *slowSave) Standing() bool        { return f.standing.Load() }
func (f *slowSave) Done() <-chan struct{} { return f.done }
func (f *slowSave) Err() error            { return f.err }

// TestForksShareASave has forks ask for a session before it goes on, and after.
func TestForksShareASave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		n, err := New(Config{Dir: filepath.Join(dir, "sessions"), SnapshotWork: filepath.Join(dir, "work"), Driver: machines{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		m := &forkable{}
		s := newSession(n, "sbx_source")
		s.enter(m, 0)
		share := func() *forkSave {
			f, err := s.shareSave(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		first, second := share(), share()
		if first != second || len(m.saves) != 1 {
			t.Errorf("two forks of a session that stands still made %d saves", len(m.saves))
		}
		// The session goes on, while its pages are written.
		m.saves[0].standing.Store(false)
		late := make(chan *forkSave, 3)
		for range 3 {
			go func() { late <- share() }()
		}
		synctest.Wait()
		if len(m.saves) != 1 {
			t.Error("a save began before the last one had ended")
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.shareSave(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("a fork that is given up while it waits: %v", err)
		}
		m.saves[0].finish(nil)
		third := <-late
		for range 2 {
			if next := <-late; next != third || third == first || len(m.saves) != 2 {
				t.Errorf("three forks that waited made %d saves", len(m.saves)-1)
			}
		}

		capture := func(name string) string { return filepath.Join(n.cfg.SnapshotWork, name) }
		for _, name := range []string{"one", "two"} {
			if failure, err := first.leave(capture(name), nil); failure != nil || err != nil {
				t.Error(failure, err)
			}
			b, err := os.ReadFile(filepath.Join(capture(name), "pages"))
			if err != nil || !slices.Equal(b, []byte{1}) {
				t.Errorf("capture %s has %v, %v", name, b, err)
			}
			if _, err := readWoken(capture(name)); err != nil {
				t.Error(err)
			}
		}
		// One start fails, which the others do not notice; then their save does.
		broken := errors.New("no network")
		if failure, err := third.leave("", broken); failure != nil || !errors.Is(err, broken) {
			t.Errorf("a start that failed: %v, %v", failure, err)
		}
		if !m.saves[1].Standing() || !third.join() {
			t.Error("the save has ended with the first of its forks")
		}
		full := errors.New("the disk is full")
		m.saves[1].finish(full)
		for range 3 {
			if failure, err := third.leave(capture("three"), nil); failure != full || err != nil {
				t.Errorf("a fork whose save failed: %v, %v", failure, err)
			}
		}
		// A save that nobody waits for any more goes on, as it cannot be interrupted. Only
		// then the next one begins.
		left := func() int {
			entries, err := os.ReadDir(n.cfg.SnapshotWork)
			if err != nil {
				t.Error(err)
			}
			return len(entries)
		}
		if failure, err := share().leave("", broken); failure != nil || err != broken || left() != 3 {
			t.Errorf("the only fork is given up: %v, %v, there are %d folders", failure, err, left())
		}
		if err := s.saving.enter(gone); err == nil || len(m.saves) != 3 {
			t.Errorf("the save has ended: %v, %d saves", err, len(m.saves))
		}
		m.saves[2].finish(nil)
		synctest.Wait()
		if left() != 2 {
			t.Errorf("%d folders are left", left())
		}
		// A save that takes long is joined no more, and ends at last.
		long := share()
		time.Sleep(joinWithin + time.Second)
		if long.join() {
			t.Error("a save was joined that is at it for long")
		}
		time.Sleep(forkTimeout)
		synctest.Wait()
		if failure, err := long.leave(capture("long"), nil); !errors.Is(failure, context.DeadlineExceeded) || err != nil || left() != 2 {
			t.Errorf("a save that does not end: %v, %v, there are %d folders", failure, err, left())
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.idle.users != 0 || len(s.saving) != 0 {
			t.Errorf("%d uses and %d saves are left", s.idle.users, len(s.saving))
		}
	})
}

// TestCaptures has captures wait for sessions that start from them.
func TestCaptures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		n, err := New(Config{Dir: filepath.Join(dir, "sessions"), SnapshotWork: filepath.Join(dir, "work"), Driver: machines{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		m := &forkable{earlier: earlier{done: make(chan struct{})}}
		s := newSession(n, skerry.NewID(skerry.PrefixSession))
		s.enter(m, 0)
		s.live = true
		if err := n.add(s); err != nil {
			t.Fatal(err)
		}
		users := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.idle.users }
		begin := func(captures ...string) {
			t.Helper()
			for _, id := range captures {
				if err := n.Capture(t.Context(), s.id, id); err != nil {
					t.Fatal(err)
				}
			}
		}
		begin("one", "one", "two", "three", "four")
		if len(m.saves) != 1 || users() != 5 { // the save is one
			t.Errorf("four captures made %d saves, and keep the session awake %d times", len(m.saves), users())
		}
		m.saves[0].finish(nil)
		// A session starts later from what was captured.
		from, err := n.forkSource(t.Context(), s.id, "one")
		if err != nil {
			t.Fatal(err)
		}
		if err := from.end(nil); err != nil || from.Fork != m.saves[0] {
			t.Errorf("the end of a start: %v", err)
		}
		if from, err = n.forkSource(t.Context(), s.id, "two"); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("no network")
		if err := from.end(broken); !errors.Is(err, broken) {
			t.Errorf("the end of a start that failed: %v", err)
		}
		if err := n.Discard(t.Context(), "three"); err != nil {
			t.Error(err)
		}
		time.Sleep(captureWait)
		synctest.Wait()
		if users() != 0 || len(n.captures) != 0 {
			t.Errorf("%d captures keep the session awake, %d are left", users(), len(n.captures))
		}
		// A session that comes too late starts from what the other one is then.
		if from, err = n.forkSource(t.Context(), s.id, "four"); err != nil || len(m.saves) != 2 {
			t.Fatalf("%d saves, %v", len(m.saves), err)
		}
		m.saves[1].finish(nil)
		if err := from.end(nil); err != nil {
			t.Error(err)
		}
		// The session is stopped and forgotten before the fork has started.
		begin("five", "six")
		m.saves[2].finish(nil)
		if from, err = n.forkSource(t.Context(), s.id, "five"); err != nil {
			t.Fatal(err)
		}
		if err := n.Forget(t.Context(), s.id); err != nil {
			t.Error(err)
		}
		if err := from.end(nil); err != nil {
			t.Errorf("a fork of a session that is gone: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if users() != 0 {
			t.Error("a capture has outlived the node")
		}
		left, err := os.ReadDir(n.cfg.SnapshotWork)
		if err != nil || len(left) != 3 || left[0].Name() != "five" || left[1].Name() != "four" || left[2].Name() != "one" {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}
