package node

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A session that sleeps while memory is short has its memory written to swap first, where
// the machine has some: its pages come back one by one when they are used, and nothing of
// the session changes. Only what that does not give back makes sessions hibernate. It works
// for all sessions that sleep, also for those that cannot hibernate.

const (
	// reclaimTimeout is the maximum time for one session. It is also the longest time that
	// hibernation waits for it.
	reclaimTimeout = 5 * time.Second
	// swapLeast is the swap that must be free. With less the kernel would search the
	// pages of each session for nothing.
	swapLeast = 16 << 20
)

// makeRoom begins to take memory from the session that has slept for longest: its pages
// are given back, and only when there are none the session hibernates. If no room is left,
// it waits for neither.
func (n *Node) makeRoom(room int64) {
	if !n.reclaimOne() || room <= 0 {
		n.hibernateOne()
	}
}

// reclaimOne begins to give back the pages of the session that has slept for longest and
// still has them, unless it does so for one already. It reports false if there is nothing
// to wait for.
func (n *Node) reclaimOne() bool {
	if len(n.reclaiming) > 0 {
		return true
	}
	if !n.canSwap() {
		return false
	}
	now := time.Now()
	var first *session
	var since time.Time
	for _, s := range n.all() {
		s.mu.Lock()
		if s.mayReclaim(now) && (first == nil || s.idle.since.Before(since)) {
			first, since = s, s.idle.since
		}
		s.mu.Unlock()
	}
	if first == nil {
		return false
	}
	n.reclaiming <- struct{}{}
	if !first.spawn(func() {
		defer n.reclaiming.leave()
		first.reclaim()
	}) {
		n.reclaiming.leave()
	}
	return true
}

// canSwap reports whether the machine has swap that is free.
func (n *Node) canSwap() bool {
	free, err := n.freeSwap()
	if err != nil {
		n.complain.Do(func() { n.cfg.Log.Warn("cannot find out how much swap is free", "error", err) })
	}
	return err == nil && free >= swapLeast
}

// mayReclaim reports whether the session's pages may be given back now, which happens once
// each time that it sleeps. One that a timer is about to wake needs them. mu is held.
func (s *session) mayReclaim(now time.Time) bool {
	i := &s.idle
	if !i.until.IsZero() && i.until.Sub(now) < hibernateLeast {
		return false
	}
	return s.live && !s.stopping && i.asleep && !i.hibernated && !i.reclaimed && i.users == 0 && !s.isSaving()
}

// reclaim gives back the session's pages, until it is woken, saved or stopped.
func (s *session) reclaim() {
	ctx, cancel := context.WithTimeout(s.ctx, reclaimTimeout)
	defer cancel()
	s.mu.Lock()
	if !s.mayReclaim(time.Now()) {
		s.mu.Unlock()
		return
	}
	s.idle.reclaimed, s.idle.stopReclaim = true, cancel
	m := s.machine()
	s.mu.Unlock()
	s.meterMemory()
	freed, err := m.Reclaim(ctx)
	s.node.reclaimed.Add(freed)
	if err != nil && ctx.Err() == nil && !s.machineEnded() {
		s.node.complain.Do(func() {
			s.node.cfg.Log.Warn("cannot give back the memory of an idle session", "session", s.id, "error", err)
		})
	}
	left, err := m.PinnedMemory(0)
	if err == nil {
		s.addResident(m, left)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.stopReclaim = nil
	s.idle.swapped = s.idle.asleep && err == nil && left < freed
}

// endReclaim interrupts reclaim, which may be in progress. mu is held.
func (i *idle) endReclaim() {
	if i.stopReclaim != nil {
		i.stopReclaim()
	}
}

func (s *session) stopReclaim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.endReclaim()
}

// freeSwap reads how many bytes of swap are free on this machine.
func freeSwap() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "SwapFree:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no SwapFree", f.Name())
}
