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

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/output"
)

// command is a command of a session, running or ended.
type command struct {
	id   string
	proc *guest.Process
	log  *output.Log

	// done is closed when the command has ended; exit and err are set then.
	// input holds a token while somebody writes to the standard input.
	input chan struct{}

	done chan struct{}
	once sync.Once
	exit controller.Exit
	err  error
}

func newCommand(id string, proc *guest.Process, log *output.Log) *command {
	return &command{id: id, proc: proc, log: log, input: make(chan struct{}, 1), done: make(chan struct{})}
}

// over says whether the command has ended.
func (c *command) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *command) end(exit controller.Exit, err error) {
	c.once.Do(func() {
		c.exit, c.err = exit, err
		close(c.done)
	})
}

// outputDir is where the session's commands' output is.
func (s *session) outputDir() string { return filepath.Join(s.dir, "output") }

// Exec implements controller.Node.
func (n *Node) Exec(ctx context.Context, sessionID string, spec controller.CommandSpec, attach bool) (skerry.OutputReader, error) {
	s, err := n.running(sessionID)
	if err != nil {
		return nil, err
	}
	if !skerry.ValidID(skerry.PrefixCommand, spec.ID) {
		return nil, fmt.Errorf("%q is not a command's id", spec.ID)
	}
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
		// Before the first byte is taken in: the reader misses nothing.
		reader = c.log.Follow()
	}
	if err := s.keep(c); err != nil {
		if reader != nil {
			err = errors.Join(err, reader.Close())
		}
		return nil, errors.Join(err, c.log.Close())
	}
	return reader, nil
}

// keep makes a command known and takes in what it prints.
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

// pump takes in a command's output until its end. It waits for the readers
// that are attached, and so, through the window of the agent's stream, does
// the command.
func (s *session) pump(c *command) {
	defer s.countOut(c)
	err := s.drain(c)
	if err != nil {
		// The session is over, or this process lets go of it; then the next
		// one goes on from what is on disk.
		if s.ctx.Err() == nil && !s.isStopping() {
			s.node.cfg.Log.Warn("lost a command", "session", s.id, "command", c.id, "error", err)
		}
		c.finishLog(s)
		c.end(controller.Exit{}, errStopped(s.id))
		return
	}
	exit, err := c.proc.Wait(s.ctx)
	c.finishLog(s)
	if err != nil {
		c.end(controller.Exit{}, errStopped(s.id))
		return
	}
	c.end(controller.Exit{Code: exit.Code, Duration: exit.Duration}, nil)
	s.settle(c)
}

// drain moves a command's output into its log.
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
			if err := c.log.Append(s.ctx, chunk.Stream, chunk.Offset, chunk.Data); err != nil {
				if s.ctx.Err() != nil {
					return err
				}
				// The host's disk is full, say. The command goes on; its
				// readers see the end of what could be kept.
				s.node.cfg.Log.Error("cannot keep a command's output", "session", s.id, "command", c.id, "error", err)
				broken = true
				c.finishLog(s)
			}
		}
		// What is only in this process's memory is not acknowledged, so that
		// the agent has it if this process dies.
		if stdout, stderr := c.log.Offsets(); broken || stdout+stderr > output.MemoryBytes {
			if err := c.proc.Ack(chunk.Stream, chunk.End()); err != nil {
				return err
			}
		}
	}
}

func (c *command) finishLog(s *session) {
	if err := c.log.Finish(); err != nil {
		s.node.cfg.Log.Error("cannot keep a command's output", "session", s.id, "command", c.id, "error", err)
	}
}

// countOut is for a command whose output is all on disk.
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

// keepSettled is how many ended commands the agent keeps, so that a process
// that takes over after a crash learns of their ends too.
const keepSettled = 64

// settle acknowledges an ended command's output, which is on disk now, and
// has the agent forget an older command.
func (s *session) settle(c *command) {
	for _, stream := range []skerry.Stream{skerry.Stdout, skerry.Stderr} {
		// An error means that the session is over.
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
		_ = oldest.proc.Forget()
	}
}

// failure says what an error of the agent's connection means to a client:
// without the connection nothing can be run in the session any more.
func (s *session) failure(err error) error {
	select {
	case <-s.machine.Done():
		return errStopped(s.id)
	case <-s.guest.Done():
		return errStopped(s.id)
	default:
		return err
	}
}

func (n *Node) command(sessionID, id string) (*session, *command, error) {
	s, err := n.find(sessionID)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[id]
	if c == nil {
		return s, nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %s in session %s", id, sessionID)
	}
	return s, c, nil
}

// Wait implements controller.Node.
func (n *Node) Wait(ctx context.Context, sessionID, id string) (controller.Exit, error) {
	_, c, err := n.command(sessionID, id)
	if err != nil {
		return controller.Exit{}, err
	}
	select {
	case <-c.done:
		return c.exit, c.err
	case <-ctx.Done():
		return controller.Exit{}, ctx.Err()
	}
}

// Output implements controller.Node. Of a session that has ended, or that an
// earlier process ran, it reads what is on disk.
func (n *Node) Output(ctx context.Context, sessionID, id string) (skerry.OutputReader, error) {
	_, c, err := n.command(sessionID, id)
	if err == nil {
		return c.log.Follow(), nil
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
	return log.Follow(), nil
}

// Drop implements controller.Node.
func (n *Node) Drop(ctx context.Context, sessionID, id string) error {
	s, c, err := n.command(sessionID, id)
	if s != nil && c == nil {
		return output.Remove(s.outputDir(), id) // trim was quicker
	}
	if err != nil {
		return err
	}
	if !c.over() {
		return fmt.Errorf("command %s has not ended", id)
	}
	s.mu.Lock()
	delete(s.commands, id)
	s.mu.Unlock()
	if err := c.log.Close(); err != nil {
		return err
	}
	return output.Remove(s.outputDir(), id)
}

// Signal implements controller.Node.
func (n *Node) Signal(ctx context.Context, sessionID, id string, signal int) error {
	s, c, err := n.command(sessionID, id)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := c.proc.Signal(syscall.Signal(signal)); err != nil {
		return s.failure(err)
	}
	return nil
}

// closeLogs lets go of the commands of a session whose pumps have ended; from
// here on their output is read from disk.
func (s *session) closeLogs() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, c := range s.commands {
		errs = append(errs, c.log.Close())
	}
	clear(s.commands)
	return errors.Join(errs...)
}

// makeOutputDir is part of a session's start.
func (s *session) makeOutputDir() error {
	if err := os.MkdirAll(s.outputDir(), 0o700); err != nil {
		return fmt.Errorf("create the session's folder: %w", err)
	}
	return nil
}
