package node

import (
	"context"
	"slices"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

// In the modes pause and hibernate a session sleeps even if its processes wait for timers. It is woken for the
// next timer, if the driver can list timers, and falls asleep again soon afterwards. Many
// programs poll: they set short timers again and again. Those timers are ignored, because
// otherwise no session with such a program would ever sleep. Whatever such a program could
// find is a use of the session, and wakes it.
const (
	// pollTime is the maximum duration of a timer that counts as a poll.
	pollTime = 5 * time.Second
	// wokenPause is the time without use after which a session that was woken for a timer
	// is paused again. It is woken up to an idleTick early.
	wokenPause = 3 * time.Second
)

// awaitsTimer returns when the session must be resumed for its processes, zero for never.
// It reports false if that is too soon for a pause.
func (s *session) awaitsTimer(ctx context.Context) (idle bool, until time.Time, err error) {
	first, idle, err := s.activity(ctx)
	if err != nil || !idle {
		return false, until, err
	}
	timers, now := first.Timers, time.Now()
	if len(timers) > 0 && timers[0].Left < pollTime {
		// Timers that are still set after that time are not polls.
		select {
		case <-time.After(pollTime):
		case <-s.ctx.Done():
			return false, until, nil
		}
		a, idle, err := s.activity(ctx)
		if err != nil || !idle {
			return false, until, err
		}
		timers, now = a.Timers, time.Now()
	}
	left, soon := nextTimer(first.Timers, timers)
	if left > 0 {
		until = now.Add(left)
	}
	timeout := s.nextTimeout()
	if soon || !timeout.IsZero() && timeout.Sub(now) < pollTime {
		return false, until, nil
	}
	if until.IsZero() || !timeout.IsZero() && timeout.Before(until) {
		until = timeout
	}
	return true, until, nil
}

// nextTimer returns the time until the next timer that is not a poll, 0 if there is none,
// and whether such a timer expires too soon for a pause. before are the timers of pollTime
// ago.
func nextTimer(before, now []driver.Timer) (left time.Duration, soon bool) {
	for _, t := range now {
		if t.Left >= pollTime {
			if left == 0 || t.Left < left {
				left = t.Left
			}
			continue
		}
		soon = soon || slices.ContainsFunc(before, func(b driver.Timer) bool { return b.ID == t.ID })
	}
	return left, soon
}

// nextTimeout returns when the next command reaches its time limit, zero if none has one.
func (s *session) nextTimeout() (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.commands {
		if at := c.proc.Timeout(); !c.over() && !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// idlePause returns the time without use after which the session is paused. mu is held.
func (s *session) idlePause() time.Duration {
	if s.idle.woken {
		return min(wokenPause, s.node.cfg.IdlePause)
	}
	return s.node.cfg.IdlePause
}

// timerIsDue reports whether a session that is asleep must be woken before the next check.
func (i *idle) timerIsDue(now time.Time, tick time.Duration) bool {
	return !i.until.IsZero() && !now.Add(tick).Before(i.until)
}

// wakeForTimer wakes the session for a timer of its processes.
func (s *session) wakeForTimer() {
	if err := s.wake(s.ctx); err != nil {
		return // which was logged, and ends the session
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.woken = s.idle.users == 0
}
