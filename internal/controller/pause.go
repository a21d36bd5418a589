package controller

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// A paused session is a running one whose machine stands still: PausedAt is
// set. Calls that need the machine resume it (resumedSession), calls that only read do not.
// Pauses and resumes are steps of one lane (session.pauses).

// PauseSession implements api.Service.
func (c *sessions) PauseSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	s, err := c.runningSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	// The pause is made and recorded even if the client has gone.
	if err := s.pauses.do(ctx, s.pause); err != nil {
		return nil, c.failure(ctx, s, err)
	}
	run := s.state()
	return &run, nil
}

// mayChange refuses a pause or a resume of a session that does not run or is
// about to end.
func (s *session) mayChange() error {
	if err := s.usable(); err != nil {
		return err
	}
	if e := s.attempt.Load(); e != nil && !e.over() {
		return skerry.Errorf(skerry.CodeSandboxStopping, "session %s is stopping", s.id)
	}
	return nil
}

// pause is a step of pauses.
func (s *session) pause() error {
	if err := s.mayChange(); err != nil || !s.state().PausedAt.IsZero() {
		return err
	}
	err := s.try(func(ctx context.Context) error { return s.node.Pause(ctx, s.id) })
	if nodeapi.OutcomeUnknown(err) {
		s.unpause()
	}
	if err != nil {
		return err
	}
	if err := s.recordPaused(skerry.At(time.Now())); err != nil {
		s.unpause()
		return err
	}
	s.log.Info("session paused", "session", s.id, "sandbox", s.sandboxID)
	return nil
}

// unpause resumes a session that is paused, or may be, although that is not
// recorded.
func (s *session) unpause() {
	s.inBackground("resume session "+s.id, func(ctx context.Context) error {
		err := s.pauses.do(ctx, func() error {
			if s.mayChange() != nil || !s.state().PausedAt.IsZero() {
				return nil
			}
			return s.node.Resume(ctx, s.id)
		})
		if isGone(err) {
			return nil
		}
		return err
	})
}

// ResumeSession implements api.Service.
func (c *sessions) ResumeSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	s, err := c.resumedSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	run := s.state()
	return &run, nil
}

// resumedSession returns a session that commands can run in: one that is paused is
// resumed.
func (c *sessions) resumedSession(ctx context.Context, scope skerry.Scope, id string) (*session, error) {
	s, err := c.runningSession(ctx, scope, id)
	if err != nil {
		return nil, c.losses.tell(id, err)
	}
	return s, c.failure(ctx, s, s.resume(ctx))
}

// resume has a session that is paused continue.
func (s *session) resume(ctx context.Context) error {
	if s.state().PausedAt.IsZero() {
		return nil
	}
	return s.pauses.do(ctx, s.resumeNow)
}

// resumeNow is a step of pauses.
func (s *session) resumeNow() error {
	if err := s.mayChange(); err != nil || s.state().PausedAt.IsZero() {
		return err
	}
	if err := s.try(func(ctx context.Context) error { return s.node.Resume(ctx, s.id) }); err != nil {
		return err
	}
	s.log.Info("session resumed", "session", s.id, "sandbox", s.sandboxID)
	err := s.recordPaused(skerry.Time{})
	if err != nil {
		// Its machine runs; the store will say so when it can.
		s.tell(func() {
			if !s.state().Status.Ended() {
				s.fixLater(func(run *skerry.Session) { run.PausedAt = skerry.Time{} })
			}
		})
	}
	return err
}

// recordPaused records whether a session is paused, unless it has begun to stop.
func (s *session) recordPaused(at skerry.Time) error {
	return s.record(func(run *skerry.Session) error {
		if run.Status != skerry.StatusRunning {
			return s.usable()
		}
		run.PausedAt = at
		return nil
	})
}

// pauseAgain is for a session that was paused when the service ended: taking it
// over has resumed it. It is a step of pauses.
func (s *session) pauseAgain() error {
	err := s.try(func(ctx context.Context) error { return s.node.Pause(ctx, s.id) })
	if err == nil {
		return nil
	}
	s.log.Error("cannot pause a session again", "session", s.id, "error", err)
	s.tell(func() { s.fixLater(func(run *skerry.Session) { run.PausedAt = skerry.Time{} }) })
	if nodeapi.OutcomeUnknown(err) {
		s.unpause()
	}
	return nil
}
