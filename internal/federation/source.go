package federation

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

const (
	// MinKeyLife, DefaultKeyLife and MaxKeyLife bound how long keys are used before they
	// are fetched again. MaxKeyLife is also how long they are used if that fails.
	MinKeyLife     = 5 * time.Minute
	DefaultKeyLife = time.Hour
	MaxKeyLife     = 24 * time.Hour
	// refetchEvery is how often tokens that no key verifies have the keys fetched.
	refetchEvery = 30 * time.Second
	// firstRetry and lastRetry are how long a failed fetch is not repeated: twice as long
	// each time.
	firstRetry, lastRetry = 2 * time.Second, time.Minute
	// maxWaiting is how many tokens of an issuer wait for its keys at a time.
	maxWaiting = 256
)

// source has the keys of an issuer.
type source struct {
	id     string
	static *keySet // the only ones, if not nil
	fetcher
	clock func() time.Time
	log   *slog.Logger
	// ctx ends when the source is not used any more. spawn runs a function that the
	// Verifier waits for; it returns false if the Verifier is closed.
	ctx    context.Context
	cancel context.CancelFunc
	spawn  func(func()) bool

	mu       sync.Mutex
	set      *keySet // nil until the first fetch
	flight   *flight // nil if no fetch is in progress
	tried    time.Time
	failures int   // since the last success
	failed   error // the last failure, nil after a success
	waiting  int
}

// flight is a fetch in progress.
type flight struct {
	done chan struct{} // closed at the end
	set  *keySet       // nil if it failed
}

// current returns the keys of the issuer, which are fetched if there are none, or if
// they have expired.
func (s *source) current(ctx context.Context) (*keySet, error) {
	if s.static != nil {
		return s.static, nil
	}
	now := s.clock()
	s.mu.Lock()
	set := s.set
	if set != nil && !now.Before(set.end) {
		set = nil
	}
	if set != nil && now.Before(set.refresh) {
		s.mu.Unlock()
		return set, nil
	}
	if s.flight == nil && !now.Before(s.tried.Add(s.pause())) {
		s.begin(now)
	}
	// Keys that have expired are fetched before they are used again, unless the issuer
	// has failed already: then nobody waits for it.
	if set != nil && (now.Before(set.expires) || s.failures > 0 || s.flight == nil) {
		s.mu.Unlock()
		return set, nil
	}
	fresh, err := s.wait(ctx)
	if fresh == nil && err == nil {
		err = s.unavailable()
	}
	if err != nil && set != nil && ctx.Err() == nil {
		return set, nil
	}
	return fresh, err
}

// newer returns keys that are not old, for a token that old does not verify, and nil
// if there are none. Unavailable means that it is not known whether there are.
func (s *source) newer(ctx context.Context, old *keySet) (*keySet, error) {
	if s.static != nil {
		return nil, nil
	}
	now := s.clock()
	s.mu.Lock()
	if s.set != nil && s.set != old {
		defer s.mu.Unlock()
		return s.set, nil
	}
	if s.flight == nil && !now.Before(s.tried.Add(refetchEvery)) {
		s.begin(now)
	}
	if s.flight == nil {
		defer s.mu.Unlock()
		if s.failures > 0 {
			return nil, s.unavailable()
		}
		return nil, nil
	}
	set, err := s.wait(ctx)
	if set == nil && err == nil {
		err = s.unavailable()
	}
	return set, err
}

// pause returns how long to wait between the last fetch and the next; s.mu is held.
func (s *source) pause() time.Duration {
	if s.failures == 0 {
		return 0
	}
	return min(firstRetry<<min(s.failures-1, 16), lastRetry)
}

// begin begins a fetch; s.mu is held. Afterwards there is no flight if the source is
// not used any more.
func (s *source) begin(now time.Time) {
	f := &flight{done: make(chan struct{})}
	if s.ctx.Err() != nil || !s.spawn(func() { s.run(f) }) {
		return
	}
	s.flight, s.tried = f, now
}

func (s *source) run(f *flight) {
	set, err := s.fetch(s.ctx, s.clock)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	s.flight, s.failed = nil, err
	if err != nil {
		s.failures++
		if s.ctx.Err() == nil {
			s.log.Warn("the keys of an issuer cannot be fetched", "issuer", s.id, "err", err)
		}
		return
	}
	s.failures, s.set, f.set = 0, set, set
}

// wait waits for the fetch in progress. s.mu is held, and is released.
func (s *source) wait(ctx context.Context) (*keySet, error) {
	f := s.flight
	if f == nil || s.waiting >= maxWaiting {
		s.mu.Unlock()
		return nil, s.unavailable()
	}
	s.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}()
	select {
	case <-f.done:
		return f.set, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *source) unavailable() error {
	return skerry.Errorf(skerry.CodeUnavailable, "the token cannot be verified now, as the keys of the issuer %s cannot be fetched; try again later", s.id)
}
