package agent

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vforkExec is syscall.ForkExec with fewer system calls. ForkExec makes a fifth of the
// system calls of a short command, and in a sandbox each takes some ten microseconds.
//
//   - ForkExec resets the handlers of signals in the child, with one call for each of the
//     60 signals that Go's runtime handles. Here the kernel resets them
//     (CLONE_CLEAR_SIGHAND).
//   - ForkExec's child reports an error through a pipe. Here it writes to memory that it
//     shares with the agent's thread, which waits in the kernel until the child executes
//     its program.
//
// The files must not be among the first three descriptors. It does not restore a limit of
// open files that Go's runtime has raised, so the agent's must not have been: it is its
// maximum from the start. errNoVfork means that nothing was started.
func vforkExec(file string, argv []string, attr *syscall.ProcAttr) (int, error) {
	c, err := newChild(file, argv, attr)
	if err != nil {
		return 0, err
	}
	// No other goroutine may open a file without O_CLOEXEC meanwhile; see
	// syscall.ForkLock.
	syscall.ForkLock.Lock()
	pid, errno := c.start()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(c)
	switch {
	case errno != 0 && (errno == unix.ENOSYS || errno == unix.EINVAL || errno == unix.EPERM):
		return 0, errNoVfork // a kernel before Linux 5.5, or one that forbids clone3
	case errno != 0:
		return 0, errno
	case c.failed != 0:
		reap(int(pid))
		return 0, syscall.Errno(c.failed)
	}
	return int(pid), nil
}

// errNoVfork means that the kernel or the parameters do not allow vforkExec.
var errNoVfork = errors.New("vforkExec is not possible")

// child is what the child needs, as arguments of system calls, because it must not allocate.
type child struct {
	args   cloneArgs
	file   *byte
	argv   **byte
	envv   **byte
	dir    *byte
	files  [3]uintptr
	tty    bool
	as     bool // with credentials of its own
	uid    uintptr
	gid    uintptr
	groups []uint32
	mask   uint64 // of signals; none is blocked
	// failed is the error that the child has ended with, written by the child.
	failed uintptr

	argvs, envvs []*byte
}

// cloneArgs is struct clone_args of Linux, in its first version.
type cloneArgs struct {
	flags      uint64
	_          [3]uint64 // pidfd, child_tid, parent_tid
	exitSignal uint64
	_          [3]uint64 // stack, stack_size, tls
}

// cloneClearSighand is CLONE_CLEAR_SIGHAND.
const cloneClearSighand = 0x100000000

func newChild(file string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	c := &child{args: cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | cloneClearSighand, exitSignal: uint64(unix.SIGCHLD)}}
	if len(attr.Files) != len(c.files) {
		return nil, errNoVfork
	}
	for i, fd := range attr.Files {
		if fd < uintptr(len(c.files)) {
			return nil, errNoVfork
		}
		c.files[i] = fd
	}
	var err error
	if c.file, err = syscall.BytePtrFromString(file); err != nil {
		return nil, err
	}
	if c.dir, err = syscall.BytePtrFromString(attr.Dir); err != nil {
		return nil, err
	}
	if c.argvs, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return nil, err
	}
	if c.envvs, err = syscall.SlicePtrFromStrings(attr.Env); err != nil {
		return nil, err
	}
	c.argv, c.envv = &c.argvs[0], &c.envvs[0]
	c.tty = attr.Sys.Setctty
	if cred := attr.Sys.Credential; cred != nil {
		c.as, c.uid, c.gid = true, uintptr(cred.Uid), uintptr(cred.Gid)
		c.groups = append(make([]uint32, 0, len(cred.Groups)+1), cred.Groups...)
	}
	return c, nil
}

// The hooks of syscall.ForkExec into the runtime, which block all signals and forbid
// the stack to grow.
//
//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// rawClone3 is clone3 for a child that shares the memory of this thread, its stack
// included. The return address is not on the stack meanwhile, as the child would
// overwrite it.
//
//go:noescape
func rawClone3(args *cloneArgs, size uintptr) (pid, errno uintptr)

// start forks and executes. The frame of fork is the child's until then.
func (c *child) start() (pid uintptr, errno syscall.Errno) {
	pid, errno = c.fork()
	afterFork()
	return pid, errno
}

// fork returns in the parent only, and the parent must leave the frame at once, as the
// child has used it. In the child fork must not take locks, allocate or grow the stack.
//
//go:noinline
//go:norace
//go:nocheckptr
func (c *child) fork() (pid uintptr, errno syscall.Errno) {
	var (
		e      uintptr
		i      int
		groups unsafe.Pointer
	)
	beforeFork() // from here on the stack cannot grow
	pid, e = rawClone3(&c.args, unsafe.Sizeof(c.args))
	if pid != 0 || e != 0 {
		return pid, syscall.Errno(e)
	}

	if _, _, errno = syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto fail
	}
	if _, _, errno = syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.mask)), 0, unsafe.Sizeof(c.mask), 0, 0); errno != 0 {
		goto fail
	}
	if c.as {
		if len(c.groups) > 0 {
			groups = unsafe.Pointer(&c.groups[0])
		}
		if _, _, errno = syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(groups), 0); errno != 0 {
			goto fail
		}
		if _, _, errno = syscall.RawSyscall(syscall.SYS_SETGID, c.gid, 0, 0); errno != 0 {
			goto fail
		}
		if _, _, errno = syscall.RawSyscall(syscall.SYS_SETUID, c.uid, 0, 0); errno != 0 {
			goto fail
		}
	}
	if _, _, errno = syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(c.dir)), 0, 0); errno != 0 {
		goto fail
	}
	for i = 0; i < len(c.files); i++ {
		if _, _, errno = syscall.RawSyscall(syscall.SYS_DUP3, c.files[i], uintptr(i), 0); errno != 0 {
			goto fail
		}
	}
	if c.tty {
		if _, _, errno = syscall.RawSyscall(syscall.SYS_IOCTL, 0, syscall.TIOCSCTTY, 1); errno != 0 {
			goto fail
		}
	}
	_, _, errno = syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(c.file)), uintptr(unsafe.Pointer(c.argv)), uintptr(unsafe.Pointer(c.envv)))
fail:
	c.failed = uintptr(errno)
	for {
		syscall.RawSyscall(syscall.SYS_EXIT, 253, 0, 0)
	}
}
