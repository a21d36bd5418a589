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
	// waiting are the holders that wait, each with its calls.
	waiting map[Holder]*line
	given   uint64 // how many slots were given
}

// line is a holder's blocked calls of Wait, the oldest first.
type line struct {
	calls []chan struct{} // each is closed when it has its slot
	last  uint64          // when the holder was given a slot
}

// NewTurns returns total slots.
func NewTurns[Holder comparable](total int) *Turns[Holder] {
	return &Turns[Holder]{total: max(total, 1), taken: map[Holder]int{}, waiting: map[Holder]*line{}}
}

// Wait takes a slot for h. It waits until it is h's turn, or until ctx ends.
func (t *Turns[Holder]) Wait(ctx context.Context, h Holder) error {
	t.mu.Lock()
	if t.used < t.total { // so nobody waits
		t.used++
		t.taken[h]++
		t.mu.Unlock()
		return nil
	}
	l := t.waiting[h]
	if l == nil {
		l = &line{}
		t.waiting[h] = l
	}
	got := make(chan struct{})
	l.calls = append(l.calls, got)
	t.mu.Unlock()
	select {
	case <-got:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(l.calls, got)
	if i < 0 {
		return nil // h got its slot as ctx ended
	}
	if l.calls = slices.Delete(l.calls, i, i+1); len(l.calls) == 0 {
		delete(t.waiting, h)
	}
	return ctx.Err()
}

// Give gives back one slot of h.
func (t *Turns[Holder]) Give(h Holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used--
	if t.taken[h]--; t.taken[h] == 0 {
		delete(t.taken, h)
	}
	next, l := t.next()
	if l == nil {
		return
	}
	got := l.calls[0]
	t.given++
	l.calls, l.last = l.calls[1:], t.given
	if len(l.calls) == 0 {
		delete(t.waiting, next)
	}
	t.used++
	t.taken[next]++
	close(got)
}

// next returns whose turn it is.
func (t *Turns[Holder]) next() (next Holder, first *line) {
	for h, l := range t.waiting {
		if first == nil || t.taken[h] < t.taken[next] || t.taken[h] == t.taken[next] && l.last < first.last {
			next, first = h, l
		}
	}
	return next, first
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
	for _, l := range t.waiting {
		n += len(l.calls)
	}
	return n
}
