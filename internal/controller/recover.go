package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
)

// Recover takes over what an earlier process left: sessions that still run
// are adopted, the others get the end that they came to. It is called once,
// before anything else. A session that was being saved goes on, and is stopped
// anew.
func (c *Controller) Recover(ctx context.Context) error {
	runs, err := c.cfg.Store.LiveSessions(ctx)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	keep := map[string]NetworkSpec{}
	for _, run := range runs {
		if run.Status == skerry.StatusRunning || run.Status == skerry.StatusSnapshotting {
			keep[run.ID] = networkSpec(&run)
		}
	}
	adopted, err := c.cfg.Node.Recover(ctx, keep)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	var errs []error
	for _, run := range runs {
		l := newLive(run)
		close(l.started)
		if err := c.enlist(l); err != nil {
			return err
		}
		if slices.Contains(adopted, run.ID) {
			errs = append(errs, c.adopt(ctx, l))
		} else {
			errs = append(errs, c.bury(ctx, l))
		}
	}
	errs = append(errs, c.publishAgain(ctx))
	// What no session in the store owns is from one that was being deleted.
	known, err := c.cfg.Store.SessionIDs(ctx, "")
	if err == nil {
		err = c.cfg.Node.Retain(ctx, known)
	}
	// So is a drive that the store does not know, or it was not yet created.
	drives, derr := c.cfg.Store.DriveIDs(ctx)
	if derr == nil {
		derr = c.cfg.Node.RetainDrives(ctx, drives)
	}
	if err := errors.Join(append(errs, err, derr)...); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	c.collectSoon()
	return c.spawn(c.sweep)
}

// adopt goes on with a session that runs.
func (c *Controller) adopt(ctx context.Context, l *live) error {
	c.cfg.Log.Info("session adopted", "session", l.id, "sandbox", l.boxID)
	cmds, err := c.cfg.Store.Commands(ctx, l.id)
	if err != nil {
		return err
	}
	for _, past := range cmds {
		cmd := &command{done: make(chan struct{}), cmd: past}
		l.add(cmd)
		if past.Finished() {
			close(cmd.done)
			l.finished = append(l.finished, past.ID)
			continue
		}
		if err := c.spawn(func() { c.await(l, past.ID, cmd, past.StartedAt.Time) }); err != nil {
			return err
		}
	}
	if err := c.spawn(func() { c.watch(l) }); err != nil {
		return err
	}
	if run := l.session(); run.Status != skerry.StatusSnapshotting {
		if !run.PausedAt.IsZero() {
			c.pauseAgain(ctx, l)
		}
		c.arm(l, 0)
		return nil
	}
	if err := c.transition(ctx, l, skerry.StatusRunning, nil); err != nil {
		return err
	}
	c.beginStop(l, l.usualSaving())
	return nil
}

// bury records the end of a session that is no more. One that was being
// created has no one who knows of it, so its sandbox goes with it.
func (c *Controller) bury(ctx context.Context, l *live) error {
	cmds, err := c.cfg.Store.Commands(ctx, l.id)
	if err != nil {
		return err
	}
	for _, past := range cmds {
		if past.Finished() {
			continue
		}
		code := lostExitCode
		past.ExitCode = &code
		past.Duration = skerry.Duration(time.Since(past.StartedAt.Time))
		c.saver.save(past)
	}
	run := l.session()
	to, reason := skerry.StatusAborted, "the service was restarted and the sandbox did not survive it"
	switch run.Status {
	case skerry.StatusPending:
		to, reason = skerry.StatusFailed, "the service was restarted while it started"
	case skerry.StatusStopping:
		to, reason = skerry.StatusStopped, ""
	}
	now := skerry.At(time.Now())
	err = c.transition(ctx, l, to, func(run *skerry.Session) {
		run.Reason, run.StoppedAt, run.PausedAt = reason, now, skerry.Time{}
		if to == skerry.StatusAborted {
			run.AbortedAt = now
		}
		if !run.StartedAt.IsZero() {
			run.Duration = skerry.Duration(now.Sub(run.StartedAt.Time))
		}
	})
	c.end(l)
	if err != nil || to != skerry.StatusFailed {
		return err
	}
	ids, err := c.cfg.Store.SessionIDs(ctx, l.boxID)
	if err != nil || len(ids) > 1 {
		return err
	}
	return c.erase(ctx, l.boxID)
}
