package network

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout is the maximum time for a sandbox to accept a connection. Its kernel
// answers within a millisecond unless it lacks CPU, and stays silent only if it was
// configured to.
const dialTimeout = 10 * time.Second

// Dial connects to a TCP port of the sandbox. It returns ECONNREFUSED if nothing
// listens there. The caller must close the connection before it releases the lease:
// nothing else would close it.
func (l *Lease) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	d := net.Dialer{
		Timeout: l.pool.cfg.dialTimeout,
		// Both ends are on one machine, so neither can disappear silently.
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		// The socket is bound to the interface: after the end of the lease the host
		// must not try another route to the address.
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
