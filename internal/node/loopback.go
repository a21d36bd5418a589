package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/share"
	"github.com/skerry-dev/skerry/internal/socketpair"
)

// A program that listens only on the sandbox's loopback interface cannot be reached
// over the network. For such a program, the guest agent's binary connects inside as
// an ordinary process of the sandbox's user, and the bytes go over its standard
// input and output.

const (
	// agentProgram is the path of the agent in the sandbox.
	agentProgram = "/.skerry/agent"
	// maxLoopback is the maximum number of such connections of a session.
	maxLoopback = 64
	// loopbackWait is the maximum time to open one, unless a Config says otherwise.
	loopbackWait = 15 * time.Second
)

// dialLoopback connects to a port of the session's loopback interface.
func (s *session) dialLoopback(ctx context.Context, port uint16, client netip.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.loopbackWait)
	defer cancel()
	p := &place{in: s.loopbacks, of: client}
	if err := s.loopbacks.Wait(ctx, client); err != nil {
		return nil, fmt.Errorf("too many connections to the loopback interface are open, at most %d are allowed, and fewer to one client: %w", maxLoopback, err)
	}
	opened := make(chan opening)
	begun := s.spawn(func() {
		// Its process has ended by then, or the agent says so at least: one that
		// never does must not be given ever more of them.
		defer p.giveBack()
		defer s.hold()()
		s.runTunnel(ctx, port, p, opened)
	})
	if !begun {
		p.giveBack()
		return nil, errStopped(s.id)
	}
	select {
	case o := <-opened:
		return o.conn, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// place is one of the session's places for such connections. It counts against the
// share of the client whose requests the connection carries.
type place struct {
	in *share.Slots[netip.Addr]

	mu   sync.Mutex
	of   netip.Addr
	over bool
}

// passTo makes the place another client's. It reports false if that client's share
// is used up.
func (p *place) passTo(client netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || client != p.of && !p.in.Take(client) {
		return false
	}
	if client != p.of {
		p.in.Give(p.of)
		p.of = client
	}
	return true
}

func (p *place) giveBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.in.Give(p.of)
}

// opening is a connection that was opened, or why it was not.
type opening struct {
	conn net.Conn
	err  error
}

// runTunnel opens a connection, hands it to whoever waits for it until ctx ends,
// and returns when its process has ended.
func (s *session) runTunnel(ctx context.Context, port uint16, p *place, opened chan<- opening) {
	proc, err := s.guest.Start(s.ctx, guest.StartSpec{
		ID: skerry.NewID(prefixErrand), Name: agentProgram, Args: []string{"dial", strconv.Itoa(int(port))}, Cwd: "/", Stdin: true,
	})
	if err != nil {
		tell(ctx, opened, opening{err: s.failure(err)})
		return
	}
	t, err := s.openTunnel(ctx, proc)
	if err != nil {
		tell(ctx, opened, opening{err: err})
		_ = proc.Signal(syscall.SIGKILL)
	} else {
		tell(ctx, opened, opening{conn: &loopbackConn{UnixConn: t.outer, tunnel: t, place: p}})
		t.carry()
	}
	s.seeOff(proc)
}

// tell hands a connection over. It is closed if nobody waits for it any more.
func tell(ctx context.Context, opened chan<- opening, o opening) {
	select {
	case opened <- o:
	case <-ctx.Done():
		if o.conn != nil {
			_ = o.conn.Close()
		}
	}
}

// tunnel carries a connection between a process in the sandbox and one end of a
// socket pair. The caller uses the other end as the connection.
type tunnel struct {
	s            *session
	proc         *guest.Process
	inner, outer *net.UnixConn
	// ctx ends with the session, and when the connection is not used any more.
	ctx    context.Context
	cancel context.CancelFunc
	// rest is the data that arrived together with the first byte.
	rest []byte
	// received is the number of bytes that have arrived, length the total, or -1
	// until it is known.
	received, length int64
	said             []byte
	// whole is true when the program has closed its side and all of its data has
	// arrived.
	whole atomic.Bool
}

// openTunnel waits until the process is connected.
func (s *session) openTunnel(ctx context.Context, proc *guest.Process) (*tunnel, error) {
	t := &tunnel{s: s, proc: proc, length: -1}
	err := t.connected(ctx)
	if err == nil {
		t.inner, t.outer, err = socketpair.New()
	}
	if err != nil {
		return nil, err
	}
	t.ctx, t.cancel = context.WithCancel(s.ctx)
	return t, nil
}

// connected waits for the first byte. The agent of an older version does not know
// the argument and exits without one.
func (t *tunnel) connected(ctx context.Context) error {
	for {
		chunk, err := t.proc.Next(ctx)
		if errors.Is(err, io.EOF) {
			return unix.ECONNREFUSED
		}
		if err != nil {
			return t.s.failure(err)
		}
		if chunk.Stream == skerry.Stdout && len(chunk.Data) > 0 {
			if chunk.Data[0] != wire.Connected {
				return unix.ECONNREFUSED
			}
			t.rest = append(t.rest, chunk.Data[1:]...)
		}
		if err := t.proc.Ack(chunk.Stream, chunk.End()); err != nil {
			return t.s.failure(err)
		}
		if chunk.Stream == skerry.Stdout && len(chunk.Data) > 0 {
			return nil
		}
	}
}

// carry copies in both directions until the process has ended or the connection is
// not used any more. Data sent last is still delivered if the program reads it
// soon.
func (t *tunnel) carry() {
	defer t.cancel()
	defer context.AfterFunc(t.s.ctx, func() { _ = t.inner.Close() })()
	defer context.AfterFunc(t.ctx, func() { _ = t.inner.SetWriteDeadline(time.Unix(1, 0)) })()
	sending, giveUp := context.WithCancel(t.s.ctx)
	defer giveUp()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		t.send(sending)
	}()
	ended := t.receive()
	if ended {
		_ = t.inner.Close() // send has nobody to send to
	}
	late := time.AfterFunc(hangUpGrace, func() {
		giveUp()
		_ = t.inner.Close()
	})
	<-sent
	late.Stop()
	_ = t.inner.Close()
	if !ended {
		_ = t.proc.Signal(syscall.SIGKILL)
	}
}

// send passes on the host's data, and its end.
func (t *tunnel) send(ctx context.Context) {
	buf := make([]byte, 32<<10)
	in := t.proc.Stdin()
	for {
		n, err := t.inner.Read(buf)
		if n > 0 {
			if _, err := in.WriteContext(ctx, buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = in.Close() // an error is the connection's, which ends all
			return
		}
	}
}

// receive passes on the process's output. It reports whether the process, or the
// connection to the agent, has ended.
func (t *tunnel) receive() bool {
	if _, err := t.inner.Write(t.rest); err != nil {
		return false
	}
	t.received, t.rest = int64(len(t.rest)), nil
	for {
		chunk, err := t.proc.Next(t.ctx)
		if err != nil {
			return t.ctx.Err() == nil
		}
		if err := t.take(chunk); err != nil {
			return false
		}
		if t.proc.Ack(chunk.Stream, chunk.End()) != nil {
			return false
		}
		if t.length >= 0 && t.received >= t.length {
			t.whole.Store(true)
			_ = t.inner.CloseWrite()
		}
	}
}

// take passes on a chunk, or takes the total length from it.
func (t *tunnel) take(chunk guest.Chunk) error {
	if chunk.Stream == skerry.Stdout {
		n, err := t.inner.Write(chunk.Data)
		t.received += int64(n)
		return err
	}
	const size = 8
	t.said = append(t.said, chunk.Data[:min(len(chunk.Data), size-len(t.said))]...)
	if len(t.said) == size {
		t.length = int64(binary.BigEndian.Uint64(t.said) &^ (1 << 63))
	}
	return nil
}

// loopbackConn is a connection to a port of the loopback interface.
type loopbackConn struct {
	*net.UnixConn
	tunnel *tunnel
	place  *place
}

// ChargeTo implements ingress.Chargeable.
func (c *loopbackConn) ChargeTo(client netip.Addr) bool { return c.place.passTo(client) }

// Wanted implements ingress.Chargeable.
func (c *loopbackConn) Wanted() bool { return c.place.in.Waited() }

// Read implements net.Conn. If the connection ends but the program did not close
// it, Read returns an error, so that half a response is not taken for a complete
// one.
func (c *loopbackConn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	if errors.Is(err, io.EOF) && !c.tunnel.whole.Load() {
		err = unix.ECONNRESET
	}
	return n, err
}

// Close implements net.Conn.
func (c *loopbackConn) Close() error {
	err := c.UnixConn.Close()
	c.tunnel.cancel()
	return err
}
