package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// forks are the memory forks of a session.
type forks struct {
	// gate is held while a fork begins a save, or joins one.
	gate gate
	// newest is the save that began last, nil before the first.
	newest *forkSave
}

// forkSave is a save of a session that forks start from. Forks that are asked for while
// the session has not gone on yet since the save began share it, as each gets the session
// as it is when it asks.
type forkSave struct {
	save
	fork driver.Fork
	// cancel ends the save.
	cancel context.CancelFunc

	mu sync.Mutex
	// users is the number of forks that start from it. Nobody joins it when there are none.
	users int
}

// forkSource has a session start from the present state of another one. What was saved is
// the capture, once the start has succeeded.
func (n *Node) forkSource(ctx context.Context, of, captureID string) (_ *source, err error) {
	to, err := n.captured(captureID)
	if err != nil {
		return nil, err
	}
	s, done, err := n.use(ctx, of)
	if err != nil {
		return nil, err
	}
	fail := func(err error) error { return s.failure(notSaved(fmt.Errorf("save session %s: %w", of, err))) }
	f, err := s.shareSave(ctx)
	if err != nil {
		done()
		return nil, fail(err)
	}
	return &source{
		Source: driver.Source{Fork: f.fork},
		agent:  s.agent,
		end: func(err error) error {
			defer done()
			capture := to
			if err != nil {
				capture = ""
			}
			failure, err := f.leave(capture, err)
			if failure != nil {
				return errors.Join(fail(failure), err)
			}
			return err
		},
	}, nil
}

// shareSave returns a save of the session as it is now, or will be in a moment, for one
// more fork, which has to leave it.
func (s *session) shareSave(ctx context.Context) (*forkSave, error) {
	if err := s.forks.gate.enter(ctx); err != nil {
		return nil, err
	}
	defer s.forks.gate.leave()
	if f := s.forks.newest; f != nil && f.join() {
		return f, nil
	}
	// Those that ask while this waits for another save join the one that begins here.
	save, err := s.beginSave(ctx, nodeapi.Saving{Memory: true})
	if err != nil {
		return nil, err
	}
	// The fork that is first may be given up while others go on.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ctx, span := tracing.Start(ctx, tracing.SaveMachine)
	fork, err := s.machine().Fork(ctx, save.dir, s.nudge)
	if err != nil {
		span.End(err)
		cancel()
		save.end()
		return nil, errors.Join(err, os.RemoveAll(save.dir))
	}
	f := &forkSave{save: save, fork: fork, cancel: cancel, users: 1}
	go func() { // until the save has ended, which leave waits for
		<-fork.Done()
		span.End(fork.Err())
		save.end()
	}()
	s.forks.newest = f
	return f, nil
}

// join adds a fork if that gets the session as it is now.
func (f *forkSave) join() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users == 0 || !f.fork.Standing() {
		return false
	}
	f.users++
	return true
}

// leave makes the capture of a fork that has started, or none. The last fork to leave takes
// the files with it. It returns why the save failed, if it did, and another error.
func (f *forkSave) leave(capture string, started error) (failure, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err = started
	select {
	case <-f.fork.Done():
		if failure = f.fork.Err(); failure != nil {
			capture, err = "", nil // the start has failed for it
		}
	default: // the start has failed before
	}
	f.users--
	last := f.users == 0
	if last {
		f.cancel()
		<-f.fork.Done()
		f.end() // now, and not only soon
	}
	switch {
	case capture != "" && last:
		if err = os.Rename(f.dir, capture); err == nil {
			return nil, nil
		}
	case capture != "":
		err = link(f.dir, capture)
	}
	if last {
		err = errors.Join(err, os.RemoveAll(f.dir))
	}
	return failure, err
}

// link makes a second folder with the files of one, which nobody writes to.
func link(from, to string) (err error) {
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	// It has its name when it is complete.
	dir, err := os.MkdirTemp(filepath.Dir(from), filepath.Base(from)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for _, file := range files {
		if err := os.Link(filepath.Join(from, file.Name()), filepath.Join(dir, file.Name())); err != nil {
			return err
		}
	}
	return os.Rename(dir, to)
}
