package controller

import "github.com/skerry-dev/skerry"

// room is what sessions take of the machine: a place, and what they may use. It
// counts from the moment that a session is written to the store until its end is.
type room struct{ sessions, vcpus, memoryMB int }

func roomOf(run *skerry.Session) room { return room{1, run.VCPUs, run.MemoryMB} }

// admit takes room for one more session, if there is any. What is recovered is
// admitted in any case: limits are for new sessions.
func (c *sessions) admit(r room) error {
	c.registry.Lock()
	defer c.registry.Unlock()
	if c.stopping || c.ctx.Err() != nil {
		return errClosing()
	}
	switch limit := c.cfg; {
	case c.taken.sessions >= limit.MaxSessions:
		return skerry.Errorf(skerry.CodeRateLimited, "limit of %d running sandboxes reached; stop others, or try again later", limit.MaxSessions)
	case limit.TotalVCPUs > 0 && c.taken.vcpus+r.vcpus > limit.TotalVCPUs:
		return skerry.Errorf(skerry.CodeUnavailable, "no room: running sandboxes use %d of the server's %d vCPUs, and this one needs %d; "+
			"stop others, or try again later", c.taken.vcpus, limit.TotalVCPUs, r.vcpus)
	case limit.TotalMemoryMB > 0 && c.taken.memoryMB+r.memoryMB > limit.TotalMemoryMB:
		return skerry.Errorf(skerry.CodeUnavailable, "no room: running sandboxes use %d of the server's %d MB of memory, and this one needs %d; "+
			"stop others, or try again later", c.taken.memoryMB, limit.TotalMemoryMB, r.memoryMB)
	}
	c.take(r)
	return nil
}

// take counts what a session takes; registry is held.
func (c *sessions) take(r room) {
	c.taken.sessions += r.sessions
	c.taken.vcpus += r.vcpus
	c.taken.memoryMB += r.memoryMB
}

// leave gives room back; registry is held.
func (c *sessions) leave(r room) { c.take(room{-r.sessions, -r.vcpus, -r.memoryMB}) }
