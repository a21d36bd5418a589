package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// StopSession implements api.Service.
func (c *Controller) StopSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error) {
	l := c.liveSession(id)
	if l == nil || l.scope != scope {
		return c.GetSession(ctx, scope, id)
	}
	c.beginStop(l)
	select {
	case <-l.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.GetSession(ctx, scope, id)
}

// beginStop has a session stopped, once; l.ended tells when it has. While the
// controller closes it does nothing: the next one finds the session.
func (c *Controller) beginStop(l *live) {
	l.stop.Do(func() {
		// An error means that the controller closes.
		_ = c.spawn(func() { c.stopNow(l) })
	})
}

func (c *Controller) stopNow(l *live) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
	defer cancel()
	asked := skerry.At(time.Now())
	err := c.transition(ctx, l, skerry.StatusStopping, func(run *skerry.Session) { run.RequestedStopAt = asked })
	if err != nil {
		// It has failed or was lost just now: that end is seen to elsewhere.
		c.cfg.Log.Info("session cannot be stopped", "session", l.id, "error", err)
		return
	}
	l.disarm()
	select {
	case <-l.started:
	default:
		// The start sees that it is no longer wanted, and ends the session.
		if l.cancelStart != nil {
			l.cancelStart()
		}
		<-l.started
		if l.startErr != nil {
			return
		}
	}
	c.finish(ctx, l, skerry.StatusStopped, "")
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
	l.stop.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
		defer cancel()
		l.disarm()
		c.finish(ctx, l, skerry.StatusAborted, reason)
	})
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
		run.StoppedAt = now
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

// DeleteSandbox implements api.Service.
func (c *Controller) DeleteSandbox(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	// A start in progress holds the sandbox's lock; it is ended first.
	if l := c.liveOf(box.ID); l != nil {
		c.beginStop(l)
	}
	unlock, err := c.boxes.lock(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if l := c.liveOf(box.ID); l != nil {
		c.beginStop(l)
		select {
		case <-l.ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	last, err := c.cfg.Store.Sandbox(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	return last, c.erase(context.WithoutCancel(ctx), box.ID)
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
	for _, id := range ids {
		err = errors.Join(err, c.cfg.Node.Forget(ctx, id))
	}
	return err
}
