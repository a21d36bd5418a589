// Package share divides limited slots and rates among holders, so that none locks out the
// others.
package share

import (
	"context"
	"slices"
	"sync"
)

// part limits a holder: it gets another slot only while more than part times its own
// number of slots are free. So n greedy holders get total/(part+n) each, and the rest
// stays free.
const part = 4

// Slots is a number of slots that holders take and give back. It is safe for
// concurrent use.
type Slots[Holder comparable] struct {
	total, most int

	mu    sync.Mutex
	used  int
	taken map[Holder]int
	// waiting are the blocked calls of Wait, the oldest first.
	waiting []*waiter[Holder]
}

// waiter is a blocked call of Wait.
type waiter[Holder comparable] struct {
	h   Holder
	got chan struct{} // closed when h has its slot
}

// New returns total slots. One holder gets at most most of them.
func New[Holder comparable](total, most int) *Slots[Holder] {
	return &Slots[Holder]{total: max(total, 1), most: max(most, 1), taken: map[Holder]int{}}
}

// Take takes a slot for h, and reports whether it did. A holder without slots gets one
// if any is free. A holder with slots gets another only while many are free.
func (s *Slots[Holder]) Take(h Holder) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(h)
}

func (s *Slots[Holder]) take(h Holder) bool {
	free, has := s.total-s.used, s.taken[h]
	if free <= 0 || has >= s.most || has > 0 && has >= free/part {
		return false
	}
	s.used++
	s.taken[h]++
	return true
}

// Wait takes a slot for h. It waits until h may have one, or until ctx ends.
func (s *Slots[Holder]) Wait(ctx context.Context, h Holder) error {
	s.mu.Lock()
	if s.take(h) {
		s.mu.Unlock()
		return nil
	}
	w := &waiter[Holder]{h: h, got: make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case <-w.got:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.waiting, w)
	if i < 0 {
		return nil // h got its slot as ctx ended
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return ctx.Err()
}

// Give gives back one slot of h.
func (s *Slots[Holder]) Give(h Holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.taken[h]--; s.taken[h] == 0 {
		delete(s.taken, h)
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(w *waiter[Holder]) bool {
		got := s.take(w.h)
		if got {
			close(w.got)
		}
		return got
	})
}

// Yield returns the holder that should give up a slot for to, which did not get one.
// That is the holder with the most slots, if it has more than to would then have. It
// is for slots that are held for a long time.
func (s *Slots[Holder]) Yield(to Holder) (from Holder, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.taken[to] + 1
	for h, n := range s.taken {
		if n > most {
			from, most, ok = h, n, true
		}
	}
	return from, ok
}

// Waited reports whether any call of Wait is blocked.
func (s *Slots[Holder]) Waited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) > 0
}

// Used returns the number of taken slots.
func (s *Slots[Holder]) Used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}
