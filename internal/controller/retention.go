package controller

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
)

// sweepEvery is how often expired snapshots are looked for, and collectAfter
// how long after a deletion their bytes are removed: deletions come in groups.
const (
	sweepEvery   = time.Minute
	collectAfter = 5 * time.Second
	// collectEvery is how often they are removed at least.
	collectEvery = time.Hour
	// rememberDeleted is how long whoever asks for a deleted snapshot is told
	// that it was.
	rememberDeleted = 30 * 24 * time.Hour
)

// retain applies a sandbox's retention after a new snapshot.
func (s *snapshots) retain(ctx context.Context, sandboxID string) error {
	sandbox, err := s.store.Sandbox(ctx, sandboxID)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil
	}
	if err != nil || sandbox.Retention == nil {
		return err
	}
	snaps, err := s.store.SnapshotsOf(ctx, sandboxID)
	if err != nil {
		return err
	}
	kept := 0
	for i := range snaps {
		snap := &snaps[i]
		if snap.CreationMethod == skerry.CreatedForFork {
			continue // the fork's, not the sandbox's
		}
		if kept++; kept <= sandbox.Retention.Count || snap.ID == sandbox.CurrentSnapshotID {
			continue
		}
		if err := s.evictOne(ctx, sandbox, snap); err != nil {
			return err
		}
	}
	return nil
}

// evictOne deletes a snapshot that retention does not keep, or gives it the
// sandbox's default expiration. One that other sandboxes start from stays.
func (s *snapshots) evictOne(ctx context.Context, sandbox *skerry.Sandbox, snap *skerry.Snapshot) error {
	if sandbox.Retention.DeleteEvicted == nil || *sandbox.Retention.DeleteEvicted {
		return s.deleteUnused(ctx, snap.ID)
	}
	expires := expiry(snap.CreatedAt, defaultExpiration(sandbox))
	if expires == snap.ExpiresAt {
		return nil
	}
	_, err := s.store.UpdateUnusedSnapshot(ctx, snap.ID, func(stored *skerry.Snapshot) error {
		stored.ExpiresAt, stored.UpdatedAt = expires, skerry.At(time.Now())
		return nil
	})
	return err
}

// deleteUnused deletes a snapshot unless sandboxes start from it.
func (s *snapshots) deleteUnused(ctx context.Context, id string) error {
	deleted, err := s.store.UpdateUnusedSnapshot(ctx, id, markDeleted)
	if deleted {
		s.collectSoon()
	}
	return err
}

// markDeleted is a change of a snapshot. Its bytes go with the next collection.
func markDeleted(snap *skerry.Snapshot) error {
	if snap.Status != skerry.SnapshotDeleted {
		snap.Status, snap.UpdatedAt = skerry.SnapshotDeleted, skerry.At(time.Now())
	}
	return nil
}

// deleteForFork deletes a snapshot that was taken to fork a sandbox, if nothing
// starts from it any more: nobody has asked for it by itself.
func (s *snapshots) deleteForFork(ctx context.Context, scope skerry.Scope, id string) error {
	snap, err := s.store.Snapshot(ctx, scope, id)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil
	}
	if err != nil || snap.CreationMethod != skerry.CreatedForFork || snap.Status != skerry.SnapshotCreated {
		return err
	}
	return s.deleteUnused(ctx, snap.ID)
}

// deleteFork deletes the snapshot of a fork that was not made.
func (s *snapshots) deleteFork(scope skerry.Scope, id string) {
	s.untilDone("delete the snapshot of a fork", func(ctx context.Context) error { return s.deleteForFork(ctx, scope, id) })
}

// deleteOrphans deletes the snapshots of a sandbox that is gone, but for those
// that other sandboxes start from.
func (s *snapshots) deleteOrphans(ctx context.Context, sandboxID string) error {
	snaps, err := s.store.SnapshotsOf(ctx, sandboxID)
	for i := range snaps {
		err = errors.Join(err, s.deleteUnused(ctx, snaps[i].ID))
	}
	return err
}

// collectSoon asks for a collection.
func (s *snapshots) collectSoon() {
	select {
	case s.garbage <- struct{}{}:
	default:
	}
}

// sweep deletes expired snapshots and collects what nothing names, until the
// controller closes.
func (s *snapshots) sweep() {
	expire := time.NewTicker(sweepEvery)
	defer expire.Stop()
	began := time.Now()
	var clock steadiness
	clock.look(began, 0)
	regularly := time.NewTicker(collectEvery)
	defer regularly.Stop()
	var due <-chan time.Time
	waits := s.backoff()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-expire.C:
			steady, jumped := clock.look(time.Now(), time.Since(began))
			if jumped != 0 {
				s.log.Warn("the clock has jumped; nothing expires until it is steady", "by", jumped, "for", clockSettles)
			}
			if !steady {
				continue
			}
			if err := s.expire(s.ctx); err != nil && s.ctx.Err() == nil {
				s.log.Error("cannot delete expired snapshots, trying again", "in", sweepEvery, "error", err)
			}
		case <-s.garbage:
			if due == nil {
				due = time.After(collectAfter)
			}
		case <-due:
			due = nil
			more, err := s.collect(s.ctx)
			if err == nil && !more {
				waits = s.backoff()
				continue
			}
			wait := max(collectAfter, waits.wait())
			if err != nil && s.ctx.Err() == nil {
				s.log.Error("cannot remove the bytes of deleted snapshots, trying again", "in", wait, "error", err)
			}
			due = time.After(wait)
		case <-regularly.C:
			s.collectSoon()
		}
	}
}

func (s *snapshots) expire(ctx context.Context) error {
	snaps, err := s.store.ExpiredSnapshots(ctx, skerry.At(time.Now()))
	for i := range snaps {
		_, derr := s.store.UpdateSnapshot(ctx, snaps[i].ID, markDeleted)
		err = errors.Join(err, derr)
	}
	if len(snaps) > 0 {
		s.log.Info("snapshots expired", "count", len(snaps))
		s.collectSoon()
	}
	return errors.Join(err, s.store.ForgetSnapshots(ctx, skerry.At(time.Now().Add(-rememberDeleted))))
}

// collect removes the bytes that no snapshot needs. It reports whether there is more
// to remove later, for example when the saves have ended that are in progress.
func (s *snapshots) collect(ctx context.Context) (more bool, err error) {
	// The first collection of a process tells its number, the next finds what is not
	// needed, and the one after it removes that.
	s.collecting.Lock()
	defer s.collecting.Unlock()
	for range 3 {
		now := skerry.At(time.Now())
		known, err := s.store.BeginCollection(ctx, now)
		if err != nil {
			return false, err
		}
		known.Round = s.round
		found, err := s.collector.Collect(ctx, known)
		if found.Freed > 0 {
			s.log.Info("removed the bytes of deleted snapshots", "bytes", found.Freed)
		}
		if found.Round != "" {
			s.round = found.Round
		}
		if err != nil {
			return false, err
		}
		if err := s.store.RecordCollection(ctx, now, found); err != nil {
			return false, err
		}
		if more = found.Waiting > 0; !more {
			break
		}
	}
	return more, nil
}
