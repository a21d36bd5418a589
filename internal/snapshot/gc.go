package snapshot

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
)

// GC removes the snapshots that known has as deleted, and the chunks that no
// snapshot uses then. It returns how many bytes the removed blobs had.
//
// Snapshots that known does not have are removed as well if nobody has recorded
// them: this process added them, or an earlier one that was interrupted. Others
// are set aside for Options.KeepUnknown. They may be newer than a backup that the
// caller's database was restored from.
//
// Not removed are snapshots that are being added or loaded and those that have a
// lease: the caller may have read known before the snapshot was recorded. ended
// are leases whose snapshots had been recorded, or given up, before known was
// read.
//
// A manifest that cannot be read does not tell which chunks it uses. Then GC
// keeps all chunks that are as old as the snapshot or older, and those that this
// process has put again because they were missing or damaged, and goes on.
//
// Adds and Loads go on meanwhile. A second GC waits for the first.
func (s *Store) GC(ctx context.Context, known []skerry.Manifest, ended ...string) (freed int64, err error) {
	// Before the wait: known does not get younger by it.
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
	s.ledger.start(before, ended)
	c := &collection{Store: s, needed: map[id]struct{}{}}
	if err := c.run(ctx, known); err != nil {
		return c.freed.Load(), fmt.Errorf("collect snapshots: %w", err)
	}
	return c.freed.Load(), nil
}

const (
	// heldSlack is how much later than its snapshot's time a chunk may have
	// been put: a save takes time, and a storage has a clock of its own.
	heldSlack = 24 * time.Hour
	// maxReported bounds the log entries of one GC about unreadable manifests.
	maxReported = 10
)

// collection is a GC under way.
type collection struct {
	*Store
	freed atomic.Int64

	mu     sync.Mutex
	needed map[id]struct{}
	// interrupted are the snapshots that had not been recorded before this GC.
	interrupted map[id]struct{}
	// unreadable counts the manifests that could not be read. The chunks that
	// were put before heldBefore may be theirs, and those that were put again.
	unreadable int
	heldBefore time.Time
}

// candidate is a manifest that is needed, and when its snapshot was made.
type candidate struct {
	id
	made time.Time
}

func (c *collection) run(ctx context.Context, known []skerry.Manifest) error {
	var err error
	if c.interrupted, err = c.unrecorded.all(); err != nil {
		return err
	}
	// The listing comes first: if the storage does not answer, this is one
	// error and not one of each manifest.
	var manifests []blob.Info
	for _, k := range []kind{sealedManifest, plainManifest} {
		list, err := c.list(ctx, k.prefix())
		if err != nil {
			return err
		}
		manifests = append(manifests, list...)
	}
	if err := c.mark(ctx, known); err != nil {
		return err
	}
	expired, err := c.setAside(ctx, manifests, known)
	if err != nil {
		return err
	}
	// Manifests first: what is left of them is whole, whatever happens now.
	if err := c.sweep(ctx, manifests); err != nil {
		return err
	}
	for b := range c.interrupted {
		if c.ledger.pinned(b) {
			continue // known may be older than its record
		}
		if err := c.unrecorded.end(b); err != nil {
			return err
		}
	}
	for _, marker := range expired {
		if err := c.opt.Blobs.Delete(ctx, marker); err != nil {
			return err
		}
	}
	c.cache.retain(func(name id) bool {
		_, needed := c.needed[name]
		return needed || c.ledger.pinned(name)
	})
	for _, k := range []kind{sealedChunk, plainChunk} {
		chunks, err := c.list(ctx, k.prefix())
		if err == nil {
			err = c.sweep(ctx, chunks)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *collection) list(ctx context.Context, prefix string) (list []blob.Info, err error) {
	for info, err := range c.opt.Blobs.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, nil
}

// mark finds out what is needed.
func (c *collection) mark(ctx context.Context, known []skerry.Manifest) error {
	var keep []candidate
	for _, m := range known {
		if m.Deleted {
			continue
		}
		name, err := parseRef(m.Name)
		if err != nil {
			c.hold(m.Name, m.CreatedAt.Time, err)
			continue
		}
		keep = append(keep, candidate{name, m.CreatedAt.Time})
		c.ledger.recorded(name)
	}
	if err := c.markAll(ctx, keep, c.hold); err != nil {
		return err
	}
	// A snapshot that is being loaded is kept if it can be: it is none of
	// this caller's business if not.
	var loading []candidate
	for _, name := range c.loads.running() {
		loading = append(loading, candidate{id: name})
	}
	return c.markAll(ctx, loading, func(string, time.Time, error) {})
}

// markAll marks manifests and their chunks. It tells failed of each that cannot
// be read.
func (c *collection) markAll(ctx context.Context, manifests []candidate, failed func(name string, made time.Time, err error)) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	for _, candidate := range manifests {
		group.Go(func() error {
			_, m, err := c.manifest(groupCtx, candidate.id)
			if groupCtx.Err() != nil {
				return groupCtx.Err()
			}
			c.need(candidate.id, m) // the manifest itself also if it cannot be read
			if err != nil {
				failed(candidate.ref(), candidate.made, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// need marks a manifest and its chunks.
func (c *collection) need(name id, m manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needed[name] = struct{}{}
	for _, f := range m.Files {
		for _, chunk := range f.Chunks {
			c.needed[c.blobOf(m, chunk)] = struct{}{}
		}
	}
}

// hold keeps all chunks that a snapshot may use whose manifest cannot be read.
func (c *collection) hold(name string, made time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unreadable++; c.unreadable <= maxReported {
		c.opt.Log.Error("cannot read the manifest of a snapshot; chunks as old as it are not collected until it can be read or is deleted",
			"manifest", name, "created", made, "error", err)
	}
	if made.IsZero() {
		made = time.Now()
	}
	if until := made.Add(heldSlack); until.After(c.heldBefore) {
		c.heldBefore = until
	}
}

// held reports whether a chunk may belong to a snapshot whose manifest cannot be read.
func (c *collection) held(b id, put time.Time) bool {
	return c.unreadable > 0 && (put.Before(c.heldBefore) || c.ledger.mayBeRenewed(b))
}

// unknownPrefix is of the markers of snapshots that are set aside.
const unknownPrefix = "unknown/"

// setAside marks the snapshots that nobody knows as needed, until they have
// been set aside for long enough. It returns the markers to remove after a
// sweep.
func (c *collection) setAside(ctx context.Context, manifests []blob.Info, known []skerry.Manifest) (expired []string, err error) {
	if c.opt.KeepUnknown <= 0 {
		return nil, nil
	}
	list, err := c.list(ctx, unknownPrefix)
	if err != nil {
		return nil, err
	}
	markers := map[string]time.Time{}
	for _, marker := range list {
		markers[marker.Key[len(unknownPrefix):]] = marker.ModTime
	}
	recorded := make(map[string]struct{}, len(known))
	for _, m := range known {
		recorded[m.Name] = struct{}{}
	}
	var keep []candidate
	for _, info := range manifests {
		b, err := parseKey(info.Key)
		if err != nil {
			continue // sweep reports it
		}
		if _, known := recorded[b.ref()]; known || c.ledger.ownManifest(b) || c.ledger.pinned(b) {
			continue
		}
		if _, interrupted := c.interrupted[b]; interrupted {
			continue
		}
		since, marked := markers[b.ref()]
		switch {
		case !marked:
			if err := c.opt.Blobs.Put(ctx, unknownPrefix+b.ref(), nil); err != nil {
				return nil, err
			}
			c.opt.Log.Error("setting a snapshot aside that the database does not know", "manifest", b.ref(), "stored", info.ModTime, "for", c.opt.KeepUnknown)
		case time.Since(since) > c.opt.KeepUnknown:
			continue
		}
		delete(markers, b.ref())
		keep = append(keep, candidate{b, info.ModTime})
	}
	// What is left is known now, gone, or set aside for long enough.
	for name := range markers {
		expired = append(expired, unknownPrefix+name)
	}
	return expired, c.markAll(ctx, keep, c.hold)
}

// sweep removes those blobs that are not needed.
func (c *collection) sweep(ctx context.Context, blobs []blob.Info) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	held := 0
	for _, info := range blobs {
		b, err := parseKey(info.Key)
		if err != nil {
			c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
			continue
		}
		if _, needed := c.needed[b]; needed {
			continue
		}
		if b.isChunk() && c.held(b, info.ModTime) {
			held++
			continue
		}
		group.Go(func() error {
			removed, err := c.ledger.remove(ctx, b)
			if removed {
				c.freed.Add(info.Size)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if held > 0 {
		c.opt.Log.Warn("chunks are not collected because of manifests that cannot be read", "chunks", held, "manifests", c.unreadable)
	}
	return nil
}
