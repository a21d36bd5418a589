package processnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// command is a command of a session, running or ended.
type command struct {
	log *output.Log
	// cmd is nil for a program that cannot be executed.
	cmd *exec.Cmd
	// stdin is nil without standard input; input holds a token while a call writes
	// to it.
	stdin *os.File
	input chan struct{}
	// sent is how much of the input was taken; who has the token changes it.
	sent int64
	// done is closed when the command has ended; exit is set before, unless the
	// session ended first.
	done chan struct{}
	exit *nodeapi.Exit
}

// event returns the command's state.
func (c *command) event(sessionID, id string) nodeapi.Event {
	if !c.over() {
		return nodeapi.Event{Kind: nodeapi.CommandRuns, SessionID: sessionID, CommandID: id}
	}
	return nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: sessionID, CommandID: id, Exit: c.exit}
}

// prepare returns a process for a command of a session. Its files are still to be
// set.
func (s *session) prepare(name string, args []string, cwd string, env map[string]string) *exec.Cmd {
	if filepath.IsAbs(name) {
		if inside := s.path("", name); exists(inside) {
			name = inside
		}
	}
	args = slices.Clone(args)
	for i, a := range args {
		if a == skerry.WorkDir || strings.HasPrefix(a, skerry.WorkDir+"/") {
			args[i] = s.path("", a)
		}
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = s.path(cwd, ".")
	cmd.Env = append(os.Environ(), "TMPDIR="+s.path("/tmp", "."))
	for _, vars := range []map[string]string{s.spec.Env, env} {
		for k, v := range vars {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	return cmd
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// Exec implements nodeapi.Commands.
func (n *Node) Exec(ctx context.Context, id string, spec nodeapi.CommandSpec, attach bool) (_ skerry.OutputReader, err error) {
	defer edge(ctx, &err)
	if err := n.reach(ctx, Exec, id); err != nil {
		return nil, err
	}
	s, err := n.session(id)
	if err != nil {
		return nil, err
	}
	c := &command{
		log: output.New(n.outputDir(id), spec.ID, output.Config{}), input: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.mu.Lock()
	started := s.commands[spec.ID] != nil
	s.mu.Unlock()
	if started {
		return nil, skerry.Errorf(skerry.CodeConflict, "command %s has been started already", spec.ID)
	}
	if err := os.MkdirAll(n.outputDir(id), 0o700); err != nil {
		return nil, err
	}
	var reader skerry.OutputReader
	if attach {
		reader = follow(c.log)
	}
	if err := s.start(c, spec); err != nil {
		if reader != nil {
			reader.Close()
		}
		return nil, errors.Join(err, c.log.Close())
	}
	return reader, nil
}

// start starts a command of a session.
func (s *session) start(c *command, spec nodeapi.CommandSpec) error {
	cmd := s.prepare(spec.Name, spec.Args, spec.Cwd, spec.Env)
	newGroup(cmd)
	var theirs, ours []*os.File // ends of pipes
	open := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err != nil {
			return nil, nil, err
		}
		return r, w, nil
	}
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for _, out := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
		r, w, err := open()
		if err != nil {
			return err
		}
		ours, theirs = append(ours, r), append(theirs, w)
		*out = w
	}
	if spec.Stdin {
		r, w, err := open()
		if err != nil {
			return err
		}
		theirs = append(theirs, r)
		cmd.Stdin, c.stdin = r, w
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errors.Join(errStopped(s.spec.ID), closeAll(append(ours, c.stdin)))
	}
	err := cmd.Start()
	if err != nil {
		why := cannotStart(s, cmd, spec.Name, err)
		err := closeAll(append(ours, c.stdin))
		c.stdin = nil
		if why.Code != 0 {
			s.commands[spec.ID] = c
			err = errors.Join(err, c.fail(why))
			s.events.Append(c.event(s.spec.ID, spec.ID))
			return err
		}
		return errors.Join(why.err, err)
	}
	c.cmd = cmd
	s.commands[spec.ID] = c
	s.work.Go(func() {
		c.follow(s, ours, spec.Timeout.Std())
		s.events.Append(c.event(s.spec.ID, spec.ID))
	})
	return nil
}

func closeAll(files []*os.File) error {
	var err error
	for _, f := range files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// unstarted is why a program did not start: an error of the call or, with a Code, an
// exit.
type unstarted struct {
	err  error
	Code int
	text string
}

// cannotStart says why a program did not start, as the guest agent does.
func cannotStart(s *session, cmd *exec.Cmd, name string, err error) unstarted {
	if info, e := os.Stat(cmd.Dir); e != nil || !info.IsDir() {
		return unstarted{err: skerry.Errorf(skerry.CodeBadRequest, "the working directory %s does not exist", strings.TrimPrefix(cmd.Dir, s.root))}
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return unstarted{err: skerry.Errorf(skerry.CodeExecutableNotFound, "%s: command not found", name)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return unstarted{err: skerry.Errorf(skerry.CodeExecutableNotFound, "%s: no such file or directory", name)}
	case errors.Is(err, fs.ErrPermission):
		return unstarted{Code: 126, text: name + ": permission denied"}
	}
	return unstarted{Code: 126, text: fmt.Sprintf("%s: cannot execute: %v", name, err)}
}

// fail ends a command that could not be executed.
func (c *command) fail(why unstarted) error {
	err := c.log.Append(context.Background(), skerry.Stderr, 0, []byte(why.text+"\n"))
	c.exit = &nodeapi.Exit{Code: why.Code}
	err = errors.Join(err, c.log.Finish())
	close(c.done)
	return err
}

// follow keeps a command's output until its end.
func (c *command) follow(s *session, outputs []*os.File, timeout time.Duration) {
	start := time.Now()
	if timeout > 0 {
		defer time.AfterFunc(timeout, c.kill).Stop()
	}
	// A program that has left the process group may hold the pipes. They close with
	// the session.
	defer context.AfterFunc(s.ctx, func() { _ = closeAll(outputs) })()
	var reading sync.WaitGroup
	for i, stream := range []skerry.Stream{skerry.Stdout, skerry.Stderr} {
		reading.Go(func() { c.read(s.ctx, stream, outputs[i]) })
	}
	_ = c.cmd.Wait() // the exit code is below
	duration := time.Since(start)
	if s.ctx.Err() == nil {
		c.exit = &nodeapi.Exit{Code: exitCode(c.cmd.ProcessState), Duration: duration}
	}
	reading.Wait()
	_ = closeAll(outputs) // or the session's end has closed them
	if c.stdin != nil {
		_ = c.stdin.Close()
	}
	_ = c.log.Finish() // what is not kept is missed by its reader
	close(c.done)
}

// read copies one output of a command into its log.
func (c *command) read(ctx context.Context, stream skerry.Stream, r *os.File) {
	buf := make([]byte, 32<<10)
	var offset int64
	for {
		n, err := r.Read(buf)
		if n > 0 && c.log.Append(ctx, stream, offset, buf[:n]) != nil {
			return
		}
		offset += int64(n)
		if err != nil {
			return
		}
	}
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

func (c *command) kill() { c.signal(int(syscall.SIGKILL)) }

// signal signals the command's process group.
func (c *command) signal(sig int) {
	if c.cmd != nil && !c.over() {
		signalGroup(c.cmd.Process, sig)
	}
}

func (c *command) pause(paused bool) {
	if c.cmd != nil && !c.over() {
		stopGroup(c.cmd.Process, paused)
	}
}

// command returns a command of a session that runs.
func (n *Node) command(sessionID, id string) (*command, error) {
	s, err := n.session(sessionID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.commands[id]; c != nil {
		return c, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "there is no command %s in session %s", id, sessionID)
}

// Output implements nodeapi.Commands. Of a session that has ended it reads what is
// on disk.
func (n *Node) Output(ctx context.Context, session, id string) (_ skerry.OutputReader, err error) {
	defer edge(ctx, &err)
	c, err := n.command(session, id)
	if err == nil {
		return follow(c.log), nil
	}
	if _, past := n.find(session); past != nil || skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		return nil, err
	}
	log, err := output.Open(n.outputDir(session), id, output.Config{})
	if err != nil {
		return nil, err
	}
	if err := log.Finish(); err != nil {
		return nil, err
	}
	return follow(log), nil
}

// Drop implements nodeapi.Commands.
func (n *Node) Drop(ctx context.Context, session, id string) (err error) {
	defer edge(ctx, &err)
	c, err := n.command(session, id)
	if _, found := n.find(session); found == nil && skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil // it was dropped already
	}
	if err != nil {
		return err
	}
	if !c.over() {
		return skerry.Errorf(skerry.CodeConflict, "command %s has not ended", id)
	}
	if s, err := n.find(session); err == nil {
		s.mu.Lock()
		delete(s.commands, id)
		s.mu.Unlock()
	}
	return errors.Join(c.log.Close(), output.Remove(n.outputDir(session), id))
}

// Signal implements nodeapi.Commands.
func (n *Node) Signal(ctx context.Context, session, id string, signal int) (err error) {
	defer edge(ctx, &err)
	c, err := n.command(session, id)
	if err != nil {
		return err
	}
	c.signal(signal)
	return nil
}

// stdinWait is how long WriteStdin waits for the command to read, as the real node.
const stdinWait = 10 * time.Second

// WriteStdin implements nodeapi.Commands.
func (n *Node) WriteStdin(ctx context.Context, session, id string, p skerry.StdinParams) (_ int64, err error) {
	defer edge(ctx, &err)
	c, err := n.command(session, id)
	if err != nil {
		return 0, err
	}
	if c.stdin == nil {
		return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "the command has no standard input: it was started without attachStdin")
	}
	ctx, cancel := context.WithTimeout(ctx, stdinWait)
	defer cancel()
	select {
	case c.input <- struct{}{}:
		defer func() { <-c.input }()
	case <-ctx.Done():
		return 0, skerry.Errorf(skerry.CodeStdinTimeout, "the command does not read its standard input")
	}
	data := p.Data
	if p.Offset != nil {
		if *p.Offset > c.sent {
			return 0, skerry.Invalid("offset", "must be at most %d, the number of bytes written so far; is %d", c.sent, *p.Offset)
		}
		data = data[min(c.sent-*p.Offset, int64(len(data))):]
	}
	if c.over() {
		return 0, errNoStdin()
	}
	// An error here means that the pipe is closed, as Write will say.
	_ = c.stdin.SetWriteDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { _ = c.stdin.SetWriteDeadline(time.Unix(1, 0)) })()
	written, err := c.stdin.Write(data)
	c.sent += int64(written)
	if err == nil && p.Close {
		// A command that has read all may have ended already.
		if err = c.stdin.Close(); errors.Is(err, os.ErrClosed) {
			err = nil
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		e := skerry.Errorf(skerry.CodeStdinTimeout, "the command does not read its standard input")
		sent := c.sent
		e.BytesWritten = &sent
		return 0, e
	case err != nil:
		return 0, errNoStdin()
	}
	return c.sent, nil
}

func errNoStdin() error {
	return skerry.Errorf(skerry.CodeStdinUnavailable, "the command has ended, or its standard input is closed")
}
