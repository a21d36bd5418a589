package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// sh runs a script in a session's folder and returns its exit code.
func (l *lab) sh(session, script string) int {
	l.t.Helper()
	cmd := l.run(session, "sh", "-c", script)
	done, err := l.WaitCommand(l.t.Context(), scope, session, cmd.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	return *done.ExitCode
}

func (l *lab) stop(session string) *skerry.Run {
	l.t.Helper()
	run, err := l.StopSession(l.t.Context(), scope, session, skerry.StopParams{})
	if err != nil {
		l.t.Fatal(err)
	}
	return run
}

func (l *lab) resume(name string) *skerry.Run {
	l.t.Helper()
	run, err := l.GetSandbox(l.t.Context(), scope, name, true)
	if err != nil {
		l.t.Fatal(err)
	}
	return run
}

func (l *lab) createWith(p skerry.CreateParams) *skerry.Run {
	l.t.Helper()
	run, err := l.CreateSandbox(l.t.Context(), scope, p)
	if err != nil {
		l.t.Fatal(err)
	}
	return run
}

// snapshot takes one by hand, which stops the session.
func (l *lab) snapshot(session string) *skerry.Snapshot {
	l.t.Helper()
	run, err := l.CreateSnapshot(l.t.Context(), scope, session, skerry.SnapshotParams{})
	if err != nil {
		l.t.Fatal(err)
	}
	return run.Snapshot
}

func TestPersistentSandboxKeepsItsFiles(t *testing.T) {
	l := newLab(t)
	first := l.create("one")
	if !first.Sandbox.Persistent || first.Session.SourceSnapshotID != "" {
		t.Fatalf("created as %+v", first)
	}
	l.sh(first.Session.ID, "echo kept > file")
	stopped := l.stop(first.Session.ID)
	snap := stopped.Snapshot
	if snap == nil || snap.CreationMethod != skerry.CreatedAtStop || snap.SourceSessionID != first.Session.ID ||
		stopped.Sandbox.CurrentSnapshotID != snap.ID || stopped.Session.SnapshottedAt.IsZero() || stopped.Session.Status != skerry.StatusStopped {
		t.Fatalf("stopped as %+v with %+v", stopped, snap)
	}
	l.restart()
	if repeated := l.stop(first.Session.ID); repeated.Snapshot == nil || repeated.Snapshot.ID != snap.ID {
		t.Errorf("the stop, repeated after a restart, returned %+v", repeated.Snapshot)
	}
	if left := snap.ExpiresAt.Sub(snap.CreatedAt.Time); left != skerry.DefaultSnapshotExpiration {
		t.Errorf("the snapshot is kept for %v", left)
	}
	second := l.resume("one")
	if second.Session.SourceSnapshotID != snap.ID {
		t.Errorf("resumed from %q", second.Session.SourceSnapshotID)
	}
	if code := l.sh(second.Session.ID, "grep -q kept file && echo more >> file"); code != 0 {
		t.Error("the file did not come back")
	}
	if repeated := l.stop(first.Session.ID); repeated.Snapshot == nil || repeated.Snapshot.ID != snap.ID {
		t.Errorf("the stop, repeated while the next session runs, returned %+v", repeated.Snapshot)
	}
	again := l.stop(second.Session.ID)
	if repeated := l.stop(first.Session.ID); repeated.Snapshot != nil {
		t.Errorf("the first session's stop returned the second one's snapshot %+v", repeated.Snapshot)
	}
	if again.Snapshot.ParentID != snap.ID || again.Sandbox.CurrentSnapshotID != again.Snapshot.ID {
		t.Errorf("the second snapshot is %+v", again.Snapshot)
	}
	if used, err := l.GetSnapshot(t.Context(), scope, snap.ID); err != nil || used.LastUsedAt.IsZero() {
		t.Errorf("the first snapshot's last use: %+v, %v", used, err)
	}
}

func TestSandboxThatIsNotPersistentStartsClean(t *testing.T) {
	l := newLab(t)
	no := false
	first := l.createWith(skerry.CreateParams{Name: "one", Persistent: &no})
	l.sh(first.Session.ID, "echo gone > file")
	if stopped := l.stop(first.Session.ID); stopped.Snapshot != nil || stopped.Sandbox.CurrentSnapshotID != "" {
		t.Errorf("stopped as %+v", stopped)
	}
	second := l.resume("one")
	if code := l.sh(second.Session.ID, "test ! -e file && echo saved > file"); code != 0 {
		t.Error("the file came back")
	}
	// A snapshot by hand is for other sandboxes.
	snap := l.snapshot(second.Session.ID)
	if run := l.resume("one"); run.Session.SourceSnapshotID != "" {
		t.Errorf("resumed from %q", run.Session.SourceSnapshotID)
	}
	other := l.createWith(skerry.CreateParams{Name: "two", Source: &skerry.Source{Type: "snapshot", SnapshotID: snap.ID}, Persistent: &no})
	for range 2 { // each of its sessions starts there
		if code := l.sh(other.Session.ID, "grep -q saved file && rm file"); code != 0 {
			t.Error("a sandbox from the snapshot lacks the file")
		}
		l.stop(other.Session.ID)
		other = l.resume("two")
	}
}

func TestPersistenceIsSwitchedOffAndOn(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	l.sh(run.Session.ID, "echo kept > file")
	snap := l.stop(run.Session.ID).Snapshot
	no, yes := false, true
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Persistent: &no}); err != nil {
		t.Fatal(err)
	}
	clean := l.resume("one")
	if code := l.sh(clean.Session.ID, "test ! -e file"); code != 0 {
		t.Error("a sandbox that is not persistent any more started with its files")
	}
	if stopped := l.stop(clean.Session.ID); stopped.Snapshot != nil {
		t.Errorf("it was saved as %+v", stopped.Snapshot)
	}
	_, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &snap.ID})
	wantCode(t, "rolling back what is not persistent", err, skerry.CodeBadRequest)
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{Persistent: &yes}); err != nil {
		t.Fatal(err)
	}
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("persistent again, it lacks its files")
	}
}

// held makes snapshots wait until release is called, and tells when one does.
func (l *lab) held() (reached chan string, release func()) {
	reached = make(chan string, 10)
	gate := make(chan struct{})
	l.node.On(processnode.Saved, func(_ context.Context, id string) error {
		reached <- id
		<-gate
		return nil
	})
	return reached, sync.OnceFunc(func() { close(gate) })
}

func TestCallsDuringASnapshot(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	reached, release := l.held()
	defer release()
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if r, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil || r.Session.Status != skerry.StatusStopped {
				t.Errorf("StopSession() = %+v, %v", r, err)
			}
		})
	}
	<-reached
	if got := l.status("one"); got != skerry.StatusSnapshotting {
		t.Errorf("the session is %s", got)
	}
	_, _, err := l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
	wantCode(t, "a command", err, skerry.CodeSandboxSnapshotting)
	_, err = l.CreateSnapshot(t.Context(), scope, run.Session.ID, skerry.SnapshotParams{})
	wantCode(t, "another snapshot", err, skerry.CodeSandboxSnapshotting)
	_, err = l.ExtendTimeout(t.Context(), scope, run.Session.ID, skerry.Duration(time.Minute))
	wantCode(t, "extending", err, skerry.CodeSandboxSnapshotting)
	ids := make(chan string, 5)
	for range 5 {
		calls.Go(func() { ids <- l.resume("one").Session.ID })
	}
	release()
	calls.Wait()
	close(ids)
	seen := map[string]bool{}
	for id := range ids {
		seen[id] = true
	}
	if len(seen) != 1 || seen[run.Session.ID] || l.node.Starts() != 2 {
		t.Errorf("five resumes gave sessions %v, %d were started", seen, l.node.Starts())
	}
	if snaps, err := l.store.SnapshotsOf(t.Context(), run.Sandbox.ID); err != nil || len(snaps) != 1 {
		t.Errorf("three stops took %d snapshots, %v", len(snaps), err)
	}
}

func TestFailedSnapshotLeavesTheSessionRunning(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	full := &skerry.Error{Code: skerry.CodeDiskFull, Message: "no room for the snapshot"}
	l.node.On(processnode.Saved, func(context.Context, string) error { return full })
	_, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
	wantCode(t, "a stop without room", err, skerry.CodeDiskFull)
	_, err = l.CreateSnapshot(t.Context(), scope, run.Session.ID, skerry.SnapshotParams{})
	wantCode(t, "a snapshot without room", err, skerry.CodeDiskFull)
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Fatalf("the session is %s", got)
	}
	if now, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || now.Finished() {
		t.Errorf("its command is %+v, %v", now, err)
	}
	if code := l.sh(run.Session.ID, "true"); code != 0 {
		t.Error("the session takes no commands")
	}
	if list, _, err := l.ListSnapshots(t.Context(), scope, skerry.SnapshotFilter{}); err != nil || len(list) != 0 {
		t.Errorf("snapshots are listed: %v, %v", list, err)
	}
	// Deleting needs no snapshot.
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
		t.Error(err)
	}
}

func TestMachineLostDuringASnapshot(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	l.node.On(processnode.Saved, func(_ context.Context, id string) error {
		l.node.Lose(id, "the power went out")
		return errors.New("the machine does not answer")
	})
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err == nil {
		t.Error("the stop succeeded")
	}
	l.eventually("the session to be aborted", func() bool { return l.status("one") == skerry.StatusAborted })
	l.node.On(processnode.Saved, nil)
	if again := l.resume("one"); again.Session.SourceSnapshotID != "" {
		t.Errorf("resumed from %q", again.Session.SourceSnapshotID)
	}
}

// TestLostSessionIsSavedInTheEnd has the storage of snapshots fail at first.
func TestLostSessionIsSavedInTheEnd(t *testing.T) {
	l, _ := newFaultyLab(t)
	run := l.create("one")
	l.sh(run.Session.ID, "echo mine >precious")
	var tries atomic.Int32
	l.node.On(processnode.Save, func(context.Context, string) error {
		if tries.Add(1) <= 2 {
			return errors.New("the storage of snapshots hiccups")
		}
		return nil
	})
	l.node.LoseAgent(run.Session.ID, "its agent was lost")
	l.eventually("the session to be aborted", func() bool { return l.status("one") == skerry.StatusAborted })
	past, err := l.GetSession(t.Context(), scope, run.Session.ID)
	if err != nil || past.Session.Reason != "its agent was lost; the files were saved" || tries.Load() != 3 {
		t.Errorf("after %d attempts aborted as %+v, %v", tries.Load(), past.Session, err)
	}
	if code := l.sh(l.resume("one").Session.ID, "test -e precious"); code != 0 {
		t.Errorf("looking for its file ended with %d", code)
	}
}

// TestLostAgentCostsNoFiles: what nothing can be run in any more is saved.
func TestLostAgentCostsNoFiles(t *testing.T) {
	l, _ := newFaultyLab(t, func(c *Config) { c.StopGrace = time.Millisecond })
	for _, c := range []struct {
		name    string
		failure error
		reason  string
		kept    int
	}{
		{"saved", nil, "its agent was lost; the files were saved", 0},
		{"unsavable", &skerry.Error{Code: skerry.CodeSandboxUnsavable, Message: "a path is too long"},
			"its agent was lost; the files could not be saved (a path is too long); the next session starts from the image or source of the sandbox", 1},
	} {
		run := l.create(c.name)
		l.sh(run.Session.ID, "echo mine >precious")
		l.node.On(processnode.Save, func(context.Context, string) error { return c.failure })
		l.node.LoseAgent(run.Session.ID, "its agent was lost")
		l.eventually("the session to be aborted", func() bool { return l.status(c.name) == skerry.StatusAborted })
		l.node.On(processnode.Save, nil)
		past, err := l.GetSession(t.Context(), scope, run.Session.ID)
		if err != nil || past.Session.Reason != c.reason || !past.Session.RequestedStopAt.IsZero() {
			t.Errorf("%s: aborted as %+v, %v", c.name, past.Session, err)
		}
		if code := l.sh(l.resume(c.name).Session.ID, "test -e precious"); code != c.kept {
			t.Errorf("%s: looking for its file ended with %d", c.name, code)
		}
	}
}

func TestDeleteDuringASnapshot(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	reached, release := l.held()
	defer release()
	var calls sync.WaitGroup
	var snap *skerry.Snapshot
	calls.Go(func() { snap = l.snapshot(run.Session.ID) })
	<-reached
	calls.Go(func() {
		if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
			t.Error(err)
		}
	})
	release()
	calls.Wait()
	_, err := l.GetSandbox(t.Context(), scope, "one", true)
	wantCode(t, "the deleted sandbox", err, skerry.CodeNotFound)
	// The snapshot outlives it.
	l.node.On(processnode.Saved, nil)
	l.createWith(skerry.CreateParams{Name: "two", Source: &skerry.Source{Type: "snapshot", SnapshotID: snap.ID}})
}

func TestTimeoutDuringASnapshot(t *testing.T) {
	l := newLab(t)
	run := l.createWith(skerry.CreateParams{Name: "one", Timeout: skerry.Duration(2 * time.Second)})
	reached, release := l.held()
	var calls sync.WaitGroup
	calls.Go(func() { l.snapshot(run.Session.ID) })
	<-reached
	l.eventually("the time to be up", func() bool { return time.Now().After(run.Session.ExpiresAt().Time) })
	release()
	calls.Wait()
	if got := l.status("one"); got != skerry.StatusStopped {
		t.Errorf("the session is %s", got)
	}
	if snaps, err := l.store.SnapshotsOf(t.Context(), run.Sandbox.ID); err != nil || len(snaps) != 1 {
		t.Errorf("%d snapshots were taken, %v", len(snaps), err)
	}
}

func TestTimeoutSavesTheFiles(t *testing.T) {
	l := newLab(t)
	run := l.createWith(skerry.CreateParams{Name: "one", Timeout: skerry.Duration(2 * time.Second)})
	l.sh(run.Session.ID, "echo kept > file")
	l.eventually("the time to be up", func() bool { return l.status("one") == skerry.StatusStopped })
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("the file did not come back")
	}
}

func TestRestartDuringASnapshot(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	l.sh(run.Session.ID, "echo kept > file")
	// What a process that was killed then leaves in the store.
	live := l.session(run.Session.ID)
	if err := live.recordTransition(skerry.StatusSnapshotting, nil); err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.eventually("the stop to be done anew", func() bool { return l.status("one") == skerry.StatusStopped })
	if code := l.sh(l.resume("one").Session.ID, "grep -q kept file"); code != 0 {
		t.Error("the file did not come back")
	}
}

// TestRestartDuringAnUnusualSnapshot: what was asked for is taken, also of a sandbox that
// is not persistent.
func TestRestartDuringAnUnusualSnapshot(t *testing.T) {
	l := newLab(t)
	persistent, expiration := false, skerry.Duration(time.Hour)
	run := l.createWith(skerry.CreateParams{Name: "one", Persistent: &persistent})
	var stored *skerry.Session // by a process that is killed during the save
	full := skerry.Errorf(skerry.CodeDiskFull, "the disk is full")
	l.node.On(processnode.Save, func(ctx context.Context, _ string) (err error) {
		if stored, err = l.store.Session(ctx, scope, run.Session.ID); err != nil {
			return err
		}
		return full
	})
	_, err := l.CreateSnapshot(t.Context(), scope, run.Session.ID, skerry.SnapshotParams{Memory: true, Expiration: &expiration})
	wantCode(t, "a snapshot on a full disk", err, skerry.CodeDiskFull)
	l.node.On(processnode.Save, nil)
	if stored.Status != skerry.StatusSnapshotting {
		t.Fatalf("stored was %+v", stored)
	}
	err = l.session(run.Session.ID).recordTransition(skerry.StatusSnapshotting, func(run *skerry.Session) { run.Saving = stored.Saving })
	if err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.eventually("the snapshot to be taken anew", func() bool { return l.status("one") == skerry.StatusStopped })
	list, _, err := l.ListSnapshots(t.Context(), scope, skerry.SnapshotFilter{SandboxName: "one"})
	if err != nil || len(list) != 1 || !list[0].Memory || list[0].CreationMethod != skerry.CreatedManually || list[0].ExpiresAt.Sub(list[0].CreatedAt.Time) != time.Hour {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestRetention(t *testing.T) {
	l := newLab(t)
	expiration := skerry.Duration(time.Hour)
	run := l.createWith(skerry.CreateParams{Name: "one", Retention: &skerry.Retention{Count: 2, Expiration: &expiration}})
	var ids []string
	for range 4 {
		ids = append(ids, l.snapshot(run.Session.ID).ID)
		run = l.resume("one")
	}
	list, _, err := l.ListSnapshots(t.Context(), scope, skerry.SnapshotFilter{SandboxName: "one"})
	if err != nil || len(list) != 2 || list[0].ID != ids[3] || list[1].ID != ids[2] {
		t.Fatalf("kept %+v of %v, %v", list, ids, err)
	}
	if left := list[0].ExpiresAt.Sub(list[0].CreatedAt.Time); left != time.Hour {
		t.Errorf("a kept snapshot expires after %v", left)
	}
	old, err := l.GetSnapshot(t.Context(), scope, ids[0])
	if err != nil || old.Status != skerry.SnapshotDeleted {
		t.Errorf("the evicted snapshot is %+v, %v", old, err)
	}
	if _, err := l.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if saved := l.node.SavedFiles(); len(saved) != 2 || !slices.Contains(saved, list[0].Manifest) || !slices.Contains(saved, list[1].Manifest) {
		t.Errorf("saved are %v", saved)
	}
	// Without deletion the evicted ones get the sandbox's own expiration.
	keep, day := false, skerry.Duration(24*time.Hour)
	_, err = l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{SnapshotExpiration: &day, Retention: &skerry.Retention{Count: 1, DeleteEvicted: &keep}})
	if err != nil {
		t.Fatal(err)
	}
	l.snapshot(run.Session.ID)
	evicted, err := l.GetSnapshot(t.Context(), scope, ids[3])
	if err != nil || evicted.Status != skerry.SnapshotCreated || evicted.ExpiresAt.Sub(evicted.CreatedAt.Time) != 24*time.Hour {
		t.Errorf("the evicted snapshot is %+v, %v", evicted, err)
	}
}

func TestSnapshotsInUseAreNotEvicted(t *testing.T) {
	l := newLab(t)
	run := l.createWith(skerry.CreateParams{Name: "one", Retention: &skerry.Retention{Count: 1}})
	used := l.snapshot(run.Session.ID)
	if _, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "fork"}); err != nil {
		t.Fatal(err)
	}
	run = l.resume("one")
	unused := l.snapshot(run.Session.ID)
	run = l.resume("one")
	last := l.snapshot(run.Session.ID)
	for id, want := range map[string]skerry.SnapshotStatus{
		used.ID: skerry.SnapshotCreated, unused.ID: skerry.SnapshotDeleted, last.ID: skerry.SnapshotCreated,
	} {
		if snap, err := l.GetSnapshot(t.Context(), scope, id); err != nil || snap.Status != want {
			t.Errorf("snapshot %+v, %v, want %s", snap, err, want)
		}
	}
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", true); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]skerry.SnapshotStatus{used.ID: skerry.SnapshotCreated, last.ID: skerry.SnapshotDeleted} {
		if snap, err := l.GetSnapshot(t.Context(), scope, id); err != nil || snap.Status != want {
			t.Errorf("as an orphan: %+v, %v, want %s", snap, err, want)
		}
	}
}

func TestSnapshotThatCannotBeUsed(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	snap := l.snapshot(run.Session.ID)
	other := skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}
	for what, f := range map[string]func() error{
		"get":    func() error { _, err := l.GetSnapshot(t.Context(), other, snap.ID); return err },
		"delete": func() error { _, err := l.DeleteSnapshot(t.Context(), other, snap.ID); return err },
		"tree":   func() error { _, _, _, err := l.SnapshotTree(t.Context(), other, snap.ID, skerry.Page{}); return err },
	} {
		wantCode(t, what+" of another's", f(), skerry.CodeNotFound)
	}
	from := func(s skerry.Scope, id string) error {
		_, err := l.CreateSandbox(t.Context(), s, skerry.CreateParams{Source: &skerry.Source{Type: "snapshot", SnapshotID: id}})
		return err
	}
	wantCode(t, "create from another's", from(other, snap.ID), skerry.CodeSnapshotNotFound)
	wantCode(t, "create from an unknown one", from(scope, skerry.NewID(skerry.PrefixSnapshot)), skerry.CodeSnapshotNotFound)
	wantCode(t, "create from what is no id", from(scope, "x"), skerry.CodeBadRequest)
	deleted, err := l.DeleteSnapshot(t.Context(), scope, snap.ID)
	if err != nil || deleted.Status != skerry.SnapshotDeleted {
		t.Errorf("DeleteSnapshot() = %+v, %v", deleted, err)
	}
	if _, err := l.DeleteSnapshot(t.Context(), scope, snap.ID); err != nil {
		t.Errorf("deleting twice: %v", err)
	}
	wantCode(t, "create from a deleted one", from(scope, snap.ID), skerry.CodeSnapshotNotFound)
	_, err = l.GetSandbox(t.Context(), scope, "one", true)
	wantCode(t, "resume without the files", err, skerry.CodeSnapshotNotFound)
	if got := l.status("one"); got != skerry.StatusStopped {
		t.Errorf("the sandbox is %s", got)
	}
}

// TestExpiredSnapshotsAreDeleted: that waits until the clock has been steady, and
// is then looked after regularly.
func TestExpiredSnapshotsAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		expiration := skerry.Duration(skerry.MinSnapshotExpiration)
		snapshot := func(name string) *skerry.Snapshot {
			t.Helper()
			return l.snapshot(l.createWith(skerry.CreateParams{Name: name, SnapshotExpiration: &expiration}).Session.ID)
		}
		status := func(id string) skerry.SnapshotStatus {
			t.Helper()
			got, err := l.GetSnapshot(t.Context(), scope, id)
			if err != nil {
				t.Fatal(err)
			}
			return got.Status
		}
		first := snapshot("one")
		time.Sleep(clockSettles - time.Second)
		if got := status(first.ID); got != skerry.SnapshotCreated {
			t.Errorf("before the clock is known to be steady it is %s", got)
		}
		_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Source: &skerry.Source{Type: "snapshot", SnapshotID: first.ID}})
		wantCode(t, "a start from it", err, skerry.CodeSnapshotNotFound)
		time.Sleep(2 * sweepEvery)
		if got := status(first.ID); got != skerry.SnapshotDeleted {
			t.Errorf("afterwards it is %s", got)
		}
		second := snapshot("two")
		time.Sleep(expiration.Std() - time.Second)
		if got := status(second.ID); got != skerry.SnapshotCreated {
			t.Errorf("before it expires it is %s", got)
		}
		time.Sleep(2 * sweepEvery)
		if got := status(second.ID); got != skerry.SnapshotDeleted {
			t.Errorf("after it has expired it is %s", got)
		}
	})
}

func TestExpiredSnapshot(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	snap := l.snapshot(run.Session.ID)
	expired := func(s *skerry.Snapshot) error { s.ExpiresAt = skerry.At(time.Now().Add(-time.Second)); return nil }
	if _, err := l.store.UpdateSnapshot(t.Context(), snap.ID, expired); err != nil {
		t.Fatal(err)
	}
	_, err := l.GetSandbox(t.Context(), scope, "one", true)
	wantCode(t, "resume from an expired snapshot", err, skerry.CodeSnapshotNotFound)
	if err := l.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := l.GetSnapshot(t.Context(), scope, snap.ID); err != nil || got.Status != skerry.SnapshotDeleted {
		t.Errorf("the expired snapshot is %+v, %v", got, err)
	}
	// Long after, it is forgotten.
	for _, age := range []time.Duration{rememberDeleted - time.Hour, rememberDeleted + time.Hour} {
		_, err := l.store.UpdateSnapshot(t.Context(), snap.ID, func(s *skerry.Snapshot) error {
			s.UpdatedAt = skerry.At(time.Now().Add(-age))
			return nil
		})
		if err != nil {
			t.Fatalf("before it was deleted %v ago: %v", age, err)
		}
		if err := l.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, err = l.GetSnapshot(t.Context(), scope, snap.ID)
	wantCode(t, "a forgotten snapshot", err, skerry.CodeNotFound)
	for what, expiration := range map[string]skerry.Duration{"short": 1, "negative": -5} {
		_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{SnapshotExpiration: &expiration})
		wantCode(t, "a "+what+" expiration", err, skerry.CodeBadRequest)
	}
	for _, count := range []int{0, 11} {
		_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Retention: &skerry.Retention{Count: count}})
		wantCode(t, "a retention out of range", err, skerry.CodeBadRequest)
	}
}

func TestFork(t *testing.T) {
	l := newLab(t)
	run := l.createWith(skerry.CreateParams{
		Name: "one", Env: map[string]string{"A": "1"}, Tags: map[string]string{"t": "x"}, VCPUs: 4,
		Timeout: skerry.Duration(time.Hour), Runtime: "python3.13",
	})
	l.sh(run.Session.ID, "echo old > file")
	l.snapshot(run.Session.ID)
	run = l.resume("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	l.sh(run.Session.ID, "echo new > file")

	// The current snapshot is older than what runs.
	fork, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two", Tags: map[string]string{"u": "y"}})
	if err != nil {
		t.Fatal(err)
	}
	box := fork.Sandbox
	if box.VCPUs != 4 || box.Runtime != "python3.13" || box.Timeout.Std() != time.Hour || box.Tags["u"] != "y" || box.Tags["t"] != "" || !box.Persistent {
		t.Errorf("forked as %+v", box)
	}
	if code := l.sh(fork.Session.ID, `grep -q old file && test "$A" = 1`); code != 0 {
		t.Error("the fork lacks the source's file or environment")
	}
	live, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "three", Live: true})
	if err != nil {
		t.Fatal(err)
	}
	if code := l.sh(live.Session.ID, "grep -q new file && echo other > file"); code != 0 {
		t.Error("the live fork lacks the source's newest file")
	}
	// The source goes on undisturbed.
	if now, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || now.Finished() {
		t.Errorf("the source's command is %+v, %v", now, err)
	}
	if code := l.sh(run.Session.ID, "grep -q new file"); code != 0 {
		t.Error("the fork changed the source")
	}
	_, err = l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two"})
	wantCode(t, "a name that is taken", err, skerry.CodeConflict)
	_, err = l.ForkSandbox(t.Context(), scope, "none", skerry.ForkParams{})
	wantCode(t, "a source that is not there", err, skerry.CodeNotFound)
}

// The snapshot of a live fork goes with the last sandbox that starts from it,
// and with a fork that comes to nothing.
func TestSnapshotOfALiveForkGoesWithIt(t *testing.T) {
	l := newLab(t)
	l.create("one")
	fork, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two", Live: true})
	if err != nil {
		t.Fatal(err)
	}
	id := fork.Session.SourceSnapshotID
	if _, err := l.ForkSandbox(t.Context(), scope, "two", skerry.ForkParams{Name: "three"}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		want skerry.SnapshotStatus
	}{{"two", skerry.SnapshotCreated}, {"three", skerry.SnapshotDeleted}} {
		if _, err := l.DeleteSandbox(t.Context(), scope, test.name, false); err != nil {
			t.Fatal(err)
		}
		if snap, err := l.GetSnapshot(t.Context(), scope, id); err != nil || snap.Status != test.want {
			t.Errorf("after the end of %s the snapshot is %+v, %v", test.name, snap, err)
		}
	}
	_, err = l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "one", Live: true})
	wantCode(t, "a live fork with a name that is taken", err, skerry.CodeConflict)
	if left, _, err := l.ListSnapshots(t.Context(), scope, skerry.SnapshotFilter{}); err != nil || len(left) != 0 {
		t.Errorf("left are %+v, %v", left, err)
	}
}

func TestRollBack(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	l.sh(run.Session.ID, "echo first > file")
	first := l.snapshot(run.Session.ID)
	run = l.resume("one")
	l.sh(run.Session.ID, "echo second > file")
	l.stop(run.Session.ID)
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &first.ID}); err != nil {
		t.Fatal(err)
	}
	if code := l.sh(l.resume("one").Session.ID, "grep -q first file"); code != 0 {
		t.Error("the sandbox was not rolled back")
	}
	unknown := skerry.NewID(skerry.PrefixSnapshot)
	_, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &unknown})
	wantCode(t, "an unknown snapshot", err, skerry.CodeNotFound)
	if _, err := l.DeleteSnapshot(t.Context(), scope, first.ID); err != nil {
		t.Fatal(err)
	}
	_, err = l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &first.ID})
	wantCode(t, "a deleted snapshot", err, skerry.CodeSnapshotNotFound)
	if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Field != "currentSnapshotId" {
		t.Errorf("the error names %+v", err)
	}
}

func TestTree(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	var chain []string
	for range 4 {
		chain = append(chain, l.snapshot(run.Session.ID).ID)
		run = l.resume("one")
	}
	// A second child of the first.
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &chain[0]}); err != nil {
		t.Fatal(err)
	}
	l.stop(run.Session.ID)
	if _, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{CurrentSnapshotID: &chain[0]}); err != nil {
		t.Fatal(err)
	}
	side := l.snapshot(l.resume("one").Session.ID)

	anchor, nodes, next, err := l.SnapshotTree(t.Context(), scope, chain[3], skerry.Page{Limit: 2})
	if err != nil || anchor.Snapshot.ID != chain[3] || len(nodes) != 2 || nodes[0].Snapshot.ID != chain[2] || next != chain[1] {
		t.Fatalf("SnapshotTree() = %+v, %+v, %q, %v", anchor, nodes, next, err)
	}
	if n := nodes[1]; n.Snapshot.ID != chain[1] || n.Count != 2 || len(n.Siblings) != 1 || n.Siblings[0].ID != side.ID {
		t.Errorf("the node with a sibling is %+v", n)
	}
	_, nodes, next, err = l.SnapshotTree(t.Context(), scope, next, skerry.Page{Limit: 2})
	if err != nil || len(nodes) != 1 || nodes[0].Snapshot.ID != chain[0] || next != "" {
		t.Errorf("the rest is %+v, %q, %v", nodes, next, err)
	}
	_, nodes, _, err = l.SnapshotTree(t.Context(), scope, chain[1], skerry.Page{Ascending: true})
	if err != nil || len(nodes) < 2 || nodes[0].Snapshot.ID != chain[2] || nodes[1].Snapshot.ID != chain[3] {
		t.Errorf("the descendants are %+v, %v", nodes, err)
	}
}

// TestForksAreStoredInTurn has more memory forks of one sandbox at once than are stored at a
// time.
func TestForksAreStoredInTurn(t *testing.T) {
	l := newLab(t)
	l.create("one")
	var stored, now, most atomic.Int64
	l.node.On(processnode.Keep, func(context.Context, string) error {
		for n := now.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		time.Sleep(5 * time.Millisecond) // for others to come
		now.Add(-1)
		stored.Add(1)
		return nil
	})
	const forks = 3 * forkKeepsAtOnce
	var all sync.WaitGroup
	for range forks {
		all.Go(func() {
			if _, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Memory: true}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	l.eventually("the snapshots of the forks", func() bool { return stored.Load() == forks })
	if n := most.Load(); n > forkKeepsAtOnce {
		t.Errorf("%d were stored at a time", n)
	}
}

// TestForksDelayNoOthers has a fork that waits for what its source saves, when sessions start
// one at a time.
func TestForksDelayNoOthers(t *testing.T) {
	l := newLab(t, func(c *Config) { c.ConcurrentStarts, c.forkSlot = 1, time.Millisecond })
	l.create("one")
	waits, saved := make(chan struct{}), make(chan struct{})
	l.node.On(processnode.Start, func(ctx context.Context, _ string) error {
		close(waits)
		select {
		case <-saved:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	forked := make(chan error, 1)
	go func() {
		_, err := l.ForkSandbox(t.Context(), scope, "one", skerry.ForkParams{Name: "two", Memory: true})
		forked <- err
	}()
	<-waits
	l.node.On(processnode.Start, nil)
	l.create("three")
	select {
	case err := <-forked:
		t.Fatalf("the fork did not wait: %v", err)
	default:
	}
	close(saved)
	if err := <-forked; err != nil {
		t.Fatal(err)
	}
	if n := l.startSlots.Used(); n != 0 {
		t.Errorf("%d start slots are held", n)
	}
}
