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

// prefixTerminal marks the processes whose output nobody keeps.
const prefixTerminal = "tty_"

// Terminal implements controller.Node.
func (n *Node) Terminal(ctx context.Context, sessionID string, p skerry.TerminalParams) (skerry.Terminal, error) {
	s, err := n.running(sessionID)
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
		return nil, s.failure(err)
	}
	tctx, cancel := context.WithCancel(s.ctx)
	return &terminal{s: s, proc: proc, ctx: tctx, cancel: cancel}, nil
}

// terminal is an interactive command. Its reader takes the output straight
// from the agent's stream.
type terminal struct {
	s      *session
	proc   *guest.Process
	ctx    context.Context
	cancel context.CancelFunc
	close  sync.Once

	// rest is what of a chunk did not fit the last Read.
	rest  []byte
	chunk guest.Chunk
}

// Read implements io.Reader.
func (t *terminal) Read(p []byte) (int, error) {
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
func (t *terminal) Write(p []byte) (int, error) { return t.proc.Stdin().Write(p) }

// Resize implements skerry.Terminal.
func (t *terminal) Resize(cols, rows uint16) error {
	return t.proc.Resize(guest.Size{Cols: cols, Rows: rows})
}

// Wait implements skerry.Terminal.
func (t *terminal) Wait() (int, error) {
	exit, err := t.proc.Wait(t.ctx)
	if err != nil {
		return 0, t.s.failure(err)
	}
	return exit.Code, nil
}

// Close hangs up: the command and what it started on the terminal get SIGHUP,
// and SIGKILL if that does not end them.
func (t *terminal) Close() error {
	t.close.Do(func() {
		_ = t.proc.Stdin().Close()
		// Errors here mean that the command or the session is over.
		_ = t.proc.Signal(syscall.SIGHUP)
		t.cancel()
		t.s.reap(t.proc)
	})
	return nil
}

// hangUpGrace is how long a command may take to end after SIGHUP.
const hangUpGrace = 2 * time.Second

// reap sees a process to its end whose output nobody wants any more.
func (s *session) reap(proc *guest.Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return // it ends with the session
	}
	s.work.Go(func() {
		kill := time.AfterFunc(hangUpGrace, func() { _ = proc.Signal(syscall.SIGKILL) })
		defer kill.Stop()
		for {
			chunk, err := proc.Next(s.ctx)
			if err != nil {
				break // the end of the output, or of the session
			}
			if proc.Ack(chunk.Stream, chunk.End()) != nil {
				break
			}
		}
		if _, err := proc.Wait(s.ctx); err == nil {
			_ = proc.Forget()
		}
	})
}
