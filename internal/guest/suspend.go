package guest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// errSuspended is why the link of a suspended Client ended.
var errSuspended = errors.New("the connection is suspended")

// Suspend ends the connection, but not the Client: its processes go on when Resume has
// made a new one to the same agent, or to one that was saved after Suspend and restored.
// In the meantime they neither receive nor lose anything. Requests in progress fail.
//
// It fails if a process has a standard input, which the agent would end.
func (c *Client) Suspend() error {
	c.mu.Lock()
	for _, p := range c.procs {
		if p.stdin != nil && !p.over() {
			c.mu.Unlock()
			return skerry.Errorf(skerry.CodeConflict, "process %s has a standard input", p.key)
		}
	}
	if c.ended || c.suspended || !c.resumed {
		c.mu.Unlock()
		return c.lost(errors.New("there is no connection to suspend"))
	}
	c.suspended, c.resumed = true, false
	c.mu.Unlock()
	k := c.conn.Load()
	k.link.Fail(errSuspended)
	<-k.received
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended { // by itself, just before
		return c.lost(k.link.Err())
	}
	return nil
}

// Resume continues a suspended Client over a new connection, which it owns. On error it
// closes the connection, and the Client has ended.
func (c *Client) Resume(ctx context.Context, conn io.ReadWriteCloser) error {
	c.mu.Lock()
	if !c.suspended {
		c.mu.Unlock()
		return errors.Join(c.lost(errors.New("the connection is not suspended")), conn.Close())
	}
	var points []ResumePoint
	for _, p := range c.procs {
		p.from = ResumePoint{Key: p.key, Stdout: p.in.Restart(wire.StreamOut), Stderr: p.in.Restart(wire.StreamErr)}
		points = append(points, p.from)
	}
	c.mu.Unlock()
	c.open(conn)
	_, err := c.request(ctx, wire.TypeResume, &wire.Resume{Version: wire.Version, Points: points})
	c.mu.Lock()
	stray := c.stray
	c.stray = nil
	c.mu.Unlock()
	for _, id := range stray {
		if err == nil {
			err = c.link().Send(wire.TypeForget, 0, id, nil, nil)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("reconnect to the sandbox: %w", err), c.Close())
	}
	return nil
}

// readopt continues the processes of a suspended Client. mu is held.
func (c *Client) readopt(states []ProcessState) error {
	c.suspended = false
	listed := map[uint32]bool{}
	for _, s := range states {
		p := c.procs[s.ID]
		if p == nil {
			c.stray = append(c.stray, s.ID) // it has ended, and was forgotten
			continue
		}
		listed[s.ID] = true
		if (ResumePoint{Key: s.Key, Stdout: s.Stdout, Stderr: s.Stderr}) != p.from {
			return fmt.Errorf("%w: process %d continues elsewhere than asked", errProtocol, s.ID)
		}
		p.again = p.over()
	}
	for id, p := range c.procs {
		if !listed[id] {
			p.lose(c.lost(errors.New("the agent does not have the process any more")))
			delete(c.procs, id)
		}
	}
	return nil
}

// over reports whether the process has ended.
func (p *Process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// unheard is lost for a message that need not arrive while the Client is suspended: the
// agent learns the same from Resume.
func (c *Client) unheard(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suspended || errors.Is(err, errSuspended) {
		return nil
	}
	return c.lost(err)
}
