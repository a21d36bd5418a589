package snapshot

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/internal/blob"
)

// ledger knows which chunks are stored and which blobs are needed. It is what
// keeps GC from removing a chunk that an Add relies on:
//
//   - An Add pins a blob before it asks whether it is stored, and keeps the
//     pin until its snapshot has had its grace. GC does not remove what is
//     pinned.
//   - A blob that is being put or removed is busy, and whoever wants to do
//     either waits: a chunk that GC removes is put again only after that.
type ledger struct {
	blobs blob.Store
	// indexing is held by whoever reads which chunks are stored.
	indexing chan struct{}

	mu      sync.Mutex
	indexed bool
	stored  map[id]int64 // sizes of blobs
	// doubted are chunks that were found missing or damaged and have not been
	// put again.
	doubted map[id]struct{}
	// renewed are chunks that were put again after a doubt, up to maxRenewed. The
	// storage does not tell any more how old they are.
	renewed map[id]struct{}
	pins    map[id]int
	// own are the manifests that this process has put and that nobody has named
	// yet. If nobody ever does, one was given up, and its snapshot is not lost.
	own  map[id]struct{}
	busy map[id]chan struct{} // closed when no longer
	// fresh are the snapshots that were added lately, the oldest first; over are
	// the leases among them that have ended.
	fresh []*hold
	over  map[string]struct{}
	// collecting is how many GCs run or wait to.
	collecting int
}

// hold is the pins of one Add.
type hold struct {
	ids   map[id]struct{}
	added time.Time // when the Add returned
	lease string
}

func newLedger(blobs blob.Store) *ledger {
	return &ledger{
		blobs: blobs, indexing: make(chan struct{}, 1),
		stored: map[id]int64{}, doubted: map[id]struct{}{}, renewed: map[id]struct{}{}, pins: map[id]int{}, own: map[id]struct{}{}, busy: map[id]chan struct{}{},
		over: map[string]struct{}{},
	}
}

// index finds out which chunks are stored, once. It is not done by Open, so
// that a process can start while its blobs are out of reach.
func (l *ledger) index(ctx context.Context) error {
	select {
	case l.indexing <- struct{}{}:
		defer func() { <-l.indexing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	done := l.indexed
	l.mu.Unlock()
	if done {
		return nil
	}
	stored := map[id]int64{}
	prefix := sealedChunk.prefix()
	for info, err := range l.blobs.List(ctx, prefix) {
		if err != nil {
			return err
		}
		if sum, err := parseSum(info.Key[len(prefix):]); err == nil {
			stored[id{kind: sealedChunk, sum: sum}] = info.Size
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := range l.doubted {
		delete(stored, b)
	}
	l.stored, l.indexed = stored, true
	return nil
}

// newHold begins an Add.
func (l *ledger) newHold() *hold { return &hold{ids: map[id]struct{}{}} }

// pin keeps a blob from being removed while the hold lasts.
func (l *ledger) pin(h *hold, b id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, pinned := h.ids[b]; !pinned {
		h.ids[b] = struct{}{}
		l.pins[b]++
	}
}

// release ends a hold.
func (l *ledger) release(h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unpin(h)
}

// unpin ends a hold; mu is held.
func (l *ledger) unpin(h *hold) {
	for b := range h.ids {
		if l.pins[b]--; l.pins[b] == 0 {
			delete(l.pins, b)
		}
	}
	h.ids = nil
}

// put sees to it that a blob is stored. It calls encode only if it is not, and
// returns the bytes that were stored.
func (l *ledger) put(ctx context.Context, h *hold, b id, encode func() []byte) (added int64, err error) {
	l.pin(h, b)
	if b.kind == sealedManifest {
		l.mu.Lock()
		l.own[b] = struct{}{}
		l.mu.Unlock()
	}
	finish, stored, err := l.begin(ctx, b)
	if stored || err != nil {
		return 0, err
	}
	data := encode()
	err = l.blobs.Put(ctx, b.String(), data)
	if err != nil {
		finish(0)
		return 0, err
	}
	finish(int64(len(data)))
	return int64(len(data)), nil
}

// begin waits until nobody else puts or removes a blob. If it is not stored
// then, it is the caller's to put: finish tells how large it is now, 0 if that
// failed.
func (l *ledger) begin(ctx context.Context, b id) (finish func(size int64), stored bool, err error) {
	for {
		l.mu.Lock()
		_, stored = l.stored[b]
		busy := l.busy[b]
		if busy == nil && !stored {
			finish = l.claim(b)
		}
		l.mu.Unlock()
		if busy == nil {
			return finish, stored, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// claim makes a blob busy; mu is held.
func (l *ledger) claim(b id) (finish func(size int64)) {
	done := make(chan struct{})
	l.busy[b] = done
	return func(size int64) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if size > 0 {
			l.stored[b] = size
			if _, doubted := l.doubted[b]; doubted && len(l.renewed) < maxRenewed {
				l.renewed[b] = struct{}{}
			}
			delete(l.doubted, b)
		}
		delete(l.busy, b)
		close(done)
	}
}

// doubt makes the next Add store a chunk again, which was found missing or
// damaged.
func (l *ledger) doubt(b id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.stored, b)
	l.doubted[b] = struct{}{}
}

// maxRenewed bounds what is kept of chunks that were put again. If there are more,
// any may be one.
const maxRenewed = 1 << 16

// mayBeRenewed reports whether a chunk may have been put again by this process: it may
// belong to older snapshots than its time says.
func (l *ledger) mayBeRenewed(b id) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, renewed := l.renewed[b]
	return renewed || len(l.renewed) >= maxRenewed
}

// remove deletes a blob unless it is needed, and tells whether it did.
func (l *ledger) remove(ctx context.Context, b id) (bool, error) {
	l.mu.Lock()
	if l.pins[b] > 0 || l.busy[b] != nil {
		l.mu.Unlock()
		return false, nil
	}
	// It may be gone even if Delete fails.
	delete(l.stored, b)
	delete(l.doubted, b)
	delete(l.own, b)
	finish := l.claim(b)
	l.mu.Unlock()
	defer finish(0)
	if err := l.blobs.Delete(ctx, b.String()); err != nil {
		return false, err
	}
	return true, nil
}

// pinned tells whether an Add needs a blob.
func (l *ledger) pinned(b id) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pins[b] > 0
}

// ownManifest reports whether this process has put a manifest.
func (l *ledger) ownManifest(b id) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, own := l.own[b]
	return own
}

// recorded says that a manifest is named: if it is not any more some day, the names
// were lost.
func (l *ledger) recorded(b id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.own, b)
}

// settle keeps the pins of an Add that succeeded, and names the lease by which
// they are kept: its caller has yet to record the snapshot, and a GC may run that
// began before.
func (l *ledger) settle(h *hold) (lease string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.added, h.lease = time.Now(), rand.Text()
	l.fresh = append(l.fresh, h)
	return h.lease
}

// expire ends the grace of snapshots that were added before a time. While a GC
// runs or waits none ends: what it keeps was decided when it was called.
func (l *ledger) expire(before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.collecting == 0 {
		l.expireLocked(before)
	}
}

// expireLocked ends the leases that are over or too old; mu is held.
func (l *ledger) expireLocked(before time.Time) {
	l.fresh = slices.DeleteFunc(l.fresh, func(h *hold) bool {
		_, over := l.over[h.lease]
		if !over && h.added.After(before) {
			return false
		}
		l.unpin(h)
		return true
	})
	clear(l.over)
}

// enter announces a GC, start begins it when it is its turn, and leave ends it.
// Leases that have ended do so with the first GC that runs alone: what another
// keeps was maybe decided before their snapshots were recorded.
func (l *ledger) enter() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collecting++
}

func (l *ledger) start(before time.Time, ended []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lease := range ended {
		l.over[lease] = struct{}{}
	}
	if l.collecting == 1 {
		l.expireLocked(before)
	}
}

func (l *ledger) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collecting--
}
