package network

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds how long a sandbox may take to accept a connection: its
// kernel answers within a millisecond unless it is short of CPU, and is silent
// only if it was told to be.
const dialTimeout = 10 * time.Second

// Dial connects to a TCP port of the sandbox. That nothing listens there is
// ECONNREFUSED. The caller closes the connection before the lease is released:
// nothing else would end it.
func (l *Lease) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	d := net.Dialer{
		Timeout: dialTimeout,
		// Two sides that are on one machine do not lose each other in silence.
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		// Without the interface there is no way to the address: once the lease
		// is gone, the host must not look for it elsewhere.
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), l.ifName()) })
			if cerr != nil {
				return cerr
			}
			return err
		},
	}
	return d.DialContext(ctx, "tcp4", netip.AddrPortFrom(l.sandbox, port).String())
}
