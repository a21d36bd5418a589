package controller

import (
	"cmp"
	"context"
	"maps"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// ForkSandbox implements api.Service: a new sandbox whose configuration is the
// source's but for what the call says, and whose files are those of the
// source's current snapshot or, with Live, of this moment. With Memory it runs
// what the source runs at this moment.
func (c *sandboxes) ForkSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.ForkParams) (*skerry.Run, error) {
	sandbox, err := c.store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	create := forked(sandbox, p)
	c.fillDefaults(&create)
	if err := c.validateCreate(&create); err != nil {
		return nil, err
	}
	s := c.sessionOf(sandbox.ID)
	if p.Memory && s != nil {
		return c.forkMemory(ctx, sandbox, s, create, p)
	}
	snapshotID := sandbox.CurrentSnapshotID
	if p.Live && s != nil && s.usable() == nil {
		snap, err := c.snapshotRunning(ctx, s)
		if err != nil {
			return nil, err
		}
		snapshotID = snap.ID
	}
	run, err := c.forkFrom(ctx, scope, sandbox, create, p, snapshotID)
	if err != nil && snapshotID != sandbox.CurrentSnapshotID {
		c.snapshots.deleteFork(scope, snapshotID)
	}
	return run, err
}

func (c *sandboxes) forkFrom(ctx context.Context, scope skerry.Scope, sandbox *skerry.Sandbox, create skerry.CreateParams,
	p skerry.ForkParams, snapshotID string) (*skerry.Run, error) {
	if snapshotID != "" {
		create.Source = &skerry.Source{Type: "snapshot", SnapshotID: snapshotID}
	}
	from, err := c.basisOf(ctx, scope, sandbox.Image, "", create.Source)
	if err != nil {
		return nil, err
	}
	if p.Memory && (from.snapshot == nil || !from.snapshot.Memory) {
		return nil, skerry.Invalid("memory", "needs a running sandbox, or one whose current snapshot was taken with memory; sandbox %q is not running, and its snapshot has only files", sandbox.Name)
	}
	return c.createFork(ctx, scope, create, from, p)
}

// createFork checks what depends on where a fork starts from.
func (c *sandboxes) createFork(ctx context.Context, scope skerry.Scope, create skerry.CreateParams, from basis, p skerry.ForkParams) (*skerry.Run, error) {
	if err := from.fit(&create, p.VCPUs, p.MemoryMB); err != nil {
		return nil, err
	}
	if p.Image != "" {
		image, err := c.images.Resolve(ctx, p.Image)
		if err != nil {
			return nil, err
		}
		if image.Digest != from.image.Digest {
			return nil, skerry.Invalid("image", "must be the image of the source: the fork's files are a difference to it")
		}
	}
	return c.create(ctx, scope, create, from)
}

// forkMemory forks a running sandbox with what it runs. The node saves that for
// the fork's start; a snapshot is made of it afterwards, which takes longer than
// the start. Until then a crash of the service loses it, not the fork.
//
// Making it takes a quarter of a second of CPU time, so it does not begin together with
// the fork's first commands.
func (c *sandboxes) forkMemory(ctx context.Context, sandbox *skerry.Sandbox, s *session, create skerry.CreateParams, p skerry.ForkParams) (*skerry.Run, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	run := s.state()
	image, err := c.images.Resolve(ctx, run.ImageDigest)
	if err != nil {
		return nil, err
	}
	from := basis{image: image, forkOf: s.id, snapshot: newSnapshot(sandbox, &run, nodeapi.SavedFiles{}, saving{method: skerry.CreatedForFork, memory: true})}
	create.Source = &skerry.Source{Type: "snapshot", SnapshotID: from.snapshot.ID}
	asked, done := c.snapshots.announce(from.snapshot.ID)
	fork, err := c.createFork(ctx, sandbox.Scope, create, from, p)
	if err == nil {
		err = c.spawn(func() {
			defer done()
			select {
			case <-time.After(c.cfg.forkSnapshotDelay):
			case <-asked:
			case <-c.ctx.Done():
			}
			// One for each of many forks at once would leave nothing for the saves of others.
			c.forkKeeps <- struct{}{}
			defer func() { <-c.forkKeeps }()
			c.recordForkSnapshot(from)
		})
		if err == nil {
			return fork, nil
		}
	}
	done()
	c.untilDone("discard what a failed fork has captured", func(ctx context.Context) error { return c.node.Discard(ctx, from.snapshot.ID) })
	return nil, err
}

// forkSnapshotDelay is the time after the start of a fork when its snapshot is made,
// unless somebody waits for the snapshot.
const forkSnapshotDelay = time.Second

// forkKeepsAtOnce is how many snapshots of forks are stored at once.
const forkKeepsAtOnce = 2

// recordForkSnapshot makes the snapshot that a memory fork has started from already.
func (c *sandboxes) recordForkSnapshot(from basis) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.cfg.SaveTimeout)
	defer cancel()
	snap := from.snapshot
	lease, err := c.beginKeeping(ctx)
	var files nodeapi.SavedFiles
	if err == nil {
		if files, err = c.node.Keep(ctx, snap.ID, lease); err != nil {
			c.snapshots.saveFailed(lease, err)
		}
	}
	if err != nil {
		c.inBackground("discard what a fork has captured", func(ctx context.Context) error { return c.node.Discard(ctx, snap.ID) })
		c.log.Error("cannot keep what a fork has started from", "snapshot", snap.ID, "session", snap.SourceSessionID, "error", err)
		return
	}
	snap.Manifest, snap.SizeBytes = files.Manifest, files.Size
	add := func(ctx context.Context) error {
		_, err := c.store.Snapshot(ctx, snap.Scope, snap.ID)
		if skerry.CodeOf(err) == skerry.CodeNotFound { // else it was added, and the answer lost
			_, _, err = c.store.AddSnapshot(ctx, snap, files, "", nil)
		}
		if err != nil {
			return err
		}
		// If the fork was deleted before, its deletion has found no snapshot to delete.
		return c.snapshots.deleteForFork(ctx, snap.Scope, snap.ID)
	}
	switch err := c.try(add); {
	case skerry.CodeOf(err) == skerry.CodeConflict: // its lease has ended; that does not change
		c.log.Error("cannot record the snapshot of a fork", "snapshot", snap.ID, "session", snap.SourceSessionID, "error", err)
		return
	case err != nil:
		c.keepTrying("record the snapshot of a fork", err, add, nil)
		return
	}
	c.log.Info("snapshot taken", "snapshot", snap.ID, "session", snap.SourceSessionID, "sandbox", snap.SandboxID, "bytes", files.Size, "new", files.Added)
}

// beginKeeping is beginSave, and waits for a store that does not answer.
func (c *sandboxes) beginKeeping(ctx context.Context) (lease string, err error) {
	for waits := c.backoff(); ; {
		if lease, err = c.snapshots.beginSave(ctx); err == nil {
			return lease, nil
		}
		select {
		case <-time.After(waits.wait()):
		case <-ctx.Done():
			return "", err
		case <-c.ctx.Done():
			return "", errClosing()
		}
	}
}

// forked is what a fork is created with.
func forked(sandbox *skerry.Sandbox, p skerry.ForkParams) skerry.CreateParams {
	create := skerry.CreateParams{
		Name: p.Name, Runtime: sandbox.Runtime, Source: sandbox.Source,
		Timeout: sandbox.Timeout, VCPUs: sandbox.VCPUs, MemoryMB: sandbox.MemoryMB,
		Env: maps.Clone(sandbox.Env), Tags: maps.Clone(sandbox.Tags), Persistent: &sandbox.Persistent,
		SnapshotExpiration: sandbox.SnapshotExpiration, Retention: sandbox.Retention, Mounts: frozenMounts(sandbox.Mounts),
		Policy: sandbox.Policy, OIDCAudience: cmp.Or(p.OIDCAudience, sandbox.OIDCAudience),
	}
	if p.Policy != nil {
		create.Policy = p.Policy
	}
	if sandbox.Idle != "" {
		create.Idle = &sandbox.Idle
	}
	if p.Idle != nil {
		create.Idle = p.Idle
	}
	create.Ports, create.PrivatePorts = forkedPorts(sandbox, p)
	if p.Mounts != nil {
		create.Mounts = p.Mounts
	}
	if p.Timeout != nil {
		create.Timeout = *p.Timeout
	}
	if p.VCPUs != nil {
		create.VCPUs, create.MemoryMB = *p.VCPUs, 0
	}
	if p.MemoryMB != nil {
		create.MemoryMB = *p.MemoryMB
	}
	if p.Persistent != nil {
		create.Persistent = p.Persistent
	}
	if p.Env != nil {
		create.Env = p.Env
	}
	if p.Tags != nil {
		create.Tags = p.Tags
	}
	if p.SnapshotExpiration != nil {
		create.SnapshotExpiration = p.SnapshotExpiration
	}
	if p.Retention != nil {
		create.Retention = p.Retention
	}
	return create
}
