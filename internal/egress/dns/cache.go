package dns

import (
	"net/netip"
	"sync"
	"time"
)

const maxCached = 10_000

// cache is bounded: when it is full, what has expired goes, or else half of
// it, whichever.
type cache struct {
	mu      sync.Mutex
	entries map[string]entry
}

type entry struct {
	answer
	expires time.Time
}

func newCache() *cache { return &cache{entries: map[string]entry{}} }

func (c *cache) get(name string) ([]netip.Addr, time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[name]
	left := time.Until(e.expires)
	return e.addrs, left, ok && left > 0
}

func (c *cache) put(name string, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCached {
		c.shrink()
	}
	c.entries[name] = entry{a, time.Now().Add(a.ttl)}
}

func (c *cache) shrink() {
	now := time.Now()
	for n, e := range c.entries {
		if now.After(e.expires) {
			delete(c.entries, n)
		}
	}
	for n := range c.entries {
		if len(c.entries) < maxCached*3/4 {
			return
		}
		delete(c.entries, n)
	}
}
