package share

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// grab takes as many slots as the holder gets.
func grab(s *Slots[int], holder int) (n int) {
	for s.Take(holder) {
		n++
	}
	return n
}

func TestGreedyLeaveRoom(t *testing.T) {
	s := New[int](1000, 1000)
	if n := grab(s, 1); n != 200 {
		t.Errorf("the first greedy holder got %d", n)
	}
	for h := 2; h <= 20; h++ {
		if grab(s, h) == 0 {
			t.Fatalf("holder %d got nothing", h)
		}
	}
	// A modest holder comes last.
	if !s.Take(1000) {
		t.Error("nothing is left for one that wants a single slot")
	}
}

// TestYield adds greedy holders until no slot is free.
func TestYield(t *testing.T) {
	s := New[int](1000, 1000)
	for h := range 200 {
		grab(s, h)
	}
	for h := 1000; h < 1100; h++ {
		if s.Take(h) {
			continue
		}
		from, ok := s.Yield(h)
		if !ok || from >= 1000 {
			t.Fatalf("holder %d gets nothing: %d, %v", h, from, ok)
		}
		s.Give(from)
		if !s.Take(h) {
			t.Fatalf("what %d gave back is not had", from)
		}
	}
	// No holder yields to one with as many slots.
	even := New[int](2, 2)
	even.Take(1)
	even.Take(2)
	if from, ok := even.Yield(1); ok {
		t.Errorf("%d yields to an equal", from)
	}
}

func TestGivenBack(t *testing.T) {
	s := New[int](100, 3)
	if n := grab(s, 1); n != 3 {
		t.Errorf("got %d of at the most 3", n)
	}
	s.Give(1)
	if !s.Take(1) || s.Take(1) {
		t.Error("what was given back is not had once")
	}
	for range 3 {
		s.Give(1)
	}
	if s.Used() != 0 || len(s.taken) != 0 {
		t.Errorf("%d used, %d remembered", s.Used(), len(s.taken))
	}
}

// TestWait: a greedy holder waits, and a modest one behind it gets a slot first.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New[int](16, 16)
		for h := range 16 {
			s.Take(h)
		}
		var mu sync.Mutex
		var got []int
		wait := func(ctx context.Context, h int) {
			err := s.Wait(ctx, h)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, h)
			} else if !errors.Is(err, context.Canceled) || h != 50 {
				t.Errorf("holder %d: %v", h, err)
			}
		}
		impatient, leave := context.WithCancel(t.Context())
		go wait(impatient, 50)
		synctest.Wait()
		for _, h := range []int{0, 51, 52} {
			go wait(t.Context(), h)
			synctest.Wait()
		}
		if !s.Waited() {
			t.Error("nobody waits")
		}
		leave()
		synctest.Wait()
		s.Give(15)
		synctest.Wait()
		if len(got) != 1 || got[0] != 51 {
			t.Fatalf("a slot was given to %v", got)
		}
		for h := 1; h <= 14; h++ {
			s.Give(h)
			synctest.Wait()
		}
		if len(got) != 3 || got[1] != 52 || got[2] != 0 || s.Waited() {
			t.Errorf("slots were given to %v", got)
		}
	})
}

func TestOneSlot(t *testing.T) {
	s := New[int](0, 0)
	if !s.Take(1) || s.Take(2) {
		t.Error("there is not one slot")
	}
}
