package snapshot

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// GC removes the snapshots that keep, a list of manifests, does not name, and
// the chunks that are then in no snapshot, and returns how many bytes the blobs
// had that it removed. If a manifest in keep cannot be read it removes nothing.
//
// Safe are, although keep does not name them, snapshots that are being added or
// loaded and those that Add returned in the last Options.Grace: GC's caller may
// have read what to keep before Add's caller recorded the snapshot. So keep
// must not be older than that.
//
// Adds and Loads go on meanwhile. A second GC waits for the first.
func (s *Store) GC(ctx context.Context, keep []string) (freed int64, err error) {
	// Before the wait: keep does not get younger by it.
	before := time.Now().Add(-s.opt.Grace)
	s.ledger.enter()
	defer s.ledger.leave()
	select {
	case s.collecting <- struct{}{}:
		defer func() { <-s.collecting }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := s.ledger.index(ctx); err != nil {
		return 0, fmt.Errorf("collect snapshots: %w", err)
	}
	s.ledger.start(before)
	c := &collection{Store: s, needed: map[id]struct{}{}}
	if err := c.run(ctx, keep); err != nil {
		return c.freed.Load(), fmt.Errorf("collect snapshots: %w", err)
	}
	return c.freed.Load(), nil
}

// collection is a GC under way.
type collection struct {
	*Store
	freed atomic.Int64

	mu     sync.Mutex
	needed map[id]struct{}
}

func (c *collection) run(ctx context.Context, keep []string) error {
	if err := c.mark(ctx, keep); err != nil {
		return err
	}
	// Manifests first: what is left of them is whole, whatever happens now.
	if err := c.sweep(ctx, manifestPrefix); err != nil {
		return err
	}
	c.cache.retain(func(manifest sum) bool {
		name := id{manifest: true, sum: manifest}
		_, needed := c.needed[name]
		return needed || c.ledger.pinned(name)
	})
	return c.sweep(ctx, chunkPrefix)
}

// mark finds out what is needed.
func (c *collection) mark(ctx context.Context, keep []string) error {
	names := make([]sum, len(keep))
	for i, text := range keep {
		var err error
		if names[i], err = parseSum(text); err != nil {
			return fmt.Errorf("keep a snapshot: %w", err)
		}
	}
	if err := c.markAll(ctx, names, nil); err != nil {
		return err
	}
	// A snapshot that is being loaded is kept if it can be: it is none of
	// this caller's business if not.
	return c.markAll(ctx, c.loads.running(), func(error) error { return ctx.Err() })
}

// markAll marks manifests and their chunks. If one cannot be read, the error is
// what forgive makes of it.
func (c *collection) markAll(ctx context.Context, names []sum, forgive func(error) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	for _, name := range names {
		group.Go(func() error {
			_, m, err := c.manifest(groupCtx, name)
			if err != nil && forgive != nil {
				return forgive(err)
			}
			if err == nil {
				c.need(name, m)
			}
			return err
		})
	}
	return group.Wait()
}

// need marks a manifest and its chunks.
func (c *collection) need(name sum, m manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needed[id{manifest: true, sum: name}] = struct{}{}
	for _, f := range m.Files {
		for _, chunk := range f.Chunks {
			c.needed[chunk.id()] = struct{}{}
		}
	}
}

// sweep removes the blobs of one kind that are not needed.
func (c *collection) sweep(ctx context.Context, prefix string) error {
	type stray struct {
		id   id
		size int64
	}
	var strays []stray
	for info, err := range c.opt.Blobs.List(ctx, prefix) {
		if err != nil {
			return err
		}
		sum, err := parseSum(info.Key[len(prefix):])
		if err != nil {
			c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
			continue
		}
		b := id{manifest: prefix == manifestPrefix, sum: sum}
		if _, needed := c.needed[b]; !needed {
			strays = append(strays, stray{b, info.Size})
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	for _, stray := range strays {
		group.Go(func() error {
			removed, err := c.ledger.remove(ctx, stray.id)
			if removed {
				c.freed.Add(stray.size)
			}
			return err
		})
	}
	return group.Wait()
}
