package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// Dial implements nodeapi.Node.
func (n *Node) Dial(ctx context.Context, sessionID string, port int, client netip.Addr) (_ net.Conn, err error) {
	defer edge(ctx, &err)
	if err := skerry.ValidatePort("port", port); err != nil {
		return nil, fmt.Errorf("connect to session %s: %w", sessionID, err)
	}
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := s.lease.Dial(ctx, uint16(port))
	if errors.Is(err, unix.ECONNREFUSED) {
		return s.dialRefused(ctx, uint16(port), client, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of session %s: %w", port, sessionID, err)
	}
	return s.addConnection(conn)
}

// dialRefused tries the loopback interface if nothing listens at the session's
// address.
func (s *session) dialRefused(ctx context.Context, port uint16, client netip.Addr, refused error) (net.Conn, error) {
	nobody := skerry.Errorf(skerry.CodeUnavailable, "nothing listens on port %d: %w", port, refused)
	if !s.node.cfg.ReachLoopback {
		return nil, nobody
	}
	conn, err := s.dialLoopback(ctx, port, client)
	switch {
	case err == nil:
		// The program may have started to listen on all addresses just now. It
		// should see its clients at one address, and the network is faster.
		if direct, err := s.lease.Dial(ctx, port); err == nil {
			_ = conn.Close()
			return s.addConnection(direct)
		}
		return conn, nil
	case skerry.CodeOf(err) == skerry.CodeSandboxStopped, ctx.Err() != nil:
		return nil, err
	case !errors.Is(err, unix.ECONNREFUSED):
		s.node.cfg.Log.Debug("cannot reach a loopback interface", "session", s.id, "port", port, "error", err)
	}
	return nil, nobody
}

// connections are the host's connections to one session. They end with the session:
// its kernel is killed and closes none of them.
type connections struct {
	mu     sync.Mutex
	closed bool
	open   map[*connection]struct{}
}

// connection removes itself from the list when it is closed. It embeds the
// *net.TCPConn itself, so that bytes can be moved without being copied into this
// process.
type connection struct {
	*net.TCPConn
	of *connections
	// done ends the use of the session.
	done func()
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	c.done()
	return c.TCPConn.Close()
}

// addConnection registers a connection, which is a use of the session until it is
// closed.
func (s *session) addConnection(conn net.Conn) (net.Conn, error) {
	done := s.hold()
	registered, err := s.conns.add(s.id, conn, done)
	if err != nil {
		done()
	}
	return registered, err
}

// add registers a connection. If the session has ended in the meantime, it closes
// the connection.
func (cs *connections) add(sessionID string, conn net.Conn, done func()) (net.Conn, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect to session %s: %T is no TCP connection", sessionID, conn), conn.Close())
	}
	c := &connection{TCPConn: tcp, of: cs, done: done}
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

// close closes all connections, and those that are still to come.
func (cs *connections) close() {
	cs.mu.Lock()
	open := cs.open
	cs.open, cs.closed = nil, true
	cs.mu.Unlock()
	for c := range open {
		_ = c.TCPConn.Close()
	}
}
