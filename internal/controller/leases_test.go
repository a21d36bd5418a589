package controller

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestOneSaveThatHangsHoldsUpNobody has a collection come while one tenant's save
// hangs, and other tenants stop, fork and save meanwhile.
func TestOneSaveThatHangsHoldsUpNobody(t *testing.T) {
	l, _ := newFaultyLab(t)
	hostile := l.create("hostile")
	reached, release := l.hang(true)
	var stuck sync.WaitGroup
	stuck.Go(func() { _, _ = l.StopSession(t.Context(), scope, hostile.Session.ID, skerry.StopParams{}) })
	<-reached
	l.node.On(processnode.Save, nil)
	if _, err := l.collect(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"one", "two"} {
		run := l.create(name)
		l.sh(run.Session.ID, "echo kept > file")
		if _, err := l.ForkSandbox(t.Context(), scope, name, skerry.ForkParams{Name: "fork-of-" + name, Live: true}); err != nil {
			t.Error(err)
		}
		l.stop(run.Session.ID)
		if _, err := l.collect(t.Context()); err != nil {
			t.Error(err)
		}
		if code := l.sh(l.resume(name).Session.ID, "grep -q kept file"); code != 0 {
			t.Error("the file did not come back")
		}
	}
	release()
	stuck.Wait()
}

// TestCollectionSparesWhatIsNotNamedYet collects between a save and its commit,
// and removes what was given up.
func TestCollectionSparesWhatIsNotNamedYet(t *testing.T) {
	l, f := newFaultyLab(t)
	run := l.create("one")
	l.sh(run.Session.ID, "echo kept > file")
	l.node.On(processnode.Saved, func(context.Context, string) error {
		f.setDown("AddSnapshot")
		return nil
	})
	_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
	wantCode(t, "a stop that cannot be committed", err, skerry.CodeUnavailable)
	f.setDown("")
	collect := func() {
		t.Helper()
		if _, err := l.collect(t.Context()); err != nil {
			t.Error(err)
		}
	}
	collect()
	if left := l.node.SavedFiles(); len(left) != 0 {
		t.Errorf("what was given up is kept: %v", left)
	}
	l.node.On(processnode.Saved, nil)
	hooked := &collecting{Store: l.conf.Store, collect: collect}
	l.sessions.store = hooked
	l.stop(run.Session.ID)
	if !hooked.done {
		t.Error("nothing was collected before the commit")
	}
	collect()
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("the file did not come back")
	}
}

// collecting collects right before a snapshot is named.
type collecting struct {
	Store
	collect func()
	done    bool
}

func (s *collecting) AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, sessionID string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error) {
	s.collect()
	s.done = true
	return s.Store.AddSnapshot(ctx, snap, saved, sessionID, change)
}

// TestLeaseExpires has saves of which nobody knows how they ended: the lease of one
// expires, that of the other ends with the server.
func TestLeaseExpires(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	l.node.On(processnode.Save, func(context.Context, string) error { return nodeapi.Unreachable(errors.New("no answer")) })
	for range 2 {
		_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
		wantCode(t, "a stop whose save has no answer", err, skerry.CodeUnavailable)
	}
	l.node.On(processnode.Save, nil)
	leases := func(after time.Duration, on, over int) {
		t.Helper()
		known, err := l.store.BeginCollection(t.Context(), skerry.At(time.Now().Add(after)))
		if err != nil || len(known.Active) != on || len(known.Ended) != over {
			t.Errorf("%d leases are active and %d have ended, want %d and %d; %v", len(known.Active), len(known.Ended), on, over, err)
		}
	}
	leases(0, 2, 0)
	leases(leaseTime-time.Minute, 2, 0)
	l.restart()
	leases(0, 0, 2)
	if _, err := l.beginSave(t.Context()); err != nil {
		t.Fatal(err)
	}
	leases(0, 1, 2)
	leases(leaseTime+time.Second, 0, 3)
}

// waitingCollector leaves chunks to a later collection, some times.
type waitingCollector struct {
	nodeapi.Collector
	calls, waits int
}

func (c *waitingCollector) Collect(ctx context.Context, known nodeapi.Records) (nodeapi.Collected, error) {
	found, err := c.Collector.Collect(ctx, known)
	if c.calls++; c.calls <= c.waits {
		found.Waiting = 3
	}
	return found, err
}

// TestCollectionWaits has collections leave something to later ones.
func TestCollectionWaits(t *testing.T) {
	for waits, want := range map[int]struct {
		calls int
		more  bool
	}{0: {1, false}, 1: {2, false}, 2: {3, false}, 3: {3, true}, 9: {3, true}} {
		l := newLab(t)
		c := &waitingCollector{Collector: l.node, waits: waits}
		l.snapshots.collector = c
		if more, err := l.collect(t.Context()); err != nil || more != want.more || c.calls != want.calls {
			t.Errorf("after %d that wait: %d calls, more is %t, %v", waits, c.calls, more, err)
		}
	}
}
