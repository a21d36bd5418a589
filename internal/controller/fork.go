package controller

import (
	"context"
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
	if err := c.checkForkSize(box, p); err != nil {
		return nil, err
	}
	snapshotID, err := c.forkPoint(ctx, box, p)
	if err != nil {
		return nil, err
	}
	if snapshotID != "" {
		create.Source = &skerry.Source{Type: "snapshot", SnapshotID: snapshotID}
	}
	from, err := c.basisOf(ctx, scope, box.Image, "", create.Source)
	if err != nil {
		return nil, err
	}
	if p.Memory && (from.snapshot == nil || !from.snapshot.Memory) {
		return nil, skerry.Invalid("memory", "cannot be had: sandbox %q does not run, and its current snapshot has none", name)
	}
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

// checkForkSize refuses before anything is saved what could not be loaded
// afterwards.
func (c *Controller) checkForkSize(box *skerry.Sandbox, p skerry.ForkParams) error {
	l := c.liveOf(box.ID)
	if !p.Memory || l == nil {
		return nil
	}
	run := l.session()
	from := basis{snapshot: &skerry.Snapshot{Memory: true, Base: skerry.Base{VCPUs: run.VCPUs, MemoryMB: run.MemoryMB}}}
	return from.fit(&skerry.CreateParams{}, p.VCPUs, p.MemoryMB)
}

// forkPoint returns the snapshot that a fork starts from, "" for none. It takes
// one where the source runs and the call wants it as it is now.
func (c *Controller) forkPoint(ctx context.Context, box *skerry.Sandbox, p skerry.ForkParams) (string, error) {
	l := c.liveOf(box.ID)
	if l == nil || !p.Live && !p.Memory {
		return box.CurrentSnapshotID, nil
	}
	if err := l.usable(); err != nil {
		if p.Memory {
			return "", err
		}
		return box.CurrentSnapshotID, nil
	}
	snap, err := c.snapshotLive(ctx, l, p.Memory)
	if err != nil {
		return "", err
	}
	return snap.ID, nil
}

// forked is what a fork is created with.
func forked(box *skerry.Sandbox, p skerry.ForkParams) skerry.CreateParams {
	create := skerry.CreateParams{
		Name: p.Name, Runtime: box.Runtime, Source: box.Source,
		Timeout: box.Timeout, VCPUs: box.VCPUs, MemoryMB: box.MemoryMB,
		Env: maps.Clone(box.Env), Tags: maps.Clone(box.Tags), Persistent: &box.Persistent,
		SnapshotExpiration: box.SnapshotExpiration, Retention: box.Retention,
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
