package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

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
	fork  driver.Fork
	begun time.Time

	mu sync.Mutex
	// users is the number of forks that start from it. Nobody joins it when there are none.
	users int
}

// capture is a fork's part in a save, until the fork has started or is given up.
type capture struct {
	of   *session
	save *forkSave
	// done lets the session fall asleep.
	done func()
	// expires gives the capture up.
	expires *time.Timer
}

const (
	// captureWait is how long a capture waits for a session that starts from it. It is
	// for callers that are gone: others discard what they do not use.
	captureWait = 15 * time.Minute
	// forkTimeout is the maximum time for the save, and joinWithin the time in which others
	// may join it: a machine's kernel that says nothing for longer may never end it.
	forkTimeout = 5 * time.Minute
	joinWithin  = 10 * time.Second
)

// Capture implements nodeapi.Saver.
func (n *Node) Capture(ctx context.Context, id, captureID string) (err error) {
	defer edge(ctx, &err)
	if _, err := n.captured(captureID); err != nil {
		return err
	}
	if err := n.canStart(nodeapi.SessionSpec{ForkOf: id}); err != nil {
		return err
	}
	if err := n.cfg.Disk.Check(); err != nil { // as for the start that follows
		return err
	}
	c, err := n.beginCapture(ctx, id)
	if err != nil {
		return err
	}
	n.mu.Lock()
	keep := !n.closed && n.captures[captureID] == nil
	if keep {
		n.captures[captureID] = c
		c.expires = time.AfterFunc(captureWait, func() {
			if c := n.takeCapture(captureID); c != nil {
				_ = c.giveUp() // the folder that stays is removed by the next process
			}
		})
	}
	n.mu.Unlock()
	if keep {
		return nil
	}
	defer c.done()
	_, err = c.save.leave("", nil)
	return err
}

func (n *Node) beginCapture(ctx context.Context, id string) (*capture, error) {
	s, done, err := n.use(ctx, id)
	if err != nil {
		return nil, err
	}
	save, err := s.shareSave(ctx)
	if err != nil {
		done()
		return nil, s.notForked(err)
	}
	return &capture{of: s, save: save, done: done}, nil
}

func (s *session) notForked(err error) error {
	return s.failure(notSaved(fmt.Errorf("save session %s: %w", s.id, err)))
}

// takeCapture returns a capture that no session has started from, which the caller has to
// end; nil if there is none.
func (n *Node) takeCapture(captureID string) *capture {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.captures[captureID]
	delete(n.captures, captureID)
	return c
}

// end makes the folder of a capture, once a session has started from it.
func (c *capture) end(folder string, started error) error {
	if c.expires != nil {
		c.expires.Stop()
	}
	defer c.done()
	failure, err := c.save.leave(folder, started)
	if failure != nil {
		return errors.Join(c.of.notForked(failure), err)
	}
	return err
}

// giveUp ends a capture that no session starts from.
func (c *capture) giveUp() error {
	c.expires.Stop()
	defer c.done()
	_, err := c.save.leave("", nil)
	return err
}

// forkSource has a session start from the present state of another one, or from that of an
// earlier moment if it was captured then. What was saved is the capture, once the start has
// succeeded.
func (n *Node) forkSource(ctx context.Context, of, captureID string) (*source, error) {
	to, err := n.captured(captureID)
	if err != nil {
		return nil, err
	}
	c := n.takeCapture(captureID)
	if c == nil {
		if c, err = n.beginCapture(ctx, of); err != nil {
			return nil, err
		}
	}
	return &source{
		Source: driver.Source{Fork: c.save.fork},
		agent:  c.of.agent,
		end: func(err error) error {
			if err != nil {
				return c.end("", err)
			}
			return c.end(to, nil)
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
	save, err := s.beginSave(ctx, nodeapi.Saving{Memory: true}, s.node.cfg.Disk.Reserve)
	if err != nil {
		return nil, err
	}
	// Forks start from it also when the session has been stopped, and forgotten, meanwhile.
	if err := save.moveTo(filepath.Join(s.node.cfg.SnapshotWork, "fork-"+rand.Text())); err != nil {
		save.end()
		return nil, errors.Join(err, os.RemoveAll(save.dir))
	}
	// It goes on when the fork that is first is given up, and when all are: a kernel that
	// saves itself cannot be interrupted, and does nothing else meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forkTimeout)
	ctx, span := tracing.Start(ctx, tracing.SaveMachine)
	fork, err := s.machine().Fork(ctx, save.dir, s.nudge)
	if err != nil {
		span.End(err)
		cancel()
		save.end()
		return nil, errors.Join(err, os.RemoveAll(save.dir))
	}
	f := &forkSave{save: save, fork: fork, begun: time.Now(), users: 1}
	awake := s.hold()
	go func() { // it ends with the save
		defer cancel()
		<-fork.Done()
		span.End(fork.Err())
		save.end()
		awake()
	}()
	s.forks.newest = f
	return f, nil
}

// moveTo gives the folder of a save another name.
func (s *save) moveTo(dir string) error {
	if err := os.Rename(s.dir, dir); err != nil {
		return err
	}
	s.dir = dir
	return nil
}

// join adds a fork if that gets the session as it is now.
func (f *forkSave) join() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users == 0 || time.Since(f.begun) > joinWithin || !f.fork.Standing() {
		return false
	}
	f.users++
	return true
}

// leave makes the folder of a capture, or none if it is "" or the start has failed. The
// last fork to leave takes the files with it. It returns why the save failed, if it did,
// and another error.
func (f *forkSave) leave(capture string, started error) (failure, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err = started
	saved := false
	select {
	case <-f.fork.Done():
		saved = true
		if failure = f.fork.Err(); failure != nil {
			capture, err = "", nil // the start has failed for it
		}
	default: // the start has failed before
	}
	f.users--
	last := f.users == 0
	switch {
	case capture != "" && last:
		if err = os.Rename(f.dir, capture); err == nil {
			return nil, nil
		}
	case capture != "":
		err = link(f.dir, capture)
	}
	switch {
	case last && saved:
		err = errors.Join(err, os.RemoveAll(f.dir))
	case last: // it is still being written
		go func() {
			<-f.fork.Done()
			_ = os.RemoveAll(f.dir) // what stays is removed by the next process
		}()
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
