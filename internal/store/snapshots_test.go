package store

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestManifests has manifests that one or several snapshots name.
func TestManifests(t *testing.T) { onEach(t, testManifests) }

func testManifests(t *testing.T, openIn opener) {
	s := openIn(t, t.TempDir())
	start := time.Now().Truncate(time.Millisecond)
	for i, snap := range []skerry.Snapshot{
		{Manifest: "one", Status: skerry.SnapshotDeleted},
		{Manifest: "two", Status: skerry.SnapshotCreated},
		{Manifest: "two", Status: skerry.SnapshotDeleted},
		{Manifest: "three", Status: skerry.SnapshotCreated},
	} {
		snap.ID, snap.CreatedAt = skerry.NewID(skerry.PrefixSnapshot), skerry.At(start.Add(time.Duration(i)*time.Second))
		if err := addSnapshot(t.Context(), s, &snap); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Manifests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b skerry.Manifest) int { return strings.Compare(a.Name, b.Name) })
	at := func(seconds time.Duration) skerry.Time { return skerry.At(start.Add(seconds * time.Second)) }
	want := []skerry.Manifest{{Name: "one", CreatedAt: at(0), Deleted: true}, {Name: "three", CreatedAt: at(3)}, {Name: "two", CreatedAt: at(2)}}
	if !slices.EqualFunc(list, want, func(a, b skerry.Manifest) bool {
		return a.Name == b.Name && a.CreatedAt.Equal(b.CreatedAt.Time) && a.Deleted == b.Deleted
	}) {
		t.Errorf("manifests are %+v, want %+v", list, want)
	}
}
