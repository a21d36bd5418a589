package controller

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// slowPauses is a node whose pauses wait until their gate is closed.
type slowPauses struct {
	*processnode.Node
	reached chan struct{}
	gate    chan struct{}

	mu    sync.Mutex
	calls []string
}

func (n *slowPauses) note(call string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call)
}

func (n *slowPauses) Pause(ctx context.Context, id string) error {
	n.reached <- struct{}{}
	<-n.gate
	err := n.Node.Pause(ctx, id)
	n.note("paused")
	return err
}

func (n *slowPauses) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (nodeapi.SavedFiles, error) {
	n.note("save")
	return n.Node.Snapshot(ctx, id, how)
}

func newSlowPauses(t *testing.T, change func(*Config)) (*lab, *slowPauses) {
	n := &slowPauses{reached: make(chan struct{}, maxWaiting+2), gate: make(chan struct{})}
	return newLab(t, func(c *Config) {
		n.Node = c.Node.(*processnode.Node)
		c.Node = n
		change(c)
	}), n
}

// TestStopFollowsAPause stops a session while it is being paused: a pause must not
// end after the save has begun, as nothing happens in a session that was saved.
func TestStopFollowsAPause(t *testing.T) {
	l, n := newSlowPauses(t, func(*Config) {})
	id := l.create("one").Session.ID
	paused := make(chan error, 1)
	go func() {
		_, err := l.PauseSession(context.Background(), scope, id)
		paused <- err
	}()
	<-n.reached
	e, _, err := l.session(id).stop(t.Context(), saving{method: skerry.CreatedAtStop}, false)
	if err != nil {
		t.Fatal(err)
	}
	l.create("two") // meanwhile
	close(n.gate)
	if err := e.wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-paused; err != nil {
		t.Errorf("the pause: %v", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.calls) == 0 || n.calls[len(n.calls)-1] != "save" {
		t.Errorf("the node was asked for %v", n.calls)
	}
}

// TestStopDoesNotWaitForAPauseThatHangs gives such a pause up.
func TestStopDoesNotWaitForAPauseThatHangs(t *testing.T) {
	l, n := newSlowPauses(t, func(c *Config) { c.abandonAfter = 10 * time.Millisecond })
	defer close(n.gate)
	id := l.create("one").Session.ID
	go func() { _, _ = l.PauseSession(context.Background(), scope, id) }() // it ends with the session
	<-n.reached
	if _, err := l.StopSession(t.Context(), scope, id, skerry.StopParams{}); err != nil {
		t.Error(err)
	}
}

// TestPolicyDoesNotWaitForASave changes a policy while a session is saved.
func TestPolicyDoesNotWaitForASave(t *testing.T) {
	l := newLab(t)
	id := l.create("one").Session.ID
	reached, release := l.held()
	defer release()
	stopped := make(chan error, 1)
	go func() {
		_, err := l.StopSession(context.Background(), scope, id, skerry.StopParams{})
		stopped <- err
	}()
	<-reached
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Policy: &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}}); err != nil {
		t.Error(err)
	}
	if got := l.node.Network(id).Policy.Mode; got != skerry.NetworkDenyAll {
		t.Errorf("during the save the policy is %s", got)
	}
	release()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestLaneIsBounded has more pauses wait than a session takes.
func TestLaneIsBounded(t *testing.T) {
	l, n := newSlowPauses(t, func(*Config) {})
	id := l.create("one").Session.ID
	var calls sync.WaitGroup
	for range 1 + maxWaiting {
		calls.Go(func() {
			if _, err := l.PauseSession(context.Background(), scope, id); err != nil {
				t.Error(err)
			}
		})
	}
	s := l.session(id)
	l.eventually("the lane to be full", func() bool {
		full := false
		return s.ask(t.Context(), func() { full = len(s.pauses.waiting) == maxWaiting }) == nil && full
	})
	_, err := l.PauseSession(t.Context(), scope, id)
	wantCode(t, "one more", err, skerry.CodeRateLimited)
	// Calls that need no step do not wait.
	l.run(id, "true")
	if _, err := l.ExtendTimeout(t.Context(), scope, id, skerry.Duration(time.Minute)); err != nil {
		t.Error(err)
	}
	close(n.gate)
	calls.Wait()
}

// TestDeadlineBeforeMailbox has a session's time run out while messages wait. Each
// may take as long as a slow write, so none is called before the stop has begun.
func TestDeadlineBeforeMailbox(t *testing.T) {
	l := newLab(t)
	s := l.sessionOf(l.create("box").Sandbox.ID)
	due, full := make(chan time.Time, 1), make(chan struct{})
	s.tell(func() {
		<-full
		s.deadline.C = due
		due <- time.Now()
	})
	const messages = 30
	missed := make(chan bool, messages)
	for range messages {
		s.tell(func() {
			missed <- len(due) > 0
			select {
			case due <- time.Now():
			default:
			}
		})
	}
	close(full)
	for range messages {
		if <-missed {
			t.Error("a message was called before the time that was up was looked at")
		}
	}
	l.eventually("the session to stop", func() bool { return s.state().Status.Ended() })
}
