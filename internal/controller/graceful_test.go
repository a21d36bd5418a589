package controller

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// What keeps sessions from being saved.
var (
	errBySandbox = &skerry.Error{Code: skerry.CodeSandboxUnsavable, Message: "the guest killed what saves it"}
	errByHost    = &skerry.Error{Code: skerry.CodeDiskFull, Message: "the server's disk is full"}
)

// unsavable has saves fail.
func (l *lab) unsavable(err error) {
	l.node.On(processnode.Save, func(context.Context, string) error { return err })
}

// brief is a session that times out soon.
func (l *lab) brief(name string) *skerry.Run {
	return l.createWith(skerry.CreateParams{Name: name, Timeout: skerry.Duration(skerry.MinTimeout)})
}

func (l *lab) reason(session string) string {
	l.t.Helper()
	run, err := l.GetSession(l.t.Context(), scope, session)
	if err != nil {
		l.t.Fatal(err)
	}
	return run.Session.Reason
}

func TestSandboxThatCannotBeSavedEndsAfterItsTime(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.StopGrace = 50 * time.Millisecond })
	first := l.create("one")
	l.sh(first.Session.ID, "echo kept > file")
	kept := l.stop(first.Session.ID).Snapshot
	timeout := skerry.Duration(skerry.MinTimeout)
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Timeout: &timeout}); err != nil {
		t.Fatal(err)
	}
	l.unsavable(errBySandbox)
	run := l.resume("one")
	l.eventually("the session to end", func() bool { return l.status("one") == skerry.StatusStopped })
	if got := l.reason(run.Session.ID); !strings.Contains(got, errBySandbox.Message) || !strings.Contains(got, kept.ID) {
		t.Errorf("it ended with the reason %q", got)
	}
	// The next session is not to end while it is looked at.
	timeout = skerry.Duration(skerry.DefaultTimeout)
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Timeout: &timeout}); err != nil {
		t.Fatal(err)
	}
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("it does not go on from the last good snapshot")
	}
}

func TestHostThatCannotSaveTriesOn(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.StopGrace = time.Millisecond })
	l.unsavable(errByHost)
	run := l.brief("one")
	l.sh(run.Session.ID, "echo kept > file")
	var attempts atomic.Int32
	l.node.On(processnode.Save, func(context.Context, string) error { attempts.Add(1); return errByHost })
	l.eventually("some attempts", func() bool { return attempts.Load() > 3 })
	l.node.On(processnode.Save, nil)
	l.eventually("the session to be saved", func() bool { return l.status("one") == skerry.StatusStopped })
	if got := l.reason(run.Session.ID); got != "" {
		t.Errorf("it ended with the reason %q", got)
	}
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("the file did not come back")
	}
}

func TestHostThatCannotSaveGivesUpInTheEnd(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.SaveGrace = 50 * time.Millisecond })
	l.unsavable(errByHost)
	run := l.brief("one")
	l.eventually("the session to end", func() bool { return l.status("one") == skerry.StatusStopped })
	if got := l.reason(run.Session.ID); !strings.Contains(got, errByHost.Message) {
		t.Errorf("it ended with the reason %q", got)
	}
}

func TestForcedStop(t *testing.T) {
	l, _ := newFaultyLab(t)
	l.unsavable(errBySandbox)
	run := l.create("one")
	_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
	wantCode(t, "a stop", err, skerry.CodeSandboxUnsavable)
	l.sh(run.Session.ID, "true")
	stopped, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{Force: true})
	if err != nil || stopped.Session.Status != skerry.StatusStopped || stopped.Snapshot != nil || !strings.Contains(stopped.Session.Reason, "force") {
		t.Errorf("a forced stop: %+v, %v", stopped, err)
	}
}

// hang has saves wait for what gives them up, and then not return for as long as
// the returned function is not called, if they are deaf to it.
func (l *lab) hang(deaf bool) (reached chan struct{}, release func()) {
	reached, gate := make(chan struct{}, 16), make(chan struct{})
	l.node.On(processnode.Save, func(ctx context.Context, _ string) error {
		reached <- struct{}{}
		if !deaf {
			<-ctx.Done()
			return ctx.Err()
		}
		<-gate
		return errBySandbox
	})
	return reached, sync.OnceFunc(func() { close(gate) })
}

func TestForceEndsASaveThatHangs(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		l, _ := newFaultyLab(t, func(c *Config) { c.abandonAfter = 20 * time.Millisecond })
		reached, release := l.hang(deaf)
		run := l.create("one")
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				stopped, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
				if err != nil || stopped.Session.Status != skerry.StatusStopped {
					t.Errorf("a stop that another forced: %+v, %v", stopped, err)
				}
			})
		}
		<-reached
		l.stopBy(run.Session.ID, true)
		calls.Wait()
		release()
	}
}

func (l *lab) stopBy(session string, force bool) {
	l.t.Helper()
	if _, err := l.StopSession(l.t.Context(), scope, session, skerry.StopParams{Force: force}); err != nil {
		l.t.Error(err)
	}
}

func TestSaveThatHangsIsGivenUp(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.SaveTimeout, c.abandonAfter = 20*time.Millisecond, 20*time.Millisecond })
	reached, release := l.hang(true)
	defer release()
	run := l.create("one")
	l.stopBy(run.Session.ID, false)
	<-reached
	if got := l.reason(run.Session.ID); !strings.Contains(got, "did not answer") {
		t.Errorf("it ended with the reason %q", got)
	}
}

// TestSaveThatTakesTooLong fails, and the session goes on.
func TestSaveThatTakesTooLong(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.SaveTimeout = 20 * time.Millisecond })
	l.hang(false)
	run := l.create("one")
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stop: %v", err)
	}
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Errorf("the session is %s", got)
	}
	l.sh(run.Session.ID, "true")
}

func TestDeletionDoesNotWaitForASaveThatHangs(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.StopGrace = 20 * time.Millisecond })
	reached, release := l.hang(false)
	defer release()
	run := l.create("one")
	var calls sync.WaitGroup
	calls.Go(func() { _, _ = l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}) })
	<-reached
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
		t.Error(err)
	}
	calls.Wait()
}

// TestResumeDuringASaveThatFails returns when the save has failed: the session
// goes on then.
func TestResumeDuringASaveThatFails(t *testing.T) {
	l, _ := newFaultyLab(t)
	reached, release := l.hang(true)
	run := l.create("one")
	var calls sync.WaitGroup
	calls.Go(func() { _, _ = l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}) })
	<-reached
	for range 3 {
		calls.Go(func() {
			if again := l.resume("one"); again.Session.ID != run.Session.ID || again.Session.Status != skerry.StatusRunning {
				t.Errorf("resumed as %+v", again.Session)
			}
		})
		calls.Go(func() {
			if id, err := l.Reach(t.Context(), run.Sandbox.ID, true); err != nil || id != run.Session.ID {
				t.Errorf("Reach() = %q, %v", id, err)
			}
		})
	}
	release()
	calls.Wait()
}

func TestStopAllSaysWhatItDid(t *testing.T) {
	l, _ := newFaultyLab(t)
	volatile := false
	l.createWith(skerry.CreateParams{Name: "volatile", Persistent: &volatile})
	saved := l.create("saved")
	hostile, unlucky := l.create("hostile"), l.create("unlucky")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var attempts atomic.Int32
	l.node.On(processnode.Save, func(_ context.Context, id string) error {
		switch id {
		case hostile.Session.ID:
			return errBySandbox
		case unlucky.Session.ID:
			if attempts.Add(1) >= 3 && l.session(saved.Session.ID) == nil && l.session(hostile.Session.ID) == nil {
				cancel()
			}
			return errByHost
		}
		return nil
	})
	r := l.StopAll(ctx, false)
	if r.Saved != 1 || r.Dropped != 1 || len(r.Unsaved) != 1 || len(r.Left) != 1 {
		t.Fatalf("StopAll() = %+v", r)
	}
	if u := r.Unsaved[0]; u.Sandbox != "hostile" || !strings.Contains(u.Reason, errBySandbox.Message) {
		t.Errorf("not saved is %+v", u)
	}
	if left := r.Left[0]; left.Sandbox != "unlucky" || left.Reason != errByHost.Message {
		t.Errorf("left is %+v", left)
	}
	l.eventually("what is left to go on", func() bool { return l.status("unlucky") == skerry.StatusRunning })
	if r := l.StopAll(t.Context(), true); len(r.Unsaved) != 1 || len(r.Left) != 0 {
		t.Errorf("by force: %+v", r)
	}
	// Nothing starts behind its back.
	if _, err := l.GetSandbox(t.Context(), scope, "unlucky", true); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a resume after that: %v", err)
	}
}

func TestSnapshotOfASessionThatIsForcedToEnd(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		l, _ := newFaultyLab(t, func(c *Config) { c.abandonAfter = 20 * time.Millisecond })
		reached, release := l.hang(deaf)
		run := l.create("one")
		var call sync.WaitGroup
		call.Go(func() {
			made, err := l.CreateSnapshot(t.Context(), scope, run.Session.ID, skerry.SnapshotParams{})
			if skerry.CodeOf(err) != skerry.CodeConflict || !strings.Contains(err.Error(), "no snapshot was taken") {
				t.Errorf("a snapshot of a session that another stops by force: %+v, %v", made, err)
			}
		})
		<-reached
		l.stopBy(run.Session.ID, true)
		call.Wait()
		release()
	}
}

// TestCloseDuringTheEndOfALostSession closes the controller while the end of a
// lost session is held up. The next process records it.
func TestCloseDuringTheEndOfALostSession(t *testing.T) {
	l, _ := newFaultyLab(t)
	run := l.create("one")
	l.node.On(processnode.Stop, func(context.Context, string) error { return errStore })
	held := l.session(run.Session.ID).held
	l.node.Lose(run.Session.ID, "the power went out")
	<-held
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		l.node.On(processnode.Stop, nil)
		t.Fatal("the controller does not close")
	}
	l.node.On(processnode.Stop, nil)
	l.Controller = New(l.conf)
	if err := l.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.eventually("the session to end", func() bool { return l.session(run.Session.ID) == nil })
}
