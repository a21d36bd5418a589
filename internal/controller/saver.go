package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// saver writes commands to the store in the background. Commands of a session
// that has not ended are read from memory, so no caller waits for the disk, and
// commands that end together are written together. A failed write is repeated
// until it succeeds.
type saver struct {
	store commandStore
	log   *slog.Logger
	retry time.Duration
	// wake holds a token when there may be something to do; closing is closed
	// by close, done when the saver has ended.
	wake          chan struct{}
	closing, done chan struct{}

	mu sync.Mutex
	// pending has the commands that are not written, queue their ids, the one
	// that has waited longest first.
	pending map[string]*pendingCommand
	queue   []string
	// version counts the saves, written the saves that are in the store.
	version, written uint64
	// progress is closed, and replaced, when written or err changes.
	progress chan struct{}
	// err is why the last attempt failed, nil if it did not.
	err error
}

// pendingCommand is the newest state of a command that is not written.
type pendingCommand struct {
	cmd skerry.Command
	// first and last are the versions of its first and its last save that is
	// not written.
	first, last uint64
}

// saveBatch is how many commands are written in one transaction.
const saveBatch = 256

func newSaver(store commandStore, log *slog.Logger, retry time.Duration) *saver {
	s := &saver{
		store: store, log: log, retry: retry,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		pending: map[string]*pendingCommand{}, progress: make(chan struct{}),
	}
	go s.run()
	return s
}

// save has a command written soon.
func (s *saver) save(cmd skerry.Command) {
	s.mu.Lock()
	s.version++
	p := s.pending[cmd.ID]
	if p == nil {
		p = &pendingCommand{first: s.version}
		s.pending[cmd.ID] = p
		s.queue = append(s.queue, cmd.ID)
	}
	p.cmd, p.last = cmd, s.version
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// latest returns a command that is not written yet.
func (s *saver) latest(id string) (skerry.Command, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pending[id]; p != nil {
		return p.cmd, true
	}
	return skerry.Command{}, false
}

// failing returns why commands cannot be written at the moment, nil if they can.
func (s *saver) failing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// flush returns when everything saved before has been written, or with an error
// if it cannot be at the moment.
func (s *saver) flush(ctx context.Context) error {
	s.mu.Lock()
	version := s.version
	for s.written < version {
		progress := s.progress
		s.mu.Unlock()
		select {
		case <-progress:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		if err := s.err; err != nil && s.written < version {
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Unlock()
	return nil
}

// close writes what is pending and ends the saver.
func (s *saver) close() error {
	close(s.closing)
	<-s.done
	return s.failing()
}

func (s *saver) run() {
	defer close(s.done)
	waits := backoff{s.retry, lastRetry}
	for {
		for s.write() {
			waits = backoff{s.retry, lastRetry}
		}
		var retry <-chan time.Time
		if s.failing() != nil {
			retry = time.After(waits.wait())
		}
		select {
		case <-retry:
		case <-s.wakeUnless(retry):
		case <-s.closing:
			for s.write() {
			}
			return
		}
	}
}

// wakeUnless is the saver's alarm, but while it waits for a retry.
func (s *saver) wakeUnless(retry <-chan time.Time) <-chan struct{} {
	if retry != nil {
		return nil
	}
	return s.wake
}

// write writes the commands that have waited longest, as many as go into one
// transaction. It returns false if nothing is left to write, or the write failed.
func (s *saver) write() bool {
	s.mu.Lock()
	if len(s.queue) == 0 {
		s.mu.Unlock()
		return false
	}
	version := s.version
	batch := make([]skerry.Command, 0, min(len(s.queue), saveBatch))
	for _, id := range s.queue[:cap(batch)] {
		batch = append(batch, s.pending[id].cmd)
	}
	s.mu.Unlock()
	err := s.store.SaveCommands(context.Background(), batch)
	if err != nil {
		err = fmt.Errorf("save commands: %w", err)
		s.log.Error("cannot save commands, trying again", "count", len(batch), "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil {
		s.wrote(len(batch), version)
	}
	close(s.progress)
	s.progress = make(chan struct{})
	return err == nil
}

// wrote removes the first n commands of the queue, as they were at a version.
// Those that were saved again since then stay. s.mu is held.
func (s *saver) wrote(n int, version uint64) {
	var again []string
	for _, id := range s.queue[:n] {
		if p := s.pending[id]; p.last > version {
			p.first = version + 1
			again = append(again, id)
		} else {
			delete(s.pending, id)
		}
	}
	s.queue = append(again, s.queue[n:]...)
	s.written = s.version
	for _, p := range s.pending {
		s.written = min(s.written, p.first-1)
	}
}
