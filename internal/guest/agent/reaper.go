package agent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper waits for all children of the agent: the commands that it started and, as PID
// 1, the orphans of the sandbox. Nothing else in the agent may wait for a child.
//
// The reaper first looks at an ended child without reaping it. So its pid cannot be
// reused before exited has been called.
type reaper struct {
	// forking is read-locked from before a fork until the pid is in exits. A pid that
	// is not in exits is an orphan only if no fork is in progress.
	forking sync.RWMutex

	mu    sync.Mutex
	exits map[int]func(unix.WaitStatus)

	signals chan os.Signal
	stop    chan struct{}
	stopped chan struct{}
}

func newReaper() *reaper {
	r := &reaper{
		exits:   make(map[int]func(unix.WaitStatus)),
		signals: make(chan os.Signal, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.run()
	return r
}

// close ends the reaper and waits for it.
func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.stop)
	<-r.stopped
}

// start calls fork. When the process has ended, the reaper calls exited with its status.
// exited runs before the pid can be reused, and must not block.
func (r *reaper) start(fork func() (pid int, err error), exited func(unix.WaitStatus)) (int, error) {
	r.forking.RLock()
	defer r.forking.RUnlock()
	pid, err := fork()
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	r.exits[pid] = exited
	r.mu.Unlock()
	return pid, nil
}

// settle waits for the forks in progress.
func (r *reaper) settle() {
	r.forking.Lock()
	defer r.forking.Unlock()
}

func (r *reaper) run() {
	defer close(r.stopped)
	for {
		select {
		case <-r.signals:
			for r.reapOne() {
			}
		case <-r.stop:
			return
		}
	}
}

// reapOne reaps one ended child, and reports whether there was one.
func (r *reaper) reapOne() bool {
	child, err := endedChild()
	if err != nil || child.pid <= 0 {
		return false
	}
	pid := int(child.pid)
	if exited := r.take(pid); exited != nil {
		exited(child.waitStatus())
		reap(pid)
		return true
	}
	// It is an orphan, or a fork is in progress. Wait for the fork.
	r.forking.Lock()
	defer r.forking.Unlock()
	if exited := r.take(pid); exited != nil {
		exited(child.waitStatus())
	}
	reap(pid)
	return true
}

// reap removes a zombie. A failed fork may have reaped it already.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != unix.EINTR {
			return
		}
	}
}

func (r *reaper) take(pid int) func(unix.WaitStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	exited := r.exits[pid]
	delete(r.exits, pid)
	return exited
}

// childInfo is the siginfo_t of waitid on 64-bit Linux.
type childInfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

func (c *childInfo) waitStatus() unix.WaitStatus {
	const cldExited = 1
	if c.code == cldExited {
		return unix.WaitStatus(c.status << 8)
	}
	return unix.WaitStatus(c.status & 0x7f)
}

// endedChild returns a child that has ended, without reaping it. Its pid is 0 if there
// is none.
func endedChild() (childInfo, error) {
	var info childInfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return info, err
		}
	}
}
