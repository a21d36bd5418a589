package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/snapshot"
)

// Snapshots keeps what was saved of sessions.
type Snapshots interface {
	// Add keeps the files in dir for good; the folder is its own from then on.
	Add(ctx context.Context, dir string) (snapshot.Ref, error)
	// Load returns a folder with the files of a manifest, until it is released.
	Load(ctx context.Context, manifest string) (*snapshot.Folder, error)
	// GC removes what no manifest in keep needs.
	GC(ctx context.Context, keep []string) (freed int64, err error)
}

// Snapshot implements controller.Node.
func (n *Node) Snapshot(ctx context.Context, id string, hold bool) (controller.SavedFiles, error) {
	s, err := n.running(id)
	if err != nil {
		return controller.SavedFiles{}, err
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	saved, err := s.snapshot(ctx, hold)
	if err != nil {
		return controller.SavedFiles{}, s.failure(notSaved(fmt.Errorf("save session %s: %w", id, err)))
	}
	return saved, nil
}

// notSaved says what a client is told when files could not be saved: that the
// host's disk is full, if that is why.
func notSaved(err error) error {
	if skerry.CodeOf(err) == skerry.CodeInternal && errors.Is(err, syscall.ENOSPC) {
		return &skerry.Error{
			Code: skerry.CodeDiskFull, Err: err,
			Message: "the server's disk has no room for the snapshot; the sandbox runs on",
		}
	}
	return err
}

func (s *session) snapshot(ctx context.Context, hold bool) (_ controller.SavedFiles, err error) {
	dir, err := os.MkdirTemp(s.node.cfg.SnapshotWork, s.id+"-")
	if err != nil {
		return controller.SavedFiles{}, err
	}
	// Gone already if it was kept.
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := s.capture(ctx, dir); err != nil {
		return controller.SavedFiles{}, err
	}
	if hold {
		if err := s.machine.Pause(ctx); err != nil {
			return controller.SavedFiles{}, err
		}
	}
	ref, err := s.node.cfg.Snapshots.Add(ctx, dir)
	if err != nil {
		if hold {
			err = errors.Join(err, s.machine.Resume(context.WithoutCancel(ctx)))
		}
		return controller.SavedFiles{}, err
	}
	return controller.SavedFiles{Manifest: ref.Manifest, Size: ref.Size, Added: ref.Added}, nil
}

// capture writes the machine's files into dir, with the guest's help.
func (s *session) capture(ctx context.Context, dir string) (err error) {
	d, err := s.guest.Describe(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return s.machine.Snapshot(ctx, dir, func(_ context.Context, paths []string) ([]driver.Attrs, error) {
		known, err := d.Attrs(paths)
		if err != nil {
			return nil, err
		}
		return attrsOf(known), nil
	})
}

func attrsOf(known []guest.Attrs) []driver.Attrs {
	attrs := make([]driver.Attrs, len(known))
	for i, a := range known {
		attrs[i] = driver.Attrs{Missing: a.Missing, ModTime: a.ModTime, Xattrs: a.Xattrs}
	}
	return attrs
}

// Resume implements controller.Node.
func (n *Node) Resume(ctx context.Context, id string) error {
	s, err := n.find(id)
	if err != nil {
		return err
	}
	return s.machine.Resume(ctx)
}

// CollectSnapshots implements controller.Node.
func (n *Node) CollectSnapshots(ctx context.Context, keep []string) (int64, error) {
	return n.cfg.Snapshots.GC(ctx, keep)
}

// loadSnapshot returns the folder that a session starts from, "" for none, and
// what gives it back.
func (n *Node) loadSnapshot(ctx context.Context, manifest string) (path string, release func(), err error) {
	if manifest == "" {
		return "", func() {}, nil
	}
	folder, err := n.cfg.Snapshots.Load(ctx, manifest)
	if err != nil {
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			err = &skerry.Error{Code: skerry.CodeSnapshotNotFound, Message: "the snapshot's files are gone", Err: err}
		}
		return "", nil, err
	}
	return folder.Path(), folder.Release, nil
}
