package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// A paused session is a running one whose machine stands still: PausedAt is
// set. What needs the machine resumes it (awake), what only reads does not.
// live.pausing makes pauses and resumes follow one another.

// PauseSession implements api.Service.
func (c *Controller) PauseSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	l, err := c.running(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	// A client that goes away must not leave a pause that nobody knows of.
	if err := c.pause(context.WithoutCancel(ctx), l); err != nil {
		return nil, c.failure(ctx, l, err)
	}
	run := l.session()
	return &run, nil
}

func (c *Controller) pause(ctx context.Context, l *live) error {
	l.pausing.Lock()
	defer l.pausing.Unlock()
	if run := l.session(); run.Status != skerry.StatusRunning || !run.PausedAt.IsZero() {
		return l.usable()
	}
	if err := c.cfg.Node.Pause(ctx, l.id); err != nil {
		return err
	}
	err := c.setPaused(ctx, l, skerry.At(time.Now()))
	if err != nil {
		return errors.Join(err, c.cfg.Node.Resume(ctx, l.id))
	}
	c.cfg.Log.Info("session paused", "session", l.id, "sandbox", l.boxID)
	return nil
}

// ResumeSession implements api.Service.
func (c *Controller) ResumeSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	l, err := c.awake(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	run := l.session()
	return &run, nil
}

// awake returns a session that commands can run in: one that is paused is
// resumed.
func (c *Controller) awake(ctx context.Context, scope skerry.Scope, id string) (*live, error) {
	l, err := c.running(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	return l, c.failure(ctx, l, c.wake(context.WithoutCancel(ctx), l))
}

func (c *Controller) wake(ctx context.Context, l *live) error {
	if run := l.session(); run.PausedAt.IsZero() {
		return nil
	}
	l.pausing.Lock()
	defer l.pausing.Unlock()
	if run := l.session(); run.Status != skerry.StatusRunning || run.PausedAt.IsZero() {
		return l.usable()
	}
	if err := c.cfg.Node.Resume(ctx, l.id); err != nil {
		return err
	}
	c.cfg.Log.Info("session resumed", "session", l.id, "sandbox", l.boxID)
	return c.setPaused(ctx, l, skerry.Time{})
}

// setPaused records whether a session is paused, unless it has begun to stop.
func (c *Controller) setPaused(ctx context.Context, l *live, at skerry.Time) error {
	return c.editSession(ctx, l, func(run *skerry.Session) error {
		if run.Status != skerry.StatusRunning {
			return l.usable()
		}
		run.PausedAt = at
		return nil
	}, c.cfg.Store.SaveSession)
}

// pauseAgain is for a session that was paused when the service ended: taking it
// over has resumed it.
func (c *Controller) pauseAgain(ctx context.Context, l *live) {
	if err := c.cfg.Node.Pause(ctx, l.id); err != nil {
		c.cfg.Log.Error("cannot pause a session again", "session", l.id, "error", err)
		if err := c.setPaused(ctx, l, skerry.Time{}); err != nil {
			c.cfg.Log.Error("cannot record that a session goes on", "session", l.id, "error", err)
		}
	}
}
