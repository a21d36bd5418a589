package controller

import (
	"context"
	"fmt"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// saveAndStop takes a snapshot of a session that is to stop, and leaves the
// session stopping. If it fails the session may be left snapshotting. It is called
// in a step.
func (s *session) saveAndStop(e *ending, how saving, asked skerry.Time) error {
	if s.state().Status != skerry.StatusSnapshotting { // as an attempt before has left it
		err := s.recordTransition(skerry.StatusSnapshotting, func(run *skerry.Session) {
			run.RequestedStopAt, run.PausedAt = asked, skerry.Time{}
			run.Saving = &skerry.SessionSaving{Method: how.method, Memory: how.memory, Expiration: how.expiration}
		})
		if err != nil {
			return err
		}
	}
	var lease string
	err := s.try(func(ctx context.Context) (err error) { lease, err = s.snapshots.beginSave(ctx); return err })
	if err != nil {
		return err
	}
	files, err := s.save(e, how, lease)
	if err != nil {
		return err
	}
	if asked := s.ask(context.Background(), func() { e.snapshot, err = s.commit(files, how) }); asked != nil || err != nil {
		s.snapshots.endLease(lease)
		return firstError(asked, err)
	}
	return nil
}

// commit names a snapshot: it becomes the current one of a persistent sandbox,
// and the session is stopping from then on. Only the reconciler calls it.
func (s *session) commit(files nodeapi.SavedFiles, how saving) (*skerry.Snapshot, error) {
	next, err := s.changed(func(run *skerry.Session) error {
		run.Status = skerry.StatusStopping
		run.SnapshottedAt = run.UpdatedAt
		return nil
	})
	if err != nil {
		return nil, err
	}
	var snap *skerry.Snapshot
	err = s.try(func(ctx context.Context) error {
		sandbox, err := s.store.Sandbox(ctx, s.sandboxID)
		if err != nil {
			return err
		}
		snap = newSnapshot(sandbox, next, files, how)
		_, _, err = s.store.AddSnapshot(ctx, snap, files, s.id, func(sandbox *skerry.Sandbox, stored *skerry.Session) error {
			if next.Persistent {
				sandbox.CurrentSnapshotID = snap.ID
				if snap.Memory {
					// Its next session can have no other size.
					sandbox.VCPUs, sandbox.MemoryMB = next.VCPUs, next.MemoryMB
				}
			}
			return replace(sandbox, stored, next)
		})
		if err != nil && mayBeWritten(err) {
			if _, missing := s.store.Snapshot(ctx, s.scope, snap.ID); missing == nil {
				return nil // the answer was lost
			}
		}
		return err
	})
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil, fmt.Errorf("sandbox %s is gone", s.sandboxID)
	}
	if err := s.believe(next, err); err != nil {
		return nil, err
	}
	s.log.Info("snapshot taken", "snapshot", snap.ID, "session", s.id, "sandbox", s.sandboxID, "bytes", files.Size, "new", files.Added)
	return snap, nil
}

// CreateSnapshot implements api.Service.
func (c *sessions) CreateSnapshot(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.SnapshotParams) (*skerry.Run, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	s, err := c.runningSession(ctx, scope, sessionID)
	if err != nil {
		return nil, err
	}
	e, mine, err := s.stop(ctx, saving{method: skerry.CreatedManually, expiration: p.Expiration, memory: p.Memory}, false)
	if err != nil {
		return nil, err
	}
	if err := e.wait(ctx); err != nil {
		return nil, c.failure(ctx, s, err)
	}
	if !mine {
		// Another stop was quicker; the client resumes and asks again. It was waited
		// for, as one that fails leaves the session running.
		return nil, skerry.Errorf(skerry.CodeSandboxStopping, "session %s is stopping", s.id)
	}
	run := &skerry.Run{Session: s.state(), Snapshot: e.snapshot, Routes: []skerry.Route{}}
	if e.snapshot == nil {
		// Forced to end, or its save hung. CodeSandboxStopped would have clients ask
		// again in a new session, which does not have these files.
		return nil, skerry.Errorf(skerry.CodeConflict, "no snapshot was taken: %s", sentence(errEnded(&run.Session)))
	}
	// A deletion of the sandbox in this moment does not take away the answer: the
	// snapshot is there, and its id is known nowhere else.
	sandbox, err := c.store.Sandbox(ctx, s.sandboxID)
	if err == nil {
		run = c.answer(sandbox, &run.Session, false)
		run.Snapshot = e.snapshot
	} else if skerry.CodeOf(err) != skerry.CodeNotFound {
		c.log.Warn("cannot read the sandbox of a snapshot", "snapshot", e.snapshot.ID, "sandbox", s.sandboxID, "error", err)
	}
	return run, nil
}

// snapshotRunning takes a snapshot of a session that continues, for a fork.
func (c *sessions) snapshotRunning(ctx context.Context, s *session) (*skerry.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.SaveTimeout)
	defer cancel()
	lease, err := c.snapshots.beginSave(ctx)
	if err != nil {
		return nil, err
	}
	files, err := c.node.Snapshot(ctx, s.id, nodeapi.Saving{Lease: lease})
	if err != nil {
		c.snapshots.saveFailed(lease, err)
		return nil, c.failure(ctx, s, err)
	}
	sandbox, err := c.store.Sandbox(ctx, s.sandboxID)
	if err != nil {
		c.snapshots.endLease(lease)
		return nil, err
	}
	run := s.state()
	snap := newSnapshot(sandbox, &run, files, saving{method: skerry.CreatedForFork})
	if _, _, err := c.store.AddSnapshot(ctx, snap, files, "", nil); err != nil {
		c.snapshots.endLease(lease)
		if mayBeWritten(err) {
			c.snapshots.deleteFork(s.scope, snap.ID)
		}
		return nil, err
	}
	return snap, nil
}
