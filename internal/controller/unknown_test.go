package controller

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// farNode is a node that may be out of reach. What is asked of it then is not done,
// or it is done and the answer is lost.
type farNode struct {
	*processnode.Node

	mu sync.Mutex
	// away is closed while the node cannot be reached; deaf is true if calls are
	// executed nevertheless.
	away chan struct{}
	deaf bool
}

func newFarLab(t *testing.T) (*lab, *farNode) {
	far := &farNode{away: make(chan struct{})}
	return newLab(t, func(cfg *Config) {
		far.Node = cfg.Node.(*processnode.Node)
		cfg.Node, cfg.firstRetry = far, time.Millisecond
	}), far
}

// cut makes the node unreachable; with deaf it still does what it is asked.
func (n *farNode) cut(deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf = deaf
	close(n.away)
}

func (n *farNode) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away = make(chan struct{})
}

// call makes a call, unless the node is away, and waits for its answer while it is not.
func (n *farNode) call(ctx context.Context, f func(context.Context) error) error {
	n.mu.Lock()
	away, deaf := n.away, n.deaf
	n.mu.Unlock()
	lost := func() bool {
		select {
		case <-away:
			return true
		default:
			return false
		}
	}
	if lost() && !deaf {
		return nodeapi.Unreachable(errors.New("connection refused"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	if lost() {
		<-done
		return nodeapi.Unreachable(errors.New("connection reset"))
	}
	select {
	case err := <-done:
		return err
	case <-away:
		cancel()
		<-done
		return nodeapi.Unreachable(errors.New("connection reset"))
	}
}

func (n *farNode) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) (adopted []string, err error) {
	err = n.call(ctx, func(ctx context.Context) (err error) {
		adopted, err = n.Node.Recover(ctx, keep)
		return err
	})
	return adopted, err
}

func (n *farNode) Start(ctx context.Context, spec nodeapi.SessionSpec) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.Start(ctx, spec) })
}

func (n *farNode) Stop(ctx context.Context, id string) (usage nodeapi.Usage, err error) {
	err = n.call(ctx, func(ctx context.Context) (err error) {
		usage, err = n.Node.Stop(ctx, id)
		return err
	})
	return usage, err
}

func (n *farNode) Forget(ctx context.Context, id string) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.Forget(ctx, id) })
}

func (n *farNode) Pause(ctx context.Context, id string) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.Pause(ctx, id) })
}

func (n *farNode) Resume(ctx context.Context, id string) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.Resume(ctx, id) })
}

func (n *farNode) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.SetNetwork(ctx, id, network) })
}

func (n *farNode) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (saved nodeapi.SavedFiles, err error) {
	err = n.call(ctx, func(ctx context.Context) (err error) {
		saved, err = n.Node.Snapshot(ctx, id, how)
		return err
	})
	return saved, err
}

func (n *farNode) Events(ctx context.Context, after nodeapi.Cursor) (batch nodeapi.Batch, err error) {
	err = n.call(ctx, func(ctx context.Context) (err error) {
		batch, err = n.Node.Events(ctx, after)
		return err
	})
	return batch, err
}

func (n *farNode) Exec(ctx context.Context, id string, spec nodeapi.CommandSpec, attach bool) (out skerry.OutputReader, err error) {
	err = n.call(ctx, func(ctx context.Context) (err error) {
		out, err = n.Node.Exec(ctx, id, spec, attach)
		return err
	})
	return out, err
}

func (n *farNode) Signal(ctx context.Context, session, id string, signal int) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.Signal(ctx, session, id, signal) })
}

func (n *farNode) CreateDrive(ctx context.Context, id string, size int64) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.CreateDrive(ctx, id, size) })
}

func (n *farNode) DeleteDrive(ctx context.Context, id string) error {
	return n.call(ctx, func(ctx context.Context) error { return n.Node.DeleteDrive(ctx, id) })
}

// TestUnreachableIsNotLost cuts the node off while a session and a command run.
func TestUnreachableIsNotLost(t *testing.T) {
	l, far := newFarLab(t)
	id := l.create("one").Session.ID
	cmd := l.run(id, "sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 5")
	far.cut(false)
	_, _, err := l.RunCommand(t.Context(), scope, id, skerry.CommandParams{Name: "true"}, false)
	wantCode(t, "a command", err, skerry.CodeUnavailable)
	_, err = l.StopSession(t.Context(), scope, id, skerry.StopParams{Force: true})
	wantCode(t, "a stop", err, skerry.CodeUnavailable)
	if got := l.status("one"); got.Ended() {
		t.Errorf("the session is %s", got)
	}
	if now, err := l.GetCommand(t.Context(), scope, id, cmd.ID); err != nil || now.Finished() {
		t.Errorf("the command is %+v, %v", now, err)
	}
	far.mend()
	if _, err := l.StopSession(t.Context(), scope, id, skerry.StopParams{}); err != nil && skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Error(err)
	}
	l.eventually("the stop to go on", func() bool { return l.status("one") == skerry.StatusStopped })
}

// TestCommandEndsOutOfReach has a command end while the node is out of reach.
func TestCommandEndsOutOfReach(t *testing.T) {
	l, far := newFarLab(t)
	id := l.create("one").Session.ID
	cmd := l.run(id, "sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 5")
	far.cut(false)
	if err := os.WriteFile(filepath.Join(far.Root(id), skerry.WorkDir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, err := eventlog.AwaitExit(t.Context(), far.Node, id, cmd.ID); err != nil || exit.Code != 5 {
		t.Errorf("on the node it has ended with %+v, %v", exit, err)
	}
	if now, err := l.GetCommand(t.Context(), scope, id, cmd.ID); err != nil || now.Finished() {
		t.Errorf("the command is %+v, %v", now, err)
	}
	far.mend()
	now, err := l.WaitCommand(t.Context(), scope, id, cmd.ID)
	if err != nil || now.ExitCode == nil || *now.ExitCode != 5 {
		t.Errorf("the command is %+v, %v", now, err)
	}
}

// TestUnknownCallsAreUndone loses the answers of a node that does what it is asked.
func TestUnknownCallsAreUndone(t *testing.T) {
	l, far := newFarLab(t)
	id := l.create("one").Session.ID
	far.cut(true)
	_, _, err := l.RunCommand(t.Context(), scope, id, skerry.CommandParams{Name: "sleep", Args: []string{"1000"}}, false)
	wantCode(t, "a command", err, skerry.CodeUnavailable)
	_, err = l.PauseSession(t.Context(), scope, id)
	wantCode(t, "a pause", err, skerry.CodeUnavailable)
	_, err = l.SetNetworkPolicy(t.Context(), scope, id, &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll})
	wantCode(t, "a policy", err, skerry.CodeUnavailable)
	_, _, err = l.GetOrCreateDrive(t.Context(), scope, skerry.DriveParams{Name: "data"})
	wantCode(t, "a drive", err, skerry.CodeUnavailable)
	far.mend()
	l.eventually("the session to be resumed", func() bool { return !far.Paused(id) })
	l.eventually("the command to be ended", func() bool { return far.Commands(id) == 0 })
	l.eventually("the drive to be deleted", func() bool { return len(far.DriveIDs()) == 0 })
	l.eventually("the policy to be restored", func() bool { return far.Network(id).Policy.Mode == skerry.NetworkAllowAll })
}

// TestRecoverWaitsForTheNode starts a controller before its node can be reached.
func TestRecoverWaitsForTheNode(t *testing.T) {
	l, far := newFarLab(t)
	id := l.create("one").Session.ID
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	far.cut(false)
	l.Controller = New(l.conf)
	late, cancel := context.WithCancel(t.Context())
	recovered := make(chan error, 1)
	go func() { recovered <- l.Recover(late) }()
	cancel()
	if err := <-recovered; !errors.Is(err, context.Canceled) {
		t.Errorf("Recover() = %v", err)
	}
	go func() { recovered <- l.Recover(t.Context()) }()
	far.mend()
	if err := <-recovered; err != nil {
		t.Error(err)
	}
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Errorf("session %s is %s", id, got)
	}
}
