package wire

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Duplex is a Transport over two pipes, one for each direction. They are no
// socket pair because gVisor brings sockets of the host back to life in a
// restored sandbox by the number that their descriptor had in another process
// (transport.HostSender.afterLoad), and pipes by name. The net package is not
// used: it would double the size of the agent.
type Duplex struct {
	in, out *os.File
	raw     syscall.RawConn // of out
}

// NewDuplex takes over the descriptors of two pipes' ends, also when it fails.
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

// pollable leaves fd alone if it fails.
func pollable(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err := f.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("connection on descriptor %d: %w", fd, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Read implements io.Reader.
func (d *Duplex) Read(p []byte) (int, error) { return d.in.Read(p) }

// Write implements io.Writer.
func (d *Duplex) Write(p []byte) (int, error) { return d.out.Write(p) }

// SetDeadline, SetReadDeadline and SetWriteDeadline are those of a net.Conn.
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

// Files returns the two ends, the one for reading first, to be passed to a
// process; they stay d's.
func (d *Duplex) Files() []*os.File { return []*os.File{d.in, d.out} }

// Close implements Transport.
func (d *Duplex) Close() error { return errors.Join(d.in.Close(), d.out.Close()) }
