package agent

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fdTransport carries frames over a socket's file descriptor. The net package
// is not used for it: it would double the size of the agent.
type fdTransport struct {
	f   *os.File
	raw syscall.RawConn
}

// newTransport takes over fd. Where the poller does not take the descriptor,
// reads and writes block a thread each.
func newTransport(fd int) (*fdTransport, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
	}
	f := os.NewFile(uintptr(fd), "host")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		if err := unix.SetNonblock(fd, false); err != nil {
			f.Close()
			return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
	}
	return &fdTransport{f: f, raw: raw}, nil
}

func (t *fdTransport) Read(p []byte) (int, error) { return t.f.Read(p) }

func (t *fdTransport) Close() error {
	// A reader that is not in the poller wakes up by the shutdown alone.
	t.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return t.f.Close()
}

// WriteVec writes all of bufs, waiting for room in the socket.
func (t *fdTransport) WriteVec(bufs [][]byte) error {
	var failure error
	err := t.raw.Write(func(fd uintptr) bool {
		for len(bufs) > 0 {
			n, err := unix.Writev(int(fd), bufs)
			switch err {
			case nil:
				bufs = advance(bufs, n)
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				failure = err
				return true
			}
		}
		return true
	})
	if err == nil {
		err = failure
	}
	return err
}

// advance drops the first n bytes of bufs.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// readRegular returns the content of a regular file of at most limit bytes.
// It does not hang on a FIFO and does not open a device for long.
func readRegular(path string, limit int64) ([]byte, error) {
	fd, err := openRetry(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Size > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, nil
}

// openRetry is openat that starts again when a signal comes in between.
func openRetry(dir int, path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
