package controller

import (
	"context"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestPause: what needs the machine resumes it, a stop of a paused session is a
// stop, and what has stopped cannot be paused.
func TestPause(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	id := run.Session.ID
	paused := func(want bool) {
		t.Helper()
		got, err := l.GetSandbox(t.Context(), scope, "one", false)
		if err != nil || got.Session.PausedAt.IsZero() == want || got.Sandbox.PausedAt.IsZero() == want {
			t.Errorf("paused at %v, %v; want %v", got.Session.PausedAt, err, want)
		}
	}
	for range 2 {
		if _, err := l.PauseSession(t.Context(), scope, id); err != nil {
			t.Fatal(err)
		}
		paused(true)
	}
	if _, err := l.ResumeSession(t.Context(), scope, id); err != nil {
		t.Fatal(err)
	}
	paused(false)
	if _, err := l.PauseSession(t.Context(), scope, id); err != nil {
		t.Fatal(err)
	}
	if got, err := l.GetSandbox(t.Context(), scope, "one", true); err != nil || got.Session.ID != id {
		t.Errorf("resume: %+v, %v", got, err)
	}
	paused(false)
	if _, err := l.PauseSession(t.Context(), scope, id); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StopSession(t.Context(), scope, id, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	paused(false)
	_, err := l.PauseSession(t.Context(), scope, id)
	wantCode(t, "pausing what has stopped", err, skerry.CodeSandboxStopped)
}

// TestSnapshotOfAMemoryForkThatWasDeleted: it is made after the fork's start, and nobody
// starts from it if the fork is gone by then.
func TestSnapshotOfAMemoryForkThatWasDeleted(t *testing.T) {
	l := newLab(t)
	l.create("one")
	release := make(chan struct{})
	l.node.On(processnode.Keep, func(context.Context, string) error { <-release; return nil })
	fork, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.DeleteSandbox(t.Context(), scope, "two", false); err != nil {
		t.Fatal(err)
	}
	close(release)
	snap, err := l.GetSnapshot(t.Context(), scope, fork.Session.SourceSnapshotID) // waits for it
	if err != nil || snap.Status != skerry.SnapshotDeleted {
		t.Errorf("the snapshot is %+v, %v", snap, err)
	}
}

// TestMemoryForkIsKeptAfterwards: the fork runs before its fork point is a
// snapshot, and who asks for that waits.
func TestMemoryForkIsKeptAfterwards(t *testing.T) {
	l := newLab(t)
	l.create("one")
	release := make(chan struct{})
	l.node.On(processnode.Keep, func(context.Context, string) error { <-release; return nil })
	fork, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *skerry.Snapshot)
	go func() {
		snap, err := l.GetSnapshot(t.Context(), scope, fork.Session.SourceSnapshotID)
		if err != nil {
			t.Error(err)
		}
		got <- snap
	}()
	select {
	case snap := <-got:
		t.Errorf("the snapshot was there before it was kept: %+v", snap)
	default:
	}
	close(release)
	if snap := <-got; snap == nil || !snap.Memory || snap.Base.VCPUs != fork.Session.VCPUs {
		t.Errorf("the snapshot is %+v", snap)
	}
	// Who asks for a snapshot that is announced has it made at once.
	asked, done := l.snapshots.announce("snap_announced")
	waited := make(chan error)
	go func() {
		_, err := l.GetSnapshot(t.Context(), scope, "snap_announced")
		waited <- err
	}()
	<-asked
	done()
	wantCode(t, "a snapshot that was announced and not made", <-waited, skerry.CodeNotFound)
	eight := 8
	_, err = l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Memory: true, VCPUs: &eight})
	wantCode(t, "a memory fork of another size", err, skerry.CodeBadRequest)
}
