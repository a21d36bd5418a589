package node

import (
	"context"
	"maps"
	"slices"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Meters implements nodeapi.Node.
func (n *Node) Meters(ctx context.Context) (_ map[string]nodeapi.Meter, err error) {
	defer edge(ctx, &err)
	if !n.hasRecovered() {
		return nil, errUnrecovered()
	}
	n.mu.Lock()
	sessions := slices.Collect(maps.Values(n.sessions))
	n.mu.Unlock()
	meters := map[string]nodeapi.Meter{}
	for _, s := range sessions {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !s.isRunning() {
			continue // its machine may be about to become another
		}
		if m, ok := s.meter(ctx); ok {
			meters[s.id] = m
		}
	}
	return meters, nil
}

// meter reads the meters of a session that runs. It reports false if they have gone
// meanwhile.
func (s *session) meter(ctx context.Context) (m nodeapi.Meter, ok bool) {
	var err error
	if m.ActiveCPU, err = s.activeCPU(); err != nil {
		return m, false
	}
	machine := s.machine()
	if m.MemoryBytes, err = machine.PinnedMemory(0); err != nil {
		return m, false
	}
	s.addResident(machine, m.MemoryBytes)
	m.ResidentMBSeconds = s.resident.mbSeconds()
	m.IngressBytes, m.EgressBytes, err = s.lease.Counters(ctx)
	return m, err == nil
}
