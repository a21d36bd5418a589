package controller

import "github.com/skerry-dev/skerry"

// Counts are of the sessions that have not ended.
type Counts struct {
	// ByState counts sessions by their status. Paused ones are "paused", and those that
	// are paused because nobody uses them "idle" or "hibernated".
	ByState map[string]int
	// VCPUs and MemoryMB are what they may use together.
	VCPUs, MemoryMB int
}

// Counts counts the sessions.
func (c *sessions) Counts() Counts {
	counts := Counts{ByState: map[string]int{"paused": 0, "idle": 0, "hibernated": 0}}
	for _, status := range []skerry.SessionStatus{skerry.StatusPending, skerry.StatusRunning, skerry.StatusSnapshotting, skerry.StatusStopping} {
		counts.ByState[string(status)] = 0
	}
	c.registry.Lock()
	defer c.registry.Unlock()
	counts.VCPUs, counts.MemoryMB = c.taken.vcpus, c.taken.memoryMB
	for _, s := range c.byID {
		run := s.believed.Load()
		state := string(run.Status)
		if run.Status == skerry.StatusRunning && !run.PausedAt.IsZero() {
			state = "paused"
		} else if idle := s.idleState(run); idle != "" {
			state = idle.Shown()
		}
		counts.ByState[state]++
	}
	return counts
}
