package controller

import (
	"context"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
)

// A snapshot is committed in this order: its bytes are in the blob store for
// good, then one transaction names it and says what it means for its sandbox
// and session. What a crash leaves without a name is garbage, which collect
// removes; what has a name can be loaded. While a snapshot is between the two,
// c.unnamed is held for reading, and nothing is collected.

// saveAndStop takes a snapshot of a session that is to stop, and leaves the
// session stopping. If it fails the session runs as before.
func (c *Controller) saveAndStop(ctx context.Context, l *live, e *ending, how saving, asked skerry.Time) error {
	err := c.transition(ctx, l, skerry.StatusSnapshotting, func(run *skerry.Session) {
		run.RequestedStopAt, run.PausedAt = asked, skerry.Time{}
	})
	if err != nil {
		return err
	}
	c.unnamed.RLock()
	defer c.unnamed.RUnlock()
	saved, err := c.cfg.Node.Snapshot(ctx, l.id, Saving{Hold: true, Memory: how.memory})
	if err == nil {
		e.snapshot, err = c.commit(ctx, l, saved, how)
		if err != nil {
			err = fmt.Errorf("%w (session goes on: %v)", err, c.cfg.Node.Resume(ctx, l.id))
		}
	}
	if err != nil {
		terr := c.transition(ctx, l, skerry.StatusRunning, func(run *skerry.Session) { run.RequestedStopAt = skerry.Time{} })
		if terr != nil {
			c.cfg.Log.Error("cannot record that a session goes on", "session", l.id, "error", terr)
		}
		return err
	}
	c.retain(ctx, l.boxID)
	return nil
}

// commit names a snapshot: it becomes the current one of a persistent sandbox,
// and the session goes on to stop.
func (c *Controller) commit(ctx context.Context, l *live, saved SavedFiles, how saving) (*skerry.Snapshot, error) {
	var snap *skerry.Snapshot
	err := c.editSession(ctx, l, func(run *skerry.Session) error {
		run.Status = skerry.StatusStopping
		run.SnapshottedAt = run.UpdatedAt
		return nil
	}, func(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error {
		snap = newSnapshot(box, run, saved, how)
		if run.Persistent {
			box.CurrentSnapshotID = snap.ID
			if snap.Memory {
				// Its next session can have no other size.
				box.VCPUs, box.MemoryMB = run.VCPUs, run.MemoryMB
			}
		}
		return c.cfg.Store.CreateSnapshot(ctx, snap, box, run)
	})
	if err == nil && snap == nil {
		err = fmt.Errorf("sandbox %s is gone", l.boxID)
	}
	if err != nil {
		return nil, err
	}
	c.cfg.Log.Info("snapshot taken", "snapshot", snap.ID, "session", l.id, "sandbox", l.boxID, "bytes", saved.Size, "new", saved.Added)
	return snap, nil
}

func newSnapshot(box *skerry.Sandbox, run *skerry.Session, saved SavedFiles, how saving) *skerry.Snapshot {
	now := skerry.At(time.Now())
	snap := &skerry.Snapshot{
		ID:              skerry.NewID(skerry.PrefixSnapshot),
		Scope:           box.Scope,
		SandboxID:       box.ID,
		SandboxName:     box.Name,
		SourceSessionID: run.ID,
		ParentID:        run.SourceSnapshotID,
		Region:          run.Region,
		Status:          skerry.SnapshotCreated,
		SizeBytes:       saved.Size,
		CreationMethod:  how.method,
		CreatedAt:       now,
		UpdatedAt:       now,
		Base:            skerry.Base{Image: run.Image, Digest: run.ImageDigest, Runtime: run.Runtime},
		Manifest:        saved.Manifest,
	}
	if how.memory {
		snap.Memory = true
		snap.Base.VCPUs, snap.Base.MemoryMB = run.VCPUs, run.MemoryMB
	}
	snap.ExpiresAt = expiry(now, keepFor(box, how.expiration))
	return snap
}

// keepFor is how long a snapshot of a sandbox is kept: as its call says, as
// the sandbox's retention says of those it keeps, or as the sandbox does.
func keepFor(box *skerry.Sandbox, asked *skerry.Duration) skerry.Duration {
	switch {
	case asked != nil:
		return *asked
	case box.Retention != nil && box.Retention.Expiration != nil:
		return *box.Retention.Expiration
	}
	return defaultExpiration(box)
}

func defaultExpiration(box *skerry.Sandbox) skerry.Duration {
	if box.SnapshotExpiration != nil {
		return *box.SnapshotExpiration
	}
	return skerry.Duration(skerry.DefaultSnapshotExpiration)
}

// expiry is the end of a span; a span of 0 has none.
func expiry(from skerry.Time, span skerry.Duration) skerry.Time {
	if span == 0 {
		return skerry.Time{}
	}
	return skerry.At(from.Add(span.Std()))
}

// CreateSnapshot implements api.Service.
func (c *Controller) CreateSnapshot(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.SnapshotParams) (*skerry.Run, error) {
	if err := validateExpiration("expiration", p.Expiration); err != nil {
		return nil, err
	}
	l, err := c.running(ctx, scope, sessionID)
	if err != nil {
		return nil, err
	}
	e, mine := c.beginStop(l, saving{method: skerry.CreatedManually, expiration: p.Expiration, memory: p.Memory})
	if !mine {
		// Another stop was quicker; the client resumes and asks again.
		return nil, skerry.Errorf(skerry.CodeSandboxStopping, "session %s is stopping", l.id)
	}
	if err := e.wait(ctx); err != nil {
		return nil, c.failure(ctx, l, err)
	}
	run := &skerry.Run{Session: l.session(), Snapshot: e.snapshot, Routes: []skerry.Route{}}
	// Who deletes the sandbox in this moment shall not take away the answer:
	// the snapshot is there, and its id is known nowhere else.
	box, err := c.cfg.Store.Sandbox(ctx, l.boxID)
	if err == nil {
		run = c.answer(box, &run.Session, false)
		run.Snapshot = e.snapshot
	} else if skerry.CodeOf(err) != skerry.CodeNotFound {
		c.cfg.Log.Warn("cannot read the sandbox of a snapshot", "snapshot", e.snapshot.ID, "sandbox", l.boxID, "error", err)
	}
	return run, nil
}

// snapshotLive takes a snapshot of a session that goes on.
func (c *Controller) snapshotLive(ctx context.Context, l *live) (*skerry.Snapshot, error) {
	c.unnamed.RLock()
	defer c.unnamed.RUnlock()
	saved, err := c.cfg.Node.Snapshot(ctx, l.id, Saving{})
	if err != nil {
		return nil, c.failure(ctx, l, err)
	}
	box, err := c.cfg.Store.Sandbox(ctx, l.boxID)
	if err != nil {
		return nil, err
	}
	run := l.session()
	snap := newSnapshot(box, &run, saved, saving{method: skerry.CreatedForFork})
	return snap, c.cfg.Store.CreateSnapshot(ctx, snap, nil, nil)
}

// GetSnapshot implements api.Service.
func (c *Controller) GetSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	return c.snapshot(ctx, scope, id)
}

// ListSnapshots implements api.Service.
func (c *Controller) ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error) {
	return c.cfg.Store.ListSnapshots(ctx, scope, f)
}

// DeleteSnapshot implements api.Service. A sandbox that would start from the
// snapshot meets CodeSnapshotNotFound from then on.
func (c *Controller) DeleteSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	snap, err := c.snapshot(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	if snap.Status == skerry.SnapshotDeleted {
		return snap, nil
	}
	if err := c.drop(ctx, snap); err != nil {
		return nil, err
	}
	c.collectSoon()
	return snap, nil
}

// drop marks a snapshot as deleted. Its bytes go with the next collection.
func (c *Controller) drop(ctx context.Context, snap *skerry.Snapshot) error {
	snap.Status, snap.UpdatedAt = skerry.SnapshotDeleted, skerry.At(time.Now())
	return c.cfg.Store.SaveSnapshot(ctx, snap)
}

// usable returns a snapshot that sessions can start from, with its image.
func (c *Controller) usableSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, Image, error) {
	snap, err := c.snapshot(ctx, scope, id)
	if err != nil {
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			err = skerry.Errorf(skerry.CodeSnapshotNotFound, "there is no snapshot %q", id)
		}
		return nil, Image{}, err
	}
	if !snap.Usable(time.Now()) {
		what := "has expired"
		if snap.Status == skerry.SnapshotDeleted {
			what = "was deleted"
		}
		return nil, Image{}, skerry.Errorf(skerry.CodeSnapshotNotFound, "snapshot %s %s", id, what)
	}
	image, err := c.cfg.Images.Resolve(ctx, snap.Base.Digest)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		err = skerry.Errorf(skerry.CodeSnapshotNotFound, "the image that snapshot %s stands on is gone: %v", id, err)
	}
	return snap, image, err
}
