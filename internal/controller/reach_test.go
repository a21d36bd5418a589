package controller

import (
	"context"
	"sync"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestReachResumesOnce has many requests come for a sandbox that has stopped.
func TestReachResumesOnce(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	box, first := run.Sandbox.ID, run.Session.ID
	if id, err := l.Reach(t.Context(), box, true); err != nil || id != first {
		t.Fatalf("a running sandbox: %q, %v", id, err)
	}
	if _, err := l.StopSession(t.Context(), scope, first, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	// Without leave, none starts it.
	_, err := l.Reach(t.Context(), box, false)
	wantCode(t, "without resume", err, skerry.CodeSandboxStopped)
	before := l.node.Starts()
	// The start waits until all are there, so that they come while it starts.
	const requests = 64
	var waiting sync.WaitGroup
	waiting.Add(requests)
	l.node.On(processnode.Start, func(context.Context, string) error { waiting.Wait(); return nil })
	ids, errs := make([]string, requests), make([]error, requests)
	var done sync.WaitGroup
	for i := range requests {
		done.Go(func() {
			waiting.Done()
			ids[i], errs[i] = l.Reach(t.Context(), box, true)
		})
	}
	done.Wait()
	for i := range requests {
		if errs[i] != nil || ids[i] != ids[0] || ids[i] == first {
			t.Fatalf("request %d: %q, %v; the first got %q", i, ids[i], errs[i], ids[0])
		}
	}
	if n := l.node.Starts() - before; n != 1 {
		t.Errorf("%d sessions started", n)
	}
	if l.status("one") != skerry.StatusRunning {
		t.Error("the sandbox does not run")
	}
}

func TestReachWakes(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	if _, err := l.PauseSession(t.Context(), scope, run.Session.ID); err != nil {
		t.Fatal(err)
	}
	// A paused session is no stopped one: it goes on without leave to start.
	if id, err := l.Reach(t.Context(), run.Sandbox.ID, false); err != nil || id != run.Session.ID {
		t.Errorf("%q, %v", id, err)
	}
	got, err := l.GetSandbox(t.Context(), scope, "one", false)
	if err != nil || !got.Session.PausedAt.IsZero() {
		t.Errorf("paused at %v, %v", got.Session.PausedAt, err)
	}
}

func TestReachRefuses(t *testing.T) {
	l := newLab(t)
	_, err := l.Reach(t.Context(), skerry.NewID(skerry.PrefixSandbox), true)
	wantCode(t, "an unknown sandbox", err, skerry.CodeNotFound)
	no := false
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "fleeting", Persistent: &no})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	before := l.node.Starts()
	_, err = l.Reach(t.Context(), run.Sandbox.ID, true)
	if err == nil || l.node.Starts() != before {
		t.Errorf("a sandbox that is not persistent was started: %v", err)
	}
	// A caller who goes away does not wait on.
	kept := l.create("kept")
	if _, err := l.StopSession(t.Context(), scope, kept.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	starting, release := make(chan struct{}), make(chan struct{})
	l.node.On(processnode.Start, func(context.Context, string) error { close(starting); <-release; return nil })
	started := make(chan error)
	go func() {
		_, err := l.Reach(t.Context(), kept.Sandbox.ID, true)
		started <- err
	}()
	<-starting
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Reach(gone, kept.Sandbox.ID, true); err == nil {
		t.Error("a caller who went away got an answer")
	}
	close(release)
	if err := <-started; err != nil {
		t.Error(err)
	}
}
