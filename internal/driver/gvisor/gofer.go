package gvisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/sandbox"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/skerry-dev/skerry/internal/driver"
)

// A machine with mounts has a second process on the host: runsc's gofer, which
// opens files of the mounts for the sentry. It is confined as runsc confines
// it: namespaces of its own, a root with nothing but the mounts, the few
// capabilities it takes to own files, a seccomp filter, and no path followed
// through a symbolic link. On top of that it has a network namespace of its
// own, and it is in the machine's cgroup.
//
// The mounts' trees are attached nowhere but in the gofer's mount namespace. So
// no process of the host ever walks into them, and the kernel takes them away
// when the gofer ends, for whatever reason: there is nothing to find and unmount
// after a crash.

// goferGrace is how long a machine whose gofer ended is given to end itself:
// a gofer ends when its sentry does, and may be seen to do so first.
const goferGrace = time.Second

// startGofer starts the gofer of a machine with mounts and adds to the sentry's
// arguments its ends of the connections.
func (d *Driver) startGofer(conf *config.Config, spec driver.Spec, args *sandbox.Args) (_ *process, err error) {
	dir := d.machineDir(spec.ID)
	var donated, sentrys []*os.File
	defer func() {
		closeAll(donated)
		if err != nil {
			closeAll(sentrys)
		}
	}()
	cmd := exec.Command(specutils.ExePath, conf.ToFlags()...)
	cmd.Args[0] = "runsc-gofer"
	cmd.Args = append(cmd.Args, roleGofer, "--bundle="+dir)
	donate := func(flag string, f *os.File) {
		donated = append(donated, f)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		cmd.Args = append(cmd.Args, fmt.Sprintf("--%s=%d", flag, 2+len(cmd.ExtraFiles)))
	}

	oci, err := os.Open(filepath.Join(dir, bundle))
	if err != nil {
		return nil, fmt.Errorf("open the machine's spec: %w", err)
	}
	donate("spec-fd", oci)
	confs := args.GoferMountConfs
	for range spec.Volumes {
		sentry, gofer, err := pair()
		if err != nil {
			return nil, err
		}
		sentrys = append(sentrys, sentry)
		donate("io-fds", gofer)
		confs = append(confs, specutils.GoferMountConf{Lower: specutils.Lisafs, Upper: specutils.NoOverlay})
	}
	cmd.Args = append(cmd.Args, "--gofer-mount-confs="+confs.String())
	mounts, resolved, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	sentrys = append(sentrys, mounts)
	donate("mounts-fd", resolved)
	// The gofer would ask here for sources that it cannot open; there are none.
	ask, answer, err := pair()
	if err != nil {
		return nil, err
	}
	answer.Close()
	donate("rpc-fd", ask)
	// It waits for the other end to close before it looks at its mounts.
	hold, held, err := pair()
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	donate("sync-chroot-fd", held)

	cmd.Args = append(cmd.Args, spec.ID)
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.null, d.null, d.null
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if cg := args.CloneIntoCgroupFD; cg != nil {
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(cg.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the gofer: %w", err)
	}
	// Closing hold lets it go, and without its mounts it ends.
	proc, err := openProcess(cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	if err := attachMounts(proc.pid, dir, spec.Volumes); err != nil {
		_ = proc.signal()
		_, _, werr := proc.wait()
		proc.close()
		return nil, errors.Join(err, werr)
	}
	args.GoferMountConfs = confs
	args.IOFiles = append(args.IOFiles, sentrys[:len(spec.Volumes)]...)
	args.MountsFile = mounts
	return proc, nil
}

// pair returns the two ends of a connection.
func pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("create a connection: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "sentry's end"), os.NewFile(uintptr(fds[1]), "gofer's end"), nil
}

// attachMounts attaches the mounts' trees in the mount namespace of a process.
func attachMounts(pid int, dir string, mounts []driver.Volume) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	err = onSpareThread(func() error {
		// A thread must share its root and working directory with no other.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		// Otherwise what is mounted here is seen on the host too.
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return err
		}
		for i, m := range mounts {
			err := unix.MoveMount(int(m.Source.Fd()), "", unix.AT_FDCWD, mountPoint(dir, i), unix.MOVE_MOUNT_F_EMPTY_PATH)
			if err != nil {
				return fmt.Errorf("%s: %w", m.Path, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("attach the machine's mounts: %w", err)
	}
	return nil
}

// onSpareThread calls fn on a thread that ends afterwards, so that fn may
// change what cannot be changed back.
func onSpareThread(fn func() error) error {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// The first thread does not end, and is what /proc/self shows.
		if unix.Gettid() == unix.Getpid() {
			res <- onSpareThread(fn)
			runtime.UnlockOSThread()
			return
		}
		res <- fn()
	}()
	return <-res
}

// watchGofer ends a machine whose gofer ended: its files are out of reach.
func (m *machine) watchGofer() {
	if _, _, err := m.gofer.wait(); err != nil {
		m.d.cfg.Log.Error("cannot wait for a gofer", "machine", m.id, "error", err)
	}
	select {
	case <-m.done:
		return
	case <-time.After(goferGrace):
	}
	m.unserved.Store(true)
	_ = m.proc.signal() // watch sees whether it ends
}
