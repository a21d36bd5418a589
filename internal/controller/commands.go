package controller

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// commandStore is what commands need of the store.
type commandStore interface {
	Session(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	SaveCommands(ctx context.Context, cmds []skerry.Command) error
	Command(ctx context.Context, sessionID, id string) (*skerry.Command, error)
	ListCommands(ctx context.Context, sessionID string, page skerry.Page) ([]skerry.Command, string, error)
	DeleteCommands(ctx context.Context, ids []string) error
}

// commands runs commands in sessions, and moves files in and out of them.
type commands struct {
	*sessions
	store commandStore
}

// command is a command that runs. One that has ended is in the store, or on its
// way there.
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

// save has the command written as it is now. The lock is held, so that a command
// that ends meanwhile is not written as one that runs.
func (c *command) save(to *saver) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to.save(c.cmd)
}

// end records how the command ended, and has that written, once. Whoever waits for
// the end is told afterwards, and so finds it in a list.
func (c *command) end(code int, after time.Duration, to *saver) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd.Finished() {
		return false
	}
	c.cmd.ExitCode = &code
	c.cmd.Duration = skerry.Duration(after)
	to.save(c.cmd)
	close(c.done)
	return true
}

// execTimeout bounds the start of a command; it takes milliseconds unless the
// machine is badly overloaded.
const execTimeout = 30 * time.Second

// lostExitCode is the exit code of a command whose session ended under it:
// what a shell reports for SIGKILL.
const lostExitCode = 128 + 9

// RunCommand implements api.Service.
func (c *commands) RunCommand(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (_ *skerry.Command, _ skerry.OutputReader, err error) {
	ctx, span := tracing.Start(ctx, "command.start")
	defer span.Done(&err)
	span.Session(sessionID)
	if err := p.Validate(); err != nil {
		return nil, nil, err
	}
	s, err := c.resumedSession(ctx, scope, sessionID)
	if err != nil {
		return nil, nil, err
	}
	if err := c.saver.failing(); err != nil {
		return nil, nil, unavailable(err)
	}
	started := time.Now()
	cmd := &command{done: make(chan struct{}), cmd: skerry.Command{
		ID:        skerry.NewID(skerry.PrefixCommand),
		SessionID: s.id,
		Name:      p.Name,
		Args:      p.Args,
		Cwd:       resolveCwd(p.Cwd),
		StartedAt: skerry.At(started),
	}}
	cmd.cmd = cmd.cmd.Kept()
	// A client that goes away now must not leave a command that nobody knows.
	execCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.execTimeout)
	defer cancel()
	id := cmd.cmd.ID
	span.Command(id)
	s.expect(cmd)
	output, err := c.node.Exec(execCtx, s.id, nodeapi.CommandSpec{ID: id, CommandParams: p}, attach)
	if err != nil {
		c.expected.forgetCommand(id)
		if nodeapi.OutcomeUnknown(err) {
			s.disown(id)
		}
		return nil, nil, c.failure(ctx, s, err)
	}
	s.commands.add(cmd)
	first := cmd.get()
	first.Args = p.Args // the caller is told all of them, once
	first.Name, first.ArgsTruncated = p.Name, false
	if first.Args == nil {
		first.Args = []string{}
	}
	cmd.save(c.saver)
	c.expected.confirmCommand(id)
	return &first, output, nil
}

// expect has the end of a command recorded when the node tells it.
func (s *session) expect(cmd *command) {
	first := cmd.get()
	s.expected.command(s.id, first.ID, func(exit *nodeapi.Exit) {
		if exit == nil {
			exit = &nodeapi.Exit{Code: lostExitCode, Duration: time.Since(first.StartedAt.Time)}
		}
		if cmd.end(exit.Code, exit.Duration, s.saver) {
			s.retire(first.ID)
		}
	})
}

// retire moves a command to those that have ended, and has the oldest of them
// forgotten if there are too many.
func (s *session) retire(id string) {
	oldest := s.commands.retire(id)
	if oldest == "" {
		return
	}
	s.inBackground("forget an old command of session "+s.id, func(ctx context.Context) error {
		// A save that is pending would bring the command back.
		if err := s.saver.flush(ctx); err != nil {
			return err
		}
		err := s.node.Drop(ctx, s.id, oldest)
		if isGone(err) {
			err = nil
		}
		return errors.Join(s.store.DeleteCommands(ctx, []string{oldest}), err)
	})
}

// disown ends a command that a failed call may have started. No client knows its id.
func (s *session) disown(id string) {
	s.inBackground("end command "+id, func(ctx context.Context) error {
		err := s.node.Signal(ctx, s.id, id, int(syscall.SIGKILL))
		if err == nil {
			err = s.node.Drop(ctx, s.id, id)
		}
		if isGone(err) {
			return nil
		}
		return err
	})
}

// endCommands marks the commands that run as ended with their session.
func (s *session) endCommands() {
	for _, cmd := range s.commands.all() {
		now := cmd.get()
		if cmd.end(lostExitCode, time.Since(now.StartedAt.Time), s.saver) {
			s.commands.remove(now.ID)
		}
	}
}

// commandSet is the commands of a session.
type commandSet struct {
	mu      sync.Mutex
	running map[string]*command
	// ended are the ids of those that have ended, the oldest first.
	ended []string
}

func (c *commandSet) add(cmd *command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[cmd.cmd.ID] = cmd
}

func (c *commandSet) remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, id)
}

// get returns a command that runs, or nil.
func (c *commandSet) get(id string) *command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id]
}

// count returns how many run.
func (c *commandSet) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

func (c *commandSet) all() []*command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.running))
}

// adopt takes over commands that ended before this process began.
func (c *commandSet) adopt(ended []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ended {
		if !slices.Contains(c.ended, id) {
			c.ended = append(c.ended, id)
		}
	}
}

// retire moves a command to those that have ended. It returns the oldest of them if
// there are more than are kept, which is forgotten.
func (c *commandSet) retire(id string) (oldest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, id)
	c.ended = append(c.ended, id)
	if len(c.ended) > keepCommands {
		oldest = c.ended[0]
		c.ended = c.ended[1:]
	}
	return oldest
}

// command returns a command of a session: one that runs (cmd), or one that has
// ended.
func (c *commands) command(ctx context.Context, scope skerry.Scope, sessionID, id string) (*command, *skerry.Command, error) {
	if s := c.session(sessionID); s != nil && s.scope == scope {
		if cmd := s.commands.get(id); cmd != nil {
			return cmd, nil, nil
		}
	} else if _, err := c.store.Session(ctx, scope, sessionID); err != nil {
		return nil, nil, err
	}
	if past, ok := c.saver.latest(id); ok && past.SessionID == sessionID {
		return nil, &past, nil
	}
	past, err := c.store.Command(ctx, sessionID, id)
	return nil, past, err
}

// GetCommand implements api.Service.
func (c *commands) GetCommand(ctx context.Context, scope skerry.Scope, sessionID, id string) (*skerry.Command, error) {
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if cmd == nil {
		return past, err
	}
	now := cmd.get()
	return &now, nil
}

// WaitCommand implements api.Service.
func (c *commands) WaitCommand(ctx context.Context, scope skerry.Scope, sessionID, id string) (*skerry.Command, error) {
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
		return nil, skerry.Errorf(skerry.CodeUnavailable, "the server is shutting down")
	}
}

// ListCommands implements api.Service.
func (c *commands) ListCommands(ctx context.Context, scope skerry.Scope, sessionID string, page skerry.Page) ([]skerry.Command, string, error) {
	if _, err := c.readSession(ctx, scope, sessionID); err != nil {
		return nil, "", err
	}
	if err := c.saver.flush(ctx); err != nil {
		return nil, "", err
	}
	return c.store.ListCommands(ctx, sessionID, page)
}

// CommandOutput implements api.Service.
func (c *commands) CommandOutput(ctx context.Context, scope skerry.Scope, sessionID, id string) (skerry.OutputReader, error) {
	if _, _, err := c.command(ctx, scope, sessionID, id); err != nil {
		return nil, err
	}
	return c.node.Output(ctx, sessionID, id)
}

// maxSignal is the highest signal number of Linux.
const maxSignal = 64

// KillCommand implements api.Service.
func (c *commands) KillCommand(ctx context.Context, scope skerry.Scope, sessionID, id string, signal int) (*skerry.Command, error) {
	if signal < 1 || signal > maxSignal {
		return nil, skerry.Invalid("signal", "must be a signal number from 1 to %d", maxSignal)
	}
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if cmd == nil {
		return past, err
	}
	now := cmd.get()
	if now.Finished() {
		return &now, nil
	}
	if s := c.session(sessionID); s != nil {
		if err := s.resume(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.node.Signal(ctx, sessionID, id, signal); err != nil {
		return nil, err
	}
	now = cmd.get()
	return &now, nil
}

// WriteStdin implements api.Service.
func (c *commands) WriteStdin(ctx context.Context, scope skerry.Scope, sessionID, id string, p skerry.StdinParams) (int64, error) {
	cmd, past, err := c.command(ctx, scope, sessionID, id)
	if err != nil {
		return 0, err
	}
	s := c.session(sessionID)
	if past != nil || s == nil {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended")
	}
	if now := cmd.get(); now.Finished() {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended")
	}
	if err := s.resume(ctx); err != nil {
		return 0, err
	}
	return c.node.WriteStdin(ctx, sessionID, id, p)
}

// OpenTerminal implements api.Service.
func (c *commands) OpenTerminal(ctx context.Context, scope skerry.Scope, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	s, err := c.resumedSession(ctx, scope, sessionID)
	if err != nil {
		return nil, err
	}
	t, err := c.node.Terminal(ctx, sessionID, p)
	if err != nil {
		return nil, c.failure(ctx, s, err)
	}
	return t, nil
}

// WriteFiles implements api.Service.
func (c *commands) WriteFiles(ctx context.Context, scope skerry.Scope, sessionID, dir string, tar io.Reader) error {
	if err := skerry.ValidatePath("x-cwd", dir); err != nil {
		return err
	}
	s, err := c.resumedSession(ctx, scope, sessionID)
	if err != nil {
		return err
	}
	return c.failure(ctx, s, c.node.WriteFiles(ctx, sessionID, dir, tar))
}

// ReadFile implements api.Service.
func (c *commands) ReadFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (io.ReadCloser, error) {
	s, err := c.checkFile(ctx, scope, sessionID, cwd, path)
	if err != nil {
		return nil, err
	}
	r, err := c.node.ReadFile(ctx, sessionID, cwd, path)
	if err != nil {
		return nil, c.failure(ctx, s, err)
	}
	return r, nil
}

// MakeDir implements api.Service.
func (c *commands) MakeDir(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string, recursive bool) error {
	s, err := c.checkFile(ctx, scope, sessionID, cwd, path)
	if err != nil {
		return err
	}
	return c.failure(ctx, s, c.node.MakeDir(ctx, sessionID, cwd, path, recursive))
}

func (c *commands) checkFile(ctx context.Context, scope skerry.Scope, sessionID, cwd, path string) (*session, error) {
	if err := skerry.ValidateFile(cwd, path); err != nil {
		return nil, err
	}
	return c.resumedSession(ctx, scope, sessionID)
}

// failure is what a client is told of an error of the node. A node knows that
// a session is lost before its end is recorded; the client hears of it
// afterwards, for what it does then is to ask for a new session, and it must
// not be given this one again.
func (c *sessions) failure(ctx context.Context, s *session, err error) error {
	if skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		return err
	}
	select {
	case <-s.ended:
		run := s.state()
		return errEnded(&run)
	case <-s.held:
		return errHeld(s.id)
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	return err
}

// unavailable is what a client is told of what the server cannot do at the
// moment.
func unavailable(err error) error {
	return &skerry.Error{Code: skerry.CodeUnavailable, Message: "the server cannot write to its database at the moment; try again later", Err: err}
}
