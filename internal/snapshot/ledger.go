package snapshot

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"sync"

	"github.com/skerry-dev/skerry/internal/blob"
)

// ledger knows which chunks an Add may rely on: those that are stored and not marked
// as unused; see Collect. A chunk that is being put or removed is busy, and whoever
// wants to do either waits.
type ledger struct {
	blobs blob.Store
	// indexing locks the listing of the stored chunks.
	indexing chan struct{}

	mu      sync.Mutex
	indexed bool
	stored  map[id]struct{}
	// doubted are chunks that were found missing or damaged and have not been
	// put again.
	doubted map[id]struct{}
	busy    map[id]chan struct{} // closed when no longer
	// leftovers are the chunks that Adds have put that failed afterwards.
	leftovers map[id]struct{}
	// marks are the chunks that were found unused. round is the collection's number.
	marks map[id]*mark
	round uint64
	batch *batch
	// name distinguishes the rounds of this process from those of others.
	name string
}

// mark is that of an unused chunk.
type mark struct {
	*batch
	// seen is the last round that listed the chunk.
	seen uint64
}

// batch is what the chunks have in common that one round has marked: the leases that
// must end before they are removed. They are read at the start of the next round. A
// save that began before the mark, and may rely on the chunk, is among them, or it has
// ended by then: with a snapshot that uses the chunk, or with nothing.
type batch struct {
	updated uint64 // the last round that has updated leases
	leases  map[string]struct{}
}

func newLedger(blobs blob.Store) *ledger {
	return &ledger{
		blobs: blobs, indexing: make(chan struct{}, 1),
		stored: map[id]struct{}{}, doubted: map[id]struct{}{}, busy: map[id]chan struct{}{},
		leftovers: map[id]struct{}{}, marks: map[id]*mark{}, name: rand.Text(),
	}
}

// index lists the stored chunks, once. It is not done by Open, so
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
	stored := map[id]struct{}{}
	prefix := sealedChunk.prefix()
	for info, err := range l.blobs.List(ctx, prefix) {
		if err != nil {
			return err
		}
		if sum, err := parseSum(info.Key[len(prefix):]); err == nil {
			stored[id{kind: sealedChunk, sum: sum}] = struct{}{}
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

// put stores a chunk unless it is stored already. It calls encode only if it is not,
// and returns the number of bytes that it has stored.
func (l *ledger) put(ctx context.Context, b id, encode func() []byte) (added int64, err error) {
	finish, stored, err := l.begin(ctx, b)
	if stored || err != nil {
		return 0, err
	}
	data := encode()
	err = l.blobs.Put(ctx, b.String(), data)
	finish(err == nil)
	if err != nil {
		return 0, err
	}
	return int64(len(data)), nil
}

// begin waits until nobody else puts or removes a chunk. If it is not stored then, it
// is the caller's to put; finish tells whether that succeeded.
func (l *ledger) begin(ctx context.Context, b id) (finish func(stored bool), stored bool, err error) {
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

// claim makes a chunk busy; mu is held.
func (l *ledger) claim(b id) (finish func(stored bool)) {
	done := make(chan struct{})
	l.busy[b] = done
	return func(stored bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if stored {
			l.stored[b] = struct{}{}
			delete(l.doubted, b)
			delete(l.leftovers, b)
			delete(l.marks, b)
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

// leave notes the chunks that a failed Add has put: they are unused unless another
// snapshot has come to use them.
func (l *ledger) leave(chunks []id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range chunks {
		if _, stored := l.stored[b]; stored {
			l.leftovers[b] = struct{}{}
		}
	}
}

// beginRound begins a collection and returns its name. active are the leases of the
// saves in progress; they must have been read after the round named last. If they were
// not, no collection begins, and the name of the last one is returned.
func (l *ledger) beginRound(last string, active map[string]struct{}) (name string, current bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last != l.roundName() {
		return l.roundName(), false
	}
	l.round++
	l.batch = &batch{updated: l.round}
	for _, m := range l.marks {
		if m.updated == l.round {
			continue // with another chunk of its batch
		}
		m.updated = l.round
		if m.leases == nil {
			m.leases = maps.Clone(active)
		} else {
			maps.DeleteFunc(m.leases, func(lease string, _ struct{}) bool { _, on := active[lease]; return !on })
		}
	}
	return l.roundName(), true
}

func (l *ledger) roundName() string { return fmt.Sprintf("%s-%d", l.name, l.round) }

// Results of markUnused.
type markResult int

const (
	// tooYoung is a chunk that is kept for Options.Grace.
	tooYoung markResult = iota
	// marked is a chunk on which Adds rely no more.
	marked
	// removable is one that no save relies on either.
	removable
)

// markUnused marks a chunk, unless it is too young: then it must be a leftover, or
// marked already.
func (l *ledger) markUnused(b id, old bool) markResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.marks[b]; m != nil {
		m.seen = l.round
		if m.leases != nil && len(m.leases) == 0 {
			return removable
		}
		return marked
	}
	if _, left := l.leftovers[b]; !left && !old {
		return tooYoung
	}
	if l.busy[b] == nil { // otherwise it is being put, and stored anew then
		delete(l.stored, b)
		l.marks[b] = &mark{l.batch, l.round}
	}
	return marked
}

// unmark has Adds rely again on a chunk that a snapshot uses.
func (l *ledger) unmark(b id) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.leftovers, b)
	if l.marks[b] == nil {
		return
	}
	delete(l.marks, b)
	if _, doubted := l.doubted[b]; !doubted {
		l.stored[b] = struct{}{}
	}
}

// remove deletes a chunk that is still marked, and reports whether it did.
func (l *ledger) remove(ctx context.Context, b id) (bool, error) {
	l.mu.Lock()
	if l.marks[b] == nil || l.busy[b] != nil {
		l.mu.Unlock()
		return false, nil
	}
	finish := l.claim(b)
	l.mu.Unlock()
	defer finish(false)
	if err := l.blobs.Delete(ctx, b.String()); err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.doubted, b)
	delete(l.leftovers, b)
	delete(l.marks, b)
	return true, nil
}

// endRound forgets the chunks that are not stored any more.
func (l *ledger) endRound() {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.marks, func(b id, m *mark) bool { return m.seen != l.round && l.busy[b] == nil })
	maps.DeleteFunc(l.leftovers, func(b id, _ struct{}) bool {
		_, stored := l.stored[b]
		return !stored && l.marks[b] == nil
	})
}
