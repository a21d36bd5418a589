package share

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// queue asks for n slots of a holder, which are taken in the order of served.
func queue(t *testing.T, turns *Turns[string], h string, n int, served chan<- string) (done *sync.WaitGroup) {
	t.Helper()
	done = &sync.WaitGroup{}
	for range n {
		done.Go(func() {
			if err := turns.Wait(t.Context(), h); err != nil {
				t.Error(err)
			}
			served <- h
		})
	}
	return done
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, served := NewTurns[string](2), make(chan string, 100)
		holders := []string{"greedy", "greedy"} // of the slots in use
		queue(t, turns, "greedy", 20, served)
		synctest.Wait()
		if len(served) != 2 {
			t.Fatalf("%d of 2 slots are taken", len(served))
		}
		<-served
		<-served
		give := func() string {
			t.Helper()
			turns.Give(holders[0])
			holders = holders[1:]
			synctest.Wait()
			if len(served) != 1 {
				t.Fatalf("a slot was given to %d", len(served))
			}
			next := <-served
			holders = append(holders, next)
			return next
		}
		if next := give(); next != "greedy" { // nobody else wants one
			t.Errorf("alone: %s", next)
		}
		queue(t, turns, "modest", 1, served)
		synctest.Wait()
		if next := give(); next != "modest" {
			t.Errorf("the first after someone else waits goes to %s", next)
		}
		// Three that want many share them evenly.
		for _, h := range []string{"b", "c"} {
			queue(t, turns, h, 8, served)
		}
		synctest.Wait()
		got := map[string]int{}
		for range 24 {
			got[give()]++
		}
		for _, h := range []string{"greedy", "b", "c"} {
			if n := got[h]; n < 7 || n > 9 {
				t.Errorf("%s got %d of 24: %v", h, n, got)
			}
		}
		for range 9 { // greedy alone has some left
			give()
		}
		for _, h := range holders {
			turns.Give(h)
		}
		if turns.Used() != 0 || len(turns.taken) != 0 || len(turns.waiting) != 0 {
			t.Errorf("left: %d used, %v taken, %d wait", turns.Used(), turns.taken, len(turns.waiting))
		}
	})
}

// TestTurnsOfWhoComesBack has two that ask again whenever they are served, and one that waits.
func TestTurnsOfWhoComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, served := NewTurns[string](1), make(chan string, 100)
		queue(t, turns, "a", 1, served)
		synctest.Wait()
		holder := <-served
		queue(t, turns, "b", 1, served)
		queue(t, turns, "patient", 3, served)
		patient := 0
		for range 12 {
			if holder == "a" || holder == "b" {
				queue(t, turns, holder, 1, served)
			}
			synctest.Wait()
			turns.Give(holder)
			synctest.Wait()
			if holder = <-served; holder == "patient" {
				patient++
			}
		}
		if patient != 3 {
			t.Errorf("of 12 slots, %d went to one who waited for 3", patient)
		}
		for turns.Used() > 0 { // the rest
			turns.Give(holder)
			synctest.Wait()
			select {
			case holder = <-served:
			default:
			}
		}
		if len(turns.last) != 0 {
			t.Errorf("%d are remembered when no slot is in use", len(turns.last))
		}
	})
}

func TestTurnsGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns[string](1)
		if err := turns.Wait(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- turns.Wait(ctx, "b") }()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		turns.Give("a")
		if turns.Used() != 0 || len(turns.waiting) != 0 {
			t.Errorf("a slot went to one who had given up: %d used", turns.Used())
		}
		// An end that comes with the slot does not lose it.
		for range 100 {
			if err := turns.Wait(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { ended <- turns.Wait(ctx, "b") }()
			synctest.Wait()
			go cancel()
			go turns.Give("a")
			if err := <-ended; err == nil {
				turns.Give("b")
			}
			synctest.Wait()
			if turns.Used() != 0 {
				t.Fatalf("%d slots are lost", turns.Used())
			}
		}
	})
}
