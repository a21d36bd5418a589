package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestUpdateLosesNoChange has many change the same documents at once: the
// sandbox alone, and with its session.
func TestUpdateLosesNoChange(t *testing.T) { onEach(t, testUpdateLosesNoChange) }

func testUpdateLosesNoChange(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	sandbox := create(t, s, &clock{}, "one")
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				err := errors.New("not tried")
				for again := true; again; again = skerry.CodeOf(err) == skerry.CodeConflict {
					if w%2 == 0 {
						_, err = s.UpdateSandbox(t.Context(), sandbox.ID, func(b *skerry.Sandbox) error { b.TotalIngressBytes++; return nil })
					} else {
						_, _, err = s.UpdateSession(t.Context(), sandbox.CurrentSessionID, func(b *skerry.Sandbox, r *skerry.Session) error {
							b.TotalIngressBytes++
							r.MemoryMB++
							return nil
						})
					}
				}
				if err != nil {
					t.Errorf("change %d of writer %d: %v", i, w, err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Sandbox(t.Context(), sandbox.ID)
	if err != nil || got.TotalIngressBytes != writers*each {
		t.Errorf("%d of %d changes of the sandbox are there, %v", got.TotalIngressBytes, writers*each, err)
	}
	session, err := s.Session(t.Context(), scope, sandbox.CurrentSessionID)
	if err != nil || session.MemoryMB != writers/2*each {
		t.Errorf("%d of %d changes of the session are there, %v", session.MemoryMB, writers/2*each, err)
	}
}

// meddler changes what is changed, while it is, so that it has to begin again.
// It is called with how often it was before.
type meddler struct {
	calls int
	each  func(call int) error
}

func (m *meddler) meddle() error {
	m.calls++
	return m.each(m.calls)
}

// TestUpdateSeesAConcurrentChange checks, for every update, that one which was
// overtaken begins again with what is stored; that one which is overtaken each
// time is a conflict; that a refusal is returned as it is; and that nothing is
// written by either.
func TestUpdateSeesAConcurrentChange(t *testing.T) { onEach(t, testUpdateSeesAConcurrentChange) }

func testUpdateSeesAConcurrentChange(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	c := &clock{}
	sandbox := create(t, s, c, "one")
	session := sandbox.CurrentSessionID
	snap := &skerry.Snapshot{ID: "snap_1", Scope: scope, SandboxID: sandbox.ID, Status: skerry.SnapshotCreated, CreatedAt: c.next()}
	if err := addSnapshot(ctx, s, snap); err != nil {
		t.Fatal(err)
	}
	drive := &skerry.Drive{ID: "drv_1", Scope: scope, Name: "drive", CreatedAt: c.next()}
	if err := s.CreateDrive(ctx, drive); err != nil {
		t.Fatal(err)
	}
	// touch... change a document while an update is under way.
	touchSandbox := func(int) error {
		_, err := s.UpdateSandbox(ctx, sandbox.ID, func(b *skerry.Sandbox) error { b.TotalEgressBytes++; return nil })
		return err
	}
	touchSession := func(int) error {
		_, _, err := s.UpdateSession(ctx, session, func(_ *skerry.Sandbox, r *skerry.Session) error { r.VCPUs++; return nil })
		return err
	}
	mark := func(m *meddler, b *skerry.Sandbox) error { b.Cwd = "/changed"; return m.meddle() }
	marked := func() (bool, error) {
		b, err := s.Sandbox(ctx, sandbox.ID)
		return b != nil && b.Cwd == "/changed", err
	}
	added := 0
	for _, test := range []struct {
		name   string
		meddle func(int) error
		update func(*meddler) error
		done   func() (bool, error)
		reset  func() error
	}{
		{"UpdateSandbox", touchSandbox, func(m *meddler) error {
			_, err := s.UpdateSandbox(ctx, sandbox.ID, func(b *skerry.Sandbox) error { return mark(m, b) })
			return err
		}, marked, nil},
		{"UpdateSession when its sandbox changes", touchSandbox, func(m *meddler) error {
			_, _, err := s.UpdateSession(ctx, session, func(b *skerry.Sandbox, _ *skerry.Session) error { return mark(m, b) })
			return err
		}, marked, nil},
		{"UpdateSession", touchSession, func(m *meddler) error {
			_, _, err := s.UpdateSession(ctx, session, func(b *skerry.Sandbox, _ *skerry.Session) error { return mark(m, b) })
			return err
		}, marked, nil},
		{"AddSession", touchSandbox, func(m *meddler) error {
			added++
			_, _, err := s.AddSession(ctx, sandbox.ID, func(b *skerry.Sandbox) (*skerry.Session, error) {
				run := &skerry.Session{ID: fmt.Sprint("sbx_more", added), SandboxID: b.ID, Scope: b.Scope, Status: skerry.StatusPending}
				return run, mark(m, b)
			})
			return err
		}, func() (bool, error) {
			_, err := s.Session(ctx, scope, fmt.Sprint("sbx_more", added))
			return err == nil, nil
		}, nil},
		{"AddSnapshot", touchSession, func(m *meddler) error {
			added++
			snap := &skerry.Snapshot{ID: fmt.Sprint("snap_more", added), Scope: scope, Status: skerry.SnapshotCreated}
			_, _, err := s.AddSnapshot(ctx, snap, savedFor(ctx, s, snap), session, func(b *skerry.Sandbox, _ *skerry.Session) error { return mark(m, b) })
			return err
		}, func() (bool, error) {
			_, err := s.Snapshot(ctx, scope, fmt.Sprint("snap_more", added))
			return err == nil, nil
		}, nil},
		{"UpdateSnapshot", func(i int) error { return s.TouchSnapshot(ctx, snap.ID, skerry.FromMillis(int64(i))) }, func(m *meddler) error {
			_, err := s.UpdateSnapshot(ctx, snap.ID, func(n *skerry.Snapshot) error { n.ExpiresAt = skerry.FromMillis(77); return m.meddle() })
			return err
		}, func() (bool, error) {
			n, err := s.Snapshot(ctx, scope, snap.ID)
			return n != nil && n.ExpiresAt.Millis() == 77, err
		}, func() error {
			_, err := s.UpdateSnapshot(ctx, snap.ID, func(n *skerry.Snapshot) error { n.ExpiresAt = skerry.Time{}; return nil })
			return err
		}},
		{"UpdateUnusedSnapshot", func(i int) error { return s.TouchSnapshot(ctx, snap.ID, skerry.FromMillis(int64(i))) }, func(m *meddler) error {
			_, err := s.UpdateUnusedSnapshot(ctx, snap.ID, func(n *skerry.Snapshot) error { n.ExpiresAt = skerry.FromMillis(77); return m.meddle() })
			return err
		}, func() (bool, error) {
			n, err := s.Snapshot(ctx, scope, snap.ID)
			return n != nil && n.ExpiresAt.Millis() == 77, err
		}, func() error {
			_, err := s.UpdateSnapshot(ctx, snap.ID, func(n *skerry.Snapshot) error { n.ExpiresAt = skerry.Time{}; return nil })
			return err
		}},
		{"UpdateDrive", func(int) error {
			_, err := s.UpdateDrive(ctx, drive.ID, func(d *skerry.Drive) error { d.Region += "."; return nil })
			return err
		}, func(m *meddler) error {
			_, err := s.UpdateDrive(ctx, drive.ID, func(d *skerry.Drive) error { d.MaxSizeBytes = 77; return m.meddle() })
			return err
		}, func() (bool, error) {
			d, err := s.Drive(ctx, scope, drive.Name)
			return d != nil && d.MaxSizeBytes == 77, err
		}, func() error {
			_, err := s.UpdateDrive(ctx, drive.ID, func(d *skerry.Drive) error { d.MaxSizeBytes = 0; return nil })
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer func() {
				_, err := s.UpdateSandbox(ctx, sandbox.ID, func(b *skerry.Sandbox) error { b.Cwd = ""; return nil })
				if err == nil && test.reset != nil {
					err = test.reset()
				}
				if err != nil {
					t.Fatal(err)
				}
			}()
			mustBe := func(want bool) {
				t.Helper()
				if done, err := test.done(); err != nil || done != want {
					t.Errorf("written: %v, want %v; %v", done, want, err)
				}
			}
			refused := skerry.Errorf(skerry.CodeSandboxStopping, "no")
			m := &meddler{each: func(int) error { return refused }}
			if err := test.update(m); err != error(refused) || m.calls != 1 {
				t.Errorf("a refusal was returned as %v after %d calls", err, m.calls)
			}
			mustBe(false)
			m = &meddler{each: test.meddle}
			if err := test.update(m); skerry.CodeOf(err) != skerry.CodeConflict || m.calls != attempts {
				t.Errorf("overtaken %d times: %v", m.calls, err)
			}
			mustBe(false)
			m = &meddler{each: func(call int) error {
				if call < 3 {
					return test.meddle(call)
				}
				return nil
			}}
			if err := test.update(m); err != nil || m.calls != 3 {
				t.Errorf("overtaken twice: %v after %d calls", err, m.calls)
			}
			mustBe(true)
		})
	}
	// What was changed meanwhile is still there.
	got, err := s.Sandbox(ctx, sandbox.ID)
	if err != nil || got.TotalEgressBytes != 3*(attempts+2) {
		t.Errorf("%d of %d changes meanwhile are there, %v", got.TotalEgressBytes, 3*(attempts+2), err)
	}
}

// TestUpdateOfWhatIsGone: deleted before, and while it is changed.
func TestUpdateOfWhatIsGone(t *testing.T) { onEach(t, testUpdateOfWhatIsGone) }

func testUpdateOfWhatIsGone(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	sandbox := create(t, s, &clock{}, "one")
	if _, _, err := s.UpdateSession(ctx, sandbox.CurrentSessionID, func(*skerry.Sandbox, *skerry.Session) error {
		return s.DeleteSandbox(ctx, sandbox.ID)
	}); skerry.CodeOf(err) != skerry.CodeNotFound {
		t.Errorf("a session that is deleted while it is changed: %v", err)
	}
	never := func() error { t.Error("a change of what is gone was called"); return nil }
	for name, f := range map[string]func() error{
		"UpdateSandbox": func() error {
			_, err := s.UpdateSandbox(ctx, sandbox.ID, func(*skerry.Sandbox) error { return never() })
			return err
		},
		"AddSession": func() error {
			_, _, err := s.AddSession(ctx, sandbox.ID, func(*skerry.Sandbox) (*skerry.Session, error) { return nil, never() })
			return err
		},
		"AddSnapshot": func() error {
			snap := &skerry.Snapshot{ID: "snap_1", Scope: scope, Status: skerry.SnapshotCreated}
			_, _, err := s.AddSnapshot(ctx, snap, savedFor(ctx, s, snap), sandbox.CurrentSessionID, func(*skerry.Sandbox, *skerry.Session) error { return never() })
			return err
		},
		"UpdateSnapshot": func() error {
			_, err := s.UpdateSnapshot(ctx, "snap_1", func(*skerry.Snapshot) error { return never() })
			return err
		},
		"UpdateUnusedSnapshot": func() error {
			_, err := s.UpdateUnusedSnapshot(ctx, "snap_1", func(*skerry.Snapshot) error { return never() })
			return err
		},
		"UpdateDrive": func() error {
			_, err := s.UpdateDrive(ctx, "drv_1", func(*skerry.Drive) error { return never() })
			return err
		},
	} {
		if err := f(); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUpdateDoesNotChangeWhatItIs: a document's id, scope and name are what it
// is found by.
func TestUpdateDoesNotChangeWhatItIs(t *testing.T) { onEach(t, testUpdateDoesNotChangeWhatItIs) }

func testUpdateDoesNotChangeWhatItIs(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	sandbox := create(t, s, &clock{}, "one")
	if _, err := s.UpdateSandbox(ctx, sandbox.ID, func(b *skerry.Sandbox) error { b.Name = "two"; return nil }); err == nil {
		t.Error("a sandbox was renamed")
	}
	if _, _, err := s.UpdateSession(ctx, sandbox.CurrentSessionID, func(_ *skerry.Sandbox, r *skerry.Session) error { r.ID = "sbx_2"; return nil }); err == nil {
		t.Error("a session was given another id")
	}
	if _, _, err := s.AddSession(ctx, sandbox.ID, func(*skerry.Sandbox) (*skerry.Session, error) {
		return &skerry.Session{ID: "sbx_2", SandboxID: "another"}, nil
	}); err == nil {
		t.Error("a session was added to another sandbox")
	}
}

// TestUpdateEnds: who waits for nobody any more is not kept.
func TestUpdateEnds(t *testing.T) { onEach(t, testUpdateEnds) }

func testUpdateEnds(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	sandbox := create(t, s, &clock{}, "one")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	calls := 0
	_, err := s.UpdateSandbox(ctx, sandbox.ID, func(*skerry.Sandbox) error {
		calls++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("a canceled update: %v after %d calls", err, calls)
	}
}

// TestAddedTwice: who was not told that something was written writes it again,
// with the same id.
func TestAddedTwice(t *testing.T) { onEach(t, testAddedTwice) }

func testAddedTwice(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	box, run := (&clock{}).box("one")
	drive := fullDrive()
	next := &skerry.Session{ID: "sbx_next", SandboxID: box.ID, SandboxName: "one", Scope: box.Scope, Status: skerry.StatusPending, DriveIDs: []string{drive.ID, drive.ID}}
	for i := range 3 {
		if err := s.CreateSandbox(ctx, box, run); err != nil {
			t.Errorf("create %d of a sandbox: %v", i, err)
		}
		if err := s.CreateDrive(ctx, drive); err != nil {
			t.Errorf("create %d of a drive: %v", i, err)
		}
		if err := addSnapshot(ctx, s, fullSnapshot()); err != nil {
			t.Errorf("add %d of a snapshot: %v", i, err)
		}
		snap := fullSnapshot()
		snap.ID = "snap_of_session"
		got, _, err := s.AddSnapshot(ctx, snap, savedFor(ctx, s, snap), run.ID, func(b *skerry.Sandbox, r *skerry.Session) error {
			b.TotalEgressBytes++
			b.CurrentSnapshotID = snap.ID
			return nil
		})
		if err != nil || got.TotalEgressBytes != 1 || got.CurrentSnapshotID != snap.ID {
			t.Errorf("add %d of a snapshot of a session: %+v, %v", i, got, err)
		}
		got, session, err := s.AddSession(ctx, box.ID, func(b *skerry.Sandbox) (*skerry.Session, error) {
			b.TotalIngressBytes++
			return next, nil
		})
		if err != nil || got.TotalIngressBytes != 1 || session.ID != next.ID {
			t.Errorf("add %d of a session: %+v, %+v, %v", i, got, session, err)
		}
	}
	// What has the name alone is another.
	other, otherRun := (&clock{}).box("one")
	if err := s.CreateSandbox(ctx, other, otherRun); skerry.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("another sandbox of the name: %v", err)
	}
}
