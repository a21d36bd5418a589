package egress

import (
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 1 << 20
	// maxIdlePipes are kept for the next that needs one.
	maxIdlePipes = 64
)

// pipes are lent only while bytes are moved, so that connections at rest hold
// none.
var pipes = pipePool{idle: make(chan pipe, maxIdlePipes)}

type pipePool struct{ idle chan pipe }

type pipe struct{ r, w int }

func (pp *pipePool) get() (pipe, error) {
	select {
	case p := <-pp.idle:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, err
	}
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // or smaller
	return pipe{fds[0], fds[1]}, nil
}

// put takes an empty pipe back.
func (pp *pipePool) put(p pipe) {
	select {
	case pp.idle <- p:
	default:
		p.close()
	}
}

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// splice copies from src to dst until src ends, without the bytes coming into
// this process. moved is told of each piece.
func splice(dst, src *net.TCPConn, moved func(int)) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	for {
		p, err := pipes.get()
		if err != nil {
			return err
		}
		n, again, err := fill(in, p)
		if n > 0 && err == nil {
			err = drain(out, p, n)
		}
		if err != nil || n < 0 {
			p.close() // may not be empty
			return err
		}
		pipes.put(p)
		switch {
		case n > 0:
			moved(n)
		case !again:
			return nil
		default:
			if err := waitReadable(in); err != nil {
				return err
			}
		}
	}
}

type rawConn interface {
	Read(func(fd uintptr) bool) error
	Write(func(fd uintptr) bool) error
}

// fill moves what has arrived into the pipe; again means that nothing has yet.
func fill(in rawConn, p pipe) (n int, again bool, err error) {
	rerr := in.Read(func(fd uintptr) bool {
		n, err = spliceOnce(int(fd), p.w, pipeSize)
		return true
	})
	if rerr != nil {
		return 0, false, rerr
	}
	if errors.Is(err, unix.EAGAIN) {
		return 0, true, nil
	}
	return n, false, err
}

func drain(out rawConn, p pipe, n int) error {
	var err error
	werr := out.Write(func(fd uintptr) bool {
		for n > 0 {
			var m int
			m, err = spliceOnce(p.r, int(fd), n)
			if errors.Is(err, unix.EAGAIN) {
				err = nil
				return false // until there is room
			}
			if err == nil && m == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return true
			}
			n -= m
		}
		return true
	})
	return errors.Join(werr, err)
}

func spliceOnce(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(m), err
		}
	}
}

// waitReadable returns when there is something to read, or the end.
func waitReadable(in rawConn) error {
	var b [1]byte
	return in.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
}

// join carries bytes both ways until both sides have ended, or one failed.
func (c *conn) join(up *upstream) error {
	if _, err := up.Write(c.replay); err != nil {
		return err
	}
	c.replay = nil
	var wg sync.WaitGroup
	var upErr error
	wg.Go(func() { upErr = c.oneWay(up.TCPConn, c.tcp, c.sent) })
	downErr := c.oneWay(c.tcp, up.TCPConn, c.received)
	wg.Wait()
	return errors.Join(upErr, downErr)
}

func (c *conn) oneWay(dst, src *net.TCPConn, moved func(int)) error {
	err := splice(dst, src, moved)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		c.abort() // ends the other way too
	}
	return err
}
