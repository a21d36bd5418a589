package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNetNS is the network namespace of the calling thread.
const threadNetNS = "/proc/thread-self/ns/net"

// inNewNetNS creates a network namespace and mounts it at path. Meanwhile it calls
// inside on a thread in the namespace, with a file descriptor of the host's
// namespace. After an error path may or may not be mounted.
func inNewNetNS(path string, inside func(host int) error) error {
	return onOwnThread(func() (restored bool, err error) { return visitNewNetNS(path, inside) })
}

// inNetNS calls inside on a thread in the network namespace that is mounted at path.
func inNetNS(path string, inside func() error) error {
	return onOwnThread(func() (restored bool, err error) {
		host, err := os.Open(threadNetNS)
		if err != nil {
			return true, err
		}
		defer host.Close()
		ns, err := os.Open(path)
		if err != nil {
			return true, err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter the network namespace: %w", err)
		}
		return comeBack(host, inside())
	})
}

// comeBack returns to the host's namespace, after an error or nil.
func comeBack(host *os.File, err error) (restored bool, _ error) {
	if back := unix.Setns(int(host.Fd()), unix.CLONE_NEWNET); back != nil {
		return false, errors.Join(err, fmt.Errorf("return to the host's network namespace: %w", back))
	}
	return true, err
}

// onOwnThread calls visit, which changes the network namespace of its thread, and reports
// whether it has restored it.
func onOwnThread(visit func() (restored bool, err error)) error {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		restored, err := visit()
		if restored {
			runtime.UnlockOSThread()
		}
		// Otherwise the thread is in an unknown namespace. It ends with this
		// goroutine, so that it never runs other goroutines.
		res <- err
	}()
	return <-res
}

// visitNewNetNS moves the thread into a new namespace and back, and reports whether
// it is back.
func visitNewNetNS(path string, inside func(host int) error) (restored bool, err error) {
	host, err := os.Open(threadNetNS)
	if err != nil {
		return true, err
	}
	defer host.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("make a network namespace: %w", err)
	}
	mounted := make(chan error, 1)
	go func(thread int) { mounted <- mountNetNS(thread, path) }(unix.Gettid())
	return comeBack(host, errors.Join(inside(int(host.Fd())), <-mounted))
}

// mountNetNS keeps the namespace of a thread of this process alive by a mount at
// path, which must be new.
func mountNetNS(thread int, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", thread), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the network namespace: %w", err)
	}
	return nil
}

// sysctl writes an interface's setting in the calling thread's namespace.
func sysctl(family, iface, name, value string) error {
	path := filepath.Join("/proc/sys/net", family, "conf", iface, name)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
