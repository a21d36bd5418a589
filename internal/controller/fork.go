package controller

import (
	"context"
	"errors"
	"maps"

	"github.com/skerry-dev/skerry"
)

// ForkSandbox implements api.Service: a new sandbox whose configuration is the
// source's but for what the call says, and whose files are those of the
// source's current snapshot or, with Live, of this moment. With Memory it runs
// what the source runs at this moment.
func (c *Controller) ForkSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.ForkParams) (*skerry.Run, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	create := forked(box, p)
	if err := c.validateCreate(&create); err != nil {
		return nil, err
	}
	l := c.liveOf(box.ID)
	if p.Memory && l != nil {
		return c.forkMemory(ctx, box, l, create, p)
	}
	snapshotID := box.CurrentSnapshotID
	if p.Live && l != nil && l.usable() == nil {
		snap, err := c.snapshotLive(ctx, l)
		if err != nil {
			return nil, err
		}
		snapshotID = snap.ID
	}
	run, err := c.forkFrom(ctx, scope, box, create, p, snapshotID)
	if err != nil && snapshotID != box.CurrentSnapshotID {
		err = errors.Join(err, c.dropForFork(context.WithoutCancel(ctx), scope, snapshotID))
	}
	return run, err
}

func (c *Controller) forkFrom(ctx context.Context, scope skerry.Scope, box *skerry.Sandbox, create skerry.CreateParams,
	p skerry.ForkParams, snapshotID string) (*skerry.Run, error) {
	if snapshotID != "" {
		create.Source = &skerry.Source{Type: "snapshot", SnapshotID: snapshotID}
	}
	from, err := c.basisOf(ctx, scope, box.Image, "", create.Source)
	if err != nil {
		return nil, err
	}
	if p.Memory && (from.snapshot == nil || !from.snapshot.Memory) {
		return nil, skerry.Invalid("memory", "cannot be had: sandbox %q does not run, and its current snapshot has none", box.Name)
	}
	return c.createFork(ctx, scope, create, from, p)
}

// createFork checks what depends on where a fork starts from.
func (c *Controller) createFork(ctx context.Context, scope skerry.Scope, create skerry.CreateParams, from basis, p skerry.ForkParams) (*skerry.Run, error) {
	if err := from.fit(&create, p.VCPUs, p.MemoryMB); err != nil {
		return nil, err
	}
	if p.Image != "" {
		image, err := c.cfg.Images.Resolve(ctx, p.Image)
		if err != nil {
			return nil, err
		}
		if image.Digest != from.image.Digest {
			return nil, skerry.Invalid("image", "cannot be changed by a fork: its files are those of the source")
		}
	}
	return c.create(ctx, scope, create, from)
}

// forkMemory forks a running sandbox with what it runs. The node saves that for
// the fork's start; a snapshot is made of it afterwards, which takes longer than
// the start. Until then a crash of the service loses it, not the fork.
func (c *Controller) forkMemory(ctx context.Context, box *skerry.Sandbox, l *live, create skerry.CreateParams, p skerry.ForkParams) (*skerry.Run, error) {
	if err := l.usable(); err != nil {
		return nil, err
	}
	run := l.session()
	image, err := c.cfg.Images.Resolve(ctx, run.ImageDigest)
	if err != nil {
		return nil, err
	}
	from := basis{image: image, forkOf: l.id, snapshot: newSnapshot(box, &run, SavedFiles{}, saving{method: skerry.CreatedForFork, memory: true})}
	create.Source = &skerry.Source{Type: "snapshot", SnapshotID: from.snapshot.ID}
	done := c.announce(from.snapshot.ID)
	fork, err := c.createFork(ctx, box.Scope, create, from, p)
	if err == nil {
		err = c.spawn(func() {
			defer done()
			c.keep(from)
		})
		if err == nil {
			return fork, nil
		}
	}
	done()
	return nil, errors.Join(err, c.cfg.Node.Discard(context.WithoutCancel(ctx), from.snapshot.ID))
}

// announce makes a snapshot known that will be in the store, if all goes well,
// when the returned function is called.
func (c *Controller) announce(snapshotID string) (done func()) {
	kept := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keeping[snapshotID] = kept
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.keeping, snapshotID)
		close(kept)
	}
}

// snapshot returns a snapshot, after waiting for one that is being made.
func (c *Controller) snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	c.mu.Lock()
	kept := c.keeping[id]
	c.mu.Unlock()
	if kept != nil {
		select {
		case <-kept:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return c.cfg.Store.Snapshot(ctx, scope, id)
}

// keep makes the snapshot that a memory fork has started from already.
func (c *Controller) keep(from basis) {
	c.unnamed.RLock()
	defer c.unnamed.RUnlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
	defer cancel()
	snap := from.snapshot
	saved, err := c.cfg.Node.Keep(ctx, snap.ID)
	if err == nil {
		snap.Manifest, snap.SizeBytes = saved.Manifest, saved.Size
		err = c.cfg.Store.CreateSnapshot(ctx, snap, nil, nil)
	}
	if err != nil {
		c.cfg.Log.Error("cannot keep what a fork has started from", "snapshot", snap.ID, "session", snap.SourceSessionID, "error", err)
		return
	}
	c.cfg.Log.Info("snapshot taken", "snapshot", snap.ID, "session", snap.SourceSessionID, "sandbox", snap.SandboxID, "bytes", saved.Size, "new", saved.Added)
}

// forked is what a fork is created with.
func forked(box *skerry.Sandbox, p skerry.ForkParams) skerry.CreateParams {
	create := skerry.CreateParams{
		Name: p.Name, Runtime: box.Runtime, Source: box.Source,
		Timeout: box.Timeout, VCPUs: box.VCPUs, MemoryMB: box.MemoryMB,
		Env: maps.Clone(box.Env), Tags: maps.Clone(box.Tags), Persistent: &box.Persistent,
		SnapshotExpiration: box.SnapshotExpiration, Retention: box.Retention, Mounts: frozenMounts(box.Mounts),
		Policy: box.Policy,
	}
	if p.Policy != nil {
		create.Policy = p.Policy
	}
	create.Ports, create.PrivatePorts = forkedPorts(box, p)
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
