package controller

import (
	"context"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// snapshotStore is what snapshots need of the store.
type snapshotStore interface {
	Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error)
	// AddSnapshot writes a snapshot, together with a session and its sandbox if
	// the session is not "", and returns when that survives a loss of power.
	// It ends the lease of the save, which must not have ended.
	AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, sessionID string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error)
	UpdateSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (*skerry.Snapshot, error)
	UpdateUnusedSnapshot(ctx context.Context, id string, change func(*skerry.Snapshot) error) (updated bool, err error)
	Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	SnapshotScope(ctx context.Context, teamID, id string) (skerry.Scope, error)
	ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error)
	SnapshotsOf(ctx context.Context, sandboxID string) ([]skerry.Snapshot, error)
	SnapshotChildren(ctx context.Context, scope skerry.Scope, parentID string, limit int) (_ []skerry.Snapshot, count int, err error)
	TouchSnapshot(ctx context.Context, id string, now skerry.Time) error
	ExpiredSnapshots(ctx context.Context, now skerry.Time) ([]skerry.Snapshot, error)
	ForgetSnapshots(ctx context.Context, before skerry.Time) error
	// AddLease writes the lease of a save. EndLease ends the lease of one whose files
	// nothing will name, EndLeases those of all.
	AddLease(ctx context.Context, id string, expires skerry.Time) error
	EndLease(ctx context.Context, id string, expires skerry.Time) error
	EndLeases(ctx context.Context) error
	// BeginCollection returns what a collection needs to know, RecordCollection writes
	// its result.
	BeginCollection(ctx context.Context, now skerry.Time) (nodeapi.Records, error)
	RecordCollection(ctx context.Context, now skerry.Time, c nodeapi.Collected) error
}

// snapshots reads and deletes snapshots, and removes the bytes of those that
// were deleted.
//
// A snapshot is made in this order: the store has a lease of the save (leases.go);
// its bytes are in the blob store for good; then one transaction names it, ends the
// lease, and says what it means for its sandbox and session. What a crash leaves
// without a name is garbage, which collect removes; what has a name can be loaded.
type snapshots struct {
	*background
	store     snapshotStore
	images    nodeapi.Images
	collector nodeapi.Collector
	// garbage asks for a collection of saved files.
	garbage chan struct{}
	// collecting lets one collection run at a time, and guards round, the last one.
	collecting sync.Mutex
	round      string

	// announcing guards announced: the snapshots that are being made of a session
	// that a fork has started from already.
	announcing sync.Mutex
	announced  map[string]*announcement
}

// announcement is a snapshot that is being made.
type announcement struct {
	// asked is closed when somebody waits for it, kept when it is made.
	asked, kept chan struct{}
	ask         sync.Once
}

func newSnapshot(sandbox *skerry.Sandbox, run *skerry.Session, saved nodeapi.SavedFiles, how saving) *skerry.Snapshot {
	now := skerry.At(time.Now())
	snap := &skerry.Snapshot{
		ID:              skerry.NewID(skerry.PrefixSnapshot),
		Scope:           sandbox.Scope,
		SandboxID:       sandbox.ID,
		SandboxName:     sandbox.Name,
		SourceSessionID: run.ID,
		ParentID:        run.SourceSnapshotID,
		Region:          run.Region,
		Status:          skerry.SnapshotCreated,
		SizeBytes:       saved.Size,
		CreationMethod:  how.method,
		CreatedAt:       now,
		UpdatedAt:       now,
		Base:            skerry.Base{Image: run.Image, Digest: run.ImageDigest, Runtime: run.Runtime},
		Manifest:        saved.Manifest,
	}
	if how.memory {
		snap.Memory = true
		snap.Base.VCPUs, snap.Base.MemoryMB = run.VCPUs, run.MemoryMB
	}
	snap.ExpiresAt = expiry(now, keepFor(sandbox, how.expiration))
	return snap
}

// keepFor is how long a snapshot of a sandbox is kept: as its call says, as
// the sandbox's retention says of those it keeps, or as the sandbox does.
func keepFor(sandbox *skerry.Sandbox, asked *skerry.Duration) skerry.Duration {
	switch {
	case asked != nil:
		return *asked
	case sandbox.Retention != nil && sandbox.Retention.Expiration != nil:
		return *sandbox.Retention.Expiration
	}
	return defaultExpiration(sandbox)
}

func defaultExpiration(sandbox *skerry.Sandbox) skerry.Duration {
	if sandbox.SnapshotExpiration != nil {
		return *sandbox.SnapshotExpiration
	}
	return skerry.Duration(skerry.DefaultSnapshotExpiration)
}

// expiry is the end of a span; a span of 0 has none.
func expiry(from skerry.Time, span skerry.Duration) skerry.Time {
	if span == 0 {
		return skerry.Time{}
	}
	return skerry.At(from.Add(span.Std()))
}

// announce makes a snapshot known that will be in the store, if all goes well,
// when the returned function is called.
// asked is closed when somebody waits for it.
func (s *snapshots) announce(snapshotID string) (asked <-chan struct{}, done func()) {
	a := &announcement{asked: make(chan struct{}), kept: make(chan struct{})}
	s.announcing.Lock()
	defer s.announcing.Unlock()
	s.announced[snapshotID] = a
	return a.asked, func() {
		s.announcing.Lock()
		defer s.announcing.Unlock()
		delete(s.announced, snapshotID)
		close(a.kept)
	}
}

// snapshot returns a snapshot, after waiting for one that is being made.
func (s *snapshots) snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	s.announcing.Lock()
	a := s.announced[id]
	s.announcing.Unlock()
	if a != nil {
		a.ask.Do(func() { close(a.asked) })
		select {
		case <-a.kept:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.store.Snapshot(ctx, scope, id)
}

// touch records that a session started from a snapshot.
func (s *snapshots) touch(snap *skerry.Snapshot) {
	now := skerry.At(time.Now())
	s.untilDone("record the use of a snapshot", func(ctx context.Context) error { return s.store.TouchSnapshot(ctx, snap.ID, now) })
}

// GetSnapshot implements api.Service.
func (s *snapshots) GetSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	return s.snapshot(ctx, scope, id)
}

// ListSnapshots implements api.Service.
func (s *snapshots) ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error) {
	return s.store.ListSnapshots(ctx, scope, f)
}

// DeleteSnapshot implements api.Service. A sandbox that would start from the
// snapshot meets CodeSnapshotNotFound from then on.
func (s *snapshots) DeleteSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error) {
	snap, err := s.snapshot(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	if snap.Status != skerry.SnapshotDeleted {
		if snap, err = s.store.UpdateSnapshot(ctx, id, markDeleted); err != nil {
			return nil, err
		}
	}
	s.collectSoon()
	return snap, nil
}

// usableSnapshot returns a snapshot that sessions can start from, with its image.
func (s *snapshots) usableSnapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, nodeapi.Image, error) {
	snap, err := s.snapshot(ctx, scope, id)
	if err != nil {
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			err = skerry.Errorf(skerry.CodeSnapshotNotFound, "there is no snapshot %q", id)
		}
		return nil, nodeapi.Image{}, err
	}
	if !snap.Usable(time.Now()) {
		what := "has expired"
		if snap.Status == skerry.SnapshotDeleted {
			what = "was deleted"
		}
		return nil, nodeapi.Image{}, skerry.Errorf(skerry.CodeSnapshotNotFound, "snapshot %s %s", id, what)
	}
	image, err := s.images.Resolve(ctx, snap.Base.Digest)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		err = skerry.Errorf(skerry.CodeSnapshotNotFound, "the image of snapshot %s does not exist any more: %v", id, err)
	}
	return snap, image, err
}

// SnapshotScope implements api.Service.
func (s *snapshots) SnapshotScope(ctx context.Context, teamID, id string) (skerry.Scope, error) {
	return s.store.SnapshotScope(ctx, teamID, id)
}
