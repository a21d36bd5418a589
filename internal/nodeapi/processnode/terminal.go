package processnode

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	"github.com/skerry-dev/skerry"
)

// terminal is an interactive command on a pseudo-terminal of this machine.
type terminal struct {
	s    *session
	tty  *os.File
	cmd  *exec.Cmd
	done chan struct{} // closed when the command has ended
	once sync.Once
}

// Terminal implements nodeapi.Commands.
func (n *Node) Terminal(ctx context.Context, id string, p skerry.TerminalParams) (_ skerry.Terminal, err error) {
	defer edge(ctx, &err)
	s, err := n.session(id)
	if err != nil {
		return nil, err
	}
	env := map[string]string{"TERM": "xterm-256color"}
	for _, kv := range p.Env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	cmd := s.prepare(p.Name, p.Args, p.Cwd, env)
	if cmd.Err != nil {
		// As in a sandbox, the terminal shows why.
		cmd = s.prepare("/bin/sh", []string{"-c", `echo "$0: command not found"; exit 127`, p.Name}, "", env)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, errStopped(id)
	}
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: max(p.Cols, 1), Rows: max(p.Rows, 1)})
	if err != nil {
		why := cannotStart(s, cmd, p.Name, err)
		if why.err == nil {
			why.err = skerry.Errorf(skerry.CodeBadRequest, "%s", why.text)
		}
		return nil, why.err
	}
	t := &terminal{s: s, tty: tty, cmd: cmd, done: make(chan struct{})}
	s.terminals[t] = struct{}{}
	go func() {
		_ = cmd.Wait() // Wait returns the exit code
		close(t.done)
	}()
	return t, nil
}

// Read implements io.Reader.
func (t *terminal) Read(p []byte) (_ int, err error) {
	defer streamEdge(&err)
	n, err := t.tty.Read(p)
	if err == nil || n > 0 {
		return n, nil
	}
	if t.s.ctx.Err() != nil {
		return 0, errStopped(t.s.spec.ID)
	}
	if errors.Is(err, syscall.EIO) { // the last process has closed the terminal
		return 0, io.EOF
	}
	return 0, err
}

// Write implements io.Writer.
func (t *terminal) Write(p []byte) (_ int, err error) {
	defer streamEdge(&err)
	return t.tty.Write(p)
}

// Resize implements skerry.Terminal.
func (t *terminal) Resize(cols, rows uint16) (err error) {
	defer streamEdge(&err)
	return pty.Setsize(t.tty, &pty.Winsize{Cols: cols, Rows: rows})
}

// Wait implements skerry.Terminal.
func (t *terminal) Wait() (_ int, err error) {
	defer streamEdge(&err)
	<-t.done
	if t.s.ctx.Err() != nil {
		return 0, errStopped(t.s.spec.ID)
	}
	return exitCode(t.cmd.ProcessState), nil
}

// hangUpGrace is the time that a command has to end after it was hung up, as on the
// real node.
const hangUpGrace = 2 * time.Second

// Close hangs up. It returns when the command has ended.
func (t *terminal) Close() error {
	var err error
	t.once.Do(func() {
		t.signal(int(syscall.SIGHUP))
		err = t.tty.Close()
		kill := time.AfterFunc(hangUpGrace, t.kill)
		defer kill.Stop()
		<-t.done
		t.s.mu.Lock()
		delete(t.s.terminals, t)
		t.s.mu.Unlock()
	})
	return err
}

func (t *terminal) over() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *terminal) kill() { t.signal(int(syscall.SIGKILL)) }

// signal signals the command's process group.
func (t *terminal) signal(sig int) {
	if !t.over() {
		signalGroup(t.cmd.Process, sig)
	}
}

func (t *terminal) pause(paused bool) {
	if !t.over() {
		stopGroup(t.cmd.Process, paused)
	}
}
