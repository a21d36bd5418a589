package agent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of the agent: the commands that it started and,
// as PID 1, the orphans that fall to it. Nothing else in the agent may wait
// for a child.
//
// A child is first seen without being reaped, so that its pid cannot be given
// to another process before the one it belonged to has been told.
type reaper struct {
	// forking is held for reading from before a fork until its pid is in
	// exits. A pid that is in nobody's name is an orphan's only if no fork is
	// under way.
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

// start forks by fork, and has exited called with the status of the process
// when it has ended. exited runs before the pid is free for another process
// and must not wait.
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

// settle waits until no fork that is under way now is any more.
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
	// An orphan, or a child that is being forked right now.
	r.forking.Lock()
	defer r.forking.Unlock()
	if exited := r.take(pid); exited != nil {
		exited(child.waitStatus())
	}
	reap(pid)
	return true
}

// reap removes a zombie, unless a failed fork has done so itself.
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

// childInfo is the siginfo_t of a child, as waitid fills it in on 64-bit
// Linux.
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

// endedChild returns a child that has ended and leaves it a zombie; its pid is
// 0 when there is none.
func endedChild() (childInfo, error) {
	var info childInfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return info, err
		}
	}
}
