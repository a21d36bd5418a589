package node

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// The controller ends a session at its deadline, and saves it first if it is
// persistent. The node knows the deadline too, for the case that there is no
// controller: if nobody reads the events, and the deadline has passed by a grace, it
// pauses the session. That ends what the session does, and loses nothing: a controller
// that comes back saves and stops the paused session, or extends its time, which
// resumes it. A node must not stop it instead, because only the controller can name
// what was saved.
const (
	// deadlineGrace is how long after its deadline a session is paused at the
	// earliest.
	deadlineGrace = time.Minute
	// silentAfter is how long nobody reads the events until the controller counts as
	// gone. A controller that lives reads all the time; after errors it waits half a
	// minute at most.
	silentAfter = time.Minute
	// deadlineTick is the interval of checks.
	deadlineTick = 15 * time.Second
	// pauseTimeout is the maximum time for pausing one session.
	pauseTimeout = 30 * time.Second
)

// SetDeadline implements nodeapi.Node.
func (n *Node) SetDeadline(ctx context.Context, id string, left time.Duration) (err error) {
	defer edge(ctx, &err)
	s, err := n.find(id)
	if err != nil {
		return err
	}
	if err := s.setDeadline(ctx, left); err != nil {
		return err
	}
	// From here on timeIsUp goes by the new deadline. Only one that was paused before
	// has to be resumed, and only that waits for a save.
	if left <= 0 || !s.isOverdue() {
		return nil
	}
	if err := s.saving.enter(ctx); err != nil {
		return err
	}
	defer s.saving.leave()
	return s.alone(ctx, func() error {
		if !s.isOverdue() {
			return nil
		}
		return s.thaw(ctx)
	})
}

// setDeadline records the deadline, also for a later process.
func (s *session) setDeadline(ctx context.Context, left time.Duration) error {
	return s.change(ctx, func() { s.deadline = time.Now().Add(left) })
}

// change makes a change to what a later process is to know, with mu held.
func (s *session) change(ctx context.Context, f func()) error {
	// The state must not be written when a stop has removed it.
	if err := s.ending.enter(ctx); err != nil {
		return err
	}
	defer s.ending.leave()
	if s.isStopping() {
		return errStopped(s.id)
	}
	if s.starting() {
		return errStarting(s.id)
	}
	s.mu.Lock()
	f()
	s.mu.Unlock()
	return s.saveState()
}

// isOverdue reports whether the node has paused the session.
func (s *session) isOverdue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overdue
}

// guardDeadlines pauses sessions whose time is up while there is no controller.
func (n *Node) guardDeadlines() {
	if !n.cfg.Driver.Capabilities().Pause {
		return // such sessions run until the controller comes back
	}
	tick := time.NewTicker(deadlineTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		if n.events.Silence() < silentAfter {
			continue
		}
		for _, s := range n.all() {
			if s.timeIsUp() {
				s.spawn(s.pauseOverdue)
			}
		}
	}
}

// timeIsUp reports whether the session runs although its time is up. It reports that
// once, until the session is resumed or could not be paused.
func (s *session) timeIsUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	up := s.live && !s.stopping && (!s.frozen || s.idle.asleep) && !s.overdue && !s.deadline.IsZero() && time.Since(s.deadline) > deadlineGrace
	s.overdue = s.overdue || up
	return up
}

// pauseOverdue pauses a session whose time is up.
func (s *session) pauseOverdue() {
	ctx, cancel := context.WithTimeout(s.ctx, pauseTimeout)
	defer cancel()
	err := s.saving.enter(ctx)
	if err == nil {
		defer s.saving.leave()
		err = s.standing.enter(ctx)
	}
	if err == nil {
		defer s.standing.leave()
		if _, frozen := s.standstills(); frozen && !s.isAsleep() { // somebody else was quicker
			s.setOverdue(false)
			return
		}
		s.setOverdue(true) // a use may have resumed it meanwhile
		err = s.freeze(ctx)
	}
	if err != nil {
		s.node.cfg.Log.Error("cannot pause a session whose time is up", "session", s.id, "error", err)
		s.setOverdue(false)
		return
	}
	s.node.cfg.Log.Warn("paused a session whose time is up, because there is no controller", "session", s.id)
	s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionOverdue, SessionID: s.id})
}

func (s *session) setOverdue(overdue bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overdue = overdue
}
