package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// ListSandboxes implements api.Service.
func (c *Controller) ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error) {
	list, next, err := c.cfg.Store.ListSandboxes(ctx, scope, f)
	for i := range list {
		list[i].Routes = c.routes(&list[i])
	}
	return list, next, err
}

// ListSessions implements api.Service.
func (c *Controller) ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error) {
	if f.SandboxName != "" {
		// An unknown name is an error, not an empty list.
		if _, err := c.cfg.Store.SandboxByName(ctx, scope, f.SandboxName); err != nil {
			return nil, "", err
		}
	}
	return c.cfg.Store.ListSessions(ctx, scope, f)
}

// GetSession implements api.Service.
func (c *Controller) GetSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error) {
	run, err := c.sessionOf(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	box, err := c.cfg.Store.Sandbox(ctx, run.SandboxID)
	if err != nil {
		return nil, err
	}
	return c.answer(box, run, false), nil
}

// UpdateSandbox implements api.Service. What changes applies to the next
// session, but for what the sandbox may reach: to the one that runs too.
func (c *Controller) UpdateSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Run, error) {
	if err := c.validateUpdate(&p); err != nil {
		return nil, err
	}
	box, err := c.edit(context.WithoutCancel(ctx), scope, name, p)
	if err != nil {
		return nil, err
	}
	if p.Policy != nil {
		if err := c.applyPolicy(ctx, box, p.Policy); err != nil {
			return nil, err
		}
	}
	return c.runOf(ctx, box.ID, false)
}

// checkSize refuses a size in which a sandbox could not start again, as its
// next session is to go on from a memory snapshot of another.
func (c *Controller) checkSize(ctx context.Context, box *skerry.Sandbox) error {
	from, err := c.basisOf(ctx, box.Scope, box.Image, box.CurrentSnapshotID, box.Source)
	if err != nil {
		return nil // the next session meets it, whatever its size
	}
	return from.fit(&skerry.CreateParams{}, &box.VCPUs, &box.MemoryMB)
}

// about says which field of a request an error that a client sees is about.
func about(err error, field string) error {
	e, ok := errors.AsType[*skerry.Error](err)
	if !ok {
		return err
	}
	return &skerry.Error{Code: e.Code, Message: e.Message, Field: field, Err: e.Err}
}

func (c *Controller) edit(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Sandbox, error) {
	c.edits.Lock()
	defer c.edits.Unlock()
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	if p.Timeout != nil {
		box.Timeout = *p.Timeout
	}
	if p.VCPUs != nil {
		box.VCPUs, box.MemoryMB = *p.VCPUs, *p.VCPUs*skerry.MemoryPerVCPU
	}
	if p.MemoryMB != nil {
		box.MemoryMB = *p.MemoryMB
	}
	if p.Env != nil {
		box.Env = p.Env
	}
	if p.Tags != nil {
		box.Tags = p.Tags
	}
	if p.Persistent != nil {
		box.Persistent = *p.Persistent
	}
	if p.SnapshotExpiration != nil {
		box.SnapshotExpiration = p.SnapshotExpiration
	}
	if p.Retention != nil || p.ClearRetention {
		box.Retention = p.Retention
	}
	if p.Mounts != nil {
		if _, err := c.findDrives(ctx, scope, p.Mounts); err != nil {
			return nil, err
		}
		box.Mounts = p.Mounts
	}
	if p.Policy != nil {
		box.SetPolicy(p.Policy)
	}
	if p.CurrentSnapshotID != nil {
		if !box.Persistent {
			return nil, skerry.Invalid("currentSnapshotId", "has no effect on a sandbox that is not persistent; its sessions start from its image or source")
		}
		// One that never was is a mistake in the request, not a loss.
		if _, err := c.cfg.Store.Snapshot(ctx, scope, *p.CurrentSnapshotID); err != nil {
			return nil, about(err, "currentSnapshotId")
		}
		snap, _, err := c.usableSnapshot(ctx, scope, *p.CurrentSnapshotID)
		if err != nil {
			return nil, about(err, "currentSnapshotId")
		}
		box.CurrentSnapshotID = snap.ID
	}
	// What runs now is saved at its stop, without its memory.
	saves := c.liveOf(box.ID) != nil && box.Persistent
	if p.CurrentSnapshotID != nil || !saves && (p.VCPUs != nil || p.MemoryMB != nil) {
		if err := c.checkSize(ctx, box); err != nil {
			return nil, err
		}
	}
	box.UpdatedAt = skerry.At(time.Now())
	if p.Ports != nil || p.PrivatePorts != nil {
		return box, c.republish(ctx, box, p)
	}
	return box, c.cfg.Store.SaveSandbox(ctx, box)
}
