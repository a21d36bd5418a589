package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// sweepEvery is how often expired snapshots are looked for, and collectAfter
// how long after a deletion their bytes are removed: deletions come in groups.
const (
	sweepEvery   = time.Minute
	collectAfter = 5 * time.Second
)

// retain applies a sandbox's retention after a new snapshot.
func (c *Controller) retain(ctx context.Context, boxID string) {
	if err := c.evict(ctx, boxID); err != nil {
		c.cfg.Log.Error("cannot apply the retention of snapshots", "sandbox", boxID, "error", err)
	}
}

func (c *Controller) evict(ctx context.Context, boxID string) error {
	box, err := c.cfg.Store.Sandbox(ctx, boxID)
	if err != nil || box.Retention == nil {
		return err
	}
	snaps, err := c.cfg.Store.SnapshotsOf(ctx, boxID)
	if err != nil {
		return err
	}
	kept := 0
	for i := range snaps {
		snap := &snaps[i]
		if snap.CreationMethod == skerry.CreatedForFork {
			continue // the fork's, not the sandbox's
		}
		if kept++; kept <= box.Retention.Count || snap.ID == box.CurrentSnapshotID {
			continue
		}
		if err := c.evictOne(ctx, box, snap); err != nil {
			return err
		}
	}
	return nil
}

// evictOne deletes a snapshot that retention does not keep, or gives it the
// sandbox's default expiration. One that other sandboxes start from is let be.
func (c *Controller) evictOne(ctx context.Context, box *skerry.Sandbox, snap *skerry.Snapshot) error {
	if used, err := c.cfg.Store.SnapshotUsed(ctx, snap.ID); err != nil || used {
		return err
	}
	if box.Retention.DeleteEvicted == nil || *box.Retention.DeleteEvicted {
		c.collectSoon()
		return c.drop(ctx, snap)
	}
	expires := expiry(snap.CreatedAt, defaultExpiration(box))
	if expires == snap.ExpiresAt {
		return nil
	}
	snap.ExpiresAt, snap.UpdatedAt = expires, skerry.At(time.Now())
	return c.cfg.Store.SaveSnapshot(ctx, snap)
}

// dropForFork deletes a snapshot that was taken to fork a sandbox, once nothing
// starts from it any more: nobody has asked for it by itself.
func (c *Controller) dropForFork(ctx context.Context, scope skerry.Scope, id string) error {
	snap, err := c.cfg.Store.Snapshot(ctx, scope, id)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil
	}
	if err != nil || snap.CreationMethod != skerry.CreatedForFork || snap.Status != skerry.SnapshotCreated {
		return err
	}
	if used, err := c.cfg.Store.SnapshotUsed(ctx, id); err != nil || used {
		return err
	}
	c.collectSoon()
	return c.drop(ctx, snap)
}

// deleteOrphans deletes the snapshots of a sandbox that is gone, but for those
// that other sandboxes start from.
func (c *Controller) deleteOrphans(ctx context.Context, box *skerry.Sandbox) error {
	snaps, err := c.cfg.Store.SnapshotsOf(ctx, box.ID)
	if err != nil {
		return err
	}
	for i := range snaps {
		used, err := c.cfg.Store.SnapshotUsed(ctx, snaps[i].ID)
		if err == nil && !used {
			err = c.drop(ctx, &snaps[i])
		}
		if err != nil {
			return err
		}
	}
	c.collectSoon()
	return nil
}

// collectSoon asks for a collection.
func (c *Controller) collectSoon() {
	select {
	case c.garbage <- struct{}{}:
	default:
	}
}

// sweep deletes expired snapshots and collects what nothing names, until the
// controller closes.
func (c *Controller) sweep() {
	expire := time.NewTicker(sweepEvery)
	defer expire.Stop()
	var due <-chan time.Time
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-expire.C:
			if err := c.expire(c.ctx); err != nil && c.ctx.Err() == nil {
				c.cfg.Log.Error("cannot delete expired snapshots", "error", err)
			}
		case <-c.garbage:
			if due == nil {
				due = time.After(collectAfter)
			}
		case <-due:
			due = nil
			if err := c.collect(c.ctx); err != nil && c.ctx.Err() == nil {
				c.cfg.Log.Error("cannot remove deleted snapshots", "error", err)
			}
		}
	}
}

func (c *Controller) expire(ctx context.Context) error {
	snaps, err := c.cfg.Store.ExpiredSnapshots(ctx, skerry.At(time.Now()))
	for i := range snaps {
		err = errors.Join(err, c.drop(ctx, &snaps[i]))
	}
	if len(snaps) > 0 {
		c.cfg.Log.Info("snapshots expired", "count", len(snaps))
		c.collectSoon()
	}
	return err
}

// collect removes the bytes that no snapshot needs. No snapshot is between
// being saved and being named meanwhile.
func (c *Controller) collect(ctx context.Context) error {
	c.unnamed.Lock()
	defer c.unnamed.Unlock()
	keep, err := c.cfg.Store.Manifests(ctx)
	if err != nil {
		return err
	}
	freed, err := c.cfg.Node.CollectSnapshots(ctx, keep)
	if err == nil && freed > 0 {
		c.cfg.Log.Info("removed the bytes of deleted snapshots", "bytes", freed)
	}
	return err
}
