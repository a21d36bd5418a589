package snapshot

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/blob/blobtest"
)

// TestOverS3 keeps snapshots in S3 storage, which goes away and comes back.
func TestOverS3(t *testing.T) {
	server := blobtest.StartS3(t)
	cfg := server.Config
	cfg.Prefix, cfg.Tries = "snapshots", 1
	storage, err := blob.OpenS3(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	l.blobs, l.opt.Blobs = storage, storage
	l.open()
	first := tree{"meta.img": text(1, 5000), "pages.img": mixed(1, 6<<20)}
	second := tree{"meta.img": text(2, 5000), "pages.img": append(mixed(1, 6<<20), random(2, 1<<20)...)}
	ref, next := l.add(first), l.add(second)
	if next.Added > 4<<20 {
		t.Errorf("%d bytes of the second are new", next.Added)
	}
	l.emptyCache()
	l.loads(ref.Manifest, first)

	server.Stop()
	l.loads(ref.Manifest, first) // from the cache
	if _, err := l.Load(t.Context(), next.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("Load without storage: %v", err)
	}
	third := tree{"pages.img": random(3, 1<<20)}
	dir := third.write(t, filepath.Join(l.dir, "third"))
	l.open() // as a process that starts meanwhile
	if _, err := l.db.save(t.Context(), l.Store, dir); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("Add without storage: %v", err)
	}
	third.check(t, dir)
	if freed, err := l.db.collect(t.Context(), l.Store); err == nil || freed != 0 {
		t.Errorf("a collection without storage freed %d, %v", freed, err)
	}

	server.Start(t)
	last, err := l.db.save(context.Background(), l.Store, dir)
	if err != nil {
		t.Fatal(err)
	}
	l.db.name(last)
	l.loads(next.Manifest, second)
	l.collects([]string{next.Manifest, last.Manifest})
	l.loads(last.Manifest, third)
}
