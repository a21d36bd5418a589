package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/skerry-dev/skerry/internal/driver/fake"
)

// reclaimingNode returns a node whose sessions fall asleep shortly and then give back what
// d.reclaims says, and how much swap it believes to be free.
func reclaimingNode(t *testing.T, d *parking) (*Node, *atomic.Int64) {
	t.Helper()
	n, _ := hibernatingNode(t, d, func(c *Config) { c.IdleHibernate = 0 })
	var free atomic.Int64
	free.Store(1 << 30)
	n.freeSwap = func() (int64, error) { return free.Load(), nil }
	return n, &free
}

// reclaimed waits until the session's pages have been given back in this sleep.
func reclaimed(t *testing.T, n *Node, id string) {
	t.Helper()
	s := sessionOn(t, n, id)
	eventually(t, "memory of the session", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.idle.reclaimed && s.idle.stopReclaim == nil && len(n.reclaiming) == 0
	})
}

// asleepOn starts a session and waits until it sleeps.
func asleepOn(t *testing.T, n *Node) string {
	t.Helper()
	id := startOn(t, n, big)
	sleeps(t, n, id)
	return id
}

// TestReclaimsFirst: sessions that sleep give back their pages, the one that has slept for
// longest first and each once; they hibernate only when swap is short too.
func TestReclaimsFirst(t *testing.T) {
	d := newParking(t, fake.Config{})
	var calls atomic.Int64
	d.reclaims = func(context.Context, string) (int64, error) { calls.Add(1); return 5, nil }
	n, free := reclaimingNode(t, d)
	first := asleepOn(t, n)
	second := asleepOn(t, n)
	n.makeRoom(1)
	reclaimed(t, n, first)
	if s := sessionOn(t, n, second); s.idle.reclaimed {
		t.Error("the second one gave back its pages too")
	}
	n.makeRoom(1)
	reclaimed(t, n, second)
	for range 3 {
		n.makeRoom(1)
	}
	if n.Totals().Reclaimed != 10 || calls.Load() != 2 {
		t.Errorf("%d bytes in %d calls, not 10 in 2", n.Totals().Reclaimed, calls.Load())
	}
	if len(n.hibernating) > 0 || sessionOn(t, n, first).isHibernated() {
		t.Error("a session whose pages are in swap hibernates while swap is free")
	}
	if got := runOn(t, n, second, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
	sleeps(t, n, second)
	n.makeRoom(1) // another sleep
	reclaimed(t, n, second)
	if calls.Load() != 3 {
		t.Errorf("%d calls, not 3", calls.Load())
	}
	free.Store(swapLeast - 1)
	eventually(t, "hibernation", func() bool {
		n.makeRoom(1)
		return sessionOn(t, n, first).isHibernated()
	})
	hibernates(t, n, first)
}

// TestReclaimsNothing: what gives nothing back has sessions hibernate.
func TestReclaimsNothing(t *testing.T) {
	for name, change := range map[string]func(*Node, *parking){
		"no swap":              func(n *Node, _ *parking) { n.freeSwap = func() (int64, error) { return 0, nil } },
		"swap is not known":    func(n *Node, _ *parking) { n.freeSwap = func() (int64, error) { return 0, errors.New("no file") } },
		"nothing can be taken": func(*Node, *parking) {},
		"the kernel cannot": func(_ *Node, d *parking) {
			d.reclaims = func(context.Context, string) (int64, error) { return 0, errors.ErrUnsupported }
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newParking(t, fake.Config{})
			n, _ := reclaimingNode(t, d)
			change(n, d)
			id := asleepOn(t, n)
			eventually(t, "hibernation", func() bool {
				n.makeRoom(1)
				return sessionOn(t, n, id).isHibernated()
			})
			hibernates(t, n, id)
		})
	}
}

// TestReclaimIsInterrupted: while a session gives back its pages, another one hibernates if
// no room is left; the session can be used, saved and stopped at once.
func TestReclaimIsInterrupted(t *testing.T) {
	for name, does := range map[string]func(*testing.T, *Node, string){
		"use": func(t *testing.T, n *Node, id string) {
			if got := runOn(t, n, id, "echo on"); got != "on\n" {
				t.Errorf("%q", got)
			}
		},
		"pause": func(t *testing.T, n *Node, id string) {
			if err := n.Pause(t.Context(), id); err != nil {
				t.Error(err)
			}
		},
		"save": func(t *testing.T, n *Node, id string) {
			n.freeSwap = func() (int64, error) { return 0, nil }
			eventually(t, "hibernation", func() bool {
				n.hibernateOne()
				return sessionOn(t, n, id).isHibernated()
			})
			hibernates(t, n, id)
		},
		"stop": func(t *testing.T, n *Node, id string) {
			if _, err := n.Stop(t.Context(), id); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newParking(t, fake.Config{})
			begun, ended := make(chan struct{}, 1), make(chan error, 1)
			d.reclaims = func(ctx context.Context, _ string) (int64, error) {
				begun <- struct{}{}
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return 0, nil
			}
			n, _ := reclaimingNode(t, d)
			id, other := asleepOn(t, n), asleepOn(t, n)
			n.makeRoom(1)
			<-begun
			n.makeRoom(1)
			if len(n.hibernating) > 0 {
				t.Error("a session hibernates although there is room")
			}
			s := sessionOn(t, n, id)
			s.mu.Lock()
			s.idle.looking = true // so that the other one is next
			s.mu.Unlock()
			eventually(t, "hibernation", func() bool {
				n.makeRoom(0)
				return sessionOn(t, n, other).isHibernated()
			})
			hibernates(t, n, other)
			s.stopLooking()
			does(t, n, id)
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended by %v", err)
			}
		})
	}
}

// TestFreeSwap reads this machine's.
func TestFreeSwap(t *testing.T) {
	if free, err := freeSwap(); err != nil || free < 0 {
		t.Errorf("%d bytes of swap are free, %v", free, err)
	}
}
