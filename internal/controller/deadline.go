package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
)

// stopRetries are the waits after a stop that failed. An attempt may write
// gigabytes.
func (c *sessions) stopRetries() backoff { return backoff{5 * c.cfg.firstRetry, 2 * lastRetry} }

// arm sets the deadline: when the session's time is up, but not before atLeast
// has passed. Only the reconciler calls it.
func (s *session) arm(atLeast time.Duration) {
	if s.state().Status.Ended() {
		return
	}
	left := s.left()
	if left > 0 { // also if it was extended when it was overdue
		s.overdue, s.retries = time.Time{}, s.stopRetries()
	}
	s.deadline.Reset(max(left, atLeast))
}

// left is what is left of the session's time. It is counted from the first look
// on: a clock that jumps afterwards changes nothing. Only the reconciler calls it.
func (s *session) left() time.Duration {
	run := s.believed.Load()
	if s.began.IsZero() {
		ago := max(0, time.Since(run.StartedAt.Round(0)))
		s.began = time.Now().Add(-min(ago, run.Timeout.Std()))
	}
	return run.Timeout.Std() - time.Since(s.began)
}

// tellDeadline tells the node when the session's time is up, in the background. That
// resumes a session that the node has paused although it has time left. One without is
// stopped by the timer.
func (s *session) tellDeadline() {
	s.deadlineNews.tell(s.background, "tell the node the deadline of session "+s.id, s.sendDeadline)
}

// sendDeadline tells the node the deadline as it is now.
func (s *session) sendDeadline(ctx context.Context) error {
	var left time.Duration
	if err := s.ask(ctx, func() { left = s.left() }); err != nil && ctx.Err() != nil {
		return err
	} else if err != nil || left <= 0 {
		return nil // it has ended, or is about to
	}
	if err := s.node.SetDeadline(ctx, s.id, left); err != nil && !isGone(err) {
		return err
	}
	return nil
}

// timeUp stops a session whose time is up. Only the reconciler calls it.
func (s *session) timeUp() {
	if s.state().Status.Ended() {
		return
	}
	if s.overdue.IsZero() {
		s.overdue = time.Now()
	}
	s.log.Info("session timed out", "session", s.id, "sandbox", s.sandboxID)
	how := s.usualSaving()
	how.overdue = true
	left := s.graceLeft(s.cfg.SaveGrace)
	s.arm(max(left, s.cfg.firstRetry)) // an attempt that fails sets it sooner
	if e, mine := s.beginEnding(how, false); !mine && left <= 0 {
		e.force() // whatever holds it up
	}
}

// graceLeft is what is left of a grace that began when the session's time was
// up. Only the reconciler calls it.
func (s *session) graceLeft(grace time.Duration) time.Duration {
	if s.overdue.IsZero() {
		return grace
	}
	return grace - time.Since(s.overdue)
}

// nextAttempt is how long a session whose stop failed continues at least until
// the next attempt: no longer than its grace. Only the reconciler calls it.
func (s *session) nextAttempt(err error) time.Duration {
	return max(0, min(s.retries.wait(), s.graceLeft(s.graceFor(err))))
}

// ExtendTimeout implements api.Service.
func (c *sessions) ExtendTimeout(ctx context.Context, scope skerry.Scope, id string, by skerry.Duration) (*skerry.Session, error) {
	if err := skerry.ValidatePositive("duration", by); err != nil {
		return nil, err
	}
	s, err := c.runningSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	asked := s.ask(ctx, func() {
		if err = s.write(func(run *skerry.Session) error { return s.extend(run, by) }); err == nil {
			s.arm(0)
			s.tellDeadline()
		}
	})
	if asked != nil || err != nil {
		return nil, firstError(asked, err)
	}
	run := s.state()
	return &run, nil
}

func (s *session) extend(run *skerry.Session, by skerry.Duration) error {
	if run.Status != skerry.StatusRunning {
		return s.usable()
	}
	// Compared so that a huge duration does not overflow.
	if by.Std() > s.cfg.MaxTimeout-run.Timeout.Std() {
		return &skerry.Error{Code: skerry.CodeTimeoutInvalid, Field: "duration",
			Message: fmt.Sprintf("would extend the timeout beyond the maximum of %s", s.cfg.MaxTimeout)}
	}
	run.Timeout += by
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
