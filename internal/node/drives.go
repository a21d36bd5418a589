package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Drives stores drives, which outlive sessions.
type Drives interface {
	Create(ctx context.Context, id string, size int64) error
	Delete(ctx context.Context, id string) error
	// Fork creates a drive with the content of another.
	Fork(ctx context.Context, id, from string) error
	Retain(ctx context.Context, ids []string) error
	// Attach mounts a drive, and Freeze mounts a frozen copy of it.
	Attach(ctx context.Context, id string) (*drive.Mount, error)
	Freeze(ctx context.Context, id string) (*drive.Mount, error)
	// Settle waits until the process that used an attached drive has ended and
	// everything that it wrote is in the drive.
	Settle(ctx context.Context, id string) error
	// Recover makes the drives of running sessions usable again.
	Recover(ctx context.Context) error
}

// settleTimeout is the maximum time that the end of a session waits for its drives.
// A slower disk delays the next session of the drive instead.
const settleTimeout = time.Minute

// CreateDrive implements nodeapi.Node.
func (n *Node) CreateDrive(ctx context.Context, id string, size int64) (err error) {
	defer edge(ctx, &err)
	if err := n.cfg.Disk.Check(); err != nil {
		return err
	}
	return diskFull(n.cfg.Drives.Create(ctx, id, size))
}

// ForkDrive implements nodeapi.Node.
func (n *Node) ForkDrive(ctx context.Context, id, from string) (err error) {
	defer edge(ctx, &err)
	if err := n.cfg.Disk.Check(); err != nil {
		return err
	}
	err = n.cfg.Drives.Fork(ctx, id, from)
	if errors.Is(err, fs.ErrNotExist) {
		return skerry.Errorf(skerry.CodeNotFound, "there is no drive %s: %w", from, err)
	}
	return diskFull(err)
}

// DeleteDrive implements nodeapi.Node.
func (n *Node) DeleteDrive(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	return n.cfg.Drives.Delete(ctx, id)
}

// RetainDrives implements nodeapi.Node.
func (n *Node) RetainDrives(ctx context.Context, ids []string) (err error) {
	defer edge(ctx, &err)
	return n.cfg.Drives.Retain(ctx, ids)
}

// diskFull turns ENOSPC into CodeDiskFull.
func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return &skerry.Error{Code: skerry.CodeDiskFull, Message: "the server's disk for drives is full", Err: err}
	}
	return err
}

// volumeFailure names the drive that made a start fail, if one did.
func volumeFailure(err error) error {
	if at, ok := errors.AsType[*driver.VolumeError](err); ok {
		e := skerry.Invalid("mounts", "no drive can be mounted at %s: another file is at this path in the sandbox", at.Path)
		e.Err = err
		return e
	}
	return err
}

// mount acquires a session's drives and returns them for the driver. The acquired
// drives are in s.mounts, even after an error.
func (s *session) mount(ctx context.Context, mounts []nodeapi.DriveMount) ([]driver.Volume, error) {
	var volumes []driver.Volume
	for _, m := range mounts {
		acquire := s.node.cfg.Drives.Attach
		if m.Frozen {
			acquire = s.node.cfg.Drives.Freeze
		} else {
			s.drives = append(s.drives, m.DriveID)
		}
		got, err := acquire(ctx, m.DriveID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, skerry.Errorf(skerry.CodeConflict, "the drive for %s does not exist any more", m.Path)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, diskFull(err))
		}
		s.mounts = append(s.mounts, got)
		volumes = append(volumes, driver.Volume{Kind: driver.Tree, Path: m.Path, Source: got.Tree, ReadOnly: got.ReadOnly})
	}
	return volumes, nil
}

// detachMounts leaves the drives to the machine; they are unmounted when the
// machine ends.
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
