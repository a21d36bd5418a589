package node

import (
	"sync"
	"time"
)

// Totals is what all sessions together have used since the node began.
type Totals struct {
	// Reclaimed is the bytes that sessions gave back while they slept; see reclaim.go.
	Reclaimed int64
	// ActiveCPU is their CPU time, and ResidentByteSeconds the memory that they held over
	// time. They are up to date to within two minutes; see resident.go.
	ActiveCPU           time.Duration
	ResidentByteSeconds float64
}

// Totals returns the node's totals.
func (n *Node) Totals() Totals {
	n.sums.mu.Lock()
	defer n.sums.mu.Unlock()
	return Totals{Reclaimed: n.reclaimed.Load(), ActiveCPU: n.sums.cpu, ResidentByteSeconds: n.sums.resident}
}

// sums are those of all sessions, also of those that have ended.
type sums struct {
	mu       sync.Mutex
	resident float64 // byte-seconds
	cpu      time.Duration
}

func (s *sums) add(resident float64, cpu time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resident += resident
	s.cpu += cpu
}
