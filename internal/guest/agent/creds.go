package agent

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs do on a thread that has the given credentials and nothing of
// root's, and waits for it. The thread is used for nothing else and ends with
// do, so that no other goroutine ever runs with the wrong credentials.
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

// onOwnThread runs do on a thread that ends with it. The process's first
// thread will not do: it never ends, and its credentials are taken for those
// of the whole process.
func onOwnThread(do func()) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
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

// assume changes the credentials of the calling thread alone. The system calls
// are made directly because their wrappers change all threads.
func (c *credentials) assume() error {
	if unix.Geteuid() == c.uid && c.uid != 0 {
		return nil
	}
	groups := make([]uint32, 0, len(c.groups)+1)
	for _, g := range c.groups {
		groups = append(groups, uint32(g))
	}
	n := len(groups)
	groups = append(groups, 0) // an address for the empty list
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return fmt.Errorf("setting groups: %w", e)
	}
	gid, uid := uintptr(c.gid), uintptr(c.uid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("setting group %d: %w", c.gid, e)
	}
	// This clears the thread's capabilities as well.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("setting user %d: %w", c.uid, e)
	}
	return nil
}
