package controller

import (
	"context"
	"log/slog"
	"sync"

	"github.com/skerry-dev/skerry"
)

// saver writes commands to the store behind the callers' backs: a command of
// a live session is read from memory, so nobody need wait for the disk, and
// many commands that end together are written together.
type saver struct {
	store Store
	log   *slog.Logger
	done  chan struct{}

	mu      sync.Mutex
	changed *sync.Cond
	// pending holds the newest state of each command that is not written.
	pending map[string]skerry.Command
	// version counts the saves, written the saves that are in the store.
	version, written uint64
	closed           bool
}

func newSaver(store Store, log *slog.Logger) *saver {
	s := &saver{store: store, log: log, done: make(chan struct{}), pending: map[string]skerry.Command{}}
	s.changed = sync.NewCond(&s.mu)
	go s.run()
	return s
}

// save has a command written soon.
func (s *saver) save(cmd skerry.Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[cmd.ID] = cmd
	s.version++
	s.changed.Broadcast()
}

// flush returns when everything saved before has been written.
func (s *saver) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for version := s.version; s.written < version; {
		s.changed.Wait()
	}
}

// close writes what is pending and ends the saver.
func (s *saver) close() error {
	s.mu.Lock()
	s.closed = true
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.done
	return nil
}

func (s *saver) run() {
	defer close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.pending) == 0 && !s.closed {
			s.changed.Wait()
		}
		if len(s.pending) == 0 {
			return
		}
		batch := make([]skerry.Command, 0, len(s.pending))
		for _, cmd := range s.pending {
			batch = append(batch, cmd)
		}
		clear(s.pending)
		version := s.version
		s.mu.Unlock()
		if err := s.store.SaveCommands(context.Background(), batch); err != nil {
			s.log.Error("cannot save commands", "count", len(batch), "error", err)
		}
		s.mu.Lock()
		s.written = version
		s.changed.Broadcast()
	}
}
