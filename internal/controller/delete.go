package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// DeleteSandbox implements api.Service. The session's files are not saved
// before: whoever wants them stops the sandbox first.
func (c *sandboxes) DeleteSandbox(ctx context.Context, scope skerry.Scope, name string, orphans bool) (*skerry.Sandbox, error) {
	sandbox, err := c.store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	// A start in progress holds the sandbox's lock; it is ended first.
	if s := c.sessionOf(sandbox.ID); s != nil {
		if _, _, err := s.stop(ctx, discarding, false); err != nil {
			return nil, err
		}
	}
	unlock, err := c.lifecycles.lock(ctx, sandbox.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s := c.sessionOf(sandbox.ID); s != nil {
		if err := c.discard(ctx, s); err != nil {
			return nil, err
		}
	}
	last, err := c.store.Sandbox(ctx, sandbox.ID)
	if err != nil {
		return nil, err
	}
	ids, err := c.store.SessionIDs(ctx, sandbox.ID)
	if err != nil {
		return nil, err
	}
	if err := c.try(func(ctx context.Context) error { return c.store.DeleteSandbox(ctx, sandbox.ID) }); err != nil {
		// It may have been done all the same: only the store can say.
		c.inBackground("see whether a sandbox was deleted", func(ctx context.Context) error {
			_, missing := c.store.Sandbox(ctx, sandbox.ID)
			if skerry.CodeOf(missing) == skerry.CodeNotFound {
				c.deleteRest(last, ids, orphans)
				return nil
			}
			return missing
		})
		return nil, err
	}
	c.deleteRest(last, ids, orphans)
	return last, nil
}

// deleteRest deletes what a deleted sandbox leaves.
func (c *sandboxes) deleteRest(sandbox *skerry.Sandbox, sessionIDs []string, orphans bool) {
	c.ports.withdraw(sandbox.ID)
	c.forget(sessionIDs)
	c.untilDone("delete the snapshots of a deleted sandbox", func(ctx context.Context) error {
		var err error
		if src := sandbox.Source; src != nil && src.Type == "snapshot" {
			err = c.snapshots.deleteForFork(ctx, sandbox.Scope, src.SnapshotID)
		}
		if orphans {
			err = errors.Join(err, c.snapshots.deleteOrphans(ctx, sandbox.ID))
		}
		return err
	})
}

// discard ends a session and lets its files go. It waits for an attempt to
// save them that is under way, for a while, and continues if that fails.
func (c *sandboxes) discard(ctx context.Context, s *session) error {
	for {
		e, mine, err := s.stop(ctx, discarding, false)
		if err != nil {
			return err
		}
		if !mine {
			patience := time.AfterFunc(c.cfg.StopGrace, e.force)
			defer patience.Stop()
		}
		err = e.wait(ctx)
		if err == nil || mine || !e.over() || ctx.Err() != nil {
			return err
		}
	}
}

// erase removes a sandbox without a session that runs from the store and from the
// machines.
func (c *sandboxes) erase(ctx context.Context, sandboxID string) error {
	ids, err := c.store.SessionIDs(ctx, sandboxID)
	if err != nil {
		return err
	}
	// The store comes first: what it does not name is removed by Recover, but
	// what it names must be there.
	if err := c.store.DeleteSandbox(ctx, sandboxID); err != nil {
		return err
	}
	c.ports.withdraw(sandboxID)
	c.forget(ids)
	return nil
}
