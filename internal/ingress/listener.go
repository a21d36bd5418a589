package ingress

import (
	"net"
	"sync"
	"sync/atomic"
)

// listener bounds how many connections there are. Those beyond are closed at
// once: left to wait, they would keep others waiting behind them.
type listener struct {
	net.Listener
	place     *place
	total     *atomic.Int64
	mostTotal int
	// own counts the connections of this listener; nil does not.
	own     *atomic.Int64
	mostOwn int
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.enter() {
			return &clientConn{Conn: c, of: l}, nil
		}
		_ = c.Close()
	}
}

func (l *listener) enter() bool {
	if l.total.Add(1) > int64(l.mostTotal) {
		l.total.Add(-1)
		return false
	}
	if l.own != nil && l.own.Add(1) > int64(l.mostOwn) {
		l.total.Add(-1)
		l.own.Add(-1)
		return false
	}
	return true
}

// clientConn is a connection that is counted.
type clientConn struct {
	net.Conn
	of   *listener
	once sync.Once
	// spent says that no further request is taken from it.
	spent atomic.Bool
}

// Close implements net.Conn.
func (c *clientConn) Close() error {
	c.once.Do(func() {
		c.of.total.Add(-1)
		if c.of.own != nil {
			c.of.own.Add(-1)
		}
	})
	return c.Conn.Close()
}
