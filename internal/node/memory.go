package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Keep implements nodeapi.Saver.
func (n *Node) Keep(ctx context.Context, captureID, lease string) (_ nodeapi.SavedFiles, err error) {
	defer edge(ctx, &err)
	dir, err := n.captured(captureID)
	if err != nil {
		return nodeapi.SavedFiles{}, err
	}
	from, err := readWoken(dir)
	if err != nil {
		return nodeapi.SavedFiles{}, fmt.Errorf("keep capture %s: %w", captureID, err)
	}
	saved, err := n.keep(ctx, dir, from.Format, lease)
	if err != nil {
		return saved, fmt.Errorf("keep capture %s: %w", captureID, err)
	}
	return saved, nil
}

// Discard implements nodeapi.Node.
func (n *Node) Discard(ctx context.Context, captureID string) (err error) {
	defer edge(ctx, &err)
	dir, err := n.captured(captureID)
	if err != nil {
		return err
	}
	if c := n.takeCapture(captureID); c != nil {
		return c.giveUp()
	}
	return os.RemoveAll(dir)
}

// captured returns the folder of a capture.
func (n *Node) captured(id string) (string, error) {
	if id == "" || id == "." || id == ".." || filepath.Base(id) != id {
		return "", fmt.Errorf("%q is not the id of a capture", id)
	}
	return filepath.Join(n.cfg.SnapshotWork, id), nil
}
