package store

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestFullDisk has SQLite itself find its disk full.
func TestFullDisk(t *testing.T) {
	s := openIn(t, t.TempDir())
	now := skerry.At(time.Now())
	create := func(name string) error {
		run := &skerry.Session{ID: skerry.NewID(skerry.PrefixSession), Status: skerry.StatusPending, CreatedAt: now}
		box := &skerry.Sandbox{
			ID: skerry.NewID(skerry.PrefixSandbox), Scope: scope, Name: name, CurrentSessionID: run.ID, CreatedAt: now, StatusUpdatedAt: now,
			Env: map[string]string{"BIG": strings.Repeat("x", 1<<20)},
		}
		run.SandboxID = box.ID
		return s.CreateSandbox(t.Context(), box, run)
	}
	// The database cannot grow: the pragma is raised to the size that it has.
	if _, err := s.write.Exec("PRAGMA max_page_count = 1"); err != nil {
		t.Fatal(err)
	}
	if err := create("one"); skerry.CodeOf(err) != skerry.CodeUnavailable || !strings.Contains(err.Error(), "full") {
		t.Errorf("a write to a full disk: %v", err)
	}
	if _, err := s.write.Exec("PRAGMA max_page_count = 100000"); err != nil {
		t.Fatal(err)
	}
	if err := create("one"); err != nil {
		t.Errorf("a write when there is room again: %v", err)
	}
}

// TestSnapshotInUseStays has a snapshot evicted while sandboxes come to use it.
func TestSnapshotInUseStays(t *testing.T) { onEach(t, testSnapshotInUseStays) }

func testSnapshotInUseStays(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	now := skerry.At(time.Now())
	snap := &skerry.Snapshot{ID: skerry.NewID(skerry.PrefixSnapshot), Status: skerry.SnapshotCreated, CreatedAt: now, UpdatedAt: now}
	if err := addSnapshot(t.Context(), s, snap); err != nil {
		t.Fatal(err)
	}
	start := func(name string) error {
		run := &skerry.Session{ID: skerry.NewID(skerry.PrefixSession), Status: skerry.StatusPending, CreatedAt: now, SourceSnapshotID: snap.ID}
		box := &skerry.Sandbox{
			ID: skerry.NewID(skerry.PrefixSandbox), Scope: scope, Name: name, CurrentSessionID: run.ID, CreatedAt: now, StatusUpdatedAt: now,
			Source: &skerry.Source{Type: "snapshot", SnapshotID: snap.ID},
		}
		run.SandboxID = box.ID
		if err := s.CreateSandbox(t.Context(), box, run); err != nil {
			return err
		}
		return s.DeleteSandbox(t.Context(), box.ID)
	}
	if err := start("one"); err != nil {
		t.Fatal(err)
	}
	box := &skerry.Sandbox{ID: skerry.NewID(skerry.PrefixSandbox), Scope: scope, Name: "two", CurrentSnapshotID: snap.ID, CreatedAt: now, StatusUpdatedAt: now}
	run := &skerry.Session{ID: skerry.NewID(skerry.PrefixSession), SandboxID: box.ID, Status: skerry.StatusPending, CreatedAt: now}
	if err := s.CreateSandbox(t.Context(), box, run); err != nil {
		t.Fatal(err)
	}
	remove := func(s *skerry.Snapshot) error { s.Status = skerry.SnapshotDeleted; return nil }
	if saved, err := s.UpdateUnusedSnapshot(t.Context(), snap.ID, remove); err != nil || saved {
		t.Errorf("a snapshot in use: %v, %v", saved, err)
	}
	expire := func(s *skerry.Snapshot) error { s.ExpiresAt = skerry.FromMillis(1); return nil }
	if updated, err := s.UpdateUnusedSnapshot(t.Context(), snap.ID, expire); err != nil || updated {
		t.Errorf("a change of a snapshot in use: %v, %v", updated, err)
	}
	if got, err := s.Snapshot(t.Context(), snap.Scope, snap.ID); err != nil || !got.ExpiresAt.IsZero() {
		t.Errorf("a snapshot in use was changed: %+v, %v", got, err)
	}
	if err := s.DeleteSandbox(t.Context(), box.ID); err != nil {
		t.Fatal(err)
	}
	if saved, err := s.UpdateUnusedSnapshot(t.Context(), snap.ID, remove); err != nil || !saved {
		t.Errorf("a snapshot out of use: %v, %v", saved, err)
	}
	other := create(t, s, &clock{}, "other")
	point := func(b *skerry.Sandbox) error { b.CurrentSnapshotID = snap.ID; return nil }
	if _, err := s.UpdateSandbox(t.Context(), other.ID, point); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("a sandbox that comes to start from a deleted snapshot: %v", err)
	}
	if err := start("three"); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("a start from a deleted snapshot: %v", err)
	}
}
