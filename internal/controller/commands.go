package controller

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// command is a command of a live session.
type command struct {
	// done is closed when the command has ended.
	done chan struct{}

	mu  sync.Mutex
	cmd skerry.Command
}

func (c *command) get() skerry.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cmd
}

// end records how the command ended, once.
func (c *command) end(code int, after time.Duration) (skerry.Command, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd.Finished() {
		return c.cmd, false
	}
	c.cmd.ExitCode = &code
	c.cmd.Duration = skerry.Duration(after)
	close(c.done)
	return c.cmd, true
}

// execTimeout bounds the start of a command; it takes milliseconds unless the
// machine is badly overloaded.
const execTimeout = 30 * time.Second

// lostExitCode is the exit code of a command whose session ended under it:
// what a shell reports for SIGKILL.
const lostExitCode = 128 + 9

// RunCommand implements api.Service.
func (c *Controller) RunCommand(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error) {
	if err := validateCommand(&p); err != nil {
		return nil, nil, err
	}
	l, err := c.awake(ctx, scope, sessionID)
	if err != nil {
		return nil, nil, err
	}
	started := time.Now()
	cmd := &command{done: make(chan struct{}), cmd: skerry.Command{
		ID:        skerry.NewID(skerry.PrefixCommand),
		SessionID: l.id,
		Name:      p.Name,
		Args:      p.Args,
		Cwd:       resolveCwd(p.Cwd),
		StartedAt: skerry.At(started),
	}}
	if cmd.cmd.Args == nil {
		cmd.cmd.Args = []string{}
	}
	// A client that goes away now must not leave a command that nobody knows.
	execCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execTimeout)
	defer cancel()
	id := cmd.cmd.ID
	output, err := c.cfg.Node.Exec(execCtx, l.id, CommandSpec{ID: id, CommandParams: p}, attach)
	if err != nil {
		return nil, nil, c.failure(ctx, l, err)
	}
	l.add(cmd)
	first := cmd.get()
	c.saver.save(first)
	if err := c.spawn(func() { c.await(l, id, cmd, started) }); err != nil {
		if output != nil {
			err = errors.Join(err, output.Close())
		}
		return nil, nil, err
	}
	return &first, output, nil
}

func (l *live) add(cmd *command) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commands[cmd.cmd.ID] = cmd
}

// await records a command's end.
func (c *Controller) await(l *live, id string, cmd *command, started time.Time) {
	exit, err := c.cfg.Node.Wait(c.ctx, l.id, id)
	if c.ctx.Err() != nil {
		return // the next process waits for it
	}
	if err != nil {
		if skerry.CodeOf(err) != skerry.CodeSandboxStopped {
			c.cfg.Log.Error("cannot wait for a command", "session", l.id, "command", id, "error", err)
		}
		exit = Exit{Code: lostExitCode, Duration: time.Since(started)}
	}
	if last, first := cmd.end(exit.Code, exit.Duration); first {
		c.saver.save(last)
		c.retire(l, id)
	}
}

// retire keeps the number of a session's ended commands bounded.
func (c *Controller) retire(l *live, id string) {
	l.mu.Lock()
	l.finished = append(l.finished, id)
	var oldest string
	if len(l.finished) > keepCommands {
		oldest = l.finished[0]
		l.finished = l.finished[1:]
		delete(l.commands, oldest)
	}
	l.mu.Unlock()
	if oldest == "" {
		return
	}
	err := errors.Join(c.cfg.Store.DeleteCommands(c.ctx, []string{oldest}), c.cfg.Node.Drop(c.ctx, l.id, oldest))
	if err != nil && c.ctx.Err() == nil {
		c.cfg.Log.Error("cannot forget an old command", "session", l.id, "command", oldest, "error", err)
	}
}

// endCommands marks the commands that run as ended with their session.
func (c *Controller) endCommands(l *live) {
	l.mu.Lock()
	var running []*command
	for _, cmd := range l.commands {
		running = append(running, cmd)
	}
	l.mu.Unlock()
	for _, cmd := range running {
		now := cmd.get()
		if last, first := cmd.end(lostExitCode, time.Since(now.StartedAt.Time)); first {
			c.saver.save(last)
		}
	}
}

// command returns a command of a session: a live one's from memory (cmd), a
// past one's from the store.
func (c *Controller) command(ctx context.Context, scope skerry.Scope, sessionID, id string) (*command, *skerry.Command, error) {
	if l := c.liveSession(sessionID); l != nil && l.scope == scope {
		l.mu.Lock()
		cmd := l.commands[id]
		l.mu.Unlock()
		if cmd == nil {
			return nil, nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %q in session %q", id, sessionID)
		}
		return cmd, nil, nil
	}
	if _, err := c.cfg.Store.Session(ctx, scope, sessionID); err != nil {
		return nil, nil, err
	}
	past, err := c.cfg.Store.Command(ctx, sessionID, id)
	return nil, past, err
}

// GetCommand implements api.Service.
func (c *Controller) GetCommand(ctx context.Context, scope skerry.Scope, sessionID, id string) (*skerry.Command, error) {
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if cmd == nil {
		return past, err
	}
	now := cmd.get()
	return &now, nil
}

// WaitCommand implements api.Service.
func (c *Controller) WaitCommand(ctx context.Context, scope skerry.Scope, sessionID, id string) (*skerry.Command, error) {
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if cmd == nil {
		return past, err
	}
	select {
	case <-cmd.done:
		now := cmd.get()
		return &now, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.ctx.Done():
		return nil, skerry.Errorf(skerry.CodeUnavailable, "the service is shutting down")
	}
}

// ListCommands implements api.Service.
func (c *Controller) ListCommands(ctx context.Context, scope skerry.Scope, sessionID string) ([]skerry.Command, error) {
	if _, err := c.sessionOf(ctx, scope, sessionID); err != nil {
		return nil, err
	}
	c.saver.flush()
	return c.cfg.Store.Commands(ctx, sessionID)
}

// CommandOutput implements api.Service.
func (c *Controller) CommandOutput(ctx context.Context, scope skerry.Scope, sessionID, id string) (skerry.OutputReader, error) {
	if _, _, err := c.command(ctx, scope, sessionID, id); err != nil {
		return nil, err
	}
	return c.cfg.Node.Output(ctx, sessionID, id)
}

// maxSignal is the highest signal number of Linux.
const maxSignal = 64

// KillCommand implements api.Service.
func (c *Controller) KillCommand(ctx context.Context, scope skerry.Scope, sessionID, id string, signal int) (*skerry.Command, error) {
	if signal < 1 || signal > maxSignal {
		return nil, skerry.Invalid("signal", "must be a number from 1 to %d", maxSignal)
	}
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if cmd == nil {
		return past, err
	}
	now := cmd.get()
	if now.Finished() {
		return &now, nil
	}
	if l := c.liveSession(sessionID); l != nil {
		if err := c.wake(context.WithoutCancel(ctx), l); err != nil {
			return nil, err
		}
	}
	if err := c.cfg.Node.Signal(ctx, sessionID, id, signal); err != nil {
		return nil, err
	}
	now = cmd.get()
	return &now, nil
}

// WriteStdin implements api.Service.
func (c *Controller) WriteStdin(ctx context.Context, scope skerry.Scope, sessionID, id string, p skerry.StdinParams) (int64, error) {
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if err != nil {
		return 0, err
	}
	l := c.liveSession(sessionID)
	if past != nil || l == nil {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended")
	}
	if now := cmd.get(); now.Finished() {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended")
	}
	if err := c.wake(ctx, l); err != nil {
		return 0, err
	}
	return c.cfg.Node.WriteStdin(ctx, sessionID, id, p)
}

// OpenTerminal implements api.Service.
func (c *Controller) OpenTerminal(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error) {
	if err := validateTerminal(&p); err != nil {
		return nil, err
	}
	l, err := c.awake(ctx, scope, sessionID)
	if err != nil {
		return nil, err
	}
	t, err := c.cfg.Node.Terminal(ctx, sessionID, p)
	if err != nil {
		return nil, c.failure(ctx, l, err)
	}
	return t, nil
}

// WriteFiles implements api.Service.
func (c *Controller) WriteFiles(ctx context.Context, scope skerry.Scope, sessionID, dir string, tar io.Reader) error {
	if err := validatePath("x-cwd", dir); err != nil {
		return err
	}
	l, err := c.awake(ctx, scope, sessionID)
	if err != nil {
		return err
	}
	return c.failure(ctx, l, c.cfg.Node.WriteFiles(ctx, sessionID, dir, tar))
}

// ReadFile implements api.Service.
func (c *Controller) ReadFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (io.ReadCloser, error) {
	l, err := c.checkFile(ctx, scope, sessionID, cwd, path)
	if err != nil {
		return nil, err
	}
	r, err := c.cfg.Node.ReadFile(ctx, sessionID, cwd, path)
	if err != nil {
		return nil, c.failure(ctx, l, err)
	}
	return r, nil
}

// MakeDir implements api.Service.
func (c *Controller) MakeDir(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string, recursive bool) error {
	l, err := c.checkFile(ctx, scope, sessionID, cwd, path)
	if err != nil {
		return err
	}
	return c.failure(ctx, l, c.cfg.Node.MakeDir(ctx, sessionID, cwd, path, recursive))
}

func (c *Controller) checkFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (*live, error) {
	if path == "" {
		return nil, skerry.Invalid("path", "is empty")
	}
	if err := errors.Join(validatePath("path", path), validatePath("cwd", cwd)); err != nil {
		return nil, err
	}
	return c.awake(ctx, scope, sessionID)
}

// failure is what a client is told of an error of the node. A node knows that
// a session is lost before its end is recorded; the client hears of it
// afterwards, for what it does then is to ask for a new session, and it must
// not be given this one again.
func (c *Controller) failure(ctx context.Context, l *live, err error) error {
	if skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		return err
	}
	select {
	case <-l.ended:
		run := l.session()
		return errEnded(&run)
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return err
}
