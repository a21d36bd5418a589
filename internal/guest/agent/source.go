package agent

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is the requested capacity of a command's pipes. With a large pipe, the
// command continues while the agent sends earlier output.
const pipeSize = 1 << 20

// source is the agent's end of an output pipe or terminal of a process.
type source struct {
	f   *os.File
	raw syscall.RawConn
	// capacity is the maximum number of unread bytes, and so the most that a process
	// can leave when it ends.
	capacity int
}

var errAgain = errors.New("no data available")

// newSource returns a source that owns fd, which must be non-blocking.
func newSource(fd, capacity int) (*source, error) {
	f := os.NewFile(uintptr(fd), "output")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &source{f: f, raw: raw, capacity: capacity}, nil
}

// newPipeSource returns a pipe: the reading end for the agent, and the writing end for
// the process.
func newPipeSource() (*source, *os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, err
	}
	// The process's end is not for it to poll.
	if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETFL, 0); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	w := os.NewFile(uintptr(fds[1]), "pipe")
	// If the kernel refuses the size (it limits the pipes of unprivileged users), the
	// default is good enough.
	capacity, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		capacity = pipeSize
	}
	s, err := newSource(fds[0], capacity)
	if err != nil {
		w.Close()
		return nil, nil, err
	}
	return s, w, nil
}

// read appends available data to o. With wait set it waits for data, otherwise it
// returns errAgain. At the end it returns 0 and nil. It reserves no space in o while it
// waits.
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
		return 0, nil // a terminal that nobody has open any more
	}
	return n, err
}

// interrupt ends a waiting read, and every later one, until uninterrupt.
func (s *source) interrupt() { s.f.SetReadDeadline(time.Unix(1, 0)) }

// uninterrupt lets reads wait again after interrupt.
func (s *source) uninterrupt() { s.f.SetReadDeadline(time.Time{}) }

// discard reads and drops data until the end. The process may have left others running,
// which would block or get SIGPIPE without a reader.
func (s *source) discard() {
	buf := make([]byte, 4<<10)
	for {
		if _, err := s.f.Read(buf); err != nil {
			return
		}
	}
}
