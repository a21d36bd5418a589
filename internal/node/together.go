package node

import (
	"context"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

// When all machines together reach their memory limit, the host's kernel kills the
// largest process of all sandboxes, whoever caused it. So the node watches the sum
// too, and relieves the sandbox that is furthest beyond its fair share before that
// happens. Meanwhile the kernel holds those beyond it to about what they hold.
//
// Every sandbox has the same share: what may be held, divided by their number. The
// node knows nothing of tenants, so many small sandboxes have many shares.

const (
	// togetherMargin is the distance from the limit at which a sandbox is relieved.
	// For small machines it is an eighth of the limit. Page cache may use it.
	togetherMargin = 4 << 30
	// togetherWait is the time in which the memory of a killed process should become
	// free, before another one is killed.
	togetherWait = time.Second
	// togetherPatience is the time that a sandbox has to kill a process.
	togetherPatience = time.Second
	// togetherTries is the number of processes of a session that are killed without
	// much becoming free. Then the session ends.
	togetherTries = 4
	// confineStep and confineLeast are the most and the least by which what sandboxes
	// are held to differs from what it was before it is changed.
	confineStep, confineLeast = 16 << 20, 64 << 10
)

// usedTogether tells a command why a process was killed whose sandbox had memory left.
const usedTogether = "all sandboxes of the server together have no more memory, and this one used more than its share"

// lostTogether is the reason of a session that ends for the sake of others.
const lostTogether = "out of memory: the server's sandboxes used all memory that they may together, and this one used more than its share"

// guardTogether relieves sessions whenever all of them together are about to run
// out of memory.
func (n *Node) guardTogether() {
	timer := time.NewTimer(guardMin)
	defer timer.Stop()
	var relieving atomic.Bool
	for confined := false; ; {
		select {
		case <-timer.C:
		case <-n.ctx.Done():
			if confined {
				n.release() // nobody would until the next process
			}
			return
		}
		room, limit, err := n.roomTogether()
		switch {
		case err != nil:
			n.cfg.Log.Error("cannot meter the memory of all sandboxes together", "error", err)
			timer.Reset(guardMax)
			continue
		case limit == 0:
			return
		case room < 2*margin(limit):
			n.pool.squeeze()
			n.makeRoom(room)
			n.confine(limit)
			confined = true
			if room <= 0 && relieving.CompareAndSwap(false, true) {
				// What sandboxes hold is looked at meanwhile.
				n.work.Go(func() {
					defer relieving.Store(false)
					n.relieveTogether()
				})
			}
		case confined:
			n.release()
			confined = false
		}
		timer.Reset(nextCheck(room, runtime.NumCPU()))
	}
}

// roomTogether returns how much more memory all machines may take before one is
// relieved, and their limit; 0 if there is none.
func (n *Node) roomTogether() (room, limit int64, err error) {
	m, err := n.cfg.Driver.Memory()
	return m.Limit - margin(m.Limit) - m.Used, m.Limit, err
}

// margin is how far the sum stays away from its limit.
func margin(limit int64) int64 { return min(togetherMargin, limit/8) }

// holding is the memory that a session's machine holds.
type holding struct {
	s       *session
	machine driver.Machine
	bytes   int64
}

// holdings returns what the sessions hold whose machines run. Those that hold less
// than their share of limit may hold less than it says.
func (n *Node) holdings(limit int64) (all []holding) {
	n.mu.Lock()
	sessions := slices.Collect(maps.Values(n.sessions))
	n.mu.Unlock()
	for _, s := range sessions {
		m := s.machine()
		if m == nil || s.isHibernated() {
			continue // it is starting, or holds nothing
		}
		if bytes, err := m.PinnedMemory(limit / int64(len(sessions))); err == nil { // or it has ended
			all = append(all, holding{s, m, bytes})
		}
	}
	return all
}

// confine makes the kernel hold each sandbox to its share, and one that holds more to
// that and a part of what is left. So what fills memory meets a limit of its own before
// all meet theirs: there it is relieved as at its usual limit, and the kernel kills its
// own processes if it is faster.
func (n *Node) confine(limit int64) {
	all := n.holdings(limit)
	if len(all) == 0 {
		return
	}
	share := limit / int64(len(all))
	// What is left belongs to those below their share first, as far as they could take
	// it before this looks again.
	left, owed, beyond := limit, int64(0), int64(0)
	for _, h := range all {
		left -= h.bytes
		if h.bytes > share {
			beyond++
		} else {
			owed += share - h.bytes
		}
	}
	var more int64
	if beyond > 0 {
		more = max(left-min(owed, margin(limit)), 0) / 2 / beyond
	}
	step := min(max(more/4, confineLeast), confineStep)
	for _, h := range all {
		most := share
		if h.bytes > share {
			most = h.bytes + more
		}
		most += min(reliefMargin, most/16) // where it is relieved before
		last := h.s.confined.Load()
		if h.bytes > share && more == 0 && last > 0 {
			most = min(most, last) // nothing is left to grow into
		}
		if last >= most && last < most+step {
			continue
		}
		if err := h.machine.Confine(most); err != nil {
			continue // it holds more by now
		}
		h.s.confined.Store(most)
		select {
		case h.s.pressed <- struct{}{}:
		default:
		}
	}
}

// release ends what confine has begun.
func (n *Node) release() {
	for _, h := range n.holdings(math.MaxInt64) {
		if h.s.confined.Load() == 0 {
			continue
		}
		if err := h.machine.Confine(0); err == nil { // or it has ended
			h.s.confined.Store(0)
		}
	}
}

// furthest returns the session to relieve: as all have the same share, the one that
// holds most is furthest beyond it. It is not one of busy, unless all others hold no
// more than their share of limit. ok is false if no session runs.
func furthest(all []holding, busy map[*session]bool, limit int64) (worst holding, ok bool) {
	var free holding
	for _, h := range all {
		if worst.s == nil || h.bytes > worst.bytes {
			worst = h
		}
		if !busy[h.s] && (free.s == nil || h.bytes > free.bytes) {
			free = h
		}
	}
	if free.s != nil && free.bytes > limit/int64(len(all)) {
		return free, true
	}
	return worst, worst.s != nil
}

// relieveTogether relieves one session after the other until there is room.
func (n *Node) relieveTogether() {
	busy, tries := map[*session]bool{}, map[*session]int{}
	for n.ctx.Err() == nil {
		room, limit, err := n.roomTogether()
		if room > 0 || err != nil {
			return
		}
		h, ok := furthest(n.holdings(limit), busy, limit)
		if !ok {
			return
		}
		var freed int64
		if tries[h.s] < togetherTries && !busy[h.s] {
			freed = h.s.yield()
			tries[h.s]++
			if freed == 0 && h.s.isSaving() {
				busy[h.s] = true // it may stand still meanwhile
				continue
			}
		} else {
			n.cfg.Log.Warn("a sandbox is ended: all sandboxes together are out of memory", "session", h.s.id, "bytes", h.bytes)
			h.machine.End(lostTogether)
			freed = h.bytes
		}
		if n.awaitLess(h, freed) {
			tries[h.s] = 0
		}
	}
}

// awaitLess waits until there is room, or the session holds less by half of what
// should become free, but not for long. It reports whether much has become free.
func (n *Node) awaitLess(h holding, freed int64) bool {
	goal := h.bytes - min(freed, h.bytes)/2
	late := time.After(togetherWait)
	tick := time.NewTicker(guardMin)
	defer tick.Stop()
	for {
		held, err := h.machine.PinnedMemory(0)
		if room, _, _ := n.roomTogether(); err != nil || room > 0 || held <= goal {
			return err != nil || held <= h.bytes-h.bytes/16
		}
		select {
		case <-tick.C:
		case <-late:
			return held <= h.bytes-h.bytes/16
		case <-n.ctx.Done():
			return false
		}
	}
}

// isSaving reports whether a save of the session is in progress.
func (s *session) isSaving() bool { return len(s.saving) > 0 }

// yield makes the sandbox kill its process with the most memory for the sake of
// others, and returns about how many bytes that frees; 0 means that none was killed.
func (s *session) yield() int64 {
	ctx, cancel := context.WithTimeout(s.ctx, togetherPatience)
	defer cancel()
	done, err := s.use(ctx)
	if err != nil {
		return 0
	}
	defer done()
	if _, frozen := s.standstills(); frozen {
		// It cannot kill anything while it stands still.
		if err := s.saving.enter(ctx); err != nil {
			return 0
		}
		defer s.saving.leave()
		if err := s.standing.enter(ctx); err != nil {
			return 0
		}
		defer s.standing.leave()
		if err := s.thaw(ctx); err != nil {
			return 0
		}
		defer func() {
			if err := s.freeze(s.ctx); err != nil {
				s.node.cfg.Log.Error("cannot pause a sandbox again that killed a process", "session", s.id, "error", err)
			}
		}()
	}
	// The command's end may be known before the answer.
	s.mu.Lock()
	s.yielding++
	s.mu.Unlock()
	victim := s.killGreediest(s.node.ctx, togetherPatience)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.yielding--
	if victim == nil {
		return 0
	}
	if len(s.yielded) >= maxYielded {
		clear(s.yielded)
	}
	s.yielded[victim.PID] = true
	return max(victim.Bytes, 1)
}

// maxYielded bounds what is kept of killed processes until their commands end.
const maxYielded = 256

// hasYielded reports whether a process was killed for the sake of other sandboxes.
func (s *session) hasYielded(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.yielding > 0 || s.yielded[pid]
}
