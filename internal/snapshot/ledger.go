package snapshot

import (
	"context"
	"maps"
	"sync"

	"github.com/skerry-dev/skerry/internal/blob"
)

// ledger knows which chunks an Add may rely on, as they are stored and not
// condemned; see Collect. A chunk that is being put or removed is busy, and whoever
// wants to do either waits.
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
	busy    map[id]chan struct{} // closed when no longer
	// leftovers are the chunks that Adds have put that failed afterwards.
	leftovers map[id]struct{}
	condemned map[id]*sentence
	round     uint64
}

// sentence is that of a chunk that was found unused.
type sentence struct {
	*verdict
	// seen is the last round that the chunk was listed in.
	seen uint64
}

// verdict is what chunks have in common that one round condemned: the leases that
// must end first. They are known with the next round.
type verdict struct {
	passed uint64
	known  bool
	leases map[string]struct{}
}

func newLedger(blobs blob.Store) *ledger {
	return &ledger{
		blobs: blobs, indexing: make(chan struct{}, 1),
		stored: map[id]int64{}, doubted: map[id]struct{}{}, busy: map[id]chan struct{}{},
		leftovers: map[id]struct{}{}, condemned: map[id]*sentence{},
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

// put sees to it that a blob is stored. It calls encode only if it is not, and
// returns the bytes that were stored.
func (l *ledger) put(ctx context.Context, b id, encode func() []byte) (added int64, err error) {
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
			delete(l.doubted, b)
			delete(l.leftovers, b)
			delete(l.condemned, b)
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

// leave says that nobody needs what a failed Add has put, unless others do.
func (l *ledger) leave(chunks []id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range chunks {
		if _, stored := l.stored[b]; stored {
			l.leftovers[b] = struct{}{}
		}
	}
}

// isGarbage reports whether a chunk was put by a failed Add, or condemned.
func (l *ledger) isGarbage(b id) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, left := l.leftovers[b]
	return left || l.condemned[b] != nil
}

// beginRound begins a collection. leases are those of the saves under way.
func (l *ledger) beginRound(leases map[string]struct{}) *verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.round++
	for _, s := range l.condemned {
		v := s.verdict
		switch {
		case v.passed == l.round: // with another chunk
		case v.known:
			maps.DeleteFunc(v.leases, func(lease string, _ struct{}) bool { _, on := leases[lease]; return !on })
		default:
			v.known, v.leases = true, maps.Clone(leases)
		}
		v.passed = l.round
	}
	return &verdict{passed: l.round}
}

// condemn has no Add that begins from now on rely on a chunk. It reports whether the
// chunk may be removed already, as it was condemned in an earlier round.
func (l *ledger) condemn(b id, v *verdict) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.condemned[b]; s != nil {
		s.seen = l.round
		return s.known && len(s.leases) == 0
	}
	if l.busy[b] == nil { // otherwise it is being put, and is another chunk then
		delete(l.stored, b)
		l.condemned[b] = &sentence{v, l.round}
	}
	return false
}

// acquit has Adds rely on a chunk again that a snapshot uses after all.
func (l *ledger) acquit(b id, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.leftovers, b)
	if l.condemned[b] == nil {
		return
	}
	delete(l.condemned, b)
	if _, doubted := l.doubted[b]; !doubted {
		l.stored[b] = size
	}
}

// remove deletes a chunk that is still condemned, and reports whether it did.
func (l *ledger) remove(ctx context.Context, b id) (bool, error) {
	l.mu.Lock()
	if l.condemned[b] == nil || l.busy[b] != nil {
		l.mu.Unlock()
		return false, nil
	}
	finish := l.claim(b)
	l.mu.Unlock()
	err := l.blobs.Delete(ctx, b.String())
	if err == nil {
		l.mu.Lock()
		delete(l.doubted, b)
		delete(l.leftovers, b)
		delete(l.condemned, b)
		l.mu.Unlock()
	}
	finish(0)
	return err == nil, err
}

// endRound forgets the chunks that are not stored any more.
func (l *ledger) endRound() {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.condemned, func(b id, s *sentence) bool { return s.seen != l.round && l.busy[b] == nil })
	maps.DeleteFunc(l.leftovers, func(b id, _ struct{}) bool {
		_, stored := l.stored[b]
		return !stored && l.condemned[b] == nil
	})
}
