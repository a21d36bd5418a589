package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// UpdateSandbox implements api.Service. What changes applies to the next
// session, except the network policy and the idle mode: they apply to the current one
// too.
func (c *sandboxes) UpdateSandbox(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Run, error) {
	if err := p.Validate(c.limits); err != nil {
		return nil, err
	}
	sandbox, err := c.edit(context.WithoutCancel(ctx), scope, name, p)
	if err != nil {
		return nil, err
	}
	if p.Policy != nil {
		if err := c.applyPolicy(ctx, sandbox, p.Policy); err != nil {
			return nil, err
		}
	}
	if s := c.sessionOf(sandbox.ID); s != nil && p.Idle != nil {
		s.tellIdle()
	}
	return c.runOf(ctx, sandbox.ID, false)
}

// checkSize refuses a size in which a sandbox could not start again, as its
// next session is to continue from a memory snapshot of another.
func (c *sandboxes) checkSize(ctx context.Context, sandbox *skerry.Sandbox) error {
	from, err := c.basisOf(ctx, sandbox.Scope, sandbox.Image, sandbox.CurrentSnapshotID, sandbox.Source)
	if err != nil {
		return nil // the next session meets it, whatever its size
	}
	return from.fit(&skerry.CreateParams{}, &sandbox.VCPUs, &sandbox.MemoryMB)
}

// about says which field of a request an error that a client sees is about.
func about(err error, field string) error {
	e, ok := errors.AsType[*skerry.Error](err)
	if !ok {
		return err
	}
	return &skerry.Error{Code: e.Code, Message: e.Message, Field: field, Err: e.Err}
}

// edit checks an update against the sandbox that it changes, and writes it. If the
// sandbox changes in the meantime, both are repeated.
func (c *sandboxes) edit(ctx context.Context, scope skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Sandbox, error) {
	sandbox, err := c.store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	unlock, err := c.ports.updates.lock(ctx, sandbox.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for range editAttempts {
		if sandbox, err = c.store.Sandbox(ctx, sandbox.ID); err != nil {
			return nil, err
		}
		edited, err := c.editOnce(ctx, sandbox, p)
		if !errors.Is(err, errEdited) {
			return edited, err
		}
	}
	return nil, skerry.Errorf(skerry.CodeConflict, "the sandbox is changed by too many requests at once; try again")
}

// editAttempts is how often an update is checked again. A session changes what
// matters to it only when it stops.
const editAttempts = 10

// errEdited says that a sandbox has changed since an update was checked.
var errEdited = errors.New("the sandbox has changed")

func (c *sandboxes) editOnce(ctx context.Context, sandbox *skerry.Sandbox, p skerry.UpdateParams) (*skerry.Sandbox, error) {
	was := checkedPart(sandbox)
	edited := *sandbox
	apply(&edited, p)
	if err := c.checkUpdate(ctx, &edited, p); err != nil {
		return nil, err
	}
	var written *skerry.Sandbox
	write := func() (err error) {
		written, err = c.store.UpdateSandbox(ctx, sandbox.ID, func(stored *skerry.Sandbox) error {
			if checkedPart(stored) != was {
				return errEdited
			}
			apply(stored, p)
			stored.Ports = edited.Ports
			return nil
		})
		return err
	}
	if p.Ports == nil && p.PrivatePorts == nil {
		err := write()
		return written, err
	}
	err := c.ports.republish(&edited, p, write)
	return written, err
}

// checked is what of a sandbox the checks of an update depend on.
type checked struct {
	persistent      bool
	vcpus, memoryMB int
	snapshotID      string
}

func checkedPart(s *skerry.Sandbox) checked {
	return checked{s.Persistent, s.VCPUs, s.MemoryMB, s.CurrentSnapshotID}
}

// apply makes the changes of an update, except that of the ports.
func apply(sandbox *skerry.Sandbox, p skerry.UpdateParams) {
	if p.Timeout != nil {
		sandbox.Timeout = *p.Timeout
	}
	if p.VCPUs != nil {
		sandbox.VCPUs, sandbox.MemoryMB = *p.VCPUs, *p.VCPUs*skerry.MemoryPerVCPU
	}
	if p.MemoryMB != nil {
		sandbox.MemoryMB = *p.MemoryMB
	}
	if p.Env != nil {
		sandbox.Env = p.Env
	}
	if p.Tags != nil {
		sandbox.Tags = p.Tags
	}
	if p.Persistent != nil {
		sandbox.Persistent = *p.Persistent
	}
	if p.SnapshotExpiration != nil {
		sandbox.SnapshotExpiration = p.SnapshotExpiration
	}
	if p.Retention != nil || p.ClearRetention {
		sandbox.Retention = p.Retention
	}
	if p.Mounts != nil {
		sandbox.Mounts = p.Mounts
	}
	if p.Policy != nil {
		sandbox.SetPolicy(p.Policy)
	}
	if p.Idle != nil {
		sandbox.Idle = *p.Idle
	}
	if p.CurrentSnapshotID != nil {
		sandbox.CurrentSnapshotID = *p.CurrentSnapshotID
	}
	sandbox.UpdatedAt = skerry.At(time.Now())
}

// checkUpdate checks what an update makes of a sandbox, as far as that depends on
// what there is.
func (c *sandboxes) checkUpdate(ctx context.Context, edited *skerry.Sandbox, p skerry.UpdateParams) error {
	if p.Mounts != nil {
		if _, err := c.drives.find(ctx, edited.Scope, p.Mounts); err != nil {
			return err
		}
	}
	if p.CurrentSnapshotID != nil {
		if !edited.Persistent {
			return skerry.Invalid("currentSnapshotId", "cannot be set for a sandbox that is not persistent: its sessions always start from its image or source")
		}
		// One that never was is a mistake in the request, not a loss.
		if _, err := c.store.Snapshot(ctx, edited.Scope, *p.CurrentSnapshotID); err != nil {
			return about(err, "currentSnapshotId")
		}
		if _, _, err := c.snapshots.usableSnapshot(ctx, edited.Scope, *p.CurrentSnapshotID); err != nil {
			return about(err, "currentSnapshotId")
		}
	}
	// What runs now is saved at its stop, without its memory.
	saves := c.sessionOf(edited.ID) != nil && edited.Persistent
	if p.CurrentSnapshotID != nil || !saves && (p.VCPUs != nil || p.MemoryMB != nil) {
		return c.checkSize(ctx, edited)
	}
	return nil
}
