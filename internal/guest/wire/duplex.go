package wire

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Duplex is a Transport over two pipes, one in each direction.
//
// It does not use a socket pair. In a restored sandbox, gVisor reopens host sockets by
// the descriptor number that they had in another process
// (transport.HostSender.afterLoad), but pipes by name. It does not use package net,
// which would double the size of the agent.
type Duplex struct {
	in, out *os.File
	raw     syscall.RawConn // of out
}

// NewDuplex returns a Duplex over the ends of two pipes. It owns the descriptors, and
// closes them on error.
func NewDuplex(in, out int) (*Duplex, error) {
	d := &Duplex{}
	var err error
	if d.in, err = pollable(in); err != nil {
		unix.Close(in)
		unix.Close(out)
		return nil, err
	}
	if d.out, err = pollable(out); err != nil {
		unix.Close(out)
	} else {
		d.raw, err = d.out.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, d.in.Close())
	}
	return d, nil
}

// pollable returns fd as a file with deadlines.
func pollable(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("prepare descriptor %d of the connection: %w", fd, err)
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err := f.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("prepare descriptor %d of the connection: %w", fd, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Read implements io.Reader.
func (d *Duplex) Read(p []byte) (int, error) { return d.in.Read(p) }

// Write implements io.Writer.
func (d *Duplex) Write(p []byte) (int, error) { return d.out.Write(p) }

// SetDeadline, SetReadDeadline and SetWriteDeadline are as in net.Conn.
func (d *Duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.in.SetReadDeadline(t), d.out.SetWriteDeadline(t))
}

func (d *Duplex) SetReadDeadline(t time.Time) error { return d.in.SetReadDeadline(t) }

func (d *Duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }

// WriteVec implements Transport.
func (d *Duplex) WriteVec(bufs [][]byte) error {
	var failure error
	err := d.raw.Write(func(fd uintptr) bool {
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

// Files returns the two ends, the one for reading first, for a new process. d still
// owns them.
func (d *Duplex) Files() []*os.File { return []*os.File{d.in, d.out} }

// Close implements Transport.
func (d *Duplex) Close() error { return errors.Join(d.in.Close(), d.out.Close()) }
