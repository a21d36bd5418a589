package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// Dial implements controller.Node.
func (n *Node) Dial(ctx context.Context, sessionID string, port int) (net.Conn, error) {
	s, err := n.running(sessionID)
	if err != nil {
		return nil, err
	}
	if port < 1 || port > skerry.MaxPort {
		return nil, fmt.Errorf("connect to session %s: there is no port %d", sessionID, port)
	}
	conn, err := s.lease.Dial(ctx, uint16(port))
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, skerry.Errorf(skerry.CodeUnavailable, "nothing listens on port %d: %w", port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of session %s: %w", port, sessionID, err)
	}
	return s.conns.add(sessionID, conn)
}

// connections are those that the host has to one session. They end with the
// session: its kernel is killed and tells nobody.
type connections struct {
	mu     sync.Mutex
	closed bool
	open   map[*connection]struct{}
}

// connection is forgotten when it is closed. A *net.TCPConn is kept as what it
// is, so that bytes can be moved without being copied into this process.
type connection struct {
	*net.TCPConn
	of *connections
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.TCPConn.Close()
}

// add registers a connection; if the session has ended meanwhile it closes it.
func (cs *connections) add(sessionID string, conn net.Conn) (net.Conn, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect to session %s: %T is no TCP connection", sessionID, conn), conn.Close())
	}
	c := &connection{TCPConn: tcp, of: cs}
	cs.mu.Lock()
	closed := cs.closed
	if !closed {
		if cs.open == nil {
			cs.open = map[*connection]struct{}{}
		}
		cs.open[c] = struct{}{}
	}
	cs.mu.Unlock()
	if closed {
		_ = tcp.Close()
		return nil, errStopped(sessionID)
	}
	return c, nil
}

// close closes all, and those that are still to come.
func (cs *connections) close() {
	cs.mu.Lock()
	open := cs.open
	cs.open, cs.closed = nil, true
	cs.mu.Unlock()
	for c := range open {
		_ = c.TCPConn.Close()
	}
}
