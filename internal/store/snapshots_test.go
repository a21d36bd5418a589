package store

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// TestCollections has manifests that one or several snapshots name, that none names any
// more, and whose chunks are not known.
func TestCollections(t *testing.T) { onEach(t, testCollections) }

func testCollections(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	start := time.Now().Truncate(time.Millisecond)
	at := func(seconds time.Duration) skerry.Time { return skerry.At(start.Add(seconds * time.Second)) }
	for i, snap := range []skerry.Snapshot{
		{ID: "snap_1", Manifest: "deleted", Status: skerry.SnapshotDeleted},
		{ID: "snap_2", Manifest: "shared", Status: skerry.SnapshotCreated},
		{ID: "snap_3", Manifest: "shared", Status: skerry.SnapshotDeleted},
		{ID: "snap_4", Manifest: "created", Status: skerry.SnapshotCreated},
		{ID: "snap_5", Manifest: "forgotten", Status: skerry.SnapshotDeleted, UpdatedAt: skerry.FromMillis(1)},
		{ID: "snap_6", Manifest: "of an earlier version", Status: skerry.SnapshotCreated},
	} {
		snap.CreatedAt = at(time.Duration(i))
		if snap.UpdatedAt.IsZero() {
			snap.UpdatedAt = snap.CreatedAt
		}
		if err := addSnapshot(ctx, s, &snap); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ForgetSnapshots(ctx, skerry.FromMillis(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.ExecContext(ctx, "DELETE FROM manifests WHERE name = 'of an earlier version'"); err != nil {
		t.Fatal(err)
	}
	read := func() []nodeapi.Manifest {
		t.Helper()
		r, err := s.BeginCollection(ctx, at(0))
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(r.Manifests, func(a, b nodeapi.Manifest) int { return strings.Compare(a.Name, b.Name) })
		return r.Manifests
	}
	chunks := func(id string) []byte { return []byte("chunks of " + id) }
	want := []nodeapi.Manifest{
		{Name: "created", CreatedAt: at(3), Chunks: chunks("snap_4")},
		{Name: "deleted", CreatedAt: at(0), Deleted: true, Chunks: chunks("snap_1")},
		{Name: "forgotten", CreatedAt: at(4), Deleted: true, Chunks: chunks("snap_5")},
		{Name: "of an earlier version", CreatedAt: at(5)},
		{Name: "shared", CreatedAt: at(2), Chunks: chunks("snap_2")},
	}
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("manifests are\n%+v, want\n%+v", got, want)
	}
	learned := []nodeapi.Manifest{
		{Name: "created", CreatedAt: at(9), Chunks: chunks("nothing")}, // known already
		{Name: "of an earlier version", CreatedAt: at(9), Chunks: chunks("snap_6")},
		{Name: "unknown", CreatedAt: at(7), UnknownSince: at(8)},
	}
	for range 2 {
		if err := s.RecordCollection(ctx, at(9), nodeapi.Collected{Learned: learned, Gone: []string{"deleted", "forgotten", "shared"}}); err != nil {
			t.Fatal(err)
		}
	}
	want[3].Chunks = chunks("snap_6")
	want[1].Chunks = nil
	want = append(slices.Delete(want, 2, 3), learned[2]) // "shared" stays: a snapshot names it
	if got := read(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a collection manifests are\n%+v, want\n%+v", got, want)
	}
	learned[2].Chunks = chunks("the unknown")
	if err := s.RecordCollection(ctx, at(9), nodeapi.Collected{Learned: learned[2:]}); err != nil {
		t.Fatal(err)
	}
	if got := read(); !reflect.DeepEqual(got[len(got)-1], learned[2]) {
		t.Errorf("what was learned later is %+v", got[len(got)-1])
	}
}

// TestLeases has saves that are named, that end otherwise, and that nobody ends.
func TestLeases(t *testing.T) { onEach(t, testLeases) }

func testLeases(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	ctx := t.Context()
	now := skerry.At(time.Now())
	in := func(d time.Duration) skerry.Time { return skerry.At(now.Add(d)) }
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(at skerry.Time, on, over []string) {
		t.Helper()
		r, err := s.BeginCollection(ctx, at)
		slices.Sort(r.Active)
		slices.Sort(r.Ended)
		if err != nil || !slices.Equal(r.Active, on) || !slices.Equal(r.Ended, over) {
			t.Errorf("leases are %v and over are %v, want %v and %v; %v", r.Active, r.Ended, on, over, err)
		}
	}
	add := func(lease string) error {
		snap := &skerry.Snapshot{ID: "snap_" + lease, Scope: scope, Status: skerry.SnapshotCreated, Manifest: lease}
		_, _, err := s.AddSnapshot(ctx, snap, nodeapi.SavedFiles{Lease: lease, Chunks: []byte(lease)}, "", nil)
		return err
	}
	for i, lease := range []string{"named", "failed", "late", "slow"} {
		for range 2 {
			ok(s.AddLease(ctx, lease, in(time.Duration(i+1)*time.Hour)))
		}
	}
	ok(add("named"))
	ok(s.EndLease(ctx, "failed", in(9*time.Hour)))
	ok(s.EndLease(ctx, "other", in(time.Hour))) // which nobody has begun
	ok(s.AddLease(ctx, "other", in(9*time.Hour)))
	expect(now, []string{"late", "slow"}, []string{"failed", "other"})
	expect(in(3*time.Hour), []string{"slow"}, []string{"failed", "late", "other"})
	for _, lease := range []string{"failed", "late", "none"} {
		if err := add(lease); skerry.CodeOf(err) != skerry.CodeConflict {
			t.Errorf("a snapshot whose lease is %s: %v", lease, err)
		}
		if _, err := s.Snapshot(ctx, scope, "snap_"+lease); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("a snapshot whose lease is %s is there: %v", lease, err)
		}
	}
	ok(s.RecordCollection(ctx, in(time.Hour), nodeapi.Collected{}))
	expect(now, []string{"slow"}, []string{"failed", "late"}) // the time of two has not passed
	ok(s.RecordCollection(ctx, in(5*time.Hour), nodeapi.Collected{}))
	expect(now, []string{"slow"}, nil)
	ok(s.EndLeases(ctx))
	expect(now, nil, []string{"slow"})
	r, err := s.BeginCollection(ctx, now)
	if err != nil || len(r.Manifests) != 1 || r.Manifests[0].Name != "named" || string(r.Manifests[0].Chunks) != "named" {
		t.Errorf("manifests are %+v, %v", r.Manifests, err)
	}
}
