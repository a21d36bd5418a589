package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// ending is an attempt to end a session: a stop, with or without a snapshot
// before it, or what follows a loss. At most one is under way; one that fails
// leaves the session running, and another may follow.
type ending struct {
	done chan struct{}
	// Set before done is closed.
	err      error
	snapshot *skerry.Snapshot
}

// claimEnding returns the attempt that is under way or has succeeded, or a new
// one that the caller must settle (mine).
func (l *live) claimEnding() (_ *ending, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending != nil {
		return l.ending, false
	}
	l.ending = &ending{done: make(chan struct{})}
	return l.ending, true
}

// settle says how an attempt went.
func (l *live) settle(e *ending, err error) {
	l.mu.Lock()
	e.err = err
	if err != nil {
		l.ending = nil
	}
	l.mu.Unlock()
	close(e.done)
}

// wait returns how the attempt went.
func (e *ending) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// saving says whether a stop takes a snapshot, and which.
type saving struct {
	// method is empty for a stop that lets the files go.
	method     skerry.CreationMethod
	expiration *skerry.Duration
	// memory has the snapshot hold what the session runs too.
	memory bool
}

// discarding is the stop that lets the files go.
var discarding = saving{}

// usualSaving is how a session is stopped when nobody says otherwise.
func (l *live) usualSaving() saving {
	if l.session().Persistent {
		return saving{method: skerry.CreatedAtStop}
	}
	return discarding
}

// StopSession implements api.Service.
func (c *Controller) StopSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error) {
	l := c.liveSession(id)
	if l == nil || l.scope != scope {
		return c.GetSession(ctx, scope, id)
	}
	e, _ := c.beginStop(l, l.usualSaving())
	if err := e.wait(ctx); err != nil {
		return nil, err
	}
	run, err := c.GetSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	run.Snapshot = e.snapshot
	return run, nil
}

// beginStop has a session stopped, or joins the attempt that is under way.
func (c *Controller) beginStop(l *live, how saving) (_ *ending, mine bool) {
	e, mine := l.claimEnding()
	if !mine {
		return e, false
	}
	err := c.spawn(func() {
		err := c.stopNow(l, e, how)
		l.settle(e, err)
		if err != nil {
			c.cfg.Log.Error("cannot stop a session", "session", l.id, "sandbox", l.boxID, "error", err)
			c.arm(l, stopRetry)
		}
	})
	if err != nil {
		// The controller closes; the next one finds the session.
		l.settle(e, err)
	}
	return e, true
}

// stopRetry is how long a session that could not be stopped when its time was
// up goes on until the next attempt.
const stopRetry = 30 * time.Second

// stopNow ends a session. If it fails the session runs on.
func (c *Controller) stopNow(l *live, e *ending, how saving) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
	defer cancel()
	asked := skerry.At(time.Now())
	stopping := func(run *skerry.Session) { run.RequestedStopAt, run.PausedAt = asked, skerry.Time{} }
	if l.session().Status == skerry.StatusPending {
		if err := c.transition(ctx, l, skerry.StatusStopping, stopping); err == nil {
			// The start sees that it is no longer wanted, and ends the session.
			if l.cancelStart != nil {
				l.cancelStart()
			}
			<-l.started
			if l.startErr == nil {
				c.finish(ctx, l, skerry.StatusStopped, "")
			}
			return nil
		}
		// It has come up or failed just now.
	}
	if how.method != "" {
		if err := c.saveAndStop(ctx, l, e, how, asked); err != nil {
			return err
		}
	} else if err := c.transition(ctx, l, skerry.StatusStopping, stopping); err != nil {
		if l.session().Status.Ended() {
			return nil
		}
		return err
	}
	l.disarm()
	c.finish(ctx, l, skerry.StatusStopped, "")
	return nil
}

// watch ends a session whose machine was lost.
func (c *Controller) watch(l *live) {
	reason, err := c.cfg.Node.Watch(c.ctx, l.id)
	if c.ctx.Err() != nil {
		return
	}
	if err != nil {
		reason = "it was lost"
		c.cfg.Log.Error("cannot watch a session", "session", l.id, "error", err)
	}
	if reason == "" {
		return // it was stopped
	}
	for {
		e, mine := l.claimEnding()
		if mine {
			c.abort(l, reason)
			l.settle(e, nil)
			return
		}
		// A stop that needs the machine fails now, one that does not succeeds.
		if e.wait(c.ctx) == nil || c.ctx.Err() != nil {
			return
		}
	}
}

func (c *Controller) abort(l *live, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
	defer cancel()
	l.disarm()
	c.finish(ctx, l, skerry.StatusAborted, reason)
}

// finish gives back what a session holds and records its end.
func (c *Controller) finish(ctx context.Context, l *live, status skerry.SessionStatus, reason string) {
	usage, err := c.cfg.Node.Stop(ctx, l.id)
	if err != nil {
		c.cfg.Log.Error("cannot give back all of a session", "session", l.id, "sandbox", l.boxID, "error", err)
	}
	c.endCommands(l)
	now := skerry.At(time.Now())
	err = c.transition(ctx, l, status, func(run *skerry.Session) {
		run.Reason = reason
		run.StoppedAt, run.PausedAt = now, skerry.Time{}
		if status == skerry.StatusAborted {
			run.AbortedAt = now
		}
		if !run.StartedAt.IsZero() {
			run.Duration = skerry.Duration(now.Sub(run.StartedAt.Time))
		}
		run.ActiveCPU = skerry.Duration(usage.ActiveCPU)
		run.Network = &skerry.NetworkTransfer{Ingress: usage.IngressBytes, Egress: usage.EgressBytes}
	})
	if err != nil {
		c.cfg.Log.Error("cannot record a session's end", "session", l.id, "error", err)
	}
	c.prune(ctx, l.boxID)
	c.end(l)
}

// end lets go of a session that is over.
func (c *Controller) end(l *live) {
	c.saver.flush()
	c.delist(l)
	close(l.ended)
}

// prune forgets the oldest of a sandbox's ended sessions.
func (c *Controller) prune(ctx context.Context, boxID string) {
	ids, err := c.cfg.Store.PruneSessions(ctx, boxID, keepSessions)
	for _, id := range ids {
		err = errors.Join(err, c.cfg.Node.Forget(ctx, id))
	}
	if err != nil {
		c.cfg.Log.Error("cannot forget old sessions", "sandbox", boxID, "error", err)
	}
}

// DeleteSandbox implements api.Service. The session's files are not saved
// before: whoever wants them stops the sandbox first.
func (c *Controller) DeleteSandbox(ctx context.Context, scope skerry.Scope, name string, orphans bool) (*skerry.Sandbox, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	// A start in progress holds the sandbox's lock; it is ended first.
	if l := c.liveOf(box.ID); l != nil {
		c.beginStop(l, discarding)
	}
	unlock, err := c.boxes.lock(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if l := c.liveOf(box.ID); l != nil {
		if err := c.discard(ctx, l); err != nil {
			return nil, err
		}
	}
	last, err := c.cfg.Store.Sandbox(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	if err := c.erase(context.WithoutCancel(ctx), box.ID); err != nil {
		return nil, err
	}
	if src := last.Source; src != nil && src.Type == "snapshot" {
		err = c.dropForFork(context.WithoutCancel(ctx), scope, src.SnapshotID)
	}
	if orphans {
		err = errors.Join(err, c.deleteOrphans(context.WithoutCancel(ctx), last))
	}
	return last, err
}

// discard ends a session and lets its files go. It waits for an attempt to
// save them that is under way, and goes on where that fails.
func (c *Controller) discard(ctx context.Context, l *live) error {
	for {
		e, mine := c.beginStop(l, discarding)
		err := e.wait(ctx)
		if err == nil || mine || ctx.Err() != nil {
			return err
		}
	}
}

// erase removes a sandbox without a live session from the store and from the
// machines.
func (c *Controller) erase(ctx context.Context, boxID string) error {
	ids, err := c.cfg.Store.SessionIDs(ctx, boxID)
	if err != nil {
		return err
	}
	// The store comes first: what it does not name is removed by Recover, but
	// what it names must be there.
	if err := c.cfg.Store.DeleteSandbox(ctx, boxID); err != nil {
		return err
	}
	c.withdraw(boxID)
	for _, id := range ids {
		err = errors.Join(err, c.cfg.Node.Forget(ctx, id))
	}
	return err
}
