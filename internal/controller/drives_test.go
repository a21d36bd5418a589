package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

func (l *lab) drive(name string) *skerry.Drive {
	l.t.Helper()
	d, _, err := l.GetOrCreateDrive(l.t.Context(), scope, skerry.DriveParams{Name: name})
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

func at(path, drive string, mode skerry.MountMode) map[string]skerry.Mount {
	return map[string]skerry.Mount{path: {Drive: drive, Mode: mode}}
}

func (l *lab) mounting(name string, mounts map[string]skerry.Mount) (*skerry.Run, error) {
	return l.CreateSandbox(l.t.Context(), scope, skerry.CreateParams{Name: name, Mounts: mounts})
}

func TestGetOrCreateDrive(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxDriveSize = 1 << 30 })
	var ids sync.Map
	var made atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			d, created, err := l.GetOrCreateDrive(t.Context(), scope, skerry.DriveParams{Name: "data"})
			if err != nil {
				t.Error(err)
				return
			}
			if created {
				made.Add(1)
			}
			ids.Store(d.ID, true)
		})
	}
	all.Wait()
	if made.Load() != 1 {
		t.Errorf("%d callers were told that they made it", made.Load())
	}
	d := l.drive("data")
	ids.Range(func(id, _ any) bool {
		if id != d.ID {
			t.Errorf("there are drives %s and %s of one name", id, d.ID)
		}
		return true
	})
	if got := l.node.DriveIDs(); len(got) != 1 || got[0] != d.ID {
		t.Errorf("the node has drives %v", got)
	}
	if d.MaxSizeBytes != 1<<30 || d.ProjectID != scope.ProjectID || d.Region != "local" {
		t.Errorf("the drive is %+v", d)
	}
	for _, p := range []skerry.DriveParams{
		{Name: ""}, {Name: "a/b"}, {Name: strings.Repeat("x", 200)}, {Name: "x", MaxSizeBytes: skerry.MinDriveSize - 1}, {Name: "x", MaxSizeBytes: 1<<30 + 1}, {Name: "x", MaxSizeBytes: -1},
	} {
		_, _, err := l.GetOrCreateDrive(t.Context(), scope, p)
		wantCode(t, p.Name, err, skerry.CodeBadRequest)
	}
	other := skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}
	_, err := l.GetDrive(t.Context(), other, "data")
	wantCode(t, "a foreign drive", err, skerry.CodeNotFound)
	_, err = l.DeleteDrive(t.Context(), other, "data")
	wantCode(t, "deleting a foreign drive", err, skerry.CodeNotFound)
	if theirs, _, err := l.GetOrCreateDrive(t.Context(), other, skerry.DriveParams{Name: "data"}); err != nil || theirs.ID == d.ID {
		t.Errorf("another project's drive is %+v, %v", theirs, err)
	}
}

// TestDriveSizes: without limits of the operator's, a drive has the usual size, and
// the largest and the smallest are what the page of limits says.
func TestDriveSizes(t *testing.T) {
	l := newLab(t)
	for size, want := range map[int64]int64{0: skerry.DefaultDriveSize, skerry.MinDriveSize: skerry.MinDriveSize, skerry.MaxDriveSize: skerry.MaxDriveSize} {
		d, _, err := l.GetOrCreateDrive(t.Context(), scope, skerry.DriveParams{Name: fmt.Sprint("of-", size), MaxSizeBytes: size})
		if err != nil || d.MaxSizeBytes != want {
			t.Errorf("a drive of %d bytes: %+v, %v", size, d, err)
		}
	}
	for _, size := range []int64{skerry.MinDriveSize - 1, skerry.MaxDriveSize + 1} {
		_, _, err := l.GetOrCreateDrive(t.Context(), scope, skerry.DriveParams{Name: "x", MaxSizeBytes: size})
		wantCode(t, fmt.Sprintf("a drive of %d bytes", size), err, skerry.CodeBadRequest)
	}
}

func TestDriveHasOneWriter(t *testing.T) {
	l := newLab(t)
	d := l.drive("data")
	first, err := l.mounting("first", at("/data", "data", ""))
	if err != nil {
		t.Fatal(err)
	}
	if want := at("/data", "data", skerry.MountReadWrite); !maps.Equal(first.Sandbox.Mounts, want) {
		t.Errorf("mounts are %v", first.Sandbox.Mounts)
	}
	if got := l.node.Spec(first.Session.ID).Mounts; !slices.Equal(got, []nodeapi.DriveMount{{Path: "/data", DriveID: d.ID}}) {
		t.Errorf("the node was told %+v", got)
	}
	if got, err := l.GetDrive(t.Context(), scope, "data"); err != nil || got.CurrentSandboxName != "first" || got.CurrentSessionID != first.Session.ID {
		t.Errorf("the drive is %+v, %v", got, err)
	}
	_, err = l.mounting("second", at("/data", "data", skerry.MountReadWrite))
	wantCode(t, "a second writer", err, skerry.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "first") {
		t.Errorf("the error does not name who has the drive: %v", err)
	}
	_, err = l.GetSandbox(t.Context(), scope, "second", false)
	wantCode(t, "a sandbox that was refused", err, skerry.CodeNotFound)
	_, err = l.DeleteDrive(t.Context(), scope, "data")
	wantCode(t, "deleting an attached drive", err, skerry.CodeConflict)
	reader, err := l.mounting("reader", at("/old", "data", "read-only"))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.node.Spec(reader.Session.ID).Mounts; len(got) != 1 || !got[0].Frozen {
		t.Errorf("the node was told %+v", got)
	}

	// The end of the session, whatever it is, is that of the attachment.
	if _, err := l.StopSession(t.Context(), scope, first.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	second, err := l.mounting("second", at("/data", "data", skerry.MountReadWrite))
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.GetSandbox(t.Context(), scope, "first", true)
	wantCode(t, "resuming without the drive", err, skerry.CodeConflict)
	l.node.Lose(second.Session.ID, "its machine was lost")
	l.eventually("the loss", func() bool { return l.status("second") == skerry.StatusAborted })
	if _, err := l.GetSandbox(t.Context(), scope, "first", true); err != nil {
		t.Error(err)
	}
	if _, err := l.DeleteSandbox(t.Context(), scope, "first", false); err != nil {
		t.Error(err)
	}
	if _, err := l.DeleteDrive(t.Context(), scope, "data"); err != nil {
		t.Error(err)
	}
	if got := l.node.DriveIDs(); len(got) > 0 {
		t.Errorf("the node has drives %v", got)
	}
	_, err = l.GetSandbox(t.Context(), scope, "second", true)
	wantCode(t, "resuming with a drive that is gone", err, skerry.CodeBadRequest)
}

func TestManyWritersAtOnce(t *testing.T) {
	l := newLab(t)
	l.drive("data")
	var mu sync.Mutex
	var won []string
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		all.Go(func() {
			_, err := l.mounting(name, at("/data", "data", ""))
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				won = append(won, name)
			} else if skerry.CodeOf(err) != skerry.CodeConflict {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Errorf("%v have the drive", won)
	}
}

func TestDriveOfAFailedStartIsFree(t *testing.T) {
	l := newLab(t)
	l.drive("data")
	l.node.On(processnode.Start, func(_ context.Context, _ string) error { return errors.New("no luck") })
	if _, err := l.mounting("a", at("/data", "data", "")); err == nil {
		t.Fatal("it started")
	}
	l.node.On(processnode.Start, nil)
	if d, err := l.GetDrive(t.Context(), scope, "data"); err != nil || d.CurrentSessionID != "" {
		t.Errorf("the drive is %+v, %v", d, err)
	}
	if _, err := l.mounting("b", at("/data", "data", "")); err != nil {
		t.Error(err)
	}
}

func TestDrivesAfterARestart(t *testing.T) {
	l := newLab(t)
	l.drive("kept")
	l.drive("freed")
	kept, err := l.mounting("a", at("/data", "kept", ""))
	if err != nil {
		t.Fatal(err)
	}
	lost, err := l.mounting("b", at("/data", "freed", ""))
	if err != nil {
		t.Fatal(err)
	}
	// What a crash between the node's work and the store's leaves.
	if err := l.node.CreateDrive(t.Context(), skerry.NewID(skerry.PrefixDrive), 1); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.node.Lose(lost.Session.ID, "")
	l.Controller = New(l.conf)
	if err := l.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.node.DriveIDs(); len(got) != 2 {
		t.Errorf("the node has drives %v", got)
	}
	for name, session := range map[string]string{"kept": kept.Session.ID, "freed": ""} {
		if d, err := l.GetDrive(t.Context(), scope, name); err != nil || d.CurrentSessionID != session {
			t.Errorf("drive %s is %+v, %v", name, d, err)
		}
	}
}

func TestMountsOfLaterSessionsAndForks(t *testing.T) {
	l := newLab(t)
	l.drive("one")
	l.drive("two")
	run, err := l.mounting("a", at("/one", "one", ""))
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.UpdateSandbox(t.Context(), scope, "a", skerry.UpdateParams{Mounts: at("/none", "none", "")})
	wantCode(t, "an update to a drive that is not there", err, skerry.CodeBadRequest)
	changed, err := l.UpdateSandbox(t.Context(), scope, "a", skerry.UpdateParams{Mounts: at("/two", "two", "")})
	if err != nil || !maps.Equal(changed.Sandbox.Mounts, at("/two", "two", skerry.MountReadWrite)) {
		t.Errorf("updated: %+v, %v", changed, err)
	}
	if d, err := l.GetDrive(t.Context(), scope, "two"); err != nil || d.CurrentSessionID != "" {
		t.Errorf("the running session has %+v, %v", d, err)
	}
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.GetSandbox(t.Context(), scope, "a", true); err != nil {
		t.Fatal(err)
	}
	if d, err := l.GetDrive(t.Context(), scope, "two"); err != nil || d.CurrentSandboxName != "a" {
		t.Errorf("the next session does not have %+v, %v", d, err)
	}
	fork, err := l.ForkSandbox(t.Context(), scope, "a", skerry.ForkParams{Name: "b"})
	if err != nil || !maps.Equal(fork.Sandbox.Mounts, at("/two", "two", skerry.MountSnapshot)) {
		t.Errorf("the fork is %+v, %v", fork, err)
	}
	fork, err = l.ForkSandbox(t.Context(), scope, "a", skerry.ForkParams{Name: "c", Mounts: at("/one", "one", "")})
	if err != nil || !maps.Equal(fork.Sandbox.Mounts, at("/one", "one", skerry.MountReadWrite)) {
		t.Errorf("the fork is %+v, %v", fork, err)
	}
	bare, err := l.UpdateSandbox(t.Context(), scope, "a", skerry.UpdateParams{Mounts: map[string]skerry.Mount{}})
	if err != nil || len(bare.Sandbox.Mounts) != 0 {
		t.Errorf("without mounts: %+v, %v", bare, err)
	}
}
