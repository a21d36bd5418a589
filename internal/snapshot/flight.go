package snapshot

import (
	"context"
	"sync"
)

// flights are the loads in progress, one for each snapshot.
type flights struct {
	mu  sync.Mutex
	all map[id]*flight
}

// flight is one load, for all who wait for it. It goes on while somebody does.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the rest is final
	// waiters and ended are guarded by the flights' lock.
	waiters int
	// ended says that waiters is final: entry gets one pin for each.
	ended bool
	entry *entry
	err   error
}

// do returns what load does, an entry with one pin, to all who ask for the same
// snapshot at the same time. more adds so many pins to the entry; it is called
// with -1 if nobody wants it.
func (fs *flights) do(ctx context.Context, name id, load func(context.Context) (*entry, error), more func(*entry, int)) (*entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fs.mu.Lock()
	f := fs.all[name]
	if f == nil {
		f = fs.start(ctx, name, load, more)
	}
	f.waiters++
	fs.mu.Unlock()
	select {
	case <-f.done:
		return f.entry, f.err
	case <-ctx.Done():
		return fs.leave(ctx, name, f)
	}
}

// start begins a flight; mu is held.
func (fs *flights) start(ctx context.Context, name id, load func(context.Context) (*entry, error), more func(*entry, int)) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{cancel: cancel, done: make(chan struct{})}
	if fs.all == nil {
		fs.all = map[id]*flight{}
	}
	fs.all[name] = f
	go func() {
		defer close(f.done)
		defer cancel()
		e, err := load(ctx)
		fs.mu.Lock()
		f.entry, f.err, f.ended = e, err, true
		pins := f.waiters - 1
		fs.forget(name, f)
		fs.mu.Unlock()
		if e != nil {
			// Without the lock: to take back a pin may remove gigabytes.
			more(e, pins)
		}
	}()
	return f
}

// leave ends the wait of one. The last to leave ends the flight, and waits for
// that.
func (fs *flights) leave(ctx context.Context, name id, f *flight) (*entry, error) {
	fs.mu.Lock()
	if f.ended {
		fs.mu.Unlock()
		<-f.done // the pins may still be being added
		return f.entry, f.err
	}
	f.waiters--
	last := f.waiters == 0
	if last {
		f.cancel()
		fs.forget(name, f)
	}
	fs.mu.Unlock()
	if last {
		<-f.done
	}
	return nil, ctx.Err()
}

// forget makes the next caller start a new load; mu is held.
func (fs *flights) forget(name id, f *flight) {
	if fs.all[name] == f {
		delete(fs.all, name)
	}
}

// running returns the snapshots that are being loaded.
func (fs *flights) running() []id {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var names []id
	for name := range fs.all {
		names = append(names, name)
	}
	return names
}
