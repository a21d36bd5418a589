package snapshot

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// database is what a caller's database has of snapshots.
type database struct {
	mu        sync.Mutex
	round     string
	leases    map[string]bool // true if it has ended
	manifests map[string]nodeapi.Manifest
}

func newDatabase() *database {
	return &database{leases: map[string]bool{}, manifests: map[string]nodeapi.Manifest{}}
}

func (d *database) begin() (lease string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lease = rand.Text()
	d.leases[lease] = false
	return lease
}

// save adds a folder, which has a lease from then on.
func (d *database) save(ctx context.Context, s *Store, dir string) (nodeapi.SavedFiles, error) {
	lease := d.begin()
	saved, err := s.Add(ctx, dir, "", lease)
	if err != nil {
		d.end(lease)
	}
	return saved, err
}

// end ends a lease without naming anything.
func (d *database) end(lease string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases[lease] = true
}

// name ends a lease by naming what was saved.
func (d *database) name(saved nodeapi.SavedFiles) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.leases, saved.Lease)
	d.manifests[saved.Manifest] = nodeapi.Manifest{Name: saved.Manifest, Chunks: saved.Chunks}
}

// keep has the snapshots of these manifests, and no others.
func (d *database) keep(names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		if _, known := d.manifests[name]; !known {
			d.manifests[name] = nodeapi.Manifest{Name: name}
		}
	}
	for name, m := range d.manifests {
		m.Deleted = !slices.Contains(names, name)
		d.manifests[name] = m
	}
}

// edit changes what is known of a manifest.
func (d *database) edit(name string, change func(*nodeapi.Manifest)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.manifests[name]
	change(&m)
	d.manifests[name] = m
}

// forget forgets a manifest, as a backup does that is older.
func (d *database) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.manifests, name)
}

func (d *database) records() (r nodeapi.Records) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.Round = d.round
	for lease, ended := range d.leases {
		if ended {
			r.Ended = append(r.Ended, lease)
		} else {
			r.Active = append(r.Active, lease)
		}
	}
	for _, m := range d.manifests {
		r.Manifests = append(r.Manifests, m)
	}
	return r
}

func (d *database) record(c nodeapi.Collected) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.round = c.Round
	for _, m := range c.Learned {
		have, known := d.manifests[m.Name]
		if known && have.Chunks == nil {
			have.Chunks = m.Chunks
		} else if !known {
			have = m
		}
		d.manifests[m.Name] = have
	}
	for _, name := range c.Gone {
		if d.manifests[name].Deleted || !d.manifests[name].UnknownSince.IsZero() {
			delete(d.manifests, name)
		}
	}
}

// collect collects as often as there is more to remove, at most four times.
func (d *database) collect(ctx context.Context, s *Store) (freed int64, err error) {
	for range 4 {
		c, err := s.Collect(ctx, d.records())
		freed += c.Freed
		if err != nil {
			d.mu.Lock()
			d.round = c.Round
			d.mu.Unlock()
			return freed, err
		}
		d.record(c)
		if c.Waiting == 0 {
			break
		}
	}
	return freed, nil
}
