package controller

import (
	"context"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Metered is a session that has not ended, with its meter.
type Metered struct {
	Session skerry.Session
	// Commands is the number of its running commands.
	Commands int
	// Meter is nil while the session does not run.
	Meter *nodeapi.Meter
}

// Metered returns the sessions of all projects that have not ended, in no order. It is for
// the operator of the server.
func (c *sessions) Metered(ctx context.Context) ([]Metered, error) {
	// Read first, so that the session of every meter is in the list below.
	meters, err := c.node.Meters(ctx)
	if err != nil {
		return nil, err
	}
	c.registry.Lock()
	defer c.registry.Unlock()
	all := make([]Metered, 0, len(c.byID))
	for id, s := range c.byID {
		m := Metered{Session: s.state(), Commands: s.commands.count()}
		if meter, is := meters[id]; is {
			m.Meter = &meter
		}
		all = append(all, m)
	}
	return all, nil
}
