package node

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

// prefixTerminal begins the ids of processes whose output is not kept.
const prefixTerminal = "tty_"

// Terminal implements nodeapi.Node.
func (n *Node) Terminal(ctx context.Context, sessionID string, p skerry.TerminalParams) (_ skerry.Terminal, err error) {
	defer edge(ctx, &err)
	s, done, err := n.use(ctx, sessionID)
	if err != nil {
		return nil, err
	}
	env := map[string]string{"TERM": "xterm-256color"}
	for _, kv := range p.Env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	proc, err := s.guest.Start(ctx, guest.StartSpec{
		ID:   skerry.NewID(prefixTerminal),
		Name: p.Name,
		Args: p.Args,
		Env:  s.trusting(ctx, env),
		Cwd:  p.Cwd,
		Root: p.Sudo,
		TTY:  &guest.Size{Cols: max(p.Cols, 1), Rows: max(p.Rows, 1)},
	})
	if err != nil {
		done()
		return nil, s.failure(err)
	}
	tctx, cancel := context.WithCancel(s.ctx)
	return &terminal{s: s, proc: proc, ctx: tctx, cancel: cancel, done: done}, nil
}

// terminal is an interactive command. Its reader reads the output directly from the
// agent's stream.
type terminal struct {
	s      *session
	proc   *guest.Process
	ctx    context.Context
	cancel context.CancelFunc
	close  sync.Once
	// done ends the use of the session.
	done func()

	// rest is the part of a chunk that did not fit into the last Read.
	rest  []byte
	chunk guest.Chunk
}

// Read implements io.Reader.
func (t *terminal) Read(p []byte) (_ int, err error) {
	defer streamEdge(t.ctx, &err)
	for len(t.rest) == 0 {
		chunk, err := t.proc.Next(t.ctx)
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			if t.ctx.Err() != nil {
				return 0, os.ErrClosed
			}
			return 0, t.s.failure(err)
		}
		t.chunk, t.rest = chunk, chunk.Data
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	if len(t.rest) == 0 {
		if err := t.proc.Ack(t.chunk.Stream, t.chunk.End()); err != nil {
			return n, t.s.failure(err)
		}
	}
	return n, nil
}

// Write implements io.Writer.
func (t *terminal) Write(p []byte) (_ int, err error) {
	defer streamEdge(t.ctx, &err)
	return t.proc.Stdin().Write(p)
}

// Resize implements skerry.Terminal.
func (t *terminal) Resize(cols, rows uint16) (err error) {
	defer streamEdge(t.ctx, &err)
	return t.proc.Resize(guest.Size{Cols: cols, Rows: rows})
}

// Wait implements skerry.Terminal.
func (t *terminal) Wait() (_ int, err error) {
	defer streamEdge(t.ctx, &err)
	exit, err := t.proc.Wait(t.ctx)
	if err != nil {
		return 0, t.s.failure(err)
	}
	return exit.Code, nil
}

// Close hangs up the terminal. The command and every process that it started on the
// terminal get SIGHUP, and then SIGKILL if they have not ended.
func (t *terminal) Close() error {
	t.close.Do(func() {
		_ = t.proc.Stdin().Close()
		// Errors here mean that the command or the session has ended.
		_ = t.proc.Signal(syscall.SIGHUP)
		t.cancel()
		t.s.reap(t.proc)
		t.done()
	})
	return nil
}

// hangUpGrace is the time that a command has to end after SIGHUP.
const hangUpGrace = 2 * time.Second

// reap sees a process off whose output is not needed any more.
func (s *session) reap(proc *guest.Process) {
	s.spawn(func() { s.seeOff(proc) }) // or it ends with the session
}

// seeOff waits for the end of a process whose output is not needed any more, and
// has the agent forget it. It also returns when the session ends.
func (s *session) seeOff(proc *guest.Process) {
	defer s.hold()()
	kill := time.AfterFunc(hangUpGrace, func() { _ = proc.Signal(syscall.SIGKILL) })
	defer kill.Stop()
	proc.Discard(s.ctx)
}
