package controller

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// deafToDeadlines is a node that is not told of deadlines while it is deaf.
type deafToDeadlines struct {
	*processnode.Node
	deaf  atomic.Bool
	calls atomic.Int64
}

func (n *deafToDeadlines) SetDeadline(ctx context.Context, id string, left time.Duration) error {
	n.calls.Add(1)
	if n.deaf.Load() {
		return nodeapi.Unreachable(errors.New("connection refused"))
	}
	return n.Node.SetDeadline(ctx, id, left)
}

// TestNodeKnowsDeadlines: at the start, after an extension that it is told of late, and
// after a restart of the controller.
func TestNodeKnowsDeadlines(t *testing.T) {
	n := &deafToDeadlines{}
	l := newLab(t, func(cfg *Config) {
		n.Node = cfg.Node.(*processnode.Node)
		cfg.Node, cfg.firstRetry = n, time.Millisecond
	})
	near := func(id string, want time.Duration) bool {
		got := n.TimeLeft(id)
		return got <= want && got > want-time.Minute
	}
	timeout := skerry.Duration(time.Hour)
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	id := run.Session.ID
	if !near(id, time.Hour) {
		t.Errorf("after the start the node knows %s", n.TimeLeft(id))
	}
	n.deaf.Store(true)
	if _, err := l.ExtendTimeout(t.Context(), scope, id, timeout); err != nil {
		t.Fatal(err)
	}
	l.eventually("the controller to try again", func() bool { return n.calls.Load() > 2 })
	n.deaf.Store(false)
	l.eventually("the node to know the extension", func() bool { return near(id, 2*time.Hour) })
	if err := n.Node.SetDeadline(t.Context(), id, time.Second); err != nil {
		t.Fatal(err)
	}
	n.Overdue(id) // it has paused the session
	l.eventually("the controller to correct the node", func() bool { return near(id, 2*time.Hour) })
	if err := n.Node.SetDeadline(t.Context(), id, time.Second); err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.eventually("the next controller to tell the node", func() bool { return near(id, 2*time.Hour) })
}

// slowDeadlines is a node that takes deadlines when it is let.
type slowDeadlines struct {
	*processnode.Node
	slow                 atomic.Bool
	let                  chan struct{}
	calls, waiting, most atomic.Int64
}

func (n *slowDeadlines) SetDeadline(ctx context.Context, id string, left time.Duration) error {
	if n.slow.Load() {
		n.calls.Add(1)
		if now := n.waiting.Add(1); now > n.most.Load() {
			n.most.Store(now)
		}
		defer n.waiting.Add(-1)
		select {
		case <-n.let:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return n.Node.SetDeadline(ctx, id, left)
}

// TestDeadlinesDoNotPileUp has a client extend again and again while the node is slow.
func TestDeadlinesDoNotPileUp(t *testing.T) {
	n := &slowDeadlines{let: make(chan struct{})}
	l := newLab(t, func(cfg *Config) {
		n.Node = cfg.Node.(*processnode.Node)
		cfg.Node = n
	})
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", Timeout: skerry.Duration(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	id := run.Session.ID
	const times = 50
	n.slow.Store(true)
	for i := range times {
		if _, err := l.ExtendTimeout(t.Context(), scope, id, skerry.Duration(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			l.eventually("the node to be told", func() bool { return n.waiting.Load() == 1 })
		}
	}
	close(n.let)
	want := time.Hour + times*time.Minute
	l.eventually("the node to know the last extension", func() bool {
		got := n.TimeLeft(id)
		return got <= want && got > want-30*time.Second
	})
	if calls, most := n.calls.Load(), n.most.Load(); calls != 2 || most != 1 {
		t.Errorf("%d calls, %d at once, want 2 and 1", calls, most)
	}
	// And the next one is told too.
	if _, err := l.ExtendTimeout(t.Context(), scope, id, skerry.Duration(time.Minute)); err != nil {
		t.Fatal(err)
	}
	l.eventually("the node to know the next extension", func() bool { return n.TimeLeft(id) > want })
}
