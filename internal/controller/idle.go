package controller

import (
	"context"

	"github.com/skerry-dev/skerry"
)

// The node pauses sessions that nobody uses, and resumes them at the next use. The
// controller only tells the node the idle mode, and shows the state that the node reports.

// tellIdle tells the node the idle mode of the session's sandbox, in the background.
func (s *session) tellIdle() {
	s.idleNews.tell(s.background, "tell the node the idle mode of session "+s.id, s.sendIdle)
}

// sendIdle sends the stored idle mode to the node.
func (s *session) sendIdle(ctx context.Context) error {
	select {
	case <-s.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.startErr != nil || s.state().Status.Ended() {
		return nil
	}
	sandbox, err := s.store.Sandbox(ctx, s.sandboxID)
	if err == nil {
		err = s.node.SetIdle(ctx, s.id, sandbox.Idle)
	}
	if isGone(err) || skerry.CodeOf(err) == skerry.CodeNotFound { // the sandbox was deleted
		return nil
	}
	return err
}

// setIdle records the state that the node reports.
func (s *session) setIdle(state skerry.IdleState) { s.idle.Store(&state) }

// idleState returns the idle state to show for a session.
func (s *session) idleState(run *skerry.Session) skerry.IdleState {
	if state := s.idle.Load(); state != nil && run.Status == skerry.StatusRunning && run.PausedAt.IsZero() {
		return *state
	}
	return ""
}

// showIdle sets the idle state of a sandbox to that of its current session.
func (c *sessions) showIdle(sandbox *skerry.Sandbox) {
	if s := c.sessionOf(sandbox.ID); s != nil && s.id == sandbox.CurrentSessionID {
		sandbox.IdleState = s.state().IdleState
	}
}
