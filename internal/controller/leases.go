package controller

import "sync"

// leases are those that have ended: the files that they kept are named in the
// store by now, or given up. The next collection passes them on. So saving and
// collecting never wait for each other, and files that are neither named nor
// given up yet are nobody's to remove.
type leases struct {
	mu    sync.Mutex
	ended []string
}

// end says that what a lease keeps is named or given up.
func (l *leases) end(lease string) {
	if lease == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, lease)
}

// take returns the leases that have ended since it was called last.
func (l *leases) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := l.ended
	l.ended = nil
	return ended
}

// giveBack is for leases that could not be passed on.
func (l *leases) giveBack(ended []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, ended...)
}
