package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// background owns the work that continues after the call that started it has
// returned.
type background struct {
	log *slog.Logger
	// firstRetry is the first wait between attempts.
	firstRetry time.Duration
	// ctx ends when the controller closes.
	ctx    context.Context
	cancel context.CancelFunc

	// closing guards closed and the start of work.
	closing sync.Mutex
	closed  bool
	work    sync.WaitGroup
}

func newBackground(log *slog.Logger, firstRetry time.Duration) *background {
	b := &background{log: log, firstRetry: firstRetry}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// end refuses new work and waits for what there is.
func (b *background) end() {
	b.closing.Lock()
	b.closed = true
	b.closing.Unlock()
	b.cancel()
	b.work.Wait()
}

// spawn runs f in the background, unless the controller is closing.
func (b *background) spawn(f func()) error {
	b.closing.Lock()
	defer b.closing.Unlock()
	if b.closed {
		return errClosing()
	}
	b.work.Go(f)
	return nil
}

func errClosing() error {
	return skerry.Errorf(skerry.CodeUnavailable, "the server is shutting down")
}

// Waits between attempts.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// attemptTimeout bounds one attempt.
	attemptTimeout = 2 * time.Minute
)

// backoff yields the waits between attempts: each is twice the one before.
type backoff struct{ next, most time.Duration }

func (b *backoff) wait() time.Duration {
	d := b.next
	b.next = min(2*b.next, b.most)
	return d
}

func (b *background) backoff() backoff { return backoff{b.firstRetry, lastRetry} }

// try calls f with a context that the end of a request or of the controller
// does not end: f is a write that should not be left undone.
func (b *background) try(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), attemptTimeout)
	defer cancel()
	return f(ctx)
}

// untilDone calls f, and repeats it in the background until it succeeds or the
// controller closes. What is left undone then is found by Recover.
func (b *background) untilDone(doing string, f func(context.Context) error) {
	if err := b.try(f); err != nil {
		b.keepTrying(doing, err, f, nil)
	}
}

// keepTrying repeats f, which has failed with err, in the background until it
// succeeds or the controller closes. Then it calls finally, which may be nil.
func (b *background) keepTrying(doing string, err error, f func(context.Context) error, finally func()) {
	b.log.Error("cannot "+doing+", trying again", "error", err)
	closing := b.spawn(func() {
		if finally != nil {
			defer finally()
		}
		for waits := b.backoff(); ; {
			select {
			case <-time.After(waits.wait()):
			case <-b.ctx.Done():
				return
			}
			err := b.try(f)
			if err == nil {
				return
			}
			b.log.Error("cannot "+doing+", trying again", "error", err)
		}
	})
	if closing != nil && finally != nil {
		finally()
	}
}

// inBackground calls f in the background until it succeeds or the controller closes.
// What is left undone then is found by Recover.
func (b *background) inBackground(doing string, f func(context.Context) error) {
	// An error means that the controller closes.
	_ = b.spawn(func() { b.untilDone(doing, f) })
}

// sleep waits, and returns false if the controller closes in the meantime.
func (b *background) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-b.ctx.Done():
		return false
	}
}
