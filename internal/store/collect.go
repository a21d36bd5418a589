package store

import (
	"context"
	"slices"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// A save has a lease from before its first byte is stored until the transaction that
// names its files. So a collection knows of each save in progress, in whichever
// process. A lease that ends without that is kept, as ended, until its time has passed
// and a collection has removed what the save has left.

// AddLease writes the lease of a save. One that was added already is no error.
func (s *Store) AddLease(ctx context.Context, id string, expires skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO leases (id, expires_at, ended) VALUES (?, ?, 0) ON CONFLICT (id) DO NOTHING", id, expires.Millis())
		return err
	}), "begin a save")
}

// EndLease ends the lease of a save that nothing will name. It is written as ended also
// if it is not there: its AddLease may still be waiting to be committed.
func (s *Store) EndLease(ctx context.Context, id string, expires skerry.Time) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "INSERT INTO leases (id, expires_at, ended) VALUES (?, ?, 1) ON CONFLICT (id) DO UPDATE SET ended = 1", id, expires.Millis())
		return err
	}), "end a save")
}

// EndLeases ends all leases. It is for a process that starts: no save of an earlier
// one will be named.
func (s *Store) EndLeases(ctx context.Context) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "UPDATE leases SET ended = 1 WHERE ended = 0")
		return err
	}), "end the saves of an earlier process")
}

// insertSaved writes a snapshot with the chunks of its manifest, and ends the lease
// of its save.
func insertSaved(ctx context.Context, t tx, snap *skerry.Snapshot, saved nodeapi.SavedFiles) error {
	if err := insertSnapshot(ctx, t, snap); err != nil {
		return err
	}
	ended, err := t.exec(ctx, "DELETE FROM leases WHERE id = ? AND ended = 0", saved.Lease)
	if err != nil {
		return err
	}
	if n, err := ended.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return skerry.Errorf(skerry.CodeConflict, "the save's lease has ended, and its files may have been removed")
	}
	return insertManifest(ctx, t, nodeapi.Manifest{Name: snap.Manifest, CreatedAt: snap.CreatedAt, Chunks: saved.Chunks})
}

// insertManifest writes what is known of a manifest, or adds its chunks.
func insertManifest(ctx context.Context, t tx, m nodeapi.Manifest) error {
	_, err := t.exec(ctx, `INSERT INTO manifests (name, created_at, unknown_since, chunks) VALUES (?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET chunks = excluded.chunks WHERE manifests.chunks IS NULL`,
		m.Name, m.CreatedAt.Millis(), m.UnknownSince.Millis(), m.Chunks)
	return err
}

// BeginCollection ends the leases that have expired, and returns what a collection
// needs to know.
func (s *Store) BeginCollection(ctx context.Context, now skerry.Time) (r nodeapi.Records, err error) {
	defer func() { err = wrap(err, "read what is saved") }()
	err = s.update(ctx, func(ctx context.Context, t tx) error {
		_, err := t.exec(ctx, "UPDATE leases SET ended = 1 WHERE ended = 0 AND expires_at <= ?", now.Millis())
		return err
	})
	if err != nil {
		return r, err
	}
	type lease struct {
		id    string
		ended bool
	}
	leases, err := list(ctx, &s.engine, func(row scanner) (l lease, err error) { return l, row.Scan(&l.id, &l.ended) }, "SELECT id, ended FROM leases")
	if err != nil {
		return r, err
	}
	for _, l := range leases {
		if l.ended {
			r.Ended = append(r.Ended, l.id)
		} else {
			r.Active = append(r.Active, l.id)
		}
	}
	// After the leases: a snapshot that is added meanwhile is in one of the two.
	r.Manifests, err = list(ctx, &s.engine, func(row scanner) (m nodeapi.Manifest, err error) {
		var created, unknown int64
		err = row.Scan(&m.Name, &created, &m.Deleted, &unknown, &m.Chunks)
		m.CreatedAt, m.UnknownSince = skerry.FromMillis(created), skerry.FromMillis(unknown)
		return m, err
	}, `SELECT named.manifest, named.created, named.deleted, 0, manifests.chunks FROM
			(SELECT manifest, MAX(created_at) AS created, MIN(CASE WHEN status = ? THEN 0 ELSE 1 END) AS deleted
			FROM snapshots WHERE manifest <> '' GROUP BY manifest) AS named
			LEFT JOIN manifests ON manifests.name = named.manifest
		UNION ALL
		SELECT name, created_at, CASE WHEN unknown_since = 0 THEN 1 ELSE 0 END, unknown_since, chunks FROM manifests
			WHERE NOT EXISTS (SELECT 1 FROM snapshots WHERE snapshots.manifest = manifests.name)`, string(skerry.SnapshotCreated))
	return r, err
}

// RecordCollection writes the result of a collection, and removes the ended leases whose
// time has passed. Before that a save that was given up may still store something.
func (s *Store) RecordCollection(ctx context.Context, now skerry.Time, c nodeapi.Collected) error {
	return wrap(s.update(ctx, func(ctx context.Context, t tx) error {
		for _, m := range c.Learned {
			if err := insertManifest(ctx, t, m); err != nil {
				return err
			}
		}
		// In the order that others would lock them in, too.
		for _, name := range slices.Sorted(slices.Values(c.Gone)) {
			// What a snapshot names again in the meantime stays.
			if _, err := t.exec(ctx, "DELETE FROM manifests WHERE name = ? AND NOT EXISTS (SELECT 1 FROM snapshots WHERE manifest = ? AND status = ?)",
				name, name, string(skerry.SnapshotCreated)); err != nil {
				return err
			}
		}
		_, err := t.exec(ctx, "DELETE FROM leases WHERE ended = 1 AND expires_at <= ?", now.Millis())
		return err
	}), "record a collection")
}
