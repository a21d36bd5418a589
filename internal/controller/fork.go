package controller

import (
	"context"
	"errors"
	"maps"

	"github.com/skerry-dev/skerry"
)

// ForkSandbox implements api.Service: a new sandbox whose configuration is the
// source's but for what the call says, and whose files are those of the
// source's current snapshot or, with Live, of this moment.
func (c *Controller) ForkSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.ForkParams) (*skerry.Run, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	create := forked(box, p)
	if err := c.validateCreate(&create); err != nil {
		return nil, err
	}
	snapshotID := box.CurrentSnapshotID
	if l := c.liveOf(box.ID); p.Live && l != nil && l.usable() == nil {
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

// forked is what a fork is created with.
func forked(box *skerry.Sandbox, p skerry.ForkParams) skerry.CreateParams {
	create := skerry.CreateParams{
		Name: p.Name, Runtime: box.Runtime, Source: box.Source,
		Timeout: box.Timeout, VCPUs: box.VCPUs, MemoryMB: box.MemoryMB,
		Env: maps.Clone(box.Env), Tags: maps.Clone(box.Tags), Persistent: &box.Persistent,
		SnapshotExpiration: box.SnapshotExpiration, Retention: box.Retention, Mounts: frozenMounts(box.Mounts),
	}
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
