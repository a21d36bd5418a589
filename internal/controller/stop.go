package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// saving says whether a stop takes a snapshot, which, and what if it fails.
type saving struct {
	// method is empty for a stop that lets the files go.
	method     skerry.CreationMethod
	expiration *skerry.Duration
	// memory has the snapshot hold what the session runs too.
	memory bool
	// overdue is for a session whose time is up: it ends without being saved
	// when it could not be saved for its grace.
	overdue bool
	// final is for the end of the service: a session whose sandbox cannot be
	// saved ends at once.
	final bool
}

// discarding is the stop that lets the files go.
var discarding = saving{}

// usualSaving is how a session is stopped when nobody says otherwise.
func (s *session) usualSaving() saving {
	if s.state().Persistent {
		return saving{method: skerry.CreatedAtStop}
	}
	return discarding
}

// interruptedSaving is how a session was being saved when the service ended.
func (s *session) interruptedSaving() saving {
	if was := s.state().Saving; was != nil {
		return saving{method: was.Method, memory: was.Memory, expiration: was.Expiration}
	}
	return s.usualSaving() // an earlier version has begun it
}

// StopSession implements api.Service.
func (c *sessions) StopSession(ctx context.Context, scope skerry.Scope, id string, p skerry.StopParams) (*skerry.Run, error) {
	s := c.session(id)
	if s == nil || s.scope != scope {
		return c.stoppedBefore(ctx, scope, id)
	}
	e, _, err := s.stop(ctx, s.usualSaving(), p.Force)
	if err == nil {
		err = e.wait(ctx)
	}
	if err != nil {
		return nil, err
	}
	run, err := c.GetSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	run.Snapshot = e.snapshot
	return run, nil
}

// stoppedBefore answers the stop of a session that has ended: as it did then, for a client
// that the first answer did not reach.
func (c *sessions) stoppedBefore(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error) {
	run, err := c.GetSession(ctx, scope, id)
	if err != nil || run.Session.SnapshottedAt.IsZero() || run.Sandbox.CurrentSnapshotID == "" {
		return run, err
	}
	snap, err := c.store.Snapshot(ctx, scope, run.Sandbox.CurrentSnapshotID)
	switch {
	case skerry.CodeOf(err) == skerry.CodeNotFound: // it was deleted in between
		return run, nil
	case err != nil:
		return nil, err
	case snap.SourceSessionID == id && snap.CreationMethod == skerry.CreatedAtStop:
		run.Snapshot = snap
	}
	return run, nil
}

// stop has a session stopped, or joins the attempt that is under way. With force
// the session ends whether or not it is saved, also in an attempt of somebody
// else's.
func (s *session) stop(ctx context.Context, how saving, force bool) (e *ending, mine bool, err error) {
	err = s.ask(ctx, func() {
		if s.ending == nil {
			s.actFor(ctx)
		}
		e, mine = s.beginEnding(how, force)
	})
	if err != nil && s.state().Status.Ended() {
		return s.attempt.Load(), false, nil // which has succeeded
	}
	return e, mine, err
}

// stopNow ends a session that has started. If it fails the session continues. It
// is called in a step.
func (s *session) stopNow(e *ending, how saving) error {
	asked := skerry.At(time.Now())
	e.timeUp = how.overdue
	saved, reason := false, ""
	if how.method != "" && !e.isForced() {
		err := s.saveAndStop(e, how, asked)
		if err != nil && !s.givesUp(e, how, err) && s.goOn(e) {
			return err
		}
		if saved = err == nil; !saved {
			reason = s.unsaved(err)
		}
	} else if e.isForced() {
		reason = s.unsaved(nil)
	}
	if !saved {
		err := s.recordTransition(skerry.StatusStopping, func(run *skerry.Session) {
			run.RequestedStopAt, run.PausedAt = asked, skerry.Time{}
		})
		// What must end does so although that cannot be recorded yet.
		if err != nil && !e.isForced() && !how.overdue && !how.final && reason == "" {
			return err
		}
	}
	return s.finish(e, skerry.StatusStopped, reason)
}

// stopStart ends a session that is starting. The step that starts it sees that,
// ends the session and settles the attempt. Only the reconciler calls it.
func (s *session) stopStart(e *ending) {
	err := s.write(func(run *skerry.Session) error {
		run.Status, run.RequestedStopAt = skerry.StatusStopping, skerry.At(time.Now())
		return nil
	})
	if err != nil {
		s.settle(e, err)
		return
	}
	s.cancelStart()
}

// expectLoss ends the session when the node tells that it was lost.
func (s *session) expectLoss() {
	s.expected.session(s.id, func(loss nodeapi.Loss) {
		// An error means that the controller closes: the next one is told too.
		_ = s.spawn(func() { s.tell(func() { s.lost(loss) }) })
	}, s.tellDeadline, s.setIdle)
}

// lost ends a session that was lost. An attempt to end it that is under way comes
// first: one that needs the machine fails now, one that does not succeeds. Only
// the reconciler calls it.
func (s *session) lost(loss nodeapi.Loss) {
	s.loss = &loss
	if s.state().Status.Ended() {
		return
	}
	if e, mine := s.claimEnding(); mine {
		s.endBy(e, func() error { return s.endLost(e, loss) })
	}
}

// endLost ends a session that was lost. What its machine still has of files is
// saved first: whoever is root in a sandbox can end its guest agent, and a
// mistake must not cost the work of hours. It is called in a step.
func (s *session) endLost(e *ending, loss nodeapi.Loss) error {
	how := s.usualSaving()
	if !loss.Savable || how.method == "" {
		s.losses.add(s.id)
		return s.finish(e, skerry.StatusAborted, loss.Reason)
	}
	began := time.Now()
	for waits := s.backoff(); ; {
		err := s.saveAndStop(e, how, skerry.Time{})
		if err == nil {
			return s.finish(e, skerry.StatusAborted, loss.Reason+"; the files were saved")
		}
		left := s.graceFor(err) - time.Since(began)
		if left <= 0 || isGone(err) || e.isForced() || errors.Is(err, errSaveHangs) {
			s.losses.add(s.id)
			return s.finish(e, skerry.StatusAborted, loss.Reason+"; "+s.unsaved(err))
		}
		s.log.Error("cannot save a session that was lost, trying again", "session", s.id, "sandbox", s.sandboxID, "error", err)
		select {
		case <-time.After(min(waits.wait(), left)):
		case <-e.forced:
		case <-s.ctx.Done():
			return errClosing() // the next server finds it as this one did
		}
	}
}

// prune forgets the oldest of a sandbox's ended sessions.
func (c *sessions) prune(sandboxID string) {
	c.untilDone("forget old sessions of sandbox "+sandboxID, func(ctx context.Context) error {
		ids, err := c.store.PruneSessions(ctx, sandboxID, keepSessions)
		c.forget(ids)
		return err
	})
}

// forget has the node remove what is left of sessions that the store does not
// have any more.
func (c *sessions) forget(ids []string) {
	for _, id := range ids {
		c.untilDone("forget session "+id, func(ctx context.Context) error { return c.node.Forget(ctx, id) })
	}
}
