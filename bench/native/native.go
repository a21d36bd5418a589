// Package native runs programs of an image on this machine without a sandbox, to
// compare sandboxes with.
package native

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Unpack extracts an EROFS file into a temporary folder, until remove is called. It
// needs fsck.erofs.
func Unpack(ctx context.Context, image string) (tree string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "skerry-bench-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	tree = filepath.Join(dir, "tree")
	if out, err := exec.CommandContext(ctx, "fsck.erofs", "--extract="+tree, image).CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("extract %s: %w: %s", image, err, out)
	}
	return tree, remove, nil
}

// Command is a command whose root is a tree, with /dev and /proc. Bubblewrap gives it
// a mount namespace and nothing else, so the mounts end with it.
func Command(ctx context.Context, tree string, argv ...string) *exec.Cmd {
	args := append([]string{"--die-with-parent", "--bind", tree, "/", "--dev", "/dev", "--proc", "/proc", "--clearenv", "--setenv", "HOME", "/root"}, argv...)
	return exec.CommandContext(ctx, "bwrap", args...)
}
