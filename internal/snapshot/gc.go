package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Collect removes the snapshots that are deleted, and the chunks that no snapshot
// uses. known is what the caller's database has: the leases of saves, and all
// manifests. Leases must be read before manifests, so that a save whose snapshot is
// recorded meanwhile is in at least one of the two.
//
// A chunk is removed in two steps. The first collection that finds it unused marks it:
// an Add that begins later stores it again instead of relying on it. A later
// collection removes it if it is still unused, and if all saves have ended that were
// active at the start of the collection after the mark. So no Add waits for a
// collection, and no Add relies on a chunk that is removed.
//
// Chunks that no snapshot has ever named are kept until they are Options.Grace old,
// except those of an Add of this process that failed.
//
// A manifest that known does not have is removed if its save has ended without naming
// it. Others are kept for Options.KeepUnknown: they may be newer than a backup that the
// database was restored from. They are in Collected.Learned, for the caller to record.
//
// Blobs are listed and not read, except manifests whose chunks known does not have;
// these are in Collected.Learned as well. If one cannot be read, all chunks that are
// as old as its snapshot or older are kept.
//
// A second Collect waits for the first. Its records may then be older than what the
// first has marked. So each collection has a number, and one whose records were not
// read after the last has returned does nothing but tell the number.
func (s *Store) Collect(ctx context.Context, known nodeapi.Records) (nodeapi.Collected, error) {
	select {
	case s.collecting <- struct{}{}:
		defer func() { <-s.collecting }()
	case <-ctx.Done():
		return nodeapi.Collected{}, ctx.Err()
	}
	c := &collection{
		Store: s, now: time.Now(), known: map[id]nodeapi.Manifest{}, loading: map[id]bool{},
		active: set(known.Active), ended: set(known.Ended), used: map[uint64]struct{}{}, released: map[uint64]struct{}{}, waiting: map[uint64]struct{}{},
	}
	round, current := s.ledger.beginRound(known.Round, c.active)
	if !current {
		return nodeapi.Collected{Round: round, Waiting: 1}, nil
	}
	err := c.run(ctx, known.Manifests)
	c.result.Round, c.result.Freed = round, c.freed.Load()
	if err != nil {
		return nodeapi.Collected{Round: round, Freed: c.result.Freed}, fmt.Errorf("collect snapshots: %w", err)
	}
	return c.result, nil
}

func set(names []string) map[string]struct{} {
	m := make(map[string]struct{}, len(names))
	for _, name := range names {
		m[name] = struct{}{}
	}
	return m
}

const (
	// ageSlack is how much later than its snapshot's time a chunk may have been put: a
	// save takes time, and a storage has a clock of its own.
	ageSlack = 24 * time.Hour
	// maxReported bounds the log entries of one collection about unreadable
	// manifests.
	maxReported = 10
)

// collection is a Collect in progress.
type collection struct {
	*Store
	now           time.Time
	known         map[id]nodeapi.Manifest
	loading       map[id]bool
	active, ended map[string]struct{} // leases
	freed         atomic.Int64

	mu     sync.Mutex
	result nodeapi.Collected
	// used are the keys of the chunks that snapshots use, released those of the
	// chunks of manifests that are removed, and waiting those of the chunks that are
	// left to a later collection.
	used, released, waiting map[uint64]struct{}
	// removed are the manifests to remove.
	removed []stored
	// unreadable counts the manifests that could not be read. Chunks that were put
	// before keepBefore may be theirs.
	unreadable int
	keepBefore time.Time
}

// stored is a blob of the listing.
type stored struct {
	id
	blob.Info
}

func (c *collection) run(ctx context.Context, known []nodeapi.Manifest) error {
	if err := c.ledger.index(ctx); err != nil {
		return err
	}
	for _, name := range c.loads.running() {
		c.loading[name] = true
	}
	unread := c.takeKnown(known)
	unknown, err := c.takeStored(ctx)
	if err != nil {
		return err
	}
	if err := c.readAll(ctx, unread, c.learn); err != nil {
		return err
	}
	if err := c.readAll(ctx, unknown, c.classify); err != nil {
		return err
	}
	// Manifests first: so every snapshot that is left is complete, whatever happens.
	if err := c.removeManifests(ctx); err != nil {
		return err
	}
	for _, k := range []kind{sealedChunk, plainChunk} {
		if err := c.sweep(ctx, k); err != nil {
			return err
		}
	}
	c.ledger.endRound()
	c.result.Waiting = len(c.waiting)
	c.findGone()
	return nil
}

// takeKnown notes what the database has, and returns the manifests whose chunks it
// does not have.
func (c *collection) takeKnown(known []nodeapi.Manifest) (unread []stored) {
	for _, m := range known {
		name, err := parseRef(m.Name)
		if err != nil {
			if !m.Deleted {
				c.keepOlder(m.Name, m.CreatedAt.Time, err)
			}
			continue
		}
		if !m.UnknownSince.IsZero() && c.now.Sub(m.UnknownSince.Time) > c.opt.KeepUnknown {
			m.Deleted = true
		}
		c.known[name] = m
		switch {
		case m.Chunks != nil:
			if err := c.note(m.Chunks, c.keeps(name)); err != nil && c.keeps(name) {
				c.keepOlder(m.Name, m.CreatedAt.Time, err)
			}
		case c.keeps(name) && m.UnknownSince.IsZero():
			unread = append(unread, stored{id: name})
		}
	}
	return unread
}

// keeps reports whether a known manifest stays: a deleted one does while it is loaded.
func (c *collection) keeps(name id) bool { return !c.known[name].Deleted || c.loading[name] }

// takeStored lists the manifests, notes those to remove, and returns those of which
// too little is known to decide.
func (c *collection) takeStored(ctx context.Context) (unknown []stored, err error) {
	for _, k := range []kind{sealedManifest, plainManifest} {
		for info, err := range c.opt.Blobs.List(ctx, k.prefix()) {
			if err != nil {
				return nil, err
			}
			b, err := parseKey(info.Key)
			if err != nil {
				c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
				continue
			}
			m, known := c.known[b]
			switch {
			case known && !c.keeps(b):
				c.removed = append(c.removed, stored{b, info})
			case !known, !m.UnknownSince.IsZero() && m.Chunks == nil:
				unknown = append(unknown, stored{b, info})
			}
		}
	}
	return unknown, nil
}

// readAll reads manifests and calls f with each, or with why it cannot be read. mu is
// held meanwhile.
func (c *collection) readAll(ctx context.Context, manifests []stored, f func(stored, manifest, error)) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	for _, b := range manifests {
		group.Go(func() error {
			_, m, err := c.manifest(groupCtx, b.id)
			if groupCtx.Err() != nil {
				return groupCtx.Err()
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			f(b, m, err)
			return nil
		})
	}
	return group.Wait()
}

// learn notes the chunks of a manifest that a snapshot names.
func (c *collection) learn(b stored, m manifest, err error) {
	made := c.known[b.id].CreatedAt
	if err != nil {
		c.keepOlder(b.ref(), made.Time, err)
		return
	}
	chunks := c.chunksOf(m)
	_ = c.note(chunks, true) // it has the right form
	c.result.Learned = append(c.result.Learned, nodeapi.Manifest{Name: b.ref(), CreatedAt: made, Chunks: chunks})
}

// classify decides about a manifest that no snapshot names.
func (c *collection) classify(b stored, m manifest, err error) {
	if errors.Is(err, blob.ErrNotFound) {
		return // it was removed in the meantime
	}
	_, active := c.active[m.Lease]
	_, ended := c.ended[m.Lease]
	young := c.now.Sub(b.ModTime) < c.opt.Grace // its save may have begun after the leases were read
	lost := isDamage(err) || err == nil && !active && !young
	switch {
	case ended && !c.loading[b.id], lost && c.opt.KeepUnknown <= 0:
		_ = c.note(c.chunksOf(m), false)
		c.removed = append(c.removed, b)
		return
	case err != nil:
		c.keepOlder(b.ref(), b.ModTime, err)
	default:
		_ = c.note(c.chunksOf(m), true)
	}
	if lost && !young && !ended {
		c.keepUnknown(b, m, err)
	}
}

// keepUnknown tells the caller of a manifest that its database does not have.
func (c *collection) keepUnknown(b stored, m manifest, err error) {
	found := nodeapi.Manifest{Name: b.ref(), CreatedAt: skerry.At(b.ModTime), UnknownSince: skerry.At(c.now)}
	if err == nil {
		found.Chunks = c.chunksOf(m)
	} else if _, known := c.known[b.id]; known {
		return // it is no better than before
	}
	c.opt.Log.Error("a snapshot that the database does not know is kept", "manifest", b.ref(), "stored", b.ModTime, "for", c.opt.KeepUnknown)
	c.result.Learned = append(c.result.Learned, found)
}

// keepOlder keeps all chunks that a snapshot may use whose manifest cannot be read.
func (c *collection) keepOlder(name string, made time.Time, err error) {
	if c.unreadable++; c.unreadable <= maxReported {
		c.opt.Log.Error("cannot read the manifest of a snapshot; chunks as old as it are kept until it can be read or is deleted",
			"manifest", name, "created", made, "error", err)
	}
	if made.IsZero() {
		made = c.now
	}
	if until := made.Add(ageSlack); until.After(c.keepBefore) {
		c.keepBefore = until
	}
}

// chunksForm begins a list of chunks.
const chunksForm = 1

// keySize is the length of a chunk's key in such a list: the first bytes of its name.
// Two chunks with the same key are kept or removed together, so a collision only keeps
// a chunk too long.
const keySize = 8

// chunksOf lists the chunks of a manifest for a database.
func (s *Store) chunksOf(m manifest) []byte {
	list := []byte{chunksForm}
	seen := map[uint64]struct{}{}
	for _, f := range m.Files {
		for _, chunk := range f.Chunks {
			key := s.blobOf(m, chunk).key()
			if _, twice := seen[key]; !twice {
				seen[key] = struct{}{}
				list = binary.BigEndian.AppendUint64(list, key)
			}
		}
	}
	return list
}

// key is what a list of chunks has of a chunk.
func (b id) key() uint64 { return binary.BigEndian.Uint64(b.sum[:keySize]) }

// note notes a list of chunks as used, or as released.
func (c *collection) note(list []byte, used bool) error {
	keys := c.released
	if used {
		keys = c.used
	}
	return eachKey(list, func(key uint64) { keys[key] = struct{}{} })
}

// eachKey calls f for each chunk of a list.
func eachKey(list []byte, f func(key uint64)) error {
	if len(list) == 0 || list[0] != chunksForm || len(list[1:])%keySize != 0 {
		return errors.New("its list of chunks in the database is damaged")
	}
	for list = list[1:]; len(list) > 0; list = list[keySize:] {
		f(binary.BigEndian.Uint64(list))
	}
	return nil
}

// removeManifests removes manifests, from the cache too.
func (c *collection) removeManifests(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	gone := map[id]bool{}
	for name := range c.known {
		gone[name] = !c.keeps(name)
	}
	for _, b := range c.removed {
		gone[b.id] = true
		group.Go(func() error {
			err := c.opt.Blobs.Delete(groupCtx, b.Key)
			if err == nil {
				c.freed.Add(b.Size)
			}
			return err
		})
	}
	c.cache.retain(func(name id) bool { return !gone[name] })
	return group.Wait()
}

// sweep marks the chunks that are not used, and removes those that were marked
// earlier.
func (c *collection) sweep(ctx context.Context, k kind) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	kept := 0
	for info, err := range c.opt.Blobs.List(ctx, k.prefix()) {
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		b, err := parseKey(info.Key)
		if err != nil {
			c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
			continue
		}
		if _, used := c.used[b.key()]; used {
			c.ledger.unmark(b)
			continue
		}
		if c.unreadable > 0 && info.ModTime.Before(c.keepBefore) {
			kept++
			continue
		}
		_, released := c.released[b.key()]
		switch c.ledger.markUnused(b, released || c.now.Sub(info.ModTime) >= c.opt.Grace) {
		case tooYoung:
			// A save that is active may have put it. The next collection looks again.
			if len(c.active) == 0 {
				c.waiting[b.key()] = struct{}{}
			}
		case marked:
			c.waiting[b.key()] = struct{}{}
		case removable:
			group.Go(func() error {
				removed, err := c.ledger.remove(groupCtx, b)
				if removed {
					c.freed.Add(info.Size)
				}
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if kept > 0 {
		c.opt.Log.Warn("chunks are not collected because of manifests that cannot be read", "chunks", kept, "manifests", c.unreadable)
	}
	return nil
}

// findGone finds the manifests of which nothing is left. The list of chunks of one that
// still has chunks is needed: it tells a later collection that they are released.
func (c *collection) findGone() {
	for name, m := range c.known {
		if !m.Deleted || c.loading[name] || m.Chunks == nil && m.UnknownSince.IsZero() {
			continue
		}
		left := false
		_ = eachKey(m.Chunks, func(key uint64) { // a damaged list tells nothing
			_, waits := c.waiting[key]
			left = left || waits
		})
		if !left {
			c.result.Gone = append(c.result.Gone, m.Name)
		}
	}
}
