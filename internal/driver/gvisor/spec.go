package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skerry-dev/skerry/internal/driver"
)

const (
	// agentMount is where the guest agent's image is mounted in the sandbox.
	agentMount = "/.skerry"
	agentPath  = agentMount + "/agent"

	bundle   = "config.json"
	debugDir = "debug"
	rootDir  = "rootfs"
	// mountsDir has an empty folder for each of the machine's mounts.
	mountsDir = "mounts"
)

// capabilities is what root has inside the sandbox. They are the sentry's to
// grant and give nothing on the host. Left out is what a sandbox has no use
// for: loading modules, setting the clock, rebooting.
//
// CAP_NET_ADMIN is for container engines and for the sandboxes of agents. It is
// about interfaces, addresses and routes of gVisor's own network stack. Raw frames
// of any content could be sent without it (CAP_NET_RAW); what has another source
// than the sandbox's own is dropped at the host's end of its interface, where
// policies are judged too.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
	"CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_KILL", "CAP_LEASE",
	"CAP_LINUX_IMMUTABLE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN",
	"CAP_SYS_CHROOT", "CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TTY_CONFIG",
}

// ociSpec describes the machine to runsc; dir is its folder.
func ociSpec(s driver.Spec, dir string) *specs.Spec {
	root := filepath.Join(dir, rootDir)
	netns := specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netNS(s)}
	oci := &specs.Spec{
		Version:  specs.Version,
		Hostname: s.Hostname,
		Process: &specs.Process{
			Args: []string{agentPath},
			Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  capabilities,
				Effective: capabilities,
				Permitted: capabilities,
			},
		},
		Root: &specs.Root{Path: root},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}},
			{Destination: agentMount, Type: "erofs", Source: s.Agent, Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, netns,
			},
		},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  s.RootFS,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	for i, m := range s.Volumes {
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		oci.Mounts = append(oci.Mounts, specs.Mount{
			Destination: m.Path, Type: "bind", Source: mountPoint(dir, i), Options: []string{access},
		})
	}
	return oci
}

func netNS(s driver.Spec) string {
	path, _ := network(s)
	return path
}

// mountPoint is where the gofer of a machine finds the i-th mount's tree. To
// the host it is an empty folder.
func mountPoint(dir string, i int) string { return filepath.Join(dir, mountsDir, strconv.Itoa(i)) }

// writeBundle makes the machine's folder: runsc reads the spec from it. If it
// fails, on a full disk say, nothing is left; a folder that was there stays, as
// it is another machine's.
func writeBundle(dir string, spec *specs.Spec, mounts int) (err error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode the machine's spec: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create the machine's folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Mkdir(filepath.Join(dir, rootDir), 0o700); err != nil {
		return fmt.Errorf("create the machine's root: %w", err)
	}
	for i := range mounts {
		if err := os.MkdirAll(mountPoint(dir, i), 0o700); err != nil {
			return fmt.Errorf("create the machine's mount points: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, bundle), b, 0o600); err != nil {
		return fmt.Errorf("write the machine's spec: %w", err)
	}
	return nil
}
