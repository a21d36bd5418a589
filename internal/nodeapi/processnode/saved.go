package processnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// copyTree copies a folder with its links, modes and times.
func copyTree(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// copyRoot saves the files of a session, without its drives.
func (n *Node) copyRoot(s *session, manifest string) error {
	to := n.savedDir(manifest)
	if err := copyTree(s.root, to); err != nil {
		return err
	}
	for _, m := range s.spec.Mounts {
		if err := os.Remove(filepath.Join(to, m.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Snapshot implements nodeapi.Saver.
func (n *Node) Snapshot(ctx context.Context, id string, how nodeapi.Saving) (_ nodeapi.SavedFiles, err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	if err := n.reach(ctx, Save, id); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	manifest, err := n.newSaved(how.Lease)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	if err := n.copyRoot(s, manifest); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	if err := n.reach(ctx, Saved, id); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	if how.Hold {
		if err := n.Pause(ctx, id); err != nil && skerry.CodeOf(err) != skerry.CodeSandboxStopped {
			return nodeapi.SavedFiles{}, err
		}
	}
	return n.saved(manifest)
}

var errNoLease = errors.New("a save without a lease")

// newSaved returns the name of files that are to be saved for a lease.
func (n *Node) newSaved(lease string) (manifest string, err error) {
	if lease == "" {
		return "", errNoLease
	}
	manifest = skerry.NewID("m_")
	n.setLease(manifest, lease)
	return manifest, nil
}

func (n *Node) setLease(manifest, lease string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leased[manifest] = lease
}

// saved returns files that are saved.
func (n *Node) saved(manifest string) (nodeapi.SavedFiles, error) {
	size, err := treeSize(n.savedDir(manifest))
	n.mu.Lock()
	defer n.mu.Unlock()
	return nodeapi.SavedFiles{Manifest: manifest, Lease: n.leased[manifest], Size: size, Added: size}, err
}

// treeSize returns the size of the regular files in a folder.
func treeSize(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// Capture implements nodeapi.Saver: Start saves a session as fast.
func (n *Node) Capture(ctx context.Context, sessionID, captureID string) (err error) {
	defer edge(ctx, &err)
	if err := n.reach(ctx, Capture, captureID); err != nil {
		return err
	}
	_, err = n.find(sessionID)
	return err
}

// Keep implements nodeapi.Saver.
func (n *Node) Keep(ctx context.Context, id, lease string) (_ nodeapi.SavedFiles, err error) {
	defer edge(ctx, &err)
	if err := n.reach(ctx, Keep, id); err != nil {
		return nodeapi.SavedFiles{}, err
	}
	if lease == "" {
		return nodeapi.SavedFiles{}, errNoLease
	}
	n.setLease(id, lease)
	return n.saved(id)
}

// Discard implements nodeapi.Saver.
func (n *Node) Discard(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	n.mu.Lock()
	delete(n.leased, id)
	n.mu.Unlock()
	return os.RemoveAll(n.savedDir(id))
}

// Collect implements nodeapi.Collector; it counts the manifests removed.
func (n *Node) Collect(ctx context.Context, known nodeapi.Records) (c nodeapi.Collected, err error) {
	defer edge(ctx, &err)
	n.mu.Lock()
	leased := maps.Clone(n.leased)
	n.mu.Unlock()
	remove := map[string]bool{}
	for manifest, lease := range leased {
		remove[manifest] = slices.Contains(known.Ended, lease)
	}
	for _, m := range known.Manifests {
		if remove[m.Name] = m.Deleted; m.Deleted {
			c.Gone = append(c.Gone, m.Name)
		}
	}
	for _, manifest := range n.SavedFiles() {
		if remove[manifest] {
			if err := os.RemoveAll(n.savedDir(manifest)); err != nil {
				return c, err
			}
			c.Freed++
		}
	}
	return c, nil
}

// CreateDrive implements nodeapi.Drives.
func (n *Node) CreateDrive(ctx context.Context, id string, _ int64) (err error) {
	defer edge(ctx, &err)
	return os.MkdirAll(n.driveDir(id), 0o700)
}

// ForkDrive implements nodeapi.Drives.
func (n *Node) ForkDrive(ctx context.Context, id, from string) (err error) {
	defer edge(ctx, &err)
	if !exists(n.driveDir(from)) {
		return skerry.Errorf(skerry.CodeNotFound, "there is no drive %s", from)
	}
	return copyTree(n.driveDir(from), n.driveDir(id))
}

// DeleteDrive implements nodeapi.Drives.
func (n *Node) DeleteDrive(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	return os.RemoveAll(n.driveDir(id))
}

// RetainDrives implements nodeapi.Drives.
func (n *Node) RetainDrives(ctx context.Context, ids []string) (err error) {
	defer edge(ctx, &err)
	for _, id := range n.DriveIDs() {
		if !slices.Contains(ids, id) {
			err = errors.Join(err, n.DeleteDrive(ctx, id))
		}
	}
	return err
}

// Digest is the only image that Images knows.
const Digest = "sha256:0"

// Images knows the default image and no other.
type Images struct{}

// Resolve implements nodeapi.Images.
func (Images) Resolve(_ context.Context, ref string) (nodeapi.Image, error) {
	if ref != "" && ref != Digest {
		return nodeapi.Image{}, skerry.Errorf(skerry.CodeNotFound, "there is no image %q", ref)
	}
	return nodeapi.Image{Digest: Digest, Runtimes: []string{"node24", "python3.13"}}, nil
}
