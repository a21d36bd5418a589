package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// TestAddDuringGC has a snapshot added that needs a chunk while GC removes it:
// right before, and in the middle.
func TestAddDuringGC(t *testing.T) {
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
						if ref, err = l.Add(context.Background(), dir, ""); err != nil {
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
			if _, err := l.GC(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			l.emptyCache()
			l.loads(ref.Manifest, again)
			l.collects([]string{ref.Manifest})
			l.collects(nil)
		})
	}
}

// TestGCDuringAdd has everything collected before every blob that an Add puts.
func TestGCDuringAdd(t *testing.T) {
	l, h := newHooked(t)
	old := tree{"pages.img": mixed(1, 3<<20)}
	l.add(old)
	tr := tree{"pages.img": append(append([]byte(nil), old["pages.img"]...), random(2, 2<<20)...)}
	h.put = func(string) {
		if _, err := l.GC(context.Background(), nil); err != nil {
			t.Error(err)
		}
	}
	ref := l.add(tr)
	h.put = nil
	l.emptyCache()
	l.loads(ref.Manifest, tr)
	l.collects([]string{ref.Manifest})
}

// TestGrace has a snapshot spared while its caller may not have recorded it.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.opt.Grace = time.Minute
		l.open()
		tr := tree{"pages.img": random(1, 1<<20)}
		ref := l.add(tr)
		for _, age := range []time.Duration{0, 30 * time.Second, 29 * time.Second} {
			time.Sleep(age)
			if freed, err := l.GC(t.Context(), nil); freed != 0 || err != nil {
				t.Errorf("GC freed %d, %v", freed, err)
			}
			l.loads(ref.Manifest, tr)
		}
		time.Sleep(time.Second)
		l.collects(nil)
		if _, err := l.Load(t.Context(), ref.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
			t.Errorf("Load of what was collected: %v", err)
		}
	})
}

// TestLease has a snapshot spared until its lease has ended, and another that has
// the same content and a lease of its own for as long as that lasts.
func TestLease(t *testing.T) {
	l := newLab(t)
	l.opt.Grace = time.Hour
	l.open()
	tr := tree{"pages.img": random(1, 1<<20)}
	one, two := l.add(tr), l.add(tr)
	if one.Lease == "" || one.Lease == two.Lease {
		t.Fatalf("the leases are %q and %q", one.Lease, two.Lease)
	}
	for _, ended := range [][]string{nil, {one.Lease}, {one.Lease, "unknown"}} {
		if freed, err := l.GC(t.Context(), nil, ended...); freed != 0 || err != nil {
			t.Errorf("GC freed %d, %v", freed, err)
		}
		l.loads(one.Manifest, tr)
	}
	if freed, err := l.GC(t.Context(), nil, two.Lease); freed == 0 || err != nil {
		t.Errorf("GC freed %d, %v", freed, err)
	}
	if _, err := l.Load(t.Context(), one.Manifest, anyFormat); skerry.CodeOf(err) != skerry.CodeSnapshotNotFound {
		t.Errorf("Load of what was collected: %v", err)
	}
}

// TestStress adds, loads and collects at the same time, with snapshots that
// share most of their chunks, and with ones that come and go.
func TestStress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.opt.Grace = time.Minute
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
					ref := l.add(tr)
					l.loads(ref.Manifest, tr)
					if r.IntN(3) > 0 {
						mu.Lock()
						defer mu.Unlock()
						live[ref.Manifest] = tr
					}
				})
			}
			for range 2 {
				wg.Go(func() {
					mu.Lock()
					var keep []string
					for m := range live {
						if len(keep) == 3 {
							delete(live, m)
							continue
						}
						keep = append(keep, m)
					}
					mu.Unlock()
					if _, err := l.GC(t.Context(), recorded(keep)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for m, tr := range live {
				l.loads(m, tr)
			}
			time.Sleep(2 * time.Minute)
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
	})
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
