package acme

import (
	"context"
	"errors"
	"sync"

	"github.com/caddyserver/certmagic"
)

// storage is a folder. Its locks are in memory: the server is the only one on
// its state, and locks in files would outlive a crash.
type storage struct {
	*certmagic.FileStorage

	mu     sync.Mutex
	closed bool
	held   map[string]chan struct{}
	all    sync.WaitGroup
}

var errClosed = errors.New("acme: the server ends")

func newStorage(dir string) *storage {
	return &storage{FileStorage: &certmagic.FileStorage{Path: dir}, held: map[string]chan struct{}{}}
}

// Lock implements certmagic.Locker.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		s.mu.Lock()
		if err := ctx.Err(); err != nil || s.closed {
			s.mu.Unlock()
			return errors.Join(err, errClosed)
		}
		released := s.held[name]
		if released == nil {
			s.held[name] = make(chan struct{})
			s.all.Add(1)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unlock implements certmagic.Locker.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	released := s.held[name]
	if released == nil {
		return errors.New("acme: " + name + " is not locked")
	}
	delete(s.held, name)
	close(released)
	s.all.Done()
	return nil
}

// close waits for all locks to be given back. Whatever certmagic does for long
// it does with a lock, in goroutines that it does not let be waited for.
func (s *storage) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.all.Wait()
}
