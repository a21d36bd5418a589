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
// uses. known is what the caller's database has: all its manifests, and the leases
// of the saves under way. Leases must be read before manifests, so that a snapshot
// that is recorded meanwhile is in one of the two.
//
// A chunk is removed in two steps. The first collection that finds it unused
// condemns it: an Add that begins later stores it again. The first that finds it
// unused still, and no lease left of those that there were in between, removes it.
// So no Add waits for a collection, and none relies on a chunk that is removed.
// Collected.Waiting tells how many chunks the next collection may remove.
//
// Chunks that no snapshot ever named are spared for Options.Grace: they are those of
// saves that failed. So are manifests.
//
// A manifest that known does not have is removed if the lease of its save is over.
// Others are set aside for Options.KeepUnknown: they may be newer than a backup that
// the database was restored from. They are in Collected.Learned, for the caller to
// record.
//
// Blobs are listed and not read, but for manifests whose chunks known does not have.
// What is found out about those is in Collected.Learned too. One that cannot be read
// keeps all chunks that are as old as its snapshot or older.
//
// A second Collect waits for the first.
func (s *Store) Collect(ctx context.Context, known nodeapi.Records) (nodeapi.Collected, error) {
	select {
	case s.collecting <- struct{}{}:
		defer func() { <-s.collecting }()
	case <-ctx.Done():
		return nodeapi.Collected{}, ctx.Err()
	}
	if err := s.ledger.index(ctx); err != nil {
		return nodeapi.Collected{}, fmt.Errorf("collect snapshots: %w", err)
	}
	c := &collection{
		Store: s, now: time.Now(), known: map[id]nodeapi.Manifest{}, loading: map[id]bool{},
		live: set(known.Leases), over: set(known.Over), needed: map[uint64]struct{}{}, given: map[uint64]struct{}{},
	}
	if err := c.run(ctx, known.Manifests); err != nil {
		return nodeapi.Collected{Freed: c.freed.Load()}, fmt.Errorf("collect snapshots: %w", err)
	}
	c.result.Freed = c.freed.Load()
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
	// heldSlack is how much later than its snapshot's time a chunk may have
	// been put: a save takes time, and a storage has a clock of its own.
	heldSlack = 24 * time.Hour
	// maxReported bounds the log entries of one collection about unreadable
	// manifests.
	maxReported = 10
)

// collection is a Collect under way.
type collection struct {
	*Store
	now        time.Time
	known      map[id]nodeapi.Manifest
	loading    map[id]bool
	live, over map[string]struct{}
	freed      atomic.Int64

	mu     sync.Mutex
	result nodeapi.Collected
	// needed are the keys of the chunks that snapshots use, given those of the
	// chunks of snapshots that are removed.
	needed, given map[uint64]struct{}
	// removed are the manifests to remove.
	removed []blob.Info
	// unreadable counts the manifests that could not be read. The chunks that
	// were put before heldBefore may be theirs.
	unreadable int
	heldBefore time.Time
}

func (c *collection) run(ctx context.Context, known []nodeapi.Manifest) error {
	for _, name := range c.loads.running() {
		c.loading[name] = true
	}
	var read []candidate
	for _, m := range known {
		name, err := parseRef(m.Name)
		if err != nil {
			if !m.Deleted {
				c.hold(m.Name, m.CreatedAt.Time, err)
			}
			continue
		}
		if m.UnknownSince.IsZero() || c.now.Sub(m.UnknownSince.Time) <= c.opt.KeepUnknown {
			m.UnknownSince = skerry.Time{}
		} else {
			m.Deleted = true
		}
		c.known[name] = m
		if m.Chunks != nil {
			err = c.use(m.Chunks, c.keeps(name))
		} else if c.keeps(name) {
			read = append(read, candidate{id: name, made: m.CreatedAt.Time})
		}
		if err != nil {
			c.hold(m.Name, m.CreatedAt.Time, err)
		}
	}
	manifests, err := c.manifests(ctx)
	if err != nil {
		return err
	}
	for _, info := range manifests {
		b, err := parseKey(info.Key)
		if err != nil {
			c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
			continue
		}
		if _, known := c.known[b]; !known {
			read = append(read, candidate{id: b, made: info.ModTime, stored: info})
		} else if !c.keeps(b) {
			c.removed = append(c.removed, info)
		}
	}
	if err := c.readAll(ctx, read); err != nil {
		return err
	}
	// Manifests first: what is left of them is whole, whatever happens now.
	if err := c.removeManifests(ctx); err != nil {
		return err
	}
	round := c.ledger.beginRound(c.live)
	for _, k := range []kind{sealedChunk, plainChunk} {
		if err := c.sweep(ctx, k, round); err != nil {
			return err
		}
	}
	c.ledger.endRound()
	if c.result.Waiting == 0 {
		for name, m := range c.known {
			if m.Deleted && m.Chunks != nil && !c.loading[name] {
				c.result.Gone = append(c.result.Gone, m.Name)
			}
		}
	}
	return nil
}

// keeps reports whether a manifest that is known stays: one that is deleted does
// while it is loaded.
func (c *collection) keeps(name id) bool { return !c.known[name].Deleted || c.loading[name] }

// manifests lists those that are stored.
func (c *collection) manifests(ctx context.Context) (list []blob.Info, err error) {
	for _, k := range []kind{sealedManifest, plainManifest} {
		for info, err := range c.opt.Blobs.List(ctx, k.prefix()) {
			if err != nil {
				return nil, err
			}
			list = append(list, info)
		}
	}
	return list, nil
}

// candidate is a manifest that is to be read.
type candidate struct {
	id
	// made is when its snapshot was made.
	made time.Time
	// stored is its blob, if it is not known.
	stored blob.Info
}

// readAll reads manifests of which known does not tell enough.
func (c *collection) readAll(ctx context.Context, candidates []candidate) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	for _, b := range candidates {
		group.Go(func() error {
			_, m, err := c.manifest(groupCtx, b.id)
			if groupCtx.Err() != nil {
				return groupCtx.Err()
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if b.stored.Key == "" {
				c.learn(b, m, err)
			} else {
				c.judge(b, m, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// learn notes the chunks of a manifest that is known; mu is held.
func (c *collection) learn(b candidate, m manifest, err error) {
	if err != nil {
		c.hold(b.ref(), b.made, err)
		return
	}
	chunks := c.chunksOf(m)
	_ = c.use(chunks, true) // it has the right form
	c.result.Learned = append(c.result.Learned, nodeapi.Manifest{Name: b.ref(), CreatedAt: skerry.At(b.made), Chunks: chunks})
}

// judge decides about a manifest that is not known; mu is held.
func (c *collection) judge(b candidate, m manifest, err error) {
	if err != nil && errors.Is(err, blob.ErrNotFound) {
		return // it was removed since
	}
	_, live := c.live[m.Lease]
	_, over := c.over[m.Lease]
	young := c.now.Sub(b.made) < c.opt.Grace
	unknown := !over && !live && !young
	switch {
	case c.loading[b.id], live, young && !over:
		// Without a lease it may be one of a save that began since.
	case over, c.opt.KeepUnknown <= 0:
		_ = c.use(c.chunksOf(m), false)
		c.removed = append(c.removed, b.stored)
		return
	}
	if err != nil {
		c.hold(b.ref(), b.made, err)
	} else {
		_ = c.use(c.chunksOf(m), true)
	}
	if unknown {
		c.opt.Log.Error("setting a snapshot aside that the database does not know", "manifest", b.ref(), "stored", b.made, "for", c.opt.KeepUnknown)
		learned := nodeapi.Manifest{Name: b.ref(), CreatedAt: skerry.At(b.made), UnknownSince: skerry.At(c.now)}
		if err == nil {
			learned.Chunks = c.chunksOf(m)
		}
		c.result.Learned = append(c.result.Learned, learned)
	}
}

// hold keeps all chunks that a snapshot may use whose manifest cannot be read.
func (c *collection) hold(name string, made time.Time, err error) {
	if c.unreadable++; c.unreadable <= maxReported {
		c.opt.Log.Error("cannot read the manifest of a snapshot; chunks as old as it are not collected until it can be read or is deleted",
			"manifest", name, "created", made, "error", err)
	}
	if made.IsZero() {
		made = c.now
	}
	if until := made.Add(heldSlack); until.After(c.heldBefore) {
		c.heldBefore = until
	}
}

// chunksForm begins a list of chunks.
const chunksForm = 1

// keySize is the bytes of a chunk in such a list: the first of its name. Two chunks
// that have them in common are kept as one, which costs room and loses nothing.
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

// use notes a list of chunks as needed, or as given back.
func (c *collection) use(list []byte, needed bool) error {
	if len(list) == 0 || list[0] != chunksForm || len(list[1:])%keySize != 0 {
		return errors.New("its list of chunks in the database is damaged")
	}
	keys := c.given
	if needed {
		keys = c.needed
	}
	for list = list[1:]; len(list) > 0; list = list[keySize:] {
		keys[binary.BigEndian.Uint64(list)] = struct{}{}
	}
	return nil
}

// removeManifests removes those of snapshots that are deleted, from the cache too.
func (c *collection) removeManifests(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	gone := map[id]bool{}
	for name := range c.known {
		gone[name] = !c.keeps(name)
	}
	for _, info := range c.removed {
		name, err := parseKey(info.Key)
		if err != nil {
			return err
		}
		gone[name] = true
		group.Go(func() error {
			err := c.opt.Blobs.Delete(groupCtx, info.Key)
			if err == nil {
				c.freed.Add(info.Size)
			}
			return err
		})
	}
	c.cache.retain(func(name id) bool { return !gone[name] })
	return group.Wait()
}

// sweep condemns the chunks that are not needed, and removes those that were
// condemned earlier.
func (c *collection) sweep(ctx context.Context, k kind, round *verdict) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxInFlight)
	held := 0
	for info, err := range c.opt.Blobs.List(ctx, k.prefix()) {
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		b, err := parseKey(info.Key)
		if err != nil {
			c.opt.Log.Warn("a blob that is no part of a snapshot", "blob", info.Key)
			continue
		}
		if _, needed := c.needed[b.key()]; needed {
			c.ledger.acquit(b, info.Size)
			continue
		}
		if c.unreadable > 0 && info.ModTime.Before(c.heldBefore) {
			held++
			continue
		}
		if _, given := c.given[b.key()]; !given && c.now.Sub(info.ModTime) < c.opt.Grace && !c.ledger.isGarbage(b) {
			continue
		}
		if !c.ledger.condemn(b, round) {
			c.result.Waiting++
			continue
		}
		group.Go(func() error {
			removed, err := c.ledger.remove(groupCtx, b)
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
