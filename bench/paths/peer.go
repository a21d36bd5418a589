package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// peer is runsc as its own program, with the default image as its root.
type peer struct {
	runsc, image string
	number       int
}

// run runs /bin/true in a sandbox of runsc's. It has what ours has: an EROFS root
// with a writable layer, no server of files, systrap. It runs in a control group, so
// that its CPU time is counted with that of the server, which has nothing to do.
func (p *peer) run(ctx context.Context, group string) error {
	dir, err := os.MkdirTemp("", "skerry-paths-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The root of the bundle is not used, but has to be there.
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		return err
	}
	spec := map[string]any{
		"ociVersion": "1.0.0",
		"process":    map[string]any{"args": []string{"/bin/true"}, "cwd": "/", "env": []string{"PATH=/bin:/usr/bin"}},
		"root":       map[string]any{"path": "root"},
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs"},
		},
		"linux": map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}}},
		"annotations": map[string]string{
			"dev.gvisor.spec.rootfs.source":  p.image,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	p.number++
	enter := `exec "$@"`
	if group != "" {
		enter = fmt.Sprintf("echo $$ >%s && %s", filepath.Join(group, "cgroup.procs"), enter)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", enter, "sh", p.runsc, "--root="+filepath.Join(dir, "state"), "--network=none", "--ignore-cgroups",
		"run", "--bundle="+dir, fmt.Sprintf("peer-%d-%d", os.Getpid(), p.number))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
