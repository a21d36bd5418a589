package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// hooked calls a function before some calls of a store.
type hooked struct {
	blob.Store
	put, del, get func(key string)
}

func (h *hooked) Put(ctx context.Context, key string, data []byte) error {
	if h.put != nil {
		h.put(key)
	}
	return h.Store.Put(ctx, key, data)
}

func (h *hooked) Delete(ctx context.Context, key string) error {
	if h.del != nil {
		h.del(key)
	}
	return h.Store.Delete(ctx, key)
}

func (h *hooked) Get(ctx context.Context, key string) ([]byte, error) {
	if h.get != nil {
		h.get(key)
	}
	return h.Store.Get(ctx, key)
}

// newHooked returns a lab whose store has hooks, to be set later.
func newHooked(t testing.TB) (*lab, *hooked) {
	l := newLab(t)
	h := &hooked{Store: l.blobs}
	l.opt.Blobs = h
	l.open()
	return l, h
}

// TestAddDuringCollection has a snapshot added that needs a chunk right before a
// collection removes it, and in the middle of that.
func TestAddDuringCollection(t *testing.T) {
	shared := tree{"pages.img": random(1, 1<<20)}
	again := tree{"meta.img": random(2, 100), "pages.img": random(1, 1<<20)}
	for _, prefix := range []string{sealedManifest.prefix(), sealedChunk.prefix()} {
		t.Run("in a delete of "+prefix, func(t *testing.T) {
			l, h := newHooked(t)
			l.add(shared)
			var once sync.Once
			var ref nodeapi.SavedFiles
			var wg sync.WaitGroup
			h.del = func(key string) {
				if key[:len(prefix)] != prefix {
					return
				}
				once.Do(func() {
					dir := again.write(t, filepath.Join(l.dir, "again"))
					added := make(chan struct{})
					wg.Go(func() {
						defer close(added)
						var err error
						if ref, err = l.db.save(context.Background(), l.Store, dir); err != nil {
							t.Error(err)
						}
					})
					if prefix == sealedManifest.prefix() {
						// Nothing it needs is being removed yet: it need not
						// wait, and what it found stored must stay.
						<-added
					}
				})
			}
			l.gc()
			wg.Wait()
			l.db.name(ref)
			l.emptyCache()
			l.loads(ref.Manifest, again)
			l.collects([]string{ref.Manifest})
			l.collects(nil)
		})
	}
}

// TestCollectionDuringAdd has everything collected before every blob that an Add
// puts.
func TestCollectionDuringAdd(t *testing.T) {
	l, h := newHooked(t)
	old := tree{"pages.img": mixed(1, 3<<20)}
	l.add(old)
	tr := tree{"pages.img": append(append([]byte(nil), old["pages.img"]...), random(2, 2<<20)...)}
	h.put = func(string) { l.gc() }
	ref := l.add(tr)
	h.put = nil
	l.emptyCache()
	l.loads(ref.Manifest, tr)
	l.collects([]string{ref.Manifest})
}

// TestSaveDuringCollections has saves rely on chunks that nothing uses any more, at
// each point of the two collections that remove these.
func TestSaveDuringCollections(t *testing.T) {
	tr := tree{"pages.img": random(1, 1<<20)}
	for _, collections := range []int{0, 1, 2} {
		for _, named := range []int{0, 1, 2, 3} {
			l := newLab(t)
			l.add(tr)
			l.db.keep(nil)
			collect := func() {
				c, err := l.Collect(t.Context(), l.db.records())
				if err != nil {
					t.Fatal(err)
				}
				l.db.record(c)
			}
			collect() // tells the round
			for range collections {
				collect()
			}
			ref := l.save(tr)
			for range named {
				collect()
			}
			l.db.name(ref)
			l.emptyCacheOf(ref.Manifest)
			for range 3 {
				collect()
				l.loads(ref.Manifest, tr)
				l.emptyCacheOf(ref.Manifest)
			}
			l.collects([]string{ref.Manifest})
			if t.Failed() {
				t.Fatalf("with a save after %d collections that was named after %d more", collections, named)
			}
		}
	}
}

// TestStaleRecords has a collection whose records were read before the last one has
// returned, as of a caller that has lost its answer. A save begins in between.
func TestStaleRecords(t *testing.T) {
	l, h := newHooked(t)
	l.opt.Grace = time.Hour
	l.open()
	tr := tree{"pages.img": random(1, 1<<20)}
	l.add(tr)
	l.db.keep(nil)
	collect := func(known nodeapi.Records) nodeapi.Collected {
		t.Helper()
		c, err := l.Collect(t.Context(), known)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	l.db.record(collect(l.db.records())) // tells the round
	first, second := l.db.records(), l.db.records()
	// The save relies on the chunks, and its manifest is not there yet.
	atManifest, goOn := make(chan struct{}), make(chan struct{})
	h.put = func(key string) {
		if strings.HasPrefix(key, sealedManifest.prefix()) {
			close(atManifest)
			<-goOn
		}
	}
	var ref nodeapi.SavedFiles
	var wg sync.WaitGroup
	wg.Go(func() { ref = l.save(tr) })
	<-atManifest
	if c := collect(first); c.Waiting == 0 || c.Round == first.Round {
		t.Errorf("the first collection returned %+v", c)
	}
	for range 3 {
		if c := collect(second); c.Freed != 0 || c.Waiting == 0 {
			t.Errorf("a collection with stale records returned %+v", c)
		}
	}
	close(goOn)
	wg.Wait()
	l.db.name(ref)
	l.emptyCacheOf(ref.Manifest)
	l.loads(ref.Manifest, tr)
	h.put = nil
	l.collects([]string{ref.Manifest})
}

// TestBusyServerForgets has some save in progress all the time, while snapshots are
// deleted: what the database has of these does not grow.
func TestBusyServerForgets(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	l.open()
	var before string
	for i := range 20 {
		ref := l.add(tree{"pages.img": random(uint64(i+1), 1000+i)})
		l.db.edit(ref.Manifest, func(m *nodeapi.Manifest) { m.Deleted = true })
		next := l.db.begin()
		for range 2 {
			c, err := l.Collect(t.Context(), l.db.records())
			if err != nil {
				t.Fatal(err)
			}
			l.db.record(c)
		}
		if before != "" {
			l.db.end(before)
		}
		before = next
	}
	if n := len(l.db.manifests); n > 5 {
		t.Errorf("the database has %d manifests of deleted snapshots", n)
	}
}

// emptyCacheOf has a snapshot loaded from its blobs the next time.
func (l *lab) emptyCacheOf(manifest string) {
	name := mustParse(l, manifest)
	l.cache.retain(func(other id) bool { return other != name })
}

// TestWhatSavesHoldUp has a save in progress keep what it may rely on, and nothing that
// was marked before it began.
func TestWhatSavesHoldUp(t *testing.T) {
	l := newLab(t)
	l.add(tree{"pages.img": random(1, minChunk)})
	collect := func() nodeapi.Collected {
		c, err := l.Collect(t.Context(), l.db.records())
		if err != nil {
			t.Fatal(err)
		}
		l.db.record(c)
		return c
	}
	l.db.keep(nil)
	early := l.db.begin()
	collect() // tells the round
	if c := collect(); c.Waiting != 1 || len(c.Gone) != 0 {
		t.Errorf("the first collection returned %+v", c)
	}
	for range 2 {
		if c := collect(); c.Waiting != 1 {
			t.Errorf("a save is in progress, and a collection returned %+v", c)
		}
		l.db.begin() // it holds up nothing
	}
	l.db.end(early)
	if c := collect(); c.Waiting != 0 || c.Freed < minChunk || len(c.Gone) != 1 {
		t.Errorf("the last collection returned %+v", c)
	}
}

// TestGrace has what failed saves of an earlier process have left spared for a while:
// chunks without a manifest, and a manifest whose lease nobody knows.
func TestGrace(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	l.open()
	tr := tree{"pages.img": random(1, 1<<20)}
	ref := l.save(tr)
	half := l.save(tree{"pages.img": random(2, 1<<20)})
	if err := l.blobs.Delete(t.Context(), mustParse(t, half.Manifest).String()); err != nil {
		t.Fatal(err)
	}
	l.db = newDatabase()
	l.open()
	for range 3 {
		if freed := l.gc(); freed != 0 {
			t.Errorf("a collection freed %d", freed)
		}
		l.loads(ref.Manifest, tr)
	}
	old := time.Now().Add(-2 * time.Hour)
	err := filepath.WalkDir(filepath.Join(l.dir, "blobs"), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, time.Time{}, old))
	})
	if err != nil {
		t.Fatal(err)
	}
	l.collects(nil)
	if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("Load of what was collected: %v", err)
	}
}

// TestLease has a snapshot spared until its lease has ended, and another of the same
// content for as long as its own lasts.
func TestLease(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	l.open()
	tr := tree{"pages.img": random(1, 1<<20)}
	one, two := l.save(tr), l.save(tr)
	for range 3 {
		if freed := l.gc(); freed != 0 {
			t.Errorf("a collection freed %d", freed)
		}
		l.loads(one.Manifest, tr)
	}
	l.db.end(one.Lease)
	if freed := l.gc(); freed == 0 || freed > 4096 {
		t.Errorf("a collection freed %d, not one manifest", freed)
	}
	l.emptyCache()
	l.loads(two.Manifest, tr)
	l.db.end(two.Lease)
	l.collects(nil)
	if _, err := l.Load(t.Context(), one.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("Load of what was collected: %v", err)
	}
}

// TestFailedSaves has what a save that failed has put removed by the next collection,
// unless another has come to need it.
func TestFailedSaves(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	tr := tree{"pages.img": random(1, 3*minChunk)}
	for _, needed := range []bool{false, true} {
		l.opt.Blobs = &faulty{Store: l.blobs, err: errFault, at: 4, how: refuse}
		l.open()
		if _, err := l.db.save(t.Context(), l.Store, tr.write(t, filepath.Join(l.dir, randomName()))); !errors.Is(err, errFault) {
			t.Fatalf("a save without storage: %v", err)
		}
		if stored, _ := l.stored(); len(stored) == 0 {
			t.Fatal("the save has put nothing")
		}
		if !needed {
			l.collects(nil)
			continue
		}
		ref := l.add(tr)
		l.collects([]string{ref.Manifest})
		l.emptyCache()
		l.loads(ref.Manifest, tr)
	}
}

// TestStress adds, loads and collects at the same time, with snapshots that
// share most of their chunks, and with ones that come and go.
func TestStress(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	l.opt.CacheBytes = 4 << 20
	l.open()
	var parts [6][]byte
	for i := range parts {
		parts[i] = random(uint64(i), minChunk+i*pageSize)
	}
	var mu sync.Mutex
	live := map[string]tree{}
	for round := range 15 {
		var wg sync.WaitGroup
		for worker := range 4 {
			r := rand.New(rand.NewPCG(uint64(round), uint64(worker)))
			wg.Go(func() {
				tr := tree{}
				for i := range 1 + r.IntN(4) {
					tr[fmt.Sprint("f", i)] = parts[r.IntN(len(parts))]
				}
				ref := l.save(tr)
				l.loads(ref.Manifest, tr)
				if r.IntN(3) == 0 {
					l.db.end(ref.Lease)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				l.db.name(ref)
				live[ref.Manifest] = tr
			})
		}
		for range 2 {
			wg.Go(func() {
				mu.Lock()
				for m := range live {
					if len(live) <= 3 {
						break
					}
					delete(live, m)
					l.db.edit(m, func(m *nodeapi.Manifest) { m.Deleted = true })
				}
				mu.Unlock()
				if _, err := l.db.collect(t.Context(), l.Store); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for m, tr := range live {
			l.loads(m, tr)
		}
	}
	var keep []string
	for m := range live {
		keep = append(keep, m)
	}
	l.collects(keep)
	l.emptyCache()
	for m, tr := range live {
		l.loads(m, tr)
	}
}

// TestChunksInMemory has folders of many chunks added and loaded at once, from
// and to storage that is slow.
func TestChunksInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, h := newHooked(t)
		old := tree{"pages.img": random(1, maxInFlight*maxChunk)}
		ref := l.add(old)
		l.emptyCache()
		var held atomic.Int64
		goOn := make(chan struct{})
		wait := func(string) {
			held.Add(1)
			<-goOn
			held.Add(-1)
		}
		h.put = wait
		h.get = func(key string) {
			if strings.HasPrefix(key, sealedChunk.prefix()) {
				wait(key)
			}
		}
		var all sync.WaitGroup
		for i := range 2 {
			tr := tree{"pages.img": random(uint64(2+i), maxInFlight*maxChunk)}
			all.Go(func() { l.add(tr) })
		}
		all.Go(func() { l.loads(ref.Manifest, old) })
		synctest.Wait()
		if n := held.Load(); n != maxInFlight {
			t.Errorf("%d chunks are in memory", n)
		}
		close(goOn)
		all.Wait()
	})
}

// TestLoadsShare has many load one snapshot at once: each blob is read once.
func TestLoadsShare(t *testing.T) {
	l, h := newHooked(t)
	tr := tree{"pages.img": mixed(1, 5<<20)}
	ref := l.add(tr)
	l.emptyCache()
	var mu sync.Mutex
	reads := map[string]int{}
	begun, goOn := make(chan struct{}), make(chan struct{})
	h.get = func(key string) {
		mu.Lock()
		defer mu.Unlock()
		if len(reads) == 0 {
			close(begun)
			<-goOn
		}
		reads[key]++
	}
	var wg sync.WaitGroup
	load := func() {
		f, err := l.Load(context.Background(), ref.Manifest, anyFormat)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Release()
		tr.check(t, f.Path())
	}
	wg.Go(load)
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range 4 {
		wg.Go(load)
		waiting.Go(func() {
			if _, err := l.Load(ctx, ref.Manifest, anyFormat); !errors.Is(err, context.Canceled) {
				t.Errorf("a load that was cancelled: %v", err)
			}
		})
	}
	cancel()
	waiting.Wait()
	close(goOn)
	wg.Wait()
	for key, n := range reads {
		if n != 1 {
			t.Errorf("%s was read %d times", key, n)
		}
	}
	e := l.cache.pin(mustParse(t, ref.Manifest))
	if e == nil || e.pins != 1 {
		t.Errorf("pins are left: %+v", e)
	}
}

// TestLoadAbandoned has the only one who waits for a load go away.
func TestLoadAbandoned(t *testing.T) {
	l, h := newHooked(t)
	tr := tree{"pages.img": mixed(1, 3<<20)}
	ref := l.add(tr)
	l.emptyCache()
	ctx, cancel := context.WithCancel(t.Context())
	h.get = func(string) { cancel() }
	if _, err := l.Load(ctx, ref.Manifest, anyFormat); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	h.get = nil
	if left, err := filepath.Glob(filepath.Join(l.cache.tmp(), "*")); len(left) > 0 || err != nil {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
	l.loads(ref.Manifest, tr)
}

// TestAbandonedLoadHoldsUpNobody has the cache make room for what nobody waits
// for any more, which may take long, while another snapshot is loaded.
func TestAbandonedLoadHoldsUpNobody(t *testing.T) {
	var fs flights
	removing := func(_ *entry, pins int) {
		if pins >= 0 {
			return // the load ended before its waiter went
		}
		other := make(chan struct{})
		go func() {
			defer close(other)
			_, err := fs.do(t.Context(), id{kind: 1}, func(context.Context) (*entry, error) { return &entry{}, nil }, func(*entry, int) {})
			if err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-other:
		case <-time.After(30 * time.Second):
			t.Error("another load waits for the removal")
		}
	}
	for abandoned := false; !abandoned; {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := fs.do(ctx, id{}, func(context.Context) (*entry, error) {
			cancel()
			return &entry{}, nil
		}, removing)
		cancel()
		abandoned = err != nil
	}
}

func mustParse(t testing.TB, text string) id {
	s, err := parseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
