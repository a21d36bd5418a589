package agent

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs do on a thread with the given credentials, without privileges of root, and
// waits for it. The thread ends with do, so no other goroutine can run with these
// credentials.
func asUser(c credentials, do func() error) error {
	done := make(chan error, 1)
	go onOwnThread(func() {
		err := c.assume()
		if err == nil {
			err = do()
		}
		done <- err
	})
	return <-done
}

// asRoot runs do on another thread, and waits for it. The caller's thread may be one of
// asUser.
func asRoot(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return <-done
}

// onOwnThread runs do on a thread that ends with it. It does not use the first thread of
// the process: that one never ends, and its credentials count as those of the process.
func onOwnThread(do func()) {
	runtime.LockOSThread() // without unlock, the thread ends with the goroutine
	if unix.Gettid() != os.Getpid() {
		do()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(do)
	}()
	<-done
}

// assume changes the credentials of the calling thread only. It makes raw system calls,
// because the wrappers change all threads.
func (c *credentials) assume() error {
	if unix.Geteuid() == c.uid && c.uid != 0 {
		return nil
	}
	groups := make([]uint32, 0, len(c.groups)+1)
	for _, g := range c.groups {
		groups = append(groups, uint32(g))
	}
	n := len(groups)
	groups = append(groups, 0) // so that groups[0] exists
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return fmt.Errorf("set groups: %w", e)
	}
	gid, uid := uintptr(c.gid), uintptr(c.uid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("set group %d: %w", c.gid, e)
	}
	// This also clears the capabilities of the thread.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("set user %d: %w", c.uid, e)
	}
	return nil
}
