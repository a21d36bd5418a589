package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"unsafe"

	"github.com/skerry-dev/skerry"
)

// hostLog keeps what a process wrote for its followers.
type hostLog struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	pieces  []hostPiece
	ended   bool
}

type hostPiece struct {
	stream skerry.Stream
	data   []byte
}

func newHostLog() *hostLog { return &hostLog{changed: make(chan struct{})} }

func (l *hostLog) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *hostLog) end() { l.change(func() { l.ended = true }) }

func (l *hostLog) add(stream skerry.Stream, p []byte) {
	l.change(func() { l.pieces = append(l.pieces, hostPiece{stream, bytes.Clone(p)}) })
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func (l *hostLog) writer(s skerry.Stream) io.Writer {
	return writerFunc(func(p []byte) { l.add(s, p) })
}

func (l *hostLog) follow(ctx context.Context) *hostReader {
	return &hostReader{log: l, ctx: ctx, closed: make(chan struct{})}
}

type hostReader struct {
	log    *hostLog
	ctx    context.Context
	next   int
	once   sync.Once
	closed chan struct{}
}

func (r *hostReader) Next() (skerry.Stream, []byte, error) {
	for {
		r.log.mu.Lock()
		changed := r.log.changed
		if r.next < len(r.log.pieces) {
			p := r.log.pieces[r.next]
			r.next++
			r.log.mu.Unlock()
			return p.stream, p.data, nil
		}
		ended := r.log.ended
		r.log.mu.Unlock()
		if ended {
			return "", nil, io.EOF
		}
		select {
		case <-changed:
		case <-r.closed:
			return "", nil, os.ErrClosed
		case <-r.ctx.Done():
			return "", nil, r.ctx.Err()
		}
	}
}

func (r *hostReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// hostTerminal is a process on a pseudo-terminal of this machine.
type hostTerminal struct {
	*os.File
	cmd  *exec.Cmd
	once sync.Once
	err  error
}

func openHostTerminal(cmd *exec.Cmd, cols, rows uint16) (*hostTerminal, error) {
	fd, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/ptmx: %w", err)
	}
	var unlock, n int32
	for req, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &n} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg))); e != 0 {
			syscall.Close(fd)
			return nil, fmt.Errorf("setting up a pseudo-terminal: %w", e)
		}
	}
	t := &hostTerminal{File: os.NewFile(uintptr(fd), "ptmx"), cmd: cmd}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.File.Close()
		return nil, err
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := errors.Join(t.Resize(cols, rows), cmd.Start()); err != nil {
		t.File.Close()
		return nil, err
	}
	return t, nil
}

func (t *hostTerminal) Read(p []byte) (int, error) {
	n, err := t.File.Read(p)
	if errors.Is(err, syscall.EIO) { // how Linux says that the last process has closed it
		err = io.EOF
	}
	return n, err
}

func (t *hostTerminal) Resize(cols, rows uint16) error {
	size := [4]uint16{rows, cols}
	raw, err := t.File.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size)))
	})
	if errno != 0 {
		return errno
	}
	return err
}

func (t *hostTerminal) wait() error {
	t.once.Do(func() { t.err = t.cmd.Wait() })
	return t.err
}

func (t *hostTerminal) Wait() (int, error) {
	var exit *exec.ExitError
	if err := t.wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return exitCode(t.cmd.ProcessState), nil
}

func (t *hostTerminal) Close() error {
	_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGHUP)
	err := t.File.Close()
	_ = t.wait()
	return err
}

// exitCode is 128 and the signal's number for a process that one ended.
func exitCode(state *os.ProcessState) int {
	status := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
