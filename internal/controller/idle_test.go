package controller

import (
	"context"
	"errors"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// TestIdleState: a session that the node has paused because nobody uses it runs for
// everybody, and is shown to be idle.
func TestIdleState(t *testing.T) {
	l := newLab(t)
	one := l.create("one")
	l.create("two")
	shows := func(what string, want skerry.IdleState) {
		t.Helper()
		l.eventually(what, func() bool {
			run, err := l.GetSandbox(t.Context(), scope, "one", false)
			if err != nil {
				t.Fatal(err)
			}
			if run.Session.Status != skerry.StatusRunning || !run.Session.PausedAt.IsZero() {
				t.Fatalf("the session is %+v", run.Session)
			}
			return run.Session.IdleState == want && run.Sandbox.IdleState == want
		})
		sandboxes, _, err := l.ListSandboxes(t.Context(), scope, skerry.SandboxFilter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, sb := range sandboxes {
			if sb.Name == "one" && sb.IdleState != want || sb.Name == "two" && sb.IdleState != "" {
				t.Errorf("%s: %s is listed as %q", what, sb.Name, sb.IdleState)
			}
		}
		sessions, _, err := l.ListSessions(t.Context(), scope, skerry.SessionFilter{SandboxName: "one"})
		if err != nil || len(sessions) != 1 || sessions[0].IdleState != want {
			t.Errorf("%s: the sessions are %+v, %v", what, sessions, err)
		}
		count := 0
		if want != "" {
			count = 1
		}
		if got := l.Counts().ByState; got["idle"]+got["hibernated"] != count || want != "" && got[want.Shown()] != 1 || got["running"] != 2-count {
			t.Errorf("%s: counted %v", what, got)
		}
	}
	id := one.Session.ID
	l.node.Sleep(id, skerry.IdlePaused)
	shows("asleep", skerry.IdlePaused)
	if _, err := l.ExtendTimeout(t.Context(), scope, id, skerry.Duration(1e9)); err != nil {
		t.Error(err)
	}
	if ready := l.Ready(one.Sandbox.ID); ready != id {
		t.Errorf("requests to its ports wait: %q", ready)
	}
	shows("asleep, and its time was extended", skerry.IdlePaused)
	l.restart()
	shows("asleep, for a later controller", skerry.IdlePaused)
	l.node.Sleep(id, "")
	shows("awake", "")
	l.node.Sleep(id, skerry.IdlePaused)
	shows("asleep again", skerry.IdlePaused)
	l.node.Sleep(id, skerry.IdleHibernated)
	shows("hibernating", skerry.IdleHibernated)
	l.restart()
	shows("hibernating, for a later controller", skerry.IdleHibernated)
	l.stop(id)
	if run, err := l.GetSandbox(t.Context(), scope, "one", false); err != nil || run.Session.IdleState != "" || run.Sandbox.IdleState != "" {
		t.Errorf("stopped: %+v, %v", run, err)
	}
}

// TestIdleMode: the node gets the mode with the session, when it changes, and from a
// later controller.
func TestIdleMode(t *testing.T) {
	l := newLab(t)
	pause, never := skerry.IdlePause, skerry.IdleNever
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", Idle: &pause})
	if err != nil {
		t.Fatal(err)
	}
	id := run.Session.ID
	if got := l.node.Idle(id); got != pause || run.Sandbox.Idle != pause {
		t.Errorf("the session has mode %q, the sandbox %q", got, run.Sandbox.Idle)
	}
	fork, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two"})
	if err != nil || fork.Sandbox.Idle != pause || l.node.Idle(fork.Session.ID) != pause {
		t.Errorf("the fork is %+v, %v", fork, err)
	}
	update := func(mode skerry.IdleMode) {
		t.Helper()
		if got, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Idle: &mode}); err != nil || got.Sandbox.Idle != mode {
			t.Fatalf("updated to %+v, %v", got, err)
		}
		l.eventually("the node to know", func() bool { return l.node.Idle(id) == mode })
	}
	update(never)
	l.node.On(processnode.SetIdle, func(context.Context, string) error { return errors.New("the disk is full") })
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Idle: &pause}); err != nil {
		t.Fatal(err)
	}
	l.node.On(processnode.SetIdle, nil)
	l.eventually("the node to know later", func() bool { return l.node.Idle(id) == pause })
	wrong := skerry.IdleMode("often")
	_, err = l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Idle: &wrong})
	wantCode(t, "a mode that is none", err, skerry.CodeBadRequest)
	_, err = l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "three", Idle: &wrong})
	wantCode(t, "a mode that is none", err, skerry.CodeBadRequest)
	if got, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{}); err != nil || got.Sandbox.Idle != pause {
		t.Errorf("another update: %+v, %v", got, err)
	}
}
