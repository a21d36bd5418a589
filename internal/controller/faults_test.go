package controller

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
	"github.com/skerry-dev/skerry/internal/store"
)

// newFaultyLab is a lab whose store can fail, and that waits little.
func newFaultyLab(t *testing.T, change ...func(*Config)) (*lab, *faultyStore) {
	t.Helper()
	f := &faultyStore{}
	l := newLab(t, append([]func(*Config){func(c *Config) {
		f.Store = c.Store.(*store.Store)
		c.Store, c.firstRetry, c.forkSnapshotDelay = f, time.Millisecond, time.Millisecond
	}}, change...)...)
	return l, f
}

// insist repeats a call that the store fails until it succeeds: to whoever
// calls, the server is not available meanwhile, and no call says otherwise. A
// failed creation may be under way to be undone, and a session that could not be
// saved to go on.
func (l *lab) insist(what string, call func() error) {
	l.t.Helper()
	l.eventually(what, func() bool {
		err := call()
		switch skerry.CodeOf(err) {
		case "":
			return true
		case skerry.CodeUnavailable, skerry.CodeConflict, skerry.CodeSandboxSnapshotting:
			return false
		}
		l.t.Errorf("%s: %v", what, err)
		return true
	})
}

// wholeLife takes sandboxes through everything that the store is told of.
func wholeLife(l *lab) {
	t, ctx := l.t, l.t.Context()
	l.insist("a drive", func() error {
		_, _, err := l.GetOrCreateDrive(ctx, scope, skerry.DriveParams{Name: "data"})
		return err
	})
	var run *skerry.Run
	l.insist("a creation", func() (err error) {
		run, err = l.CreateSandbox(ctx, scope, skerry.CreateParams{Name: "one", Mounts: map[string]skerry.Mount{"/data": {Drive: "data"}}})
		return err
	})
	var cmd *skerry.Command
	l.insist("a command", func() (err error) {
		cmd, _, err = l.RunCommand(ctx, scope, run.Session.ID, skerry.CommandParams{Name: "sh", Args: []string{"-c", "exit 3"}}, false)
		return err
	})
	l.insist("the command's end", func() error {
		done, err := l.WaitCommand(ctx, scope, run.Session.ID, cmd.ID)
		if err == nil && *done.ExitCode != 3 {
			t.Errorf("the command ended with %d", *done.ExitCode)
		}
		return err
	})
	l.insist("a policy", func() error {
		_, err := l.SetNetworkPolicy(ctx, scope, run.Session.ID, &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll})
		return err
	})
	l.insist("a stop", func() error {
		stopped, err := l.StopSession(ctx, scope, run.Session.ID, skerry.StopParams{})
		if err == nil && (stopped.Session.Status != skerry.StatusStopped || stopped.Sandbox.CurrentSnapshotID == "") {
			t.Errorf("a stop that succeeded left %+v", stopped)
		}
		return err
	})
	if past, err := l.store.Command(ctx, run.Session.ID, cmd.ID); err != nil || past.ExitCode == nil || *past.ExitCode != 3 {
		t.Errorf("of the command is known %+v, %v", past, err)
	}
	l.insist("a resume", func() (err error) {
		run, err = l.GetSandbox(ctx, scope, "one", true)
		return err
	})
	l.insist("a live fork", func() error {
		_, err := l.ForkSandbox(ctx, scope, "one", skerry.ForkParams{Name: "two", Live: true})
		return err
	})
	l.insist("a snapshot", func() error {
		_, err := l.CreateSnapshot(ctx, scope, run.Session.ID, skerry.SnapshotParams{})
		if skerry.CodeOf(err) == skerry.CodeSandboxStopping || skerry.CodeOf(err) == skerry.CodeSandboxStopped {
			return nil // the one before has come to its end after all
		}
		return err
	})
	l.insist("the end of the snapshot's session", func() error {
		_, err := l.StopSession(ctx, scope, run.Session.ID, skerry.StopParams{})
		return err
	})
	box, err := l.store.Sandbox(ctx, run.Sandbox.ID)
	if err != nil || box.TotalActiveCPU.Std() != 2*time.Second || box.TotalEgressBytes != 40 {
		t.Errorf("two sessions came to %v of CPU and %d bytes, %v", box.TotalActiveCPU, box.TotalEgressBytes, err)
	}
	for _, name := range []string{"one", "two"} {
		l.insist("a deletion", func() error {
			_, err := l.DeleteSandbox(ctx, scope, name, true)
			if skerry.CodeOf(err) == skerry.CodeNotFound {
				return nil // the one before has come to its end after all
			}
			return err
		})
	}
	l.insist("the drive to be free", func() error {
		_, err := l.DeleteDrive(ctx, scope, "data")
		return err
	})
}

// TestStoreFailsAtEachCall has the store fail at the first, the second, … call,
// once or for some time, until a life of sandboxes passes untouched.
func TestStoreFailsAtEachCall(t *testing.T) {
	l, f := newFaultyLab(t)
	for _, lasting := range []int{1, 4} {
		for n := 1; !t.Failed(); n += lasting {
			before := f.arm(n, n+lasting-1, false)
			wholeLife(l)
			touched := f.arm(0, 0, false) != before
			l.eventually("everything to be given back", l.holdsNothing)
			if t.Failed() {
				t.Logf("the store had failed %d times from call %d on", lasting, n)
			}
			if !touched {
				break
			}
		}
	}
}

// holdsNothing reports whether the controller, the store and the node have
// neither sandboxes nor sessions.
func (l *lab) holdsNothing() bool {
	boxes, _, err := l.store.ListSandboxes(l.t.Context(), scope, skerry.SandboxFilter{})
	if err != nil || len(boxes) != 0 {
		return false
	}
	sessions := l.node.Running()
	l.registry.Lock()
	defer l.registry.Unlock()
	return sessions == 0 && l.taken == room{} && len(l.byID) == 0 && len(l.bySandbox) == 0
}

func TestEndThatCannotBeRecorded(t *testing.T) {
	l, f := newFaultyLab(t)
	l.drive("data")
	mounts := map[string]skerry.Mount{"/data": {Drive: "data"}}
	run := l.createWith(skerry.CreateParams{Name: "one", Mounts: mounts})
	saved := make(chan struct{})
	l.node.On(processnode.Saved, func(context.Context, string) error { close(saved); return nil })
	l.node.On(processnode.Stop, func(context.Context, string) error { f.setDown("UpdateSession"); return nil })
	// Whoever waits for the end is told that it cannot be recorded, and so is
	// whoever comes later.
	for range 2 {
		_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
		wantCode(t, "a stop", err, skerry.CodeUnavailable)
		_, err = l.GetSandbox(t.Context(), scope, "one", true)
		wantCode(t, "a resume", err, skerry.CodeUnavailable)
		_, err = l.DeleteSandbox(t.Context(), scope, "one", false)
		wantCode(t, "a deletion", err, skerry.CodeUnavailable)
		_, err = l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "two", Mounts: mounts})
		wantCode(t, "a second writer of the drive", err, skerry.CodeConflict)
	}
	<-saved
	l.node.On(processnode.Stop, nil)
	l.node.On(processnode.Saved, nil)
	f.setDown("")
	l.eventually("the end to be recorded", func() bool { return l.status("one") == skerry.StatusStopped })
	l.createWith(skerry.CreateParams{Name: "two", Mounts: mounts})
	if box, err := l.store.Sandbox(t.Context(), run.Sandbox.ID); err != nil || box.TotalActiveCPU.Std() != time.Second {
		t.Errorf("the session counts for %v, %v", box.TotalActiveCPU, err)
	}
}

func TestPolicyChangeAfterTheEndCountsNothing(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	live := l.session(run.Session.ID)
	l.stop(run.Session.ID)
	<-live.gone
	err := live.write(func(run *skerry.Session) error {
		run.SetPolicy(skerry.AllowAll())
		return nil
	})
	wantCode(t, "an edit of a session that has ended", err, skerry.CodeSandboxStopped)
	if box, err := l.store.Sandbox(t.Context(), run.Sandbox.ID); err != nil || box.TotalActiveCPU.Std() != time.Second {
		t.Errorf("the session counts for %v, %v", box.TotalActiveCPU, err)
	}
}

func TestCommandsAreSavedInTheEnd(t *testing.T) {
	l, f := newFaultyLab(t)
	run := l.create("one")
	f.setDown("SaveCommands")
	cmd := l.run(run.Session.ID, "true")
	if _, err := l.WaitCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil {
		t.Fatal(err)
	}
	l.eventually("the failure to be noticed", func() bool { return l.saver.failing() != nil })
	_, _, err := l.ListCommands(t.Context(), scope, run.Session.ID, skerry.Page{})
	wantCode(t, "a listing", err, skerry.CodeUnavailable)
	_, _, err = l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
	wantCode(t, "a further command", err, skerry.CodeUnavailable)
	f.setDown("")
	l.eventually("the command to be saved", func() bool {
		past, err := l.store.Command(t.Context(), run.Session.ID, cmd.ID)
		return err == nil && past.Finished()
	})
	if list, _, err := l.ListCommands(t.Context(), scope, run.Session.ID, skerry.Page{}); err != nil || len(list) != 1 {
		t.Errorf("commands are listed as %v, %v", list, err)
	}
}

// TestFailedCreationTellsWhoeverWaits has a creation fail in the store while
// others wait for the sandbox.
func TestFailedCreationTellsWhoeverWaits(t *testing.T) {
	l, f := newFaultyLab(t)
	f.setDown("CreateSandbox")
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
	wantCode(t, "a creation", err, skerry.CodeUnavailable)
	f.setDown("")
	run := l.create("one")
	l.stop(run.Session.ID)
	f.setDown("AddSession")
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			_, err := l.GetSandbox(t.Context(), scope, "one", true)
			wantCode(t, "a resume", err, skerry.CodeUnavailable)
		})
	}
	calls.Wait()
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
		t.Error(err)
	}
	l.restart() // which waits for what goes on
}

// TestNothingIsGivenBackBeforeItIs has the node fail to stop a session.
func TestNothingIsGivenBackBeforeItIs(t *testing.T) {
	l, _ := newFaultyLab(t)
	l.drive("data")
	mounts := map[string]skerry.Mount{"/data": {Drive: "data"}}
	run := l.createWith(skerry.CreateParams{Name: "one", Mounts: mounts})
	stuck := func(context.Context, string) error { return errors.New("the sentry is in uninterruptible sleep") }
	l.node.On(processnode.Stop, stuck)
	_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
	wantCode(t, "a stop", err, skerry.CodeUnavailable)
	_, err = l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "two", Mounts: mounts})
	wantCode(t, "a second writer of the drive", err, skerry.CodeConflict)
	_, err = l.DeleteSandbox(t.Context(), scope, "one", false)
	wantCode(t, "a deletion", err, skerry.CodeUnavailable)
	_, err = l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
	wantCode(t, "the name", err, skerry.CodeConflict)
	l.node.On(processnode.Stop, nil)
	l.eventually("the session to stop", func() bool { return l.status("one") == skerry.StatusStopped })
	l.createWith(skerry.CreateParams{Name: "two", Mounts: mounts})

	// What is left of a session is forgotten in the end, too.
	l.node.On(processnode.Stop, stuck)
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
		t.Error(err)
	}
	l.node.On(processnode.Stop, nil)
	l.eventually("the session to be forgotten", func() bool { return !l.node.Knows(run.Session.ID) })
}

// TestLowerLimitKeepsWhatRuns restarts with a limit below what runs, and with a
// session that cannot be taken over.
func TestLowerLimitKeepsWhatRuns(t *testing.T) {
	l, f := newFaultyLab(t)
	one, two := l.create("one"), l.create("two")
	l.create("lost")
	l.node.Lose(l.resume("lost").Session.ID, "")
	l.conf.MaxSessions = 1
	f.setDown("ListCommands")
	l.restart()
	f.setDown("")
	for name, run := range map[string]*skerry.Run{"one": one, "two": two} {
		if got := l.status(name); got != skerry.StatusRunning {
			t.Errorf("%s is %s", name, got)
		}
		l.sh(run.Session.ID, "true")
	}
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "three"})
	wantCode(t, "a new one", err, skerry.CodeRateLimited)
	l.stop(one.Session.ID)
	l.stop(two.Session.ID)
	l.create("three")
}
