package snapshot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
)

// how a faulty store's call fails.
type how int

const (
	refuse  how = iota // it does nothing
	half               // it does what it was asked to and says that it failed
	die                // it does nothing, and nor does any after it
	dieDone            // it does what it was asked to, and nothing after it does
)

var hows = map[how]string{refuse: "refuses", half: "fails when done", die: "dies", dieDone: "dies when done"}

var errFault = errors.New("an injected failure of the blob store")

// faulty is a blob store whose n-th call fails.
type faulty struct {
	blob.Store
	err error

	mu    sync.Mutex
	calls int
	at    int
	how   how
}

// call reports what becomes of a call: whether it is carried out, and its
// error.
func (f *faulty) call() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	switch {
	case f.at == 0 || f.calls < f.at || f.calls > f.at && f.how < die:
		return true, nil
	case f.calls == f.at:
		return f.how == half || f.how == dieDone, f.err
	default:
		return false, f.err
	}
}

func (f *faulty) Put(ctx context.Context, key string, data []byte) error {
	do, fault := f.call()
	if do {
		if err := f.Store.Put(ctx, key, data); err != nil {
			return err
		}
	}
	return fault
}

func (f *faulty) Get(ctx context.Context, key string) ([]byte, error) {
	if _, fault := f.call(); fault != nil {
		return nil, fault
	}
	return f.Store.Get(ctx, key)
}

func (f *faulty) Delete(ctx context.Context, key string) error {
	do, fault := f.call()
	if do {
		if err := f.Store.Delete(ctx, key); err != nil {
			return err
		}
	}
	return fault
}

func (f *faulty) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	if _, fault := f.call(); fault != nil {
		return func(yield func(blob.Info, error) bool) { yield(blob.Info{}, fault) }
	}
	return f.Store.List(ctx, prefix)
}

// stored returns the blobs there are, and their bytes.
func (l *lab) stored() (keys map[string]int64, size int64) {
	l.Helper()
	keys = map[string]int64{}
	for info, err := range l.blobs.List(context.Background(), "") {
		if err != nil {
			l.Fatal(err)
		}
		keys[info.Key] = info.Size
		size += info.Size
	}
	return keys, size
}

// referenced returns the blobs that snapshots need.
func (l *lab) referenced(manifests []string) map[string]bool {
	l.Helper()
	keys := map[string]bool{}
	for _, text := range manifests {
		name, err := parseRef(text)
		if err != nil {
			l.Fatal(err)
		}
		keys[name.String()] = true
		_, m, err := l.manifest(context.Background(), name)
		if err != nil {
			l.Fatal(err)
		}
		for _, f := range m.Files {
			for _, c := range f.Chunks {
				keys[l.blobOf(m, c).String()] = true
			}
		}
	}
	return keys
}

// collects fails unless collections leave exactly what the snapshots need and
// report the number of bytes freed.
func (l *lab) collects(keep []string) {
	l.Helper()
	_, before := l.stored()
	freed := l.gc(keep...)
	left, after := l.stored()
	if freed != before-after {
		l.Errorf("collecting freed %d bytes and says %d", before-after, freed)
	}
	want := l.referenced(keep)
	for key := range left {
		if !want[key] {
			l.Errorf("collecting left %s", key)
		}
	}
	for key := range want {
		if _, ok := left[key]; !ok {
			l.Errorf("collecting removed %s", key)
		}
	}
}

// scenario is what the faults are injected into: adds, a load and a collection,
// each of which may fail. It returns the snapshots that were acknowledged.
func (l *lab) scenario(trees []tree) (acked map[string]tree) {
	ctx := context.Background()
	acked = map[string]tree{}
	var keep []string
	for i, tr := range trees {
		dir := tr.write(l, filepath.Join(l.dir, fmt.Sprint("new-", i)))
		ref, err := l.db.save(ctx, l.Store, dir)
		if err != nil {
			tr.check(l, dir)
			continue
		}
		l.db.name(ref)
		acked[ref.Manifest] = tr
		if i == 0 {
			// The first is deleted later.
			continue
		}
		keep = append(keep, ref.Manifest)
		l.cache.retain(func(id) bool { return false })
		if f, err := l.Load(ctx, ref.Manifest, anyFormat); err == nil {
			tr.check(l, f.Path())
			f.Release()
		}
	}
	l.db.keep(keep)
	_, _ = l.db.collect(ctx, l.Store)
	maps.DeleteFunc(acked, func(m string, _ tree) bool { return !slices.Contains(keep, m) })
	return acked
}

// TestFaults lets every call of the blob store fail in turn, in every way, then
// starts anew: whatever was acknowledged is there, and collections free exactly the
// rest.
func TestFaults(t *testing.T) {
	t.Parallel() // it waits for the disk
	first := random(1, 3*minChunk)
	second := append(append([]byte(nil), first...), random(5, minChunk)...)
	trees := []tree{
		{"meta.img": text(3, 1000), "pages.img": first},
		{"meta.img": text(4, 1000), "pages.img": second},
		{"meta.img": text(4, 1000), "pages.img": random(6, minChunk)},
	}
	for how, name := range hows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 1
			for faultAt(t, trees, n, how) {
				n++
			}
			t.Logf("%d calls", n-1)
		})
	}
}

// faultAt runs the scenario with a fault, and reports whether it came to that.
func faultAt(t *testing.T, trees []tree, n int, how how) bool {
	l := newLab(t)
	f := &faulty{Store: l.blobs, err: errFault, at: n, how: how}
	l.opt.Blobs = f
	l.open()
	acked := l.scenario(trees)
	l.opt.Blobs = l.blobs
	l.open()
	var keep []string
	for m, tr := range acked {
		l.loads(m, tr)
		keep = append(keep, m)
	}
	l.collects(keep)
	l.emptyCache()
	for m, tr := range acked {
		l.loads(m, tr)
	}
	if t.Failed() {
		t.Fatalf("call %d of the blob store %s", n, hows[how])
	}
	return f.calls >= n
}

func TestDiskFull(t *testing.T) {
	l := newLab(t)
	l.opt.Blobs = &faulty{Store: l.blobs, err: fmt.Errorf("put: %w", syscall.ENOSPC), at: 3, how: refuse}
	l.open()
	tr := tree{"pages.img": random(1, 5<<20)}
	dir := tr.write(t, filepath.Join(l.dir, "new"))
	_, err := l.db.save(context.Background(), l.Store, dir)
	if skerry.CodeOf(err) != skerry.CodeDiskFull || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Add on a full disk: %v", err)
	}
	tr.check(t, dir)
	l.collects(nil)
	ref, err := l.db.save(context.Background(), l.Store, dir)
	if err != nil {
		t.Fatal(err)
	}
	l.loads(ref.Manifest, tr)
}
