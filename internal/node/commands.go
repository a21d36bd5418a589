package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// command is a command of a session, running or ended.
type command struct {
	id   string
	proc *guest.Process
	log  *output.Log

	// input holds a token while a call writes to the standard input.
	input chan struct{}

	// done is closed when the command has ended.
	done chan struct{}
	once sync.Once
}

func newCommand(id string, proc *guest.Process, log *output.Log) *command {
	return &command{id: id, proc: proc, log: log, input: make(chan struct{}, 1), done: make(chan struct{})}
}

// over reports whether the command has ended.
func (c *command) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *command) end() { c.once.Do(func() { close(c.done) }) }

// outputDir returns the folder for the output of the session's commands.
func (s *session) outputDir() string { return filepath.Join(s.dir, "output") }

// Exec implements nodeapi.Node.
func (n *Node) Exec(ctx context.Context, sessionID string, spec nodeapi.CommandSpec, attach bool) (_ skerry.OutputReader, err error) {
	defer edge(ctx, &err)
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return nil, err
	}
	defer done()
	if !skerry.ValidID(skerry.PrefixCommand, spec.ID) {
		return nil, fmt.Errorf("%q is not a command's id", spec.ID)
	}
	if s.hasCommand(spec.ID) {
		return nil, skerry.Errorf(skerry.CodeConflict, "command %s has been started already", spec.ID)
	}
	begun, err := s.beginCommand()
	if err != nil {
		return nil, err
	}
	defer begun()
	proc, err := s.guest.Start(ctx, guest.StartSpec{
		ID:      spec.ID,
		Name:    spec.Name,
		Args:    spec.Args,
		Env:     s.trusting(ctx, spec.Env),
		Cwd:     spec.Cwd,
		Root:    spec.Sudo,
		Timeout: spec.Timeout.Std(),
		Stdin:   spec.Stdin,
	})
	if err != nil {
		return nil, s.failure(err)
	}
	c := newCommand(spec.ID, proc, output.New(s.outputDir(), spec.ID, s.outputConfig()))
	var reader skerry.OutputReader
	if attach {
		// Attached before the first byte is stored, so the reader misses nothing.
		reader = follow(c.log, s.hold())
	}
	if err := s.keep(c); err != nil {
		if reader != nil {
			err = errors.Join(err, reader.Close())
		}
		return nil, errors.Join(err, c.log.Close())
	}
	return reader, nil
}

func (s *session) hasCommand(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands[id] != nil
}

// keep registers a command and starts to store its output.
func (s *session) keep(c *command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errStopped(s.id)
	}
	s.commands[c.id] = c
	s.running++
	s.work.Go(func() { s.pump(c) })
	return nil
}

// pump stores a command's output until its end. It waits for the attached readers,
// and so does the command, through the window of the agent's stream.
func (s *session) pump(c *command) {
	defer s.countOut(c)
	err := s.drain(c)
	if err != nil {
		// The session has ended, or this process is detaching from it. Then the
		// next process continues from the files on disk.
		if s.ctx.Err() == nil && !s.isStopping() {
			s.node.cfg.Log.Warn("lost a command", "session", s.id, "command", c.id, "error", err)
		}
		s.noteLoss(c)
		c.finishLog(s)
		s.loseCommand(c)
		return
	}
	exit, err := c.proc.Wait(s.ctx)
	if err != nil {
		s.noteLoss(c)
	} else {
		s.note(c, s.killedNotes(exit)...)
	}
	c.finishLog(s)
	if err != nil {
		s.loseCommand(c)
		return
	}
	s.endCommand(c, exit.Exit)
	s.settle(c)
}

// drain copies a command's output into its log.
func (s *session) drain(c *command) error {
	broken := false
	for {
		chunk, err := c.proc.Next(s.ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !broken {
			if err := s.keepOutput(c, chunk); err != nil {
				if s.ctx.Err() != nil {
					return err
				}
				// The command continues; its readers get the output up to this point.
				s.node.cfg.Log.Error("cannot keep a command's output", "session", s.id, "command", c.id, "error", err)
				broken = true
				c.finishLog(s)
			}
		}
		// Output that is only in this process's memory is not acknowledged, so that
		// the agent still has it if this process dies.
		if stdout, stderr := c.log.Offsets(); broken || stdout+stderr > output.MemoryBytes {
			if err := c.proc.Ack(chunk.Stream, chunk.End()); err != nil {
				return err
			}
		}
	}
}

const (
	// roomWait is how long a command's output waits for room on a full disk; roomPoll is
	// the time between two attempts to write it.
	roomWait = time.Minute
	roomPoll = 200 * time.Millisecond
)

// keepOutput appends output to the command's log. If the host's disk is full, it waits for room,
// as for a slow reader: meanwhile the command is blocked, and loses nothing.
func (s *session) keepOutput(c *command, chunk guest.Chunk) error {
	var begin time.Time
	for {
		err := c.log.Append(s.ctx, chunk.Stream, chunk.Offset, chunk.Data)
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		if begin.IsZero() {
			begin = time.Now()
			s.node.cfg.Log.Warn("a command waits for room on the disk for its output", "session", s.id, "command", c.id)
		} else if time.Since(begin) >= roomWait {
			return err
		}
		select {
		case <-time.After(roomPoll):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

func (c *command) finishLog(s *session) {
	if err := c.log.Finish(); err != nil {
		s.node.cfg.Log.Error("cannot keep a command's output", "session", s.id, "command", c.id, "error", err)
	}
}

// countOut counts the output of an ended command, which is all on disk.
func (s *session) countOut(c *command) {
	s.mu.Lock()
	s.running--
	s.outputBytes += c.log.Size()
	over := s.outputBytes > s.node.cfg.OutputTotal
	s.mu.Unlock()
	if over {
		s.trim()
	}
}

// keepSettled is the number of ended commands that the agent keeps, so that a
// process that takes over after a crash also learns how they ended.
const keepSettled = 64

// settle acknowledges the output of an ended command, which is now on disk, and
// makes the agent forget an older command.
func (s *session) settle(c *command) {
	for _, stream := range []skerry.Stream{skerry.Stdout, skerry.Stderr} {
		// An error means that the session has ended.
		_ = c.proc.Ack(stream, c.proc.Offset(stream))
	}
	s.mu.Lock()
	s.settled = append(s.settled, c)
	var oldest *command
	if len(s.settled) > keepSettled {
		oldest = s.settled[0]
		s.settled = s.settled[1:]
	}
	s.mu.Unlock()
	if oldest != nil {
		s.saveEnd(oldest)
		_ = oldest.proc.Forget()
	}
}

// failure converts an error of the agent's connection into the one for clients:
// without the connection no call can use the session any more.
func (s *session) failure(err error) error {
	select {
	case <-s.machine().Done():
		return errStopped(s.id)
	case <-s.guest.Done():
		return errStopped(s.id)
	default:
		return err
	}
}

// command returns a session and one of its commands.
func (n *Node) command(ctx context.Context, sessionID, id string) (*session, *command, error) {
	s, err := n.find(sessionID)
	if err != nil {
		return nil, nil, err
	}
	if s.attaching() {
		select {
		case <-s.attached:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[id]
	if c == nil {
		return s, nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %s in session %s", id, sessionID)
	}
	return s, c, nil
}

// Output implements nodeapi.Node. For a session that has ended, or that an
// earlier process ran, it reads the files on disk.
func (n *Node) Output(ctx context.Context, sessionID, id string) (_ skerry.OutputReader, err error) {
	defer edge(ctx, &err)
	s, c, err := n.command(ctx, sessionID, id)
	if err == nil {
		return s.output(ctx, c)
	}
	if skerry.CodeOf(err) != skerry.CodeNotFound {
		return nil, err
	}
	if !skerry.ValidID(skerry.PrefixSession, sessionID) || !skerry.ValidID(skerry.PrefixCommand, id) {
		return nil, err
	}
	log, err := output.Open(filepath.Join(n.dir(sessionID), "output"), id, n.cfg.Output)
	if err != nil {
		return nil, err
	}
	if err := log.Finish(); err != nil {
		return nil, err
	}
	return follow(log, func() {}), nil
}

// output follows the output of a command. If the command runs, that is a use of the
// session.
func (s *session) output(ctx context.Context, c *command) (skerry.OutputReader, error) {
	if c.over() {
		return follow(c.log, func() {}), nil
	}
	done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	return follow(c.log, done), nil
}

// Drop implements nodeapi.Node.
func (n *Node) Drop(ctx context.Context, sessionID, id string) (err error) {
	defer edge(ctx, &err)
	s, c, err := n.command(ctx, sessionID, id)
	if s != nil && c == nil {
		// trim was quicker, or an earlier process ran it.
		return errors.Join(output.Remove(s.outputDir(), id), s.dropEnd(id))
	}
	if err != nil {
		return err
	}
	if !c.over() {
		return skerry.Errorf(skerry.CodeConflict, "command %s has not ended", id)
	}
	s.mu.Lock()
	delete(s.commands, id)
	s.mu.Unlock()
	if err := c.log.Close(); err != nil {
		return err
	}
	return errors.Join(output.Remove(s.outputDir(), id), s.dropEnd(id))
}

// Signal implements nodeapi.Node.
func (n *Node) Signal(ctx context.Context, sessionID, id string, signal int) (err error) {
	defer edge(ctx, &err)
	s, c, err := n.command(ctx, sessionID, id)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
		return nil
	default:
	}
	done, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := c.proc.Signal(syscall.Signal(signal)); err != nil {
		return s.failure(err)
	}
	return nil
}

// closeLogs closes the logs of commands whose pumps have ended. From now on their
// output is read from disk.
func (s *session) closeLogs() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, c := range s.commands {
		errs = append(errs, c.log.Close())
	}
	clear(s.commands)
	s.settled = nil
	return errors.Join(errs...)
}

// makeOutputDir is part of a session's start.
func (s *session) makeOutputDir() error {
	if err := os.MkdirAll(s.outputDir(), 0o700); err != nil {
		return fmt.Errorf("create the session's folder: %w", err)
	}
	return nil
}
