package controller

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/share"
)

// room is what sessions take of the machine: a place, and what they may use. It
// counts from the moment that a session is written to the store until its end is.
type room struct{ sessions, vcpus, memoryMB int }

// portion is the room of a session, and whose it is.
type portion struct {
	room
	scope skerry.Scope
}

func roomOf(run *skerry.Session) portion {
	return portion{room{1, run.VCPUs, run.MemoryMB}, run.Scope}
}

// admit takes room for one more session, if there is any and the quotas of its team and its
// project allow it. What is recovered is admitted in any case: limits are for new sessions.
func (c *sessions) admit(ctx context.Context, r portion) error {
	var quotas skerry.Quotas
	if c.cfg.Quotas != nil {
		var err error
		if quotas, err = c.cfg.Quotas(ctx, r.scope); err != nil {
			return fmt.Errorf("read the quotas: %w", err)
		}
	}
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
	for _, of := range quotas.In(r.scope) {
		if err := within(of.Whose, of.Quota, c.takenBy[of.ID], r.room); err != nil {
			return err
		}
	}
	if err := c.mayStartNow(r.scope, quotas); err != nil {
		return err
	}
	c.take(r, 1)
	return nil
}

// within checks that what is added to what is used is in a quota. What can be in it when other
// sandboxes have stopped is worth another try; what is too large by itself is not.
func within(whose string, q skerry.Quota, used, added room) error {
	for _, l := range []struct {
		field, what string
		limit       *int
		used, added int
	}{
		{"", "running sandboxes", q.Sandboxes, used.sessions, added.sessions},
		{"resources.vcpus", "vCPUs", q.VCPUs, used.vcpus, added.vcpus},
		{"resources.memory", "MB of memory", q.MemoryMB, used.memoryMB, added.memoryMB},
	} {
		most, limited := skerry.LimitOf(l.limit)
		switch {
		case !limited || l.used+l.added <= most:
		case l.added > most:
			return &skerry.Error{Code: skerry.CodeForbidden, Field: l.field, Message: fmt.Sprintf("the %s's quota is %d %s, and this one needs %d", whose, most, l.what, l.added)}
		default:
			return &skerry.Error{Code: skerry.CodeRateLimited, Message: fmt.Sprintf("the %s's quota is %d %s, of which %d are used, and this one needs %d; stop others, or try again later",
				whose, most, l.what, l.used, l.added)}
		}
	}
	return nil
}

// mayStartNow counts a start in the rates of the quotas.
func (c *sessions) mayStartNow(scope skerry.Scope, quotas skerry.Quotas) error {
	var rates []share.Rate[string]
	var whose []string
	for _, of := range quotas.In(scope) {
		if n, limited := skerry.LimitOf(of.Quota.StartsPerMinute); limited {
			rates, whose = append(rates, share.Rate[string]{Holder: of.ID, PerMinute: n}), append(whose, of.Whose)
		}
	}
	if wait, n := c.starts.Take(time.Now(), rates...); wait > 0 {
		return &skerry.Error{Code: skerry.CodeRateLimited, RetryAfter: wait,
			Message: fmt.Sprintf("the %s's quota is %d starts of sandboxes in a minute; try again later", whose[n], rates[n].PerMinute)}
	}
	return nil
}

// Used returns what the sessions of a project use, or those of a team if the scope has no
// project.
func (c *sessions) Used(scope skerry.Scope) skerry.Use {
	c.registry.Lock()
	defer c.registry.Unlock()
	r := c.takenBy[cmp.Or(scope.ProjectID, scope.TeamID)]
	return skerry.Use{Sandboxes: r.sessions, VCPUs: r.vcpus, MemoryMB: r.memoryMB}
}

// take counts what a session takes, times by; registry is held.
func (c *sessions) take(r portion, by int) {
	add := func(to room) room {
		return room{to.sessions + by*r.sessions, to.vcpus + by*r.vcpus, to.memoryMB + by*r.memoryMB}
	}
	c.taken = add(c.taken)
	for _, id := range []string{r.scope.TeamID, r.scope.ProjectID} {
		if c.takenBy[id] = add(c.takenBy[id]); c.takenBy[id] == (room{}) {
			delete(c.takenBy, id)
		}
	}
}

// leave gives room back; registry is held.
func (c *sessions) leave(r portion) { c.take(r, -1) }
