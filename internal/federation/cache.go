package federation

import (
	"crypto/sha256"
	"sync"
	"time"
)

// cache has the tokens that were verified, by their hashes, so that no token stays in the
// server's memory.
type cache struct {
	size    int
	mu      sync.Mutex
	entries map[[sha256.Size]byte]entry
}

type entry struct {
	id    *Identity
	until time.Time
}

func (c *cache) get(hash [sha256.Size]byte, now time.Time) *Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, is := c.entries[hash]; is && now.Before(e.until) {
		return e.id
	}
	return nil
}

func (c *cache) put(hash [sha256.Size]byte, id *Identity, now, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= c.size {
		c.makeRoom(now)
	}
	c.entries[hash] = entry{id, until}
}

// makeRoom drops what has expired, and a part of the rest if that is not enough. Only
// those with valid tokens fill the cache, and all that they cause is work.
func (c *cache) makeRoom(now time.Time) {
	for hash, e := range c.entries {
		if !now.Before(e.until) {
			delete(c.entries, hash)
		}
	}
	for hash := range c.entries { // in no order
		if len(c.entries) <= c.size*7/8 {
			break
		}
		delete(c.entries, hash)
	}
}
