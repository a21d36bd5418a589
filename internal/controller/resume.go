package controller

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry"
)

// GetSandbox implements api.Service.
func (c *sandboxes) GetSandbox(ctx context.Context, scope skerry.Scope, name string, resume bool) (*skerry.Run, error) {
	sandbox, err := c.store.SandboxByName(ctx, scope, name)
	if err != nil {
		if skerry.CodeOf(err) == skerry.CodeNotFound && len(name) <= skerry.MaxNameLength {
			c.absences.tell(scope, name, time.Now())
		}
		return nil, err
	}
	resumed := false
	if resume {
		if resumed, err = c.resume(ctx, sandbox.ID); err != nil {
			return nil, err
		}
	}
	return c.runOf(ctx, sandbox.ID, resumed)
}

// resume sees to it that a sandbox has a running session. It waits for a stop
// in progress; callers that come together share one new session.
func (c *sandboxes) resume(ctx context.Context, sandboxID string) (resumed bool, err error) {
	for {
		s, mine, err := c.currentOrNew(ctx, sandboxID)
		if err != nil {
			return false, err
		}
		if mine {
			return true, s.startErr
		}
		again, err := c.awaitChange(ctx, s, &resumed)
		if !again {
			return resumed, err
		}
	}
}

// awaitChange waits for a session that others start or stop, and resumes one that is
// paused. Again says that it must be looked at once more.
func (c *sandboxes) awaitChange(ctx context.Context, s *session, resumed *bool) (again bool, err error) {
	switch s.state().Status {
	case skerry.StatusRunning:
		err := s.resume(ctx)
		return err != nil && s.state().Status != skerry.StatusRunning, err
	case skerry.StatusPending:
		*resumed = true
		err := c.awaitStart(ctx, s)
		return err == nil, err
	}
	// It is on its way to its end, or being saved, and may continue after that.
	if e := s.attempt.Load(); e != nil {
		select {
		case <-e.done:
			if s.state().Status == skerry.StatusRunning || e.err == nil {
				return true, nil
			}
		case <-e.stalled:
			return false, e.held
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	err = c.awaitEnd(ctx, s)
	return err == nil, err
}

// currentOrNew returns the session of a sandbox that has not ended, or starts
// one (mine) and waits for it.
func (c *sandboxes) currentOrNew(ctx context.Context, sandboxID string) (_ *session, mine bool, err error) {
	if s := c.sessionOf(sandboxID); s != nil {
		return s, false, nil
	}
	unlock, err := c.lifecycles.lock(ctx, sandboxID)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	if s := c.sessionOf(sandboxID); s != nil {
		return s, false, nil
	}
	if err := c.mayStart(sandboxID); err != nil {
		return nil, false, err
	}
	sandbox, err := c.store.Sandbox(ctx, sandboxID)
	if err != nil {
		return nil, false, err
	}
	current := sandbox.CurrentSnapshotID
	if !sandbox.Persistent {
		current = "" // kept for when it is persistent again
	}
	from, err := c.basisOf(ctx, sandbox.Scope, sandbox.Image, current, sandbox.Source)
	if err != nil {
		return nil, false, err
	}
	if from.mounts, err = c.drives.find(ctx, sandbox.Scope, sandbox.Mounts); err != nil {
		return nil, false, err
	}
	s, err := c.nextSession(ctx, sandbox, from)
	if err != nil {
		return nil, false, err
	}
	return s, true, c.awaitStart(ctx, s)
}

// nextSession gives a sandbox that has none a new session.
func (c *sandboxes) nextSession(ctx context.Context, sandbox *skerry.Sandbox, from basis) (*session, error) {
	id, now := skerry.NewID(skerry.PrefixSession), skerry.At(time.Now())
	run := newRun(sandbox, id, from, now)
	size := roomOf(&run)
	return c.begin(ctx, size, func() (skerry.Session, error) {
		_, _, err := c.store.AddSession(ctx, sandbox.ID, func(sandbox *skerry.Sandbox) (*skerry.Session, error) {
			run = newRun(sandbox, id, from, now)
			if roomOf(&run) != size {
				return nil, skerry.Errorf(skerry.CodeConflict, "the sandbox's size is being changed; try again")
			}
			added := run
			return &added, nil
		})
		return run, err
	}, func(ctx context.Context, s *session) error { return c.bringUp(ctx, s, from) })
}

// runOf returns a sandbox with its current session.
func (c *sandboxes) runOf(ctx context.Context, sandboxID string, resumed bool) (*skerry.Run, error) {
	sandbox, err := c.store.Sandbox(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	run, err := c.readSession(ctx, sandbox.Scope, sandbox.CurrentSessionID)
	if err != nil {
		return nil, err
	}
	return c.answer(sandbox, run, resumed), nil
}
