package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// WarmConfig configures the pool of warm machines, which are started before a session
// needs them.
type WarmConfig struct {
	// Count is the minimum number of warm machines of the usual kind; 0 turns the pool
	// off. The pool grows with demand.
	Count int
	// MemoryBytes is the memory that all machines of the pool may use together.
	MemoryBytes int64
	// Usual returns the specification of most sessions, without the parts that differ
	// from session to session.
	Usual func(context.Context) (nodeapi.SessionSpec, error)
	// Dir has a file for each machine that is ready.
	Dir string
}

const (
	// WarmMemory is the estimated memory of a machine of the pool.
	WarmMemory = 64 << 20
	// maxWarm is the maximum number of machines in the pool.
	maxWarm = 1000
	// poolQuiet is the time without starts of sessions after which machines are made.
	// Making one takes as much CPU time as a start.
	poolQuiet = 500 * time.Millisecond
	// poolPatience is the time after which a machine is made although sessions keep
	// starting.
	poolPatience = 5 * time.Second
	// poolTick is the interval of checks.
	poolTick = time.Second
	// poolRetry is the wait after a machine of a kind could not be made. It doubles with
	// each failure.
	poolRetry = 10 * time.Second
	// squeezeTime is the wait after memory was short until a machine is made again.
	squeezeTime = time.Minute
	// identifyTimeout is the maximum time for an agent's answer when a session claims
	// its machine. A machine that takes longer is not used.
	identifyTimeout = 2 * time.Second
)

// warmPool keeps machines ready for sessions without drives: warm ones for those that
// start from an image, blank ones for the others. One goroutine, run, makes and ends
// them.
type warmPool struct {
	node *Node
	cfg  WarmConfig
	wake chan struct{} // has a token when there may be something to do

	// ctx ends run, work counts it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	ready  map[kind][]*warm // the oldest first
	demand demand
	usual  kind
	// path is PATH in the image of the usual kind.
	path string
	// starting is the number of sessions that are starting. started is when a start
	// last began or ended, made when a machine was last made.
	starting      int
	started, made time.Time
	// notBefore is when the next machine may be made.
	notBefore time.Time
	// trash are machines that are to be ended.
	trash   []*warm
	drained bool
	stats   PoolStats
}

// PoolStats are the counts of the pool: of warm machines, and of blank ones.
type PoolStats struct{ Warm, Blank KindStats }

// KindStats are the counts of one sort of machines.
type KindStats struct {
	// Ready is the number of machines that are ready, Wanted the number that should be.
	Ready, Wanted int
	// Hits and Misses count the sessions that could use a machine of the pool, by
	// whether one was ready. Discarded counts machines that ended without being used.
	Hits, Misses, Discarded int64
}

func newWarmPool(n *Node, cfg WarmConfig) *warmPool {
	p := &warmPool{node: n, cfg: cfg, wake: make(chan struct{}, 1), ready: map[kind][]*warm{}, demand: demand{}, drained: cfg.Count == 0}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// PoolStats returns the counts of the pool.
func (n *Node) PoolStats() PoolStats {
	p := n.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	for k, list := range p.ready {
		s.of(k).Ready += len(list)
	}
	for _, l := range p.wanted(time.Now()) {
		s.of(l.kind).Wanted += l.want
	}
	return s
}

// of returns the counts of the machines of a kind.
func (s *PoolStats) of(k kind) *KindStats {
	if k.isBlank() {
		return &s.Blank
	}
	return &s.Warm
}

// opening notes that a start of a session begins, and opened that it has ended.
func (p *warmPool) opening() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting++
	p.started = time.Now()
}

func (p *warmPool) opened() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting--
	p.started = time.Now()
}

// serves reports whether sessions of a specification can have a machine of the pool.
func (p *warmPool) serves(spec nodeapi.SessionSpec) bool {
	return p.cfg.Count > 0 && len(spec.Mounts) == 0 && (!kindFor(spec).isBlank() || p.prepares())
}

// prepares reports whether the pool has blank machines.
func (p *warmPool) prepares() bool { return p.node.cfg.Driver.Capabilities().Prepare }

// take returns a machine for a session, nil if none is ready.
func (p *warmPool) take(spec nodeapi.SessionSpec) *warm {
	if !p.serves(spec) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.notify()
	k := kindFor(spec)
	for list := p.ready[k]; len(list) > 0; list = p.ready[k] {
		w := list[0]
		if p.ready[k] = list[1:]; len(list) == 1 {
			delete(p.ready, k)
		}
		if w.alive() && (w.blank != nil || os.Remove(p.recordPath(w.id)) == nil) {
			p.stats.of(k).Hits++
			return w
		}
		p.throw(w)
	}
	p.stats.of(k).Misses++
	return nil
}

// expect notes that a session of a specification starts.
func (p *warmPool) expect(spec nodeapi.SessionSpec) {
	if !p.serves(spec) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.demand.add(spec, time.Now())
}

// put makes a machine ready, unless the pool is drained.
func (p *warmPool) put(w *warm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drained {
		p.throw(w)
		return
	}
	p.ready[w.kind] = append(p.ready[w.kind], w)
}

func (p *warmPool) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// discard ends a machine, in the background if that takes long.
func (p *warmPool) discard(w *warm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.throw(w)
	p.notify()
}

// dispose ends what is left of a blank machine that was started: its network.
func (p *warmPool) dispose(w *warm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trash = append(p.trash, w)
	p.notify()
}

// throw is discard for a caller that holds mu.
func (p *warmPool) throw(w *warm) {
	p.stats.of(w.kind).Discarded++
	p.trash = append(p.trash, w)
}

// begin starts the goroutine of the pool.
func (p *warmPool) begin() { p.work.Go(p.run) }

// run keeps the pool until close or Drain.
func (p *warmPool) run() {
	tick := time.NewTicker(poolTick)
	defer tick.Stop()
	for {
		p.empty()
		p.tidy()
		if spec, ok := p.next(time.Now()); ok {
			p.fill(spec)
			continue
		}
		select {
		case <-tick.C:
		case <-p.wake:
			// The machine that was taken is replaced when no session starts.
		case <-p.ctx.Done():
			return
		}
	}
}

// fill makes one machine.
func (p *warmPool) fill(spec nodeapi.SessionSpec) {
	ctx, cancel := context.WithTimeout(p.ctx, 2*p.node.cfg.AgentWait)
	defer cancel()
	w, err := p.make(ctx, spec)
	p.mu.Lock()
	p.made = time.Now()
	switch s := p.demand[kindFor(spec)]; {
	case s == nil: // forgotten meanwhile
	case err != nil:
		s.failed(p.made)
	default:
		s.failures = 0
	}
	p.mu.Unlock()
	switch {
	case err == nil:
		p.put(w)
	case p.ctx.Err() == nil:
		p.node.cfg.Log.Warn("cannot make a machine of the pool", "error", err)
	}
}

// level is how many machines of a kind are ready and how many should be.
type level struct {
	spec       nodeapi.SessionSpec
	kind       kind
	have, want int
}

// wanted returns the levels of all kinds, those most in demand first. Together the
// machines fit in the pool's memory; mu is held.
func (p *warmPool) wanted(now time.Time) (all []level) {
	for k, s := range p.demand {
		l := level{spec: s.spec, kind: k, have: len(p.ready[k]), want: s.expected(now)}
		switch {
		case k == p.usual:
			l.want = max(l.want, p.cfg.Count)
		case k == p.usual.blank() && p.usual.Image != "":
			l.want = max(l.want, blankCount)
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b level) int {
		return cmp.Or(
			-cmp.Compare(isKind(a, p.usual), isKind(b, p.usual)),
			-cmp.Compare(isKind(a, p.usual.blank()), isKind(b, p.usual.blank())),
			-cmp.Compare(a.want, b.want),
			cmp.Compare(a.kind.Image, b.kind.Image), cmp.Compare(a.kind.VCPUs, b.kind.VCPUs), cmp.Compare(a.kind.MemoryMB, b.kind.MemoryMB),
		)
	})
	room := int(min(p.cfg.MemoryBytes/p.each(), maxWarm))
	for i := range all {
		share := room
		if all[i].kind != p.usual {
			share = (room + 1) / 2 // something is left for the kinds of others
		}
		all[i].want = min(all[i].want, share)
		room -= all[i].want
	}
	return all
}

func isKind(l level, k kind) int {
	if l.kind == k {
		return 1
	}
	return 0
}

// each is the mean memory of a machine of the pool; mu is held.
func (p *warmPool) each() int64 {
	bytes, n := int64(WarmMemory), int64(1)
	for _, list := range p.ready {
		for _, w := range list {
			bytes, n = bytes+w.bytes, n+1
		}
	}
	return max(bytes/n, 1)
}

// next returns the specification of the machine to make now, if there is one.
func (p *warmPool) next(now time.Time) (nodeapi.SessionSpec, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	quiet := p.starting == 0 && now.Sub(p.started) >= poolQuiet
	switch {
	case p.drained, now.Before(p.notBefore), p.ctx.Err() != nil:
		return nodeapi.SessionSpec{}, false
	case !quiet && now.Sub(p.made) < poolPatience:
		return nodeapi.SessionSpec{}, false
	}
	for _, l := range p.wanted(now) {
		if l.have < l.want && !now.Before(p.demand[l.kind].notBefore) {
			spec := l.spec
			if l.kind.Image == p.usual.Image {
				spec.Env = map[string]string{"PATH": p.path}
			}
			return spec, p.node.cfg.Disk.Check() == nil
		}
	}
	return nodeapi.SessionSpec{}, false
}

// tidy updates the usual kind, and throws away machines that have ended or are no longer
// wanted.
func (p *warmPool) tidy() {
	var usual nodeapi.SessionSpec
	if p.cfg.Count > 0 {
		ctx, cancel := context.WithTimeout(p.ctx, poolTick)
		defer cancel()
		var err error
		// Without a default image there is no usual kind.
		if usual, err = p.cfg.Usual(ctx); err != nil {
			usual = nodeapi.SessionSpec{}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.usual, p.path = kindFor(usual), usual.Env["PATH"]
	for _, k := range []kind{p.usual, p.usual.blank()} {
		if usual.ImageDigest != "" && p.demand[k] == nil && (!k.isBlank() || p.prepares()) {
			p.demand[k] = &starts{spec: template(usual, k), last: now}
		}
	}
	want := map[kind]int{}
	for _, l := range p.wanted(now) {
		if !l.kind.isBlank() {
			if _, err := p.node.cfg.Images.Path(l.kind.Image); err != nil {
				delete(p.demand, l.kind)
				continue
			}
		}
		want[l.kind] = l.want
	}
	for k, list := range p.ready {
		keep := list[:0:0]
		for i, w := range list {
			if w.alive() && len(list)-i <= want[k] {
				keep = append(keep, w)
			} else {
				p.throw(w)
			}
		}
		if p.ready[k] = keep; len(keep) == 0 {
			delete(p.ready, k)
		}
	}
}

// empty ends the machines that were thrown away. It tries again later with those that
// cannot be ended.
func (p *warmPool) empty() {
	p.mu.Lock()
	var due, later []*warm
	for _, w := range p.trash {
		if p.ctx.Err() == nil && time.Now().Before(w.notBefore) {
			later = append(later, w)
		} else {
			due = append(due, w) // nobody would try again after Drain
		}
	}
	p.trash = later
	p.mu.Unlock()
	for _, w := range due {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), releaseTimeout)
		err := p.release(ctx, w)
		cancel()
		if err != nil {
			p.node.cfg.Log.Error("cannot end a machine of the pool, trying again", "machine", w.id, "error", err)
			p.mu.Lock()
			w.notBefore = time.Now().Add(min(poolTick<<min(w.failures, 10), releaseTimeout))
			w.failures++
			p.trash = append(p.trash, w)
			p.mu.Unlock()
		}
	}
}

// squeeze ends all machines of the pool, so that running sandboxes get their memory.
func (p *warmPool) squeeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notBefore = time.Now().Add(squeezeTime)
	p.throwAll()
	p.notify()
}

// giveUp ends a machine that is ready, for a session that needs what it holds. It reports
// false if there is none.
func (p *warmPool) giveUp(ctx context.Context) bool {
	p.mu.Lock()
	var oldest *warm
	for _, list := range p.ready {
		if w := list[0]; oldest == nil || w.since.Before(oldest.since) {
			oldest = w
		}
	}
	if oldest == nil {
		p.mu.Unlock()
		return false
	}
	if list := p.ready[oldest.kind][1:]; len(list) > 0 {
		p.ready[oldest.kind] = list
	} else {
		delete(p.ready, oldest.kind)
	}
	p.stats.of(oldest.kind).Discarded++
	// There is none left for another one either.
	p.notBefore = time.Now().Add(squeezeTime)
	p.mu.Unlock()
	err := p.release(ctx, oldest)
	if err != nil {
		p.mu.Lock()
		p.trash = append(p.trash, oldest)
		p.mu.Unlock()
	}
	return err == nil
}

// throwAll throws away all machines; mu is held.
func (p *warmPool) throwAll() {
	for _, list := range p.ready {
		for _, w := range list {
			p.throw(w)
		}
	}
	clear(p.ready)
}

// Drain ends the machines of the pool, and makes no more. Call it if no later process will
// use them.
func (n *Node) Drain() error {
	p := n.pool
	p.mu.Lock()
	p.drained = true
	p.throwAll()
	p.mu.Unlock()
	p.cancel() // this also aborts the machine that is being made
	p.work.Wait()
	p.empty()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.trash) > 0 {
		return fmt.Errorf("%d machines of the pool could not be ended", len(p.trash))
	}
	return nil
}

// close leaves the warm machines to a later process.
func (p *warmPool) close() {
	p.cancel()
	p.work.Wait()
	if err := p.endBlanks(); err != nil {
		p.node.cfg.Log.Error("cannot end blank machines; the next process does", "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.ready {
		for _, w := range list {
			_ = w.guest.Close()
		}
	}
	for _, w := range p.trash {
		if w.guest != nil {
			_ = w.guest.Close()
		}
	}
	clear(p.ready)
	p.drained, p.trash = true, nil
}

// records returns the ids of the warm machines of an earlier process, and removes the
// records of those that are not in running.
func (p *warmPool) records(running map[string]bool) (map[string]bool, error) {
	found := map[string]bool{}
	if p.cfg.Dir == "" {
		return found, nil
	}
	if err := os.MkdirAll(p.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), ".json")
		if skerry.ValidID(prefixWarm, id) && running[id] {
			found[id] = true
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(p.cfg.Dir, e.Name())))
	}
	return found, errors.Join(errs...)
}
