// Package socketpair makes connections within this process that the kernel buffers
// and that can be closed in one direction, unlike those of net.Pipe.
package socketpair

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// New returns the two ends of a connection.
func New() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]*net.UnixConn
	var errs []error
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		errs = append(errs, err, f.Close())
		if err == nil {
			ends[i] = c.(*net.UnixConn)
		}
	}
	if err := errors.Join(errs...); err != nil {
		for _, c := range ends {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
