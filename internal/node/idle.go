package node

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// A session that nobody uses is paused after Config.IdlePause: it is asleep. Every use
// wakes it first, so clients do not notice. Uses are calls that need its machine, streams
// and connections until they are closed (use), and packets. The node decides this by
// itself, because it sees every use; the controller only shows the state.
//
// A session that is paused by its client, or because its time is up, is not asleep: a use
// does not resume it.
const (
	// idleTick is the maximum interval between checks of idle sessions. It is also the
	// maximum delay of a packet that wakes its session. Such packets are rare, because
	// open connections keep a session awake.
	idleTick = time.Second
	// idleCPU is the fraction of one CPU that the processes of an idle session may use.
	// An interpreter that polls for work twice a second uses a tenth of it.
	idleCPU = 0.01
	// idleGlance is how long it is seen to use none right before it is paused.
	idleGlance = 200 * time.Millisecond
)

// idle is the state of a session's use. The session's mu guards it.
type idle struct {
	// mode is the session's own, "" for the node's.
	mode skerry.IdleMode
	// users is the number of calls, streams and connections that use the session.
	users int
	// quiet is since when nobody uses it; nil if it is in use, or not measured yet.
	quiet *quiet
	// looking is true while a goroutine checks what runs in it.
	looking bool
	// asleep is true from the decision to pause the session until it is resumed. until
	// is the latest time for that, zero for none.
	asleep bool
	until  time.Time
	// since is when it fell asleep. hibernated is true while it has no machine; see
	// hibernate.go. It does not hibernate before stays.
	since      time.Time
	hibernated bool
	stays      time.Time
	// reclaimed is true once its pages were given back since it fell asleep, or that has
	// begun; stopReclaim ends it, nil if none is in progress. swapped is true if less is
	// in memory than was given back; see reclaim.go.
	reclaimed, swapped bool
	stopReclaim        context.CancelFunc
	// woken is true after a timer has woken the session, until its next use.
	woken bool
}

// restart starts the time without use again, unless the session is asleep.
func (i *idle) restart() {
	if !i.asleep {
		i.quiet = nil
	}
}

// quiet is the beginning of a time without use, and the meters at that moment.
type quiet struct {
	since   time.Time
	packets uint64
	cpu     time.Duration
}

// use returns a session whose machine runs, for a call that needs the machine. The
// session stays awake until done is called.
func (n *Node) use(ctx context.Context, id string) (_ *session, done func(), err error) {
	s, err := n.find(id)
	if err == nil {
		err = s.awaitReturn(ctx)
	}
	if err == nil {
		s, err = n.running(id)
	}
	if err != nil {
		return nil, nil, err
	}
	done, err = s.use(ctx)
	return s, done, err
}

// use keeps the session awake until done is called.
func (s *session) use(ctx context.Context) (done func(), err error) {
	done = s.hold()
	if err := s.wake(ctx); err != nil {
		done()
		return nil, s.failure(fmt.Errorf("resume session %s: %w", s.id, err))
	}
	return done, nil
}

// hold keeps the session from falling asleep until done is called. It does not wake
// it.
func (s *session) hold() (done func()) {
	s.countUser(1)
	return sync.OnceFunc(func() { s.countUser(-1) })
}

func (s *session) countUser(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.users += by
	s.idle.woken = false
	s.idle.restart()
}

func (s *session) isAsleep() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle.asleep
}

// wake resumes the session if it is asleep. Of concurrent callers one does so, and the
// others wait.
func (s *session) wake(ctx context.Context) error {
	if !s.isAsleep() {
		return nil
	}
	return s.alone(ctx, func() error {
		if !s.isAsleep() {
			return nil
		}
		err := s.thaw(ctx)
		hibernates := skerry.CodeOf(err) == skerry.CodeDiskFull || skerry.CodeOf(err) == skerry.CodeSnapshotIncompatible
		if err != nil && !s.isStopping() && !hibernates {
			// Its kernel does not react, so the session cannot be used any more.
			s.node.cfg.Log.Error("cannot resume a session that was idle", "session", s.id, "error", err)
			s.machine().End(lostAsleep)
		}
		return err
	})
}

// lostAsleep is the reason for the end of a session that could not be woken.
const lostAsleep = "the server had paused the sandbox, because nobody used it, and could not resume it"

// alone runs f while nobody else pauses, resumes or saves the machine.
func (s *session) alone(ctx context.Context, f func() error) error {
	if err := s.standing.enter(ctx); err != nil {
		return err
	}
	defer s.standing.leave()
	return f()
}

// endSleep turns the pause of a session that is asleep into one that a use does not end.
// It reports false if the session is not asleep. The caller holds standing.
func (s *session) endSleep() bool {
	s.mu.Lock()
	was := s.idle.asleep
	s.idle.asleep = false
	s.idle.endReclaim()
	s.mu.Unlock()
	if was {
		s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionAwake, SessionID: s.id})
	}
	return was
}

// guardIdle pauses sessions that nobody uses, and wakes them when packets arrive.
func (n *Node) guardIdle() {
	if n.cfg.IdlePause <= 0 || !n.cfg.Driver.Capabilities().Pause {
		return
	}
	tick := time.NewTicker(n.idleTick())
	defer tick.Stop()
	failed := rate.Sometimes{First: 1, Interval: time.Minute}
	for {
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		if err := n.lookIdle(); err != nil && n.ctx.Err() == nil {
			failed.Do(func() { n.cfg.Log.Error("cannot find out which sandboxes are idle", "error", err) })
		}
	}
}

// idleTick returns the interval between checks of idle sessions.
func (n *Node) idleTick() time.Duration {
	return max(min(n.cfg.IdlePause/8, idleTick), time.Millisecond)
}

// lookIdle checks the sessions that nobody uses.
func (n *Node) lookIdle() error {
	now := time.Now()
	var list []*session
	for _, s := range n.all() {
		if s.mayBeIdle(now) {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil
	}
	traffic, err := n.cfg.Networks.Traffic(n.ctx)
	if err != nil {
		return err
	}
	for _, s := range list {
		s.look(now, traffic[s.lease.ID()])
	}
	return nil
}

// mayBeIdle reports whether the session needs a check.
func (s *session) mayBeIdle(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := &s.idle
	switch {
	case !s.live || s.stopping || i.looking || s.lease == nil:
		return false
	case i.asleep:
		return true
	case s.frozen || i.users > 0 || s.idleMode() == skerry.IdleNever:
		return false
	}
	return i.quiet == nil || now.Sub(i.quiet.since) >= s.idlePause()
}

// idleMode returns the mode that applies to the session. mu is held.
func (s *session) idleMode() skerry.IdleMode {
	if s.idle.mode == "" || s.idle.mode == skerry.IdleDefault {
		return s.node.cfg.Idle
	}
	return s.idle.mode
}

// look compares the number of packets with that of the last check. It starts a time
// without use, wakes the session, or pauses it.
func (s *session) look(now time.Time, packets uint64) {
	cpu := s.idleCPU()
	s.mu.Lock()
	i := &s.idle
	was := i.quiet
	same := was != nil && was.packets == packets
	switch {
	case i.asleep:
		timer, hibernate := i.timerIsDue(now, s.node.idleTick()), s.mayHibernate(now, false)
		i.looking = timer || !same || hibernate
		s.mu.Unlock()
		switch {
		case timer:
			s.lookInBackground(s.wakeForTimer)
		case !same:
			s.lookInBackground(s.wakeForPackets)
		case hibernate:
			s.lookInBackground(s.tryHibernate)
		}
		return
	case !same:
		i.quiet = &quiet{since: now, packets: packets, cpu: cpu}
		s.mu.Unlock()
		return
	}
	i.looking = true
	s.mu.Unlock()
	s.lookInBackground(func() { s.sleepIfIdle(now, *was, cpu) })
}

// lookInBackground runs f with looking set.
func (s *session) lookInBackground(f func()) {
	began := s.spawn(func() {
		defer s.stopLooking()
		f()
	})
	if !began {
		s.stopLooking()
	}
}

func (s *session) stopLooking() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.looking = false
}

// idleCPU returns the CPU time that the machine has used, 0 if the mode ignores it.
func (s *session) idleCPU() time.Duration {
	s.mu.Lock()
	matters := s.idleMode().WithProcesses() && !s.idle.asleep
	s.mu.Unlock()
	if !matters {
		return 0
	}
	used, err := s.machine().Usage()
	if err != nil {
		return 0 // it has ended
	}
	return used.CPU
}

// wakeForPackets wakes a session to which something was sent.
func (s *session) wakeForPackets() {
	if done, err := s.use(s.ctx); err == nil { // an error was logged, and ends the session
		done()
	}
}

// sleepIfIdle pauses a session that nobody has used for long enough, unless the programs
// in it must continue. In that case a new time without use begins.
func (s *session) sleepIfIdle(now time.Time, was quiet, cpu time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), pauseTimeout)
	defer cancel()
	idle, until, err := s.runsNothing(ctx, now, was, cpu)
	if err == nil && idle {
		err = s.sleep(ctx, until)
	}
	if err != nil && s.ctx.Err() == nil && !s.machineEnded() {
		s.node.cfg.Log.Warn("cannot pause an idle session", "session", s.id, "error", err)
	}
	if err != nil || !idle {
		s.mu.Lock()
		s.idle.restart()
		s.mu.Unlock()
	}
}

// runsNothing reports whether no program in the session must continue, or none before the
// time until, for which one waits.
func (s *session) runsNothing(ctx context.Context, now time.Time, was quiet, cpu time.Duration) (idle bool, until time.Time, err error) {
	s.mu.Lock()
	mode, running := s.idleMode(), s.running
	s.mu.Unlock()
	if !mode.WithProcesses() {
		if running > 0 {
			return false, until, nil // no need to ask the sentry
		}
		a, idle, err := s.activity(ctx)
		return idle && a.Processes == 0, until, err
	}
	if used := cpu - was.cpu; float64(used) > idleCPU*float64(now.Sub(was.since)) {
		return false, until, nil
	}
	if connected, err := s.node.connected(ctx); err != nil || connected[s.lease.Interface().Address.Addr()] {
		return false, until, err
	}
	if idle, until, err = s.awaitsTimer(ctx); err != nil || !idle {
		return false, until, err
	}
	idle, err = s.computesNothing()
	return idle, until, err
}

// computesNothing reports whether the machine uses no CPU time at the moment. What has
// just begun to compute must not be stopped in the middle: nothing would resume it.
func (s *session) computesNothing() (bool, error) {
	before, err := s.machine().Usage()
	if err != nil {
		return false, err
	}
	select {
	case <-time.After(idleGlance):
	case <-s.ctx.Done():
		return false, nil
	}
	after, err := s.machine().Usage()
	return float64(after.CPU-before.CPU) <= idleCPU*float64(idleGlance), err
}

// activity asks the machine what runs in it, unless the session is used or paused by
// now. A machine that was paused while it is asked would answer after its resumption.
func (s *session) activity(ctx context.Context) (a driver.Activity, idle bool, err error) {
	err = s.alone(ctx, func() (err error) {
		s.mu.Lock()
		idle = s.live && !s.stopping && !s.frozen && s.idle.users == 0
		s.mu.Unlock()
		if idle {
			a, err = s.machine().Activity(ctx)
		}
		return err
	})
	return a, idle, err
}

// sleep pauses the session, at most until a time if that is not zero, unless it is in use
// again.
func (s *session) sleep(ctx context.Context, until time.Time) error {
	return s.alone(ctx, func() error {
		s.mu.Lock()
		idle := s.live && !s.stopping && !s.frozen && s.idle.users == 0 && s.idle.quiet != nil
		if idle {
			// Set before the machine is paused: from here on a use waits for it, and
			// heartbeat does not take the agent for dead.
			s.idle.asleep, s.idle.until, s.idle.since, s.frozen = true, until, time.Now(), true
			s.idle.reclaimed, s.idle.swapped = false, false
		}
		s.mu.Unlock()
		if !idle {
			return nil
		}
		if err := s.machine().Pause(ctx); err != nil {
			s.mu.Lock()
			s.frozen = false
			s.thaws++
			s.mu.Unlock()
			s.endSleep()
			return err
		}
		s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionAsleep, SessionID: s.id})
		s.meterAll()
		return nil
	})
}

// SetIdle implements nodeapi.Node.
func (n *Node) SetIdle(ctx context.Context, id string, mode skerry.IdleMode) (err error) {
	defer edge(ctx, &err)
	if mode != "" {
		if err := mode.Validate("idle"); err != nil {
			return err
		}
	}
	s, err := n.find(id)
	if err != nil {
		return err
	}
	if err := s.change(ctx, func() {
		s.idle.mode = mode
		s.idle.restart()
	}); err != nil {
		return err
	}
	s.mu.Lock()
	never := s.idleMode() == skerry.IdleNever
	s.mu.Unlock()
	if !never {
		return nil
	}
	return s.wake(ctx)
}

// openConnections caches which sandboxes had connections to the outside, and when.
type openConnections struct {
	mu   sync.Mutex
	at   time.Time
	list map[netip.Addr]bool
}

// connected returns the sandboxes that have connections to the outside. One listing of the
// host's connections serves all sessions of a check.
func (n *Node) connected(ctx context.Context) (map[netip.Addr]bool, error) {
	c := &n.connections
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list == nil || time.Since(c.at) > n.idleTick()/2 {
		list, err := n.cfg.Networks.Connected(ctx)
		if err != nil {
			return nil, err
		}
		c.list, c.at = list, time.Now()
	}
	return c.list, nil
}
