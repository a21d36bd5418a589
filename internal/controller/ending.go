package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// ending is an attempt to end a session: a stop, with or without a snapshot
// before it, what follows a loss, or a start that failed. At most one is under
// way; one that fails leaves the session running, and another may follow.
type ending struct {
	done chan struct{}
	// Set before done is closed.
	err      error
	snapshot *skerry.Snapshot

	// stalled is closed when the attempt is held up by something that is
	// repeated until it succeeds; held says by what.
	stalled   chan struct{}
	stallOnce sync.Once
	held      error

	// forced is closed when the session is to end whether or not it is saved.
	forced    chan struct{}
	forceOnce sync.Once

	// timeUp says that the session ends because its time is up. It is set in the step.
	timeUp bool
}

func newEnding() *ending {
	return &ending{done: make(chan struct{}), stalled: make(chan struct{}), forced: make(chan struct{})}
}

// force has the session end even if its files cannot be saved. A save that is
// under way is given up.
func (e *ending) force() { e.forceOnce.Do(func() { close(e.forced) }) }

func (e *ending) isForced() bool {
	select {
	case <-e.forced:
		return true
	default:
		return false
	}
}

// stall tells whoever waits that the attempt is held up.
func (e *ending) stall(err error) {
	e.stallOnce.Do(func() {
		e.held = err
		close(e.stalled)
	})
}

// wait returns how the attempt went, or CodeUnavailable while it is held up.
func (e *ending) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return e.err
	default:
	}
	select {
	case <-e.done:
		return e.err
	case <-e.stalled:
		return e.held
	case <-ctx.Done():
		return ctx.Err()
	}
}

// over reports whether the attempt has come to an end.
func (e *ending) over() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// beginEnding has the session stopped, or joins the attempt that is under way.
// With force the session ends whether or not it is saved, also in an attempt of
// somebody else's. Only the reconciler calls it.
func (s *session) beginEnding(how saving, force bool) (_ *ending, mine bool) {
	e, mine := s.claimEnding()
	if force {
		e.force()
	}
	if !mine {
		return e, false
	}
	if s.state().Status == skerry.StatusPending {
		s.stopStart(e)
		return e, true
	}
	s.endBy(e, func() error { return s.stopNow(e, how) })
	return e, true
}

// claimEnding returns the attempt that is under way or has succeeded, or a new
// one (mine). Only the reconciler calls it.
func (s *session) claimEnding() (_ *ending, mine bool) {
	if s.ending != nil {
		return s.ending, false
	}
	s.ending = newEnding()
	s.attempt.Store(s.ending)
	return s.ending, true
}

// endBy runs an attempt to end the session as a step, after the pause or resume
// that is under way. Only the reconciler calls it.
func (s *session) endBy(e *ending, end func() error) {
	busy := s.pauses.idle // nil if there never was one
	var err error
	s.step(func() {
		if busy != nil {
			select {
			case <-busy:
			case <-time.After(s.cfg.abandonAfter): // it does not return; the session ends all the same
			}
		}
		ctx, span := tracing.Start(s.onBehalf(s.ctx), "session.end")
		span.Session(s.id)
		s.actFor(ctx)
		err = end()
		span.End(err)
	}, func() { s.settle(e, err) })
}

// settle says how an attempt went. One that failed leaves the session as it was:
// another follows at its deadline, or at once if the session was lost meanwhile.
// Only the reconciler calls it.
func (s *session) settle(e *ending, err error) {
	e.err = err
	s.behalf.Store(nil)
	if err != nil {
		s.ending = nil
	}
	close(e.done)
	if err == nil || s.state().Status.Ended() {
		return
	}
	if errors.Is(err, errInterrupted) {
		s.log.Info("the save was interrupted and begins again", "session", s.id, "sandbox", s.sandboxID)
	} else {
		s.log.Error("cannot stop a session", "session", s.id, "sandbox", s.sandboxID, "error", err)
	}
	if s.ctx.Err() != nil {
		return // the next process finds the session
	}
	if s.loss != nil {
		s.lost(*s.loss)
		return
	}
	if s.state().Status != skerry.StatusPending {
		s.arm(s.nextAttempt(err))
	}
}

// persevere repeats f until it succeeds, with growing waits. It returns an error
// only when the controller closes, for the next one finds the session as the
// store has it, or when giveUp, which may be nil, is closed. After each failure
// delayed is called, with what waiters are told.
func (s *session) persevere(doing string, f func(context.Context) error, delayed func(error), giveUp <-chan struct{}) error {
	waits := s.backoff()
	for {
		err := s.try(f)
		if err == nil {
			return nil
		}
		wait := waits.wait()
		s.log.Error("cannot "+doing+", trying again", "session", s.id, "sandbox", s.sandboxID, "in", wait, "error", err)
		delayed(skerry.Errorf(skerry.CodeUnavailable, "session %s: the server cannot %s at the moment; it keeps trying", s.id, doing))
		select {
		case <-time.After(wait):
		case <-giveUp:
			return err
		case <-s.ctx.Done():
			return err
		}
	}
}

// holdUp tells whoever waits for a session's end that it is held up.
func (s *session) holdUp(e *ending) func(error) {
	return func(err error) {
		e.stall(err)
		s.heldOnce.Do(func() { close(s.held) })
	}
}

// finish gives back what a session holds and records its end. Nothing counts as
// given back, and the session as ended, before it is so: both are repeated. It is
// called in a step.
func (s *session) finish(e *ending, status skerry.SessionStatus, reason string) error {
	var usage nodeapi.Usage
	err := s.persevere("release the resources of the session", func(ctx context.Context) (err error) {
		usage, err = s.node.Stop(ctx, s.id)
		return err
	}, s.holdUp(e), nil)
	if err != nil {
		return err
	}
	s.awaitEnds()
	s.endCommands()
	return s.recordEnd(e, status, func(run *skerry.Session) {
		endedAt(run, status, reason)
		setUsage(run, usage)
	})
}

func setUsage(run *skerry.Session, usage nodeapi.Usage) {
	run.ActiveCPU, run.ResidentMBSeconds = skerry.Duration(usage.ActiveCPU), usage.ResidentMBSeconds
	run.Network = &skerry.NetworkTransfer{Ingress: usage.IngressBytes, Egress: usage.EgressBytes}
}

// endedAt sets what a session shows of its end, which is now.
func endedAt(run *skerry.Session, status skerry.SessionStatus, reason string) {
	now := skerry.At(time.Now())
	run.Reason = reason
	run.StoppedAt, run.PausedAt = now, skerry.Time{}
	if status == skerry.StatusAborted {
		run.AbortedAt = now
	}
	if !run.StartedAt.IsZero() {
		run.Duration = skerry.Duration(now.Sub(run.StartedAt.Time))
	}
}

// recordEnd writes a session's end, after the ends of its commands and the
// retention of its sandbox's snapshots, and lets go of the session. It is called in a step.
func (s *session) recordEnd(e *ending, status skerry.SessionStatus, change func(*skerry.Session)) error {
	err := s.persevere("record the end of the session", func(ctx context.Context) error {
		if err := s.saver.flush(ctx); err != nil {
			return err
		}
		if !s.state().SnapshottedAt.IsZero() { // before the end, so that a restart finds it undone
			if err := s.snapshots.retain(ctx, s.sandboxID); err != nil {
				return err
			}
		}
		// A stop that could not be recorded as begun is recorded with its end.
		if status == skerry.StatusStopped && s.state().Status.CanBecome(skerry.StatusStopping) {
			if err := s.recordTransition(skerry.StatusStopping, nil); err != nil {
				return err
			}
		}
		return s.recordTransition(status, change)
	}, s.holdUp(e), nil)
	if err != nil {
		return err
	}
	if s.cfg.Ended != nil {
		s.cfg.Ended(s.state(), e.timeUp)
	}
	s.delist(s)
	close(s.ended)
	s.prune(s.sandboxID)
	return nil
}

// awaitEnd waits for the end of a session that is on its way to it, and returns
// CodeUnavailable if that is held up.
func (c *sessions) awaitEnd(ctx context.Context, s *session) error {
	select {
	case <-s.ended:
		return nil
	default:
	}
	select {
	case <-s.ended:
		return nil
	case <-s.held:
		return errHeld(s.id)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return errClosing()
	}
}

func errHeld(id string) error {
	return skerry.Errorf(skerry.CodeUnavailable, "session %s has ended, but the server cannot record its end at the moment; it keeps trying", id)
}
