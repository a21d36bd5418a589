package store

import (
	"fmt"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestUseAndDeletionOfASnapshot has sandboxes come to start from a snapshot while
// it is deleted: one or the other, not both.
func TestUseAndDeletionOfASnapshot(t *testing.T) { onEach(t, testUseAndDeletionOfASnapshot) }

func testUseAndDeletionOfASnapshot(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	sandbox := create(t, s, &clock{}, "one")
	for i := range 20 {
		snap := &skerry.Snapshot{ID: fmt.Sprint("snap_", i), Scope: scope, Status: skerry.SnapshotCreated}
		if err := addSnapshot(ctx, s, snap); err != nil {
			t.Fatal(err)
		}
		var deleted bool
		var useErr, deleteErr error
		var wg sync.WaitGroup
		wg.Go(func() {
			_, useErr = s.UpdateSandbox(ctx, sandbox.ID, func(b *skerry.Sandbox) error { b.CurrentSnapshotID = snap.ID; return nil })
		})
		wg.Go(func() {
			deleted, deleteErr = s.UpdateUnusedSnapshot(ctx, snap.ID, func(n *skerry.Snapshot) error { n.Status = skerry.SnapshotDeleted; return nil })
		})
		wg.Wait()
		if deleteErr != nil || useErr != nil && skerry.CodeOf(useErr) != skerry.CodeSnapshotNotFound {
			t.Fatalf("use: %v, deletion: %v", useErr, deleteErr)
		}
		if used := useErr == nil; used == deleted {
			t.Errorf("snapshot %d: used %v, deleted %v", i, used, deleted)
		}
	}
}

// TestOneWriterOfADrive has sessions want a drive at once: one gets it.
func TestOneWriterOfADrive(t *testing.T) { onEach(t, testOneWriterOfADrive) }

func testOneWriterOfADrive(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	drive := fullDrive()
	if err := s.CreateDrive(ctx, drive); err != nil {
		t.Fatal(err)
	}
	const sessions = 8
	errs := make([]error, sessions)
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			box, run := (&clock{ms: int64(i)}).box(fmt.Sprint("w", i))
			run.DriveIDs = []string{drive.ID}
			errs[i] = s.CreateSandbox(ctx, box, run)
		})
	}
	wg.Wait()
	got := 0
	for _, err := range errs {
		switch {
		case err == nil:
			got++
		case skerry.CodeOf(err) != skerry.CodeConflict:
			t.Error(err)
		}
	}
	if got != 1 {
		t.Errorf("%d sessions have the drive", got)
	}
}

// BenchmarkUpdate measures a change of a session with its sandbox, by several at
// once, each of its own.
func BenchmarkUpdate(b *testing.B) {
	for name, open := range map[string]opener{"sqlite": openIn, "postgres": openPostgresIn} {
		b.Run(name, func(b *testing.B) {
			s := open(b, b.TempDir())
			const width = 4
			var wg sync.WaitGroup
			ids := make([]string, width)
			for i := range width {
				box, run := (&clock{ms: int64(i)}).box(fmt.Sprint("w", i))
				if err := s.CreateSandbox(b.Context(), box, run); err != nil {
					b.Fatal(err)
				}
				ids[i] = run.ID
			}
			b.ResetTimer()
			for i := range width {
				wg.Go(func() {
					for range b.N / width {
						_, _, err := s.UpdateSession(b.Context(), ids[i], func(_ *skerry.Sandbox, r *skerry.Session) error { r.VCPUs++; return nil })
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
