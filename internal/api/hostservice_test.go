package api

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// hostService is a Service over processes and files of the machine that the
// tests run on: real output, real exit codes, a real pseudo-terminal, and no
// isolation at all.
type hostService struct {
	Service        // fails for what is not below
	root    string // stands for "/" of every sandbox

	mu       sync.Mutex
	boxes    map[string]*skerry.Run
	sessions []*skerry.Session
	commands map[string]*hostCommand
	order    []string // of commands
}

type hostCommand struct {
	skerry.Command
	started time.Time
	proc    *os.Process
	log     *hostLog
	done    chan struct{}
}

func newHostService(t testing.TB) *hostService {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, skerry.WorkDir), 0o755); err != nil {
		t.Fatal(err)
	}
	h := &hostService{root: root, boxes: map[string]*skerry.Run{}, commands: map[string]*hostCommand{}}
	t.Cleanup(h.killAll)
	return h
}

// killAll ends what the tests left running and waits for it.
func (h *hostService) killAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.commands {
		_ = syscall.Kill(-c.proc.Pid, syscall.SIGKILL)
	}
	for _, c := range h.commands {
		<-c.done
	}
}

func (h *hostService) CreateSandbox(_ context.Context, scope skerry.Scope, p skerry.CreateParams) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.Name == "" {
		p.Name = skerry.NewID("box-")
	}
	if h.boxes[p.Name] != nil {
		return nil, skerry.Errorf(skerry.CodeConflict, "a sandbox named %q exists", p.Name)
	}
	if p.Timeout == 0 {
		p.Timeout = skerry.Duration(skerry.DefaultTimeout)
	}
	now := skerry.At(time.Now())
	run := &skerry.Run{Sandbox: skerry.Sandbox{
		Scope: scope, Name: p.Name, Region: skerry.Region, VCPUs: 2, MemoryMB: 4096, Runtime: p.Runtime,
		Timeout: p.Timeout, Env: p.Env, Tags: p.Tags, Cwd: skerry.WorkDir, CreatedAt: now, UpdatedAt: now,
	}}
	h.start(run)
	h.boxes[p.Name] = run
	return clone(run), nil
}

// start gives a sandbox a new session.
func (h *hostService) start(run *skerry.Run) {
	now := skerry.At(time.Now())
	s := &skerry.Session{
		ID: skerry.NewID(skerry.PrefixSession), SandboxName: run.Sandbox.Name, VCPUs: 2, MemoryMB: 4096, Region: skerry.Region,
		Timeout: run.Sandbox.Timeout, Cwd: skerry.WorkDir, Status: skerry.StatusRunning,
		RequestedAt: now, StartedAt: now, CreatedAt: now, UpdatedAt: now,
	}
	h.sessions = append(h.sessions, s)
	run.Session = *s
	run.Sandbox.CurrentSessionID, run.Sandbox.Status = s.ID, s.Status
}

func clone(run *skerry.Run) *skerry.Run {
	c := *run
	return &c
}

func (h *hostService) box(name string) (*skerry.Run, error) {
	if run := h.boxes[name]; run != nil {
		return run, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "no sandbox is named %q", name)
}

func (h *hostService) GetSandbox(_ context.Context, _ skerry.Scope, name string, resume bool) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.box(name)
	if err != nil {
		return nil, err
	}
	c := clone(run)
	if resume && run.Session.Status != skerry.StatusRunning {
		h.start(run)
		c = clone(run)
		c.Resumed = true
	}
	return c, nil
}

func (h *hostService) ListSandboxes(_ context.Context, _ skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for name, run := range h.boxes {
		match := strings.HasPrefix(name, f.NamePrefix)
		for k, v := range f.Tags {
			match = match && run.Sandbox.Tags[k] == v
		}
		if match {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if !f.Ascending {
		slices.Reverse(names)
	}
	if i := slices.Index(names, f.Cursor); i >= 0 {
		names = names[i:]
	}
	var page []skerry.Sandbox
	for i, name := range names {
		if i == f.Size() {
			return page, name, nil
		}
		page = append(page, h.boxes[name].Sandbox)
	}
	return page, "", nil
}

func (h *hostService) UpdateSandbox(_ context.Context, _ skerry.Scope, name string, p skerry.UpdateParams) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.box(name)
	if err != nil {
		return nil, err
	}
	if p.Tags != nil {
		run.Sandbox.Tags = p.Tags
	}
	if p.Timeout != nil {
		run.Sandbox.Timeout = *p.Timeout
	}
	return clone(run), nil
}

func (h *hostService) DeleteSandbox(_ context.Context, _ skerry.Scope, name string, _ bool) (*skerry.Sandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.box(name)
	if err != nil {
		return nil, err
	}
	delete(h.boxes, name)
	return &run.Sandbox, nil
}

func (h *hostService) ListSessions(_ context.Context, _ skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var page []skerry.Session
	for _, s := range h.sessions {
		if f.SandboxName == "" || s.SandboxName == f.SandboxName {
			page = append(page, *s)
		}
	}
	return page, "", nil
}

// session returns the sandbox whose current session id is.
func (h *hostService) session(id string) (*skerry.Run, error) {
	for _, run := range h.boxes {
		if run.Session.ID == id {
			return run, nil
		}
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "no session has the id %q", id)
}

func (h *hostService) live(id string) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.session(id)
	if err == nil && run.Session.Status != skerry.StatusRunning {
		return nil, skerry.Errorf(skerry.CodeSandboxStopped, "the session has stopped")
	}
	return run, err
}

func (h *hostService) GetSession(_ context.Context, _ skerry.Scope, id string) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.session(id)
	if err != nil {
		return nil, err
	}
	return clone(run), nil
}

func (h *hostService) StopSession(_ context.Context, _ skerry.Scope, id string) (*skerry.Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	run, err := h.session(id)
	if err != nil {
		return nil, err
	}
	run.Session.Status, run.Sandbox.Status = skerry.StatusStopped, skerry.StatusStopped
	run.Session.StoppedAt = skerry.At(time.Now())
	for _, c := range h.commands {
		if c.SessionID == id {
			_ = syscall.Kill(-c.proc.Pid, syscall.SIGKILL)
		}
	}
	return clone(run), nil
}

func (h *hostService) NetworkEvents(context.Context, skerry.Scope, string, int) ([]skerry.NetworkEvent, error) {
	return nil, nil
}

func (h *hostService) SetNetworkPolicy(context.Context, skerry.Scope, string, *skerry.NetworkPolicy) (*skerry.Session, error) {
	return nil, skerry.NotImplemented("", "a network policy")
}

func (h *hostService) ExtendTimeout(_ context.Context, _ skerry.Scope, id string, by skerry.Duration) (*skerry.Session, error) {
	run, err := h.live(id)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if run.Session.Timeout+by > skerry.Duration(skerry.MaxTimeout) {
		return nil, skerry.Errorf(skerry.CodeTimeoutInvalid, "beyond the maximum")
	}
	run.Session.Timeout += by
	s := run.Session
	return &s, nil
}

func (h *hostService) CheckSession(_ context.Context, _ skerry.Scope, id string) error {
	_, err := h.live(id)
	return err
}

// command prepares a process as a sandbox would run it.
func (h *hostService) command(run *skerry.Run, name string, args []string, cwd string, env []string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = h.path(cwd, ".")
	cmd.Env = os.Environ()
	for k, v := range run.Sandbox.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func (h *hostService) path(cwd, name string) string {
	if !path.IsAbs(cwd) {
		cwd = path.Join(skerry.WorkDir, cwd)
	}
	if !path.IsAbs(name) {
		name = path.Join(cwd, name)
	}
	return filepath.Join(h.root, path.Clean("/"+name))
}

func (h *hostService) RunCommand(ctx context.Context, _ skerry.Scope, sessionID string, p skerry.CommandParams, attach bool) (*skerry.Command, skerry.OutputReader, error) {
	run, err := h.live(sessionID)
	if err != nil {
		return nil, nil, err
	}
	var env []string
	for k, v := range p.Env {
		env = append(env, k+"="+v)
	}
	cmd := h.command(run, p.Name, p.Args, p.Cwd, env)
	if cmd.Err != nil {
		cmd = h.command(run, "/bin/sh", []string{"-c", `echo "$0: not found" >&2; exit 127`, p.Name}, "", nil)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := newHostLog()
	cmd.Stdout, cmd.Stderr = log.writer(skerry.Stdout), log.writer(skerry.Stderr)
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting a process: %w", err)
	}
	c := &hostCommand{
		Command: skerry.Command{
			ID: skerry.NewID(skerry.PrefixCommand), SessionID: sessionID, Name: p.Name, Args: p.Args,
			Cwd: skerry.WorkDir, StartedAt: skerry.At(time.Now()),
		},
		started: time.Now(), proc: cmd.Process, log: log, done: make(chan struct{}),
	}
	first := c.Command
	h.mu.Lock()
	h.commands[c.ID] = c
	h.order = append(h.order, c.ID)
	h.mu.Unlock()
	go h.reap(c, cmd, p.Timeout.Std())
	if !attach {
		return &first, nil, nil
	}
	return &first, log.follow(ctx), nil
}

func (h *hostService) reap(c *hostCommand, cmd *exec.Cmd, timeout time.Duration) {
	if timeout > 0 {
		defer time.AfterFunc(timeout, func() { _ = syscall.Kill(-c.proc.Pid, syscall.SIGKILL) }).Stop()
	}
	_ = cmd.Wait()
	code := exitCode(cmd.ProcessState)
	h.mu.Lock()
	c.ExitCode, c.Duration = &code, skerry.Duration(time.Since(c.started))
	h.mu.Unlock()
	c.log.end()
	close(c.done)
}

func (h *hostService) find(id string) (*hostCommand, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.commands[id]; c != nil {
		return c, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "no command has the id %q", id)
}

func (h *hostService) GetCommand(_ context.Context, _ skerry.Scope, _, id string) (*skerry.Command, error) {
	c, err := h.find(id)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cmd := c.Command
	return &cmd, nil
}

func (h *hostService) ListCommands(ctx context.Context, scope skerry.Scope, session string) ([]skerry.Command, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []skerry.Command
	for _, id := range h.order {
		if c := h.commands[id]; c.SessionID == session {
			list = append(list, c.Command)
		}
	}
	return list, nil
}

func (h *hostService) WaitCommand(ctx context.Context, scope skerry.Scope, session, id string) (*skerry.Command, error) {
	c, err := h.find(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return h.GetCommand(ctx, scope, session, id)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *hostService) CommandOutput(ctx context.Context, _ skerry.Scope, _, id string) (skerry.OutputReader, error) {
	c, err := h.find(id)
	if err != nil {
		return nil, err
	}
	return c.log.follow(ctx), nil
}

func (h *hostService) KillCommand(ctx context.Context, scope skerry.Scope, session, id string, signal int) (*skerry.Command, error) {
	c, err := h.find(id)
	if err != nil {
		return nil, err
	}
	_ = syscall.Kill(-c.proc.Pid, syscall.Signal(signal))
	return h.GetCommand(ctx, scope, session, id)
}

func (h *hostService) OpenTerminal(_ context.Context, _ skerry.Scope, session string, p skerry.TerminalParams) (skerry.Terminal, error) {
	run, err := h.live(session)
	if err != nil {
		return nil, err
	}
	return openHostTerminal(h.command(run, p.Name, p.Args, p.Cwd, p.Env), p.Cols, p.Rows)
}

func (h *hostService) WriteFiles(_ context.Context, _ skerry.Scope, session, dir string, r io.Reader) error {
	if _, err := h.live(session); err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		hd, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return skerry.Errorf(skerry.CodeBadRequest, "the archive is not valid: %w", err)
		}
		name := h.path(dir, hd.Name)
		if hd.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(name, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, hd.FileInfo().Mode())
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, tr); err != nil {
			f.Close()
			return fmt.Errorf("writing %s: %w", name, err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
}

// sizedFile is a file that says how large it is.
type sizedFile struct {
	*os.File
	size int64
}

func (f sizedFile) Size() int64 { return f.size }

func (h *hostService) ReadFile(_ context.Context, _ skerry.Scope, session, cwd, name string) (io.ReadCloser, error) {
	if _, err := h.live(session); err != nil {
		return nil, err
	}
	f, err := os.Open(h.path(cwd, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, skerry.Errorf(skerry.CodeNotFound, "no such file")
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return sizedFile{f, info.Size()}, nil
}

func (h *hostService) MakeDir(_ context.Context, _ skerry.Scope, session, cwd, name string, recursive bool) error {
	if _, err := h.live(session); err != nil {
		return err
	}
	if recursive {
		return os.MkdirAll(h.path(cwd, name), 0o755)
	}
	err := os.Mkdir(h.path(cwd, name), 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		return skerry.Errorf(skerry.CodeConflict, "it exists")
	case errors.Is(err, fs.ErrNotExist):
		return skerry.Errorf(skerry.CodeNotFound, "its parent does not exist")
	}
	return err
}
