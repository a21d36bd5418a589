package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
)

// Drives keeps what outlives sessions.
type Drives interface {
	Create(ctx context.Context, id string, size int64) error
	Delete(ctx context.Context, id string) error
	// Fork makes a drive that has what another has.
	Fork(ctx context.Context, id, from string) error
	Retain(ctx context.Context, ids []string) error
	// Attach mounts a drive, Freeze a copy of it.
	Attach(ctx context.Context, id string) (*drive.Mount, error)
	Freeze(ctx context.Context, id string) (*drive.Mount, error)
	// Settle returns when an attached drive's user has ended and all that it
	// wrote is in the drive.
	Settle(ctx context.Context, id string) error
	// Recover sees to it that drives which running sessions have can be used.
	Recover(ctx context.Context) error
}

// settleTimeout bounds how long the end of a session waits for its drives. A
// disk that is slower delays the drive's next session instead.
const settleTimeout = time.Minute

// CreateDrive implements controller.Node.
func (n *Node) CreateDrive(ctx context.Context, id string, size int64) error {
	return diskFull(n.cfg.Drives.Create(ctx, id, size))
}

// ForkDrive implements controller.Node.
func (n *Node) ForkDrive(ctx context.Context, id, from string) error {
	return diskFull(n.cfg.Drives.Fork(ctx, id, from))
}

// DeleteDrive implements controller.Node.
func (n *Node) DeleteDrive(ctx context.Context, id string) error {
	return n.cfg.Drives.Delete(ctx, id)
}

// RetainDrives implements controller.Node.
func (n *Node) RetainDrives(ctx context.Context, ids []string) error {
	return n.cfg.Drives.Retain(ctx, ids)
}

// diskFull says so if that is what went wrong.
func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &skerry.Error{Code: skerry.CodeDiskFull, Message: "the disk that drives are kept on is full", Err: err}
	}
	return err
}

// mountFailure says which of a session's mounts is at fault for a failed start,
// if one is.
func mountFailure(err error) error {
	if at, ok := errors.AsType[*driver.MountError](err); ok {
		e := skerry.Invalid("mounts", "%s cannot be a drive's place: there is something else in the sandbox", at.Path)
		e.Err = err
		return e
	}
	return err
}

// mount acquires a session's drives and returns them for the driver. What it
// acquired is in s.mounts, also if it fails.
func (s *session) mount(ctx context.Context, mounts []controller.DriveMount) ([]driver.Mount, error) {
	var trees []driver.Mount
	for _, m := range mounts {
		acquire := s.node.cfg.Drives.Attach
		if m.Frozen {
			acquire = s.node.cfg.Drives.Freeze
		} else {
			s.drives = append(s.drives, m.DriveID)
		}
		got, err := acquire(ctx, m.DriveID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, skerry.Errorf(skerry.CodeConflict, "the drive at %s is gone", m.Path)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, diskFull(err))
		}
		s.mounts = append(s.mounts, got)
		trees = append(trees, driver.Mount{Path: m.Path, Tree: got.Tree, ReadOnly: got.ReadOnly})
	}
	return trees, nil
}

// detachMounts leaves the drives to the machine, whose end unmounts them.
func (s *session) detachMounts() error {
	var errs []error
	for _, m := range s.mounts {
		errs = append(errs, m.Detach())
	}
	return errors.Join(errs...)
}

// unmount is called when the machine has ended.
func (s *session) unmount(ctx context.Context) error {
	for _, m := range s.mounts {
		m.Release()
	}
	if len(s.drives) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var errs []error
	for _, id := range s.drives {
		errs = append(errs, s.node.cfg.Drives.Settle(ctx, id))
	}
	return errors.Join(errs...)
}
