package controller

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Recover takes over what an earlier process left: sessions that still run
// are adopted, the others get the end that they came to. It is called once,
// before anything else. A session that was being saved continues, and is stopped
// again. What cannot be recovered is logged, and delays nothing else: Recover
// fails only if it cannot know what runs, or cannot end the leases of earlier saves.
func (c *Controller) Recover(ctx context.Context) error {
	runs, err := c.cfg.Store.LiveSessions(ctx)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	// The saves of the server before have failed. New ones begin later.
	if err := c.snapshots.store.EndLeases(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	keep := map[string]nodeapi.NetworkSpec{}
	for _, run := range runs {
		if run.Status == skerry.StatusRunning || run.Status == skerry.StatusSnapshotting {
			keep[run.ID] = networkSpec(&run)
		}
	}
	adopted, err := c.recoverNode(ctx, func() map[string]nodeapi.NetworkSpec { return keep })
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	for _, run := range runs {
		err := c.recoverSession(run, slices.Contains(adopted, run.ID))
		c.unrecovered("a session", err, "session", run.ID, "sandbox", run.SandboxID)
	}
	c.unrecovered("published ports", c.ports.recover(ctx))
	// What no session in the store owns is from one that was being deleted.
	known, err := c.cfg.Store.SessionIDs(ctx, "")
	if err == nil {
		err = c.cfg.Node.Retain(ctx, known)
	}
	c.unrecovered("what is left of deleted sessions", err)
	c.unrecovered("what is left of deleted drives", c.drives.recover(ctx))
	c.collectSoon()
	if err := c.spawn(c.follow); err != nil {
		return err
	}
	return c.spawn(c.sweep)
}

func (c *Controller) unrecovered(what string, err error, attrs ...any) {
	if err != nil {
		c.log.Error("cannot recover "+what, append(attrs, "error", err)...)
	}
}

// recoverNode has the node recover. It waits for a node that does not answer. wanted
// is called for every attempt.
func (c *sessions) recoverNode(ctx context.Context, wanted func() map[string]nodeapi.NetworkSpec) ([]string, error) {
	for waits := c.backoff(); ; {
		adopted, err := c.node.Recover(ctx, wanted())
		if !errors.Is(err, nodeapi.ErrUnreachable) {
			return adopted, err
		}
		wait := waits.wait()
		c.log.Error("cannot recover sessions, trying again", "in", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// recoverSession takes over a session, or records its end.
func (c *Controller) recoverSession(run skerry.Session, adopted bool) error {
	s := c.newSession(run)
	s.cancelStart()
	close(s.started)
	// However many there are: the limit is for new ones.
	c.registry.Lock()
	c.take(s.room, 1)
	c.registry.Unlock()
	c.list(s)
	if err := c.spawn(s.reconcile); err != nil {
		close(s.gone)
		return err
	}
	if adopted {
		return s.adopt()
	}
	e := newEnding()
	s.tell(func() { s.bury(e, c.sandboxes.eraseUncreated) })
	select {
	case <-e.done:
		return e.err
	case <-e.stalled:
		return e.held
	case <-s.gone:
		return s.errGone()
	}
}

// adopt continues with a session that runs.
func (s *session) adopt() error {
	s.log.Info("session adopted", "session", s.id, "sandbox", s.sandboxID)
	if err := s.try(s.adoptCommands); err != nil {
		s.keepTrying("take over the commands of session "+s.id, err, s.adoptCommands, nil)
	}
	run := s.state()
	s.expectLoss()
	s.expected.confirmSession(s.id)
	s.tellDeadline()
	s.tellIdle()
	s.tell(func() {
		if run.Status == skerry.StatusRunning {
			s.arm(0)
			return
		}
		// It continues with being saved. Its time still ends it if that fails.
		s.arm(s.cfg.firstRetry)
		s.stopAgain()
	})
	if run.Status == skerry.StatusRunning && !run.PausedAt.IsZero() {
		return s.pauses.do(s.ctx, s.pauseAgain)
	}
	return nil
}

// adoptCommands waits for the ends of the commands that run. It can be called
// again after an error.
func (s *session) adoptCommands(ctx context.Context) error {
	var running []*command
	var ended []string
	for past, err := range s.storedCommands(ctx) {
		if err != nil {
			return err
		}
		if past.Finished() {
			ended = append(ended, past.ID)
		} else if _, saved := s.saver.latest(past.ID); !saved && s.commands.get(past.ID) == nil {
			running = append(running, &command{done: make(chan struct{}), cmd: past})
		}
	}
	s.commands.adopt(ended)
	for _, cmd := range running {
		s.commands.add(cmd)
		s.expect(cmd)
		s.expected.confirmCommand(cmd.get().ID)
	}
	return nil
}

// stopAgain stops a session that was being saved when the service ended. Only the
// reconciler calls it.
func (s *session) stopAgain() {
	e, mine := s.claimEnding()
	if !mine {
		return
	}
	var err error
	s.step(func() {
		if s.goOn(e) {
			err = errInterrupted
		} else {
			err = s.finish(e, skerry.StatusStopped, s.unsaved(nil))
		}
	}, func() {
		s.settle(e, err)
		if errors.Is(err, errInterrupted) && s.ctx.Err() == nil {
			s.beginEnding(s.interruptedSaving(), false)
		}
	})
}

// errInterrupted is what became of a save when the service ended.
var errInterrupted = skerry.Errorf(skerry.CodeUnavailable, "the server was restarted while the session was being saved")

// bury records the end of a session that is no more. If it was being created, no
// one knows of it, and uncreated removes its sandbox. Only the reconciler calls it.
func (s *session) bury(e *ending, uncreated func(sandboxID string)) {
	s.ending = e
	s.attempt.Store(e)
	to, reason := skerry.StatusAborted, "the server was restarted, and the sandbox did not survive the restart"
	switch s.state().Status {
	case skerry.StatusPending:
		to, reason = skerry.StatusFailed, "the server was restarted while the session was starting"
	case skerry.StatusStopping:
		to, reason = skerry.StatusStopped, ""
	}
	s.endBy(e, func() error {
		err := s.persevere("record the ends of the session's commands", s.buryCommands, s.holdUp(e), nil)
		if err != nil {
			return err
		}
		// The node has nothing of it, or could not end what is left.
		var usage nodeapi.Usage
		err = s.persevere("release the resources of the session", func(ctx context.Context) (err error) {
			usage, err = s.node.Stop(ctx, s.id)
			return err
		}, s.holdUp(e), nil)
		if err != nil {
			return err
		}
		err = s.recordEnd(e, to, func(run *skerry.Session) {
			endedAt(run, to, reason)
			if usage != (nodeapi.Usage{}) {
				setUsage(run, usage)
			}
		})
		if err == nil && to == skerry.StatusFailed {
			uncreated(s.sandboxID)
		}
		return err
	})
}

// buryCommands records that the commands that ran have ended.
func (s *session) buryCommands(ctx context.Context) error {
	for past, err := range s.storedCommands(ctx) {
		if err != nil {
			return err
		}
		if past.Finished() {
			continue
		}
		code := lostExitCode
		past.ExitCode = &code
		past.Duration = skerry.Duration(time.Since(past.StartedAt.Time))
		s.saver.save(past)
	}
	return nil
}

// eraseUncreated removes a sandbox whose only session never came up.
func (c *sandboxes) eraseUncreated(sandboxID string) {
	c.untilDone("remove a sandbox that was being created", func(ctx context.Context) error {
		unlock, err := c.lifecycles.lock(ctx, sandboxID)
		if err != nil {
			return err
		}
		defer unlock()
		ids, err := c.store.SessionIDs(ctx, sandboxID)
		if err != nil || len(ids) > 1 || c.sessionOf(sandboxID) != nil {
			return err
		}
		return c.erase(ctx, sandboxID)
	})
}

// storedCommands goes through a session's commands in the store, the oldest first. An
// error ends it.
func (s *session) storedCommands(ctx context.Context) iter.Seq2[skerry.Command, error] {
	return func(yield func(skerry.Command, error) bool) {
		page := skerry.Page{Limit: skerry.MaxPageSize, Ascending: true}
		for {
			list, next, err := s.store.ListCommands(ctx, s.id, page)
			if err != nil {
				yield(skerry.Command{}, err)
				return
			}
			for _, cmd := range list {
				if !yield(cmd, nil) {
					return
				}
			}
			if page.Cursor = next; next == "" {
				return
			}
		}
	}
}
