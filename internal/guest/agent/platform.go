package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Platform is what the agent does to the kernel that it runs on.
type Platform interface {
	// Root is the folder that the sandbox's paths start from, "" for the root of
	// the file tree.
	Root() string
	// Alone reports whether every process that the agent sees belongs to its
	// sandbox.
	Alone() bool
	// Protect takes the agent out of reach of the out-of-memory killer. Commands
	// then need Expose.
	Protect() (protected bool)
	// Expose makes a command killable again. It is best effort: the process may
	// have ended.
	Expose(pid int)
	// As calls do with the credentials of a user of the sandbox.
	As(c credentials, do func() error) error
	// Credential returns what a command of this user is started with, nil for the
	// agent's own credentials.
	Credential(c credentials) *syscall.Credential
	// Environ adapts the environment of a command.
	Environ(env map[string]string)
	// Owner returns the ids that files of a user of the sandbox have.
	Owner(uid, gid int) (int, int)
	// The rest prepares the kernel at the first Setup; SetHostname also at others.
	SetHostname(name string) error
	LimitProcesses(processes int) error
	// PlainTmp makes /tmp a part of the file tree like any other.
	PlainTmp() error
	// AllowPtrace lets processes trace others of their user.
	AllowPtrace() error
}

// OwnKernel is the platform of an agent whose kernel has nothing but one sandbox.
type OwnKernel struct{}

var _ Platform = OwnKernel{}

// Root implements Platform.
func (OwnKernel) Root() string { return "" }

// Alone implements Platform.
func (OwnKernel) Alone() bool { return os.Getpid() == 1 }

// Protect implements Platform.
func (OwnKernel) Protect() bool {
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) == nil
}

// Expose implements Platform.
func (OwnKernel) Expose(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0)
}

// As implements Platform.
func (OwnKernel) As(c credentials, do func() error) error { return asUser(c, do) }

// Credential implements Platform.
func (OwnKernel) Credential(c credentials) *syscall.Credential {
	if unix.Geteuid() != 0 {
		return nil
	}
	groups := make([]uint32, len(c.groups))
	for i, g := range c.groups {
		groups[i] = uint32(g)
	}
	return &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.gid), Groups: groups}
}

// Environ implements Platform.
func (OwnKernel) Environ(map[string]string) {}

// Owner implements Platform.
func (OwnKernel) Owner(uid, gid int) (int, int) { return uid, gid }

// SetHostname sets the host's name unless it is that already.
func (OwnKernel) SetHostname(name string) error {
	if have, err := os.Hostname(); err == nil && have == name {
		return nil
	}
	return unix.Sethostname([]byte(name))
}

// AllowPtrace lets processes trace others of their user, not their descendants
// alone, as Debian does: gdb, strace and py-spy attach without sudo. gVisor
// begins with the stricter setting of Ubuntu.
func (OwnKernel) AllowPtrace() error {
	f, err := os.OpenFile("/proc/sys/kernel/yama/ptrace_scope", os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("0\n")
	return errors.Join(err, f.Close())
}

// cgroupDir is a folder of the agent's own image. Not /sys/fs/cgroup: a limit of
// the group there, which all processes are born in, does not hold what was born
// before it was set.
const cgroupDir = "/.skerry/cgroup"

// LimitProcesses puts the agent, and so all that it starts, in a control group
// of the sandbox's kernel with a limit. Without it a fork bomb would fill the
// sandbox's memory and take the whole sandbox down. Root in the sandbox can
// lift it, and harms nothing but its own sandbox.
func (OwnKernel) LimitProcesses(processes int) error {
	if err := unix.Mount("none", cgroupDir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	group := cgroupDir + "/sandbox"
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(group+"/pids.max", []byte(strconv.Itoa(processes)), 0); err != nil {
		return err
	}
	return os.WriteFile(group+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
}

// PlainTmp removes the memory filesystem that gVisor puts on an empty /tmp:
// what is written there belongs on the sandbox's disk, not into its memory, and
// into its snapshots.
func (OwnKernel) PlainTmp() error {
	var st unix.Statfs_t
	if os.Getpid() != 1 {
		return nil
	}
	if err := unix.Statfs("/tmp", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return nil // there is none, or it is the image's own
	}
	// A link would lead to another one.
	return unix.Unmount("/tmp", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// Folder is the platform of an agent that isolates nothing, for tests: the
// sandbox's files are in a folder, and its commands are processes of the user
// that the agent runs as. It leaves the kernel alone. Programs are those of the
// host, unless the folder has one at the same path.
type Folder struct {
	Path string
	// Mark is a variable, as NAME=VALUE, in the environment of every command. It
	// tells the sandbox's processes from others of the user.
	Mark string
}

var _ Platform = Folder{}

// Root implements Platform.
func (f Folder) Root() string { return f.Path }

// Alone implements Platform.
func (Folder) Alone() bool { return false }

// Protect implements Platform.
func (Folder) Protect() bool { return false }

// Expose implements Platform.
func (Folder) Expose(int) {}

// As implements Platform.
func (Folder) As(_ credentials, do func() error) error { return do() }

// Credential implements Platform.
func (Folder) Credential(credentials) *syscall.Credential { return nil }

// Environ implements Platform. The home folder is where the sandbox's files are.
func (f Folder) Environ(env map[string]string) {
	if home := env["HOME"]; strings.HasPrefix(home, "/") && !strings.HasPrefix(home, f.Path) {
		env["HOME"] = f.Path + home
	}
	if name, value, ok := strings.Cut(f.Mark, "="); ok {
		env[name] = value
	}
}

// Owner implements Platform.
func (Folder) Owner(int, int) (int, int) { return os.Getuid(), os.Getgid() }

// SetHostname implements Platform.
func (Folder) SetHostname(string) error { return nil }

// LimitProcesses implements Platform.
func (Folder) LimitProcesses(int) error { return nil }

// PlainTmp implements Platform.
func (Folder) PlainTmp() error { return nil }

// AllowPtrace implements Platform.
func (Folder) AllowPtrace() error { return nil }
