package share

import (
	"context"
	"slices"
	"sync"
)

// Turns is a number of slots that are held for a short time. None stays free while anyone
// waits. A slot that becomes free goes to the holder that has the fewest, and of several to the
// one that was given one longest ago. So who asks for many at once delays the others by no more
// than the slots in use. It is safe for concurrent use.
type Turns[Holder comparable] struct {
	total int

	mu    sync.Mutex
	used  int
	taken map[Holder]int
	// waiting has the blocked calls of Wait, the oldest first; each is closed when it has its slot.
	waiting map[Holder][]chan struct{}
	// last is when a holder was given a slot, as a value of given. It outlives the holder's
	// calls: one that asks again must not pass for one that never had a slot. It is emptied
	// when no slot is in use.
	last  map[Holder]uint64
	given uint64
}

// NewTurns returns total slots.
func NewTurns[Holder comparable](total int) *Turns[Holder] {
	return &Turns[Holder]{total: max(total, 1), taken: map[Holder]int{}, waiting: map[Holder][]chan struct{}{}, last: map[Holder]uint64{}}
}

// Wait takes a slot for h. It waits until it is h's turn, or until ctx ends.
func (t *Turns[Holder]) Wait(ctx context.Context, h Holder) error {
	t.mu.Lock()
	if t.used < t.total { // so nobody waits
		t.take(h)
		t.mu.Unlock()
		return nil
	}
	got := make(chan struct{})
	t.waiting[h] = append(t.waiting[h], got)
	t.mu.Unlock()
	select {
	case <-got:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting[h], got)
	if i < 0 {
		return nil // h got its slot as ctx ended
	}
	t.setWaiting(h, slices.Delete(t.waiting[h], i, i+1))
	return ctx.Err()
}

// take gives h a slot; mu is held.
func (t *Turns[Holder]) take(h Holder) {
	t.used++
	t.taken[h]++
	t.given++
	t.last[h] = t.given
}

// setWaiting sets the blocked calls of h; mu is held.
func (t *Turns[Holder]) setWaiting(h Holder, calls []chan struct{}) {
	if t.waiting[h] = calls; len(calls) == 0 {
		delete(t.waiting, h)
	}
}

// Give gives back one slot of h.
func (t *Turns[Holder]) Give(h Holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used--
	if t.taken[h]--; t.taken[h] == 0 {
		delete(t.taken, h)
	}
	if len(t.waiting) == 0 {
		if t.used == 0 {
			clear(t.last)
		}
		return
	}
	next := t.next()
	calls := t.waiting[next]
	t.setWaiting(next, calls[1:])
	t.take(next)
	close(calls[0])
}

// next returns whose turn it is of those that wait; mu is held.
func (t *Turns[Holder]) next() (next Holder) {
	first := true
	for h := range t.waiting {
		if first || t.taken[h] < t.taken[next] || t.taken[h] == t.taken[next] && t.last[h] < t.last[next] {
			next, first = h, false
		}
	}
	return next
}

// Used returns the number of taken slots.
func (t *Turns[Holder]) Used() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used
}

// Waiting returns the number of blocked calls of Wait.
func (t *Turns[Holder]) Waiting() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, calls := range t.waiting {
		n += len(calls)
	}
	return n
}
