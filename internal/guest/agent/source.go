package agent

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is the capacity asked for a command's pipes: with a large one the
// command runs on while the agent sends what it wrote before.
const pipeSize = 1 << 20

// source is the agent's end of a pipe or terminal that a process writes to.
type source struct {
	f   *os.File
	raw syscall.RawConn
	// capacity is how much can lie in it at once, and so the most that a
	// process can have written just before it ended.
	capacity int
}

var errAgain = errors.New("nothing to read now")

// newSource takes over a non-blocking fd.
func newSource(fd, capacity int) (*source, error) {
	f := os.NewFile(uintptr(fd), "output")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &source{f: f, raw: raw, capacity: capacity}, nil
}

// newPipeSource returns a pipe: its reading end for the agent and its writing
// end for the process.
func newPipeSource() (*source, *os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	w := os.NewFile(uintptr(fds[1]), "pipe")
	// Where the size cannot be had (a limit on unprivileged pipes), the
	// default is as good.
	capacity, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		capacity = pipeSize
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		w.Close()
		return nil, nil, err
	}
	s, err := newSource(fds[0], capacity)
	if err != nil {
		w.Close()
		return nil, nil, err
	}
	return s, w, nil
}

// read appends to o what can be read, waiting for it if asked. It returns 0
// and nil at the end. No room in o is taken while it waits.
func (s *source) read(o *output, wait bool) (n int, err error) {
	waitErr := s.raw.Read(func(fd uintptr) bool {
		buf := o.space()
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				break
			}
		}
		n = max(n, 0)
		o.commit(n)
		return !wait || err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return n, waitErr
	case err == unix.EAGAIN:
		return 0, errAgain
	case err == unix.EIO:
		return 0, nil // how a terminal says that its last user has gone
	}
	return n, err
}

// interrupt makes a waiting read return, and every later one that waits.
func (s *source) interrupt() { s.f.SetReadDeadline(time.Unix(1, 0)) }

// uninterrupt lets reads wait again.
func (s *source) uninterrupt() { s.f.SetReadDeadline(time.Time{}) }

// discard reads until the end and keeps nothing, so that what a process left
// running does not stop or die for want of a reader.
func (s *source) discard() {
	buf := make([]byte, 4<<10)
	for {
		if _, err := s.f.Read(buf); err != nil {
			return
		}
	}
}
