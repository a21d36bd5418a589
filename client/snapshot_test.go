package client_test

import (
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

func TestStopSaves(t *testing.T) {
	_, sb := sandbox(t)
	ctx := t.Context()
	must(t, sb.WriteFile(ctx, "f", []byte("kept"), 0o644))
	first, err := sb.Stop(ctx)
	if err != nil || first.Snapshot == nil || first.Snapshot.ID() != sb.Info().CurrentSnapshotID || first.Snapshot.Info().SizeBytes != 4 {
		t.Fatalf("stop: %+v, %v", first, err)
	}
	// A client whose first answer was lost learns what it would have said.
	if again, err := sb.Stop(ctx); err != nil || again.Snapshot == nil || again.Snapshot.ID() != first.Snapshot.ID() {
		t.Errorf("the second stop: %+v, %v", again, err)
	}
	if b, err := sb.ReadFile(ctx, "f"); err != nil || string(b) != "kept" {
		t.Errorf("after the stop: %q, %v", b, err)
	}
	if got := sb.Session().SourceSnapshotID; got != first.Snapshot.ID() {
		t.Errorf("started from %s", got)
	}
}

func TestNonPersistentStartsClean(t *testing.T) {
	c := connect(t, servertest.New(t), client.Options{})
	ctx := t.Context()
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{Persistent: new(bool)})
	must(t, err)
	must(t, sb.WriteFile(ctx, "f", nil, 0o644))
	if stopped, err := sb.Stop(ctx); err != nil || stopped.Snapshot != nil {
		t.Errorf("stop: %+v, %v", stopped, err)
	}
	if _, err := sb.ReadFile(ctx, "f"); !client.IsNotFound(err) {
		t.Errorf("after the stop: %v", err)
	}
}

func TestSnapshotIsDeletedAndSandboxCannotResume(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	c := connect(t, s, client.Options{})
	snap, err := sb.Snapshot(ctx, client.TakeOptions{Expiration: new(time.Duration)})
	must(t, err)
	if sb.Session().Status != skerry.StatusStopped || sb.Info().CurrentSnapshotID != snap.ID() || !snap.Info().ExpiresAt.IsZero() {
		t.Errorf("after the snapshot: %+v, %+v", sb.Info(), snap.Info())
	}
	if body := s.LastBody("POST /v2/sandboxes/sessions/" + sb.Session().ID + "/snapshot"); body != `{"expiration":0}` {
		t.Errorf("body %s", body)
	}
	for range 2 {
		if err := snap.Delete(ctx); err != nil || snap.Info().Status != skerry.SnapshotDeleted {
			t.Errorf("delete: %+v, %v", snap.Info(), err)
		}
	}
	if again, err := c.GetSnapshot(ctx, snap.ID()); err != nil || again.Info().Status != skerry.SnapshotDeleted {
		t.Errorf("get after delete: %v", err)
	}
	for name, call := range map[string]func() error{
		"command": func() error { return sb.Command(ctx, "true").Run() },
		"resume":  func() error { return sb.Resume(ctx) },
		"create": func() error {
			_, err := c.CreateSandbox(ctx, client.CreateOptions{Source: snap.Source()})
			return err
		},
		"fork": func() error { _, err := sb.Fork(ctx, client.ForkOptions{}); return err },
	} {
		if err := call(); !client.IsSnapshotNotFound(err) || client.IsStopped(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.GetSnapshot(ctx, "snap_none"); !client.IsNotFound(err) {
		t.Errorf("a snapshot that never was: %v", err)
	}
	for _, id := range []string{"", "tree", "../box"} {
		if _, err := c.DeleteSnapshot(ctx, id); client.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("delete %q: %v", id, err)
		}
	}
}

// chain makes n snapshots of the sandbox, each from the one before.
func chain(t *testing.T, sb *client.Sandbox, n int) (ids []string) {
	t.Helper()
	for range n {
		snap, err := sb.Snapshot(t.Context(), client.TakeOptions{})
		must(t, err)
		ids = append(ids, snap.ID())
	}
	return ids
}

func TestSnapshotLists(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	c := connect(t, s, client.Options{Project: "web"})
	ids := chain(t, sb, 3)
	other, err := c.CreateSandbox(ctx, client.CreateOptions{Name: "other"})
	must(t, err)
	ids = append(ids, chain(t, other, 1)...)
	var got []string
	for snap, err := range c.ListSnapshots(ctx, client.SnapshotOptions{Limit: 3, Ascending: true}) {
		must(t, err)
		got = append(got, snap.ID)
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("all: %q, want %q", got, ids)
	}
	if n := len(s.Requests("GET /v2/sandboxes/snapshots?deleted=false&limit=3&project=web&sortOrder=asc")); n != 1 {
		t.Errorf("requests %q", s.Requests("GET"))
	}
	got = nil
	for snap, err := range sb.Snapshots(ctx, client.SnapshotOptions{}) {
		must(t, err)
		got = append(got, snap.ID)
	}
	if want := ids[2] + " " + ids[1] + " " + ids[0]; strings.Join(got, " ") != want {
		t.Errorf("the sandbox's: %q, want %q", got, want)
	}
}

func TestSnapshotTree(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	c := connect(t, s, client.Options{})
	ids := chain(t, sb, 3)
	twin, err := c.CreateSandbox(ctx, client.CreateOptions{Source: client.FromSnapshot(ids[0])})
	must(t, err)
	sibling := chain(t, twin, 1)[0]

	newest, err := c.GetSnapshot(ctx, ids[2])
	must(t, err)
	var up []string
	for node, err := range newest.Ancestors(ctx) {
		must(t, err)
		up = append(up, node.Snapshot.ID)
		if node.Snapshot.ID == ids[1] && (node.Count != 2 || len(node.Siblings) != 1 || node.Siblings[0].ID != sibling) {
			t.Errorf("siblings of %s: %+v", ids[1], node)
		}
	}
	if len(up) != 2 || up[0] != ids[1] || up[1] != ids[0] {
		t.Errorf("ancestors %q of %q", up, ids)
	}
	page, err := c.SnapshotTreePage(ctx, ids[2], client.TreeOptions{Limit: 1})
	if err != nil || page.Anchor.Snapshot.ID != ids[2] || len(page.Items) != 1 || page.Next != ids[1] {
		t.Errorf("a page: %+v, %v", page, err)
	}
	oldest, err := c.GetSnapshot(ctx, ids[0])
	must(t, err)
	for node, err := range oldest.Descendants(ctx) {
		must(t, err)
		if node.Snapshot.ID != sibling { // the newest child
			t.Errorf("descendant %s", node.Snapshot.ID)
		}
	}
}

func TestForkBody(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	hour := time.Hour
	_, err := sb.Fork(ctx, client.ForkOptions{
		Name: "copy", Timeout: time.Minute, VCPUs: 4, Env: map[string]string{}, Tags: map[string]string{"a": "b"},
		Persistent: new(bool), SnapshotExpiration: &hour, KeepLastSnapshots: &client.KeepLastSnapshots{Count: 2}, Live: true,
	})
	must(t, err)
	want := `{"name":"copy","timeout":60000,"resources":{"vcpus":4},"env":{},"tags":{"a":"b"},"persistent":false,` +
		`"snapshotExpiration":3600000,"keepLastSnapshots":{"count":2},"live":true}`
	if got := s.LastBody("POST /v2/sandboxes/box/fork"); got != want {
		t.Errorf("body\n%s, want\n%s", got, want)
	}
	if _, err := sb.Fork(ctx, client.ForkOptions{}); err != nil {
		t.Error(err)
	}
	if got := s.LastBody("POST /v2/sandboxes/box/fork"); got != "{}" {
		t.Errorf("body %s", got)
	}
	c := connect(t, s, client.Options{})
	if _, err := c.ForkSandbox(ctx, "none", client.ForkOptions{}); !client.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
	if _, err := c.ForkSandbox(ctx, "", client.ForkOptions{}); client.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("error %v", err)
	}
}

func TestOrphans(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	c := connect(t, s, client.Options{})
	ids := chain(t, sb, 2)
	_, err := c.CreateSandbox(ctx, client.CreateOptions{Source: client.FromSnapshot(ids[0])})
	must(t, err)
	must(t, c.DeleteSandbox(ctx, "box", client.DeleteOptions{OrphanSnapshots: true}))
	for i, want := range []skerry.SnapshotStatus{skerry.SnapshotCreated, skerry.SnapshotDeleted} {
		if snap, err := c.GetSnapshot(ctx, ids[i]); err != nil || snap.Info().Status != want {
			t.Errorf("snapshot %d is %s, %v; want %s", i, snap.Info().Status, err, want)
		}
	}
}
