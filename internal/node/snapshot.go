package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/snapshot"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// Snapshots stores the saved files of sessions.
type Snapshots interface {
	// Add stores the files in dir permanently, with their format and the lease of
	// the save. It takes over the folder.
	Add(ctx context.Context, dir, format, lease string) (nodeapi.SavedFiles, error)
	// Load returns a folder with the files of a manifest. The folder exists until
	// it is released. Before it fetches anything it asks accept about the format, ""
	// for files that were stored without.
	Load(ctx context.Context, manifest string, accept func(format string) error) (*snapshot.Folder, error)
}

// Snapshot implements nodeapi.Node.
func (n *Node) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (_ nodeapi.SavedFiles, err error) {
	defer edge(ctx, &err)
	s, err := n.savable(id)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	saved, err := s.snapshot(ctx, how)
	if err == nil {
		return saved, nil
	}
	if s.machineEnded() {
		return nodeapi.SavedFiles{}, errStopped(id)
	}
	return nodeapi.SavedFiles{}, notSaved(fmt.Errorf("save session %s: %w", id, err))
}

// savable returns a session whose machine runs, even if its guest agent does not
// answer.
func (n *Node) savable(id string) (*session, error) {
	s, err := n.find(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || !s.live && !s.agentLost && !s.attaching() || s.machineEnded() {
		return nil, errStopped(id)
	}
	return s, nil
}

// machineEnded reports whether the session's machine has ended.
func (s *session) machineEnded() bool {
	select {
	case <-s.machine().Done():
		return true
	default:
		return false
	}
}

// notSaved converts an error of a save into the one for clients: the host's disk is
// full, or the sandbox is the cause.
func notSaved(err error) error {
	var unsavable *driver.UnsavableError
	if errors.As(err, &unsavable) {
		return &skerry.Error{Code: skerry.CodeSandboxUnsavable, Err: err, Message: "the sandbox cannot be saved: " + unsavable.Why}
	}
	if skerry.CodeOf(err) == skerry.CodeInternal && errors.Is(err, syscall.ENOSPC) {
		return &skerry.Error{
			Code: skerry.CodeDiskFull, Err: err,
			Message: "the server's disk has no room for the snapshot; the sandbox keeps running",
		}
	}
	return err
}

func (s *session) snapshot(ctx context.Context, how nodeapi.Saving) (nodeapi.SavedFiles, error) {
	defer s.hold()() // it is saved as it stands
	if err := s.alone(ctx, func() error { return s.have(ctx) }); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	save, err := s.beginSave(ctx, how, s.node.cfg.Disk.ReserveSave)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	// What is written is written once more when it is stored.
	defer save.end()
	var paused bool
	saveCtx, span := tracing.Start(ctx, tracing.SaveMachine)
	err = s.alone(saveCtx, func() error {
		_, frozen := s.standstills()
		paused = frozen && !s.isAsleep()
		saving := driver.Saving{Memory: how.Memory, Hold: how.Hold}
		if how.Memory {
			saving.GoesOn = s.nudge
		}
		err := s.machine().Save(saveCtx, save.dir, saving)
		if err == nil && how.Hold {
			s.setFrozen(true)
			s.endSleep()
		}
		return err
	})
	if span.End(err); err != nil {
		return nodeapi.SavedFiles{}, errors.Join(err, os.RemoveAll(save.dir))
	}
	saved, err := s.node.keep(ctx, save.dir, s.machine().Format(how.Memory).String(), how.Lease)
	if err != nil && how.Hold && !paused {
		err = errors.Join(err, s.alone(context.WithoutCancel(ctx), func() error { return s.thaw(context.WithoutCancel(ctx)) }))
	}
	return saved, err
}

// save is a save of a session in progress.
type save struct {
	// dir is an empty folder below SnapshotWork, but for what the node itself needs.
	// It outlives the save.
	dir string
	// end lets the next save begin. It can be repeated.
	end func()
}

// beginSave waits until no other save of the session is in progress, and reserves
// the space.
func (s *session) beginSave(ctx context.Context, how nodeapi.Saving, reserve func(int64) (func(), error)) (_ save, err error) {
	if err := s.node.canSave(how); err != nil {
		return save{}, err
	}
	if how.Memory && !s.loadable() {
		return save{}, skerry.Errorf(skerry.CodeConflict,
			"the memory of session %s cannot be saved, because an earlier version of the server started it, and this version could not load it: restart the sandbox first", s.id)
	}
	if err := s.saving.enter(ctx); err != nil {
		return save{}, err
	}
	leave := s.saving.leave
	defer func() {
		if err != nil {
			leave()
		}
	}()
	s.stopReclaim() // it would take the pages that the save reads
	size, err := s.machine().SaveSize(how.Memory)
	if err != nil {
		return save{}, err
	}
	release, err := reserve(size)
	if err != nil {
		return save{}, err
	}
	leave = func() { release(); s.saving.leave() }
	dir, err := os.MkdirTemp(s.node.cfg.SnapshotWork, s.id+"-")
	if err != nil {
		return save{}, err
	}
	if how.Memory {
		if err := s.describe(dir); err != nil {
			return save{}, errors.Join(err, os.RemoveAll(dir))
		}
	}
	return save{dir: dir, end: sync.OnceFunc(leave)}, nil
}

// loadable reports whether this version can load what the session's machine saves of its
// memory. One from before an upgrade goes on, but saves in its own format.
func (s *session) loadable() bool {
	return s.machine().Format(true) == s.node.cfg.Driver.Format(true)
}

// keep stores a folder that save has filled as a snapshot. The folder does not
// exist afterwards.
func (n *Node) keep(ctx context.Context, dir, format, lease string) (nodeapi.SavedFiles, error) {
	ctx, span := tracing.Start(ctx, tracing.SaveStore)
	saved, err := n.cfg.Snapshots.Add(ctx, dir, format, lease)
	if span.End(err); err != nil {
		return nodeapi.SavedFiles{}, errors.Join(err, os.RemoveAll(dir))
	}
	return saved, os.RemoveAll(dir)
}

// loadSnapshot returns the folder that a session starts from, and a function that
// releases it. What another driver has saved, or another version of this one, is not
// fetched.
func (n *Node) loadSnapshot(ctx context.Context, manifest string, memory bool) (path string, release func(), err error) {
	folder, err := n.cfg.Snapshots.Load(ctx, manifest, func(saved string) error {
		if fits := n.cfg.Driver.Format(memory).String(); saved != "" && saved != fits {
			return skerry.Errorf(skerry.CodeSnapshotIncompatible,
				"the snapshot has the format %q, and this server can only start from %q", saved, fits)
		}
		return nil
	})
	if err != nil {
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			err = &skerry.Error{Code: skerry.CodeSnapshotNotFound, Message: "the files of the snapshot do not exist any more", Err: err}
		}
		return "", nil, err
	}
	return folder.Path(), folder.Release, nil
}
