package controller

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
)

// processNode is a Node whose sessions are folders and whose commands are
// processes of this machine, without any isolation. Tests put themselves in
// the way of its operations by the hooks.
type processNode struct {
	dir string
	// onStart and onStop run in Start and Stop, where they may wait or fail.
	onStart func(ctx context.Context, id string) error
	onStop  func(id string)
	// onSnapshot runs when the files are saved but Snapshot has not returned.
	onSnapshot func(id string) error
	// onKeep, if not nil, runs before a capture is kept.
	onKeep func(id string)

	mu       sync.Mutex
	sessions map[string]*processSession
	// past are the sessions that have ended, for who looks after them late.
	past map[string]*processSession
	// starts counts the sessions that came up.
	starts int
	// networks is what sessions may reach; netErr, if not nil, refuses changes.
	networks map[string]NetworkSpec
	netErr   error
}

type processSession struct {
	spec     SessionSpec
	dir      string
	ended    chan struct{}
	reason   string
	held     bool
	commands map[string]*process
}

type process struct {
	cmd    *exec.Cmd
	done   chan struct{}
	exit   Exit
	stdout bytes.Buffer
}

func newProcessNode(dir string) *processNode {
	return &processNode{dir: dir, sessions: map[string]*processSession{}, past: map[string]*processSession{}, networks: map[string]NetworkSpec{}}
}

func (n *processNode) Start(ctx context.Context, spec SessionSpec) error {
	if n.onStart != nil {
		if err := n.onStart(ctx, spec.ID); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	n.networks[spec.ID] = spec.Network
	n.mu.Unlock()
	s := &processSession{spec: spec, dir: filepath.Join(n.dir, spec.ID), ended: make(chan struct{}), commands: map[string]*process{}}
	if spec.ForkOf != "" {
		if err := os.MkdirAll(filepath.Join(n.dir, savedDir), 0o700); err != nil {
			return err
		}
		source, err := n.session(spec.ForkOf)
		if err != nil {
			return err
		}
		if err := copyTree(source.dir, filepath.Join(n.dir, savedDir, spec.Capture)); err != nil {
			return err
		}
	}
	if from := cmp.Or(spec.Capture, spec.Snapshot); from == "" {
		if err := os.Mkdir(s.dir, 0o700); err != nil {
			return err
		}
	} else if err := copyTree(filepath.Join(n.dir, savedDir, from), s.dir); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions[spec.ID] = s
	n.starts++
	return nil
}

// savedDir is where the files of snapshots are, a folder each.
const savedDir = "saved"

func copyTree(from, to string) error {
	return exec.Command("cp", "-a", from, to).Run()
}

func (n *processNode) Snapshot(_ context.Context, id string, how Saving) (SavedFiles, error) {
	s, err := n.session(id)
	if err != nil {
		return SavedFiles{}, err
	}
	manifest := skerry.NewID("m_")
	if err := os.MkdirAll(filepath.Join(n.dir, savedDir), 0o700); err != nil {
		return SavedFiles{}, err
	}
	if err := copyTree(s.dir, filepath.Join(n.dir, savedDir, manifest)); err != nil {
		return SavedFiles{}, err
	}
	if n.onSnapshot != nil {
		if err := n.onSnapshot(id); err != nil {
			return SavedFiles{}, err
		}
	}
	n.mu.Lock()
	s.held = how.Hold
	n.mu.Unlock()
	return SavedFiles{Manifest: manifest, Size: 1}, nil
}

func (n *processNode) Keep(_ context.Context, id string) (SavedFiles, error) {
	if n.onKeep != nil {
		n.onKeep(id)
	}
	return SavedFiles{Manifest: id, Size: 1}, nil
}

func (n *processNode) Discard(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(n.dir, savedDir, id))
}

func (n *processNode) Pause(_ context.Context, id string) error {
	s, err := n.session(id)
	if err == nil {
		n.mu.Lock()
		s.held = true
		n.mu.Unlock()
	}
	return err
}

func (n *processNode) Resume(_ context.Context, id string) error {
	s, err := n.session(id)
	if err == nil {
		n.mu.Lock()
		s.held = false
		n.mu.Unlock()
	}
	return err
}

func (n *processNode) CollectSnapshots(_ context.Context, keep []string) (int64, error) {
	var freed int64
	for _, m := range n.saved() {
		if !slices.Contains(keep, m) {
			if err := os.RemoveAll(filepath.Join(n.dir, savedDir, m)); err != nil {
				return freed, err
			}
			freed++
		}
	}
	return freed, nil
}

// saved lists the manifests of what is saved.
func (n *processNode) saved() []string {
	var names []string
	entries, _ := os.ReadDir(filepath.Join(n.dir, savedDir)) // none yet
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *processNode) session(id string) (*processSession, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[id]; s != nil {
		return s, nil
	}
	return nil, skerry.Errorf(skerry.CodeSandboxStopped, "no session %s", id)
}

func (n *processNode) Stop(_ context.Context, id string) (Usage, error) {
	if n.onStop != nil {
		n.onStop(id)
	}
	n.lose(id, "")
	return Usage{ActiveCPU: time.Second, IngressBytes: 10, EgressBytes: 20}, nil
}

// lose ends a session's processes and the session, with a reason for Watch.
func (n *processNode) lose(id, reason string) {
	n.mu.Lock()
	s := n.sessions[id]
	delete(n.sessions, id)
	if s != nil {
		s.reason = reason
		n.past[id] = s
	}
	n.mu.Unlock()
	if s == nil {
		return
	}
	close(s.ended)
	for _, p := range s.commands {
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

func (n *processNode) Forget(ctx context.Context, id string) error {
	if _, err := n.Stop(ctx, id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(n.dir, id))
}

func (n *processNode) Watch(ctx context.Context, id string) (string, error) {
	n.mu.Lock()
	s := n.sessions[id]
	if s == nil {
		s = n.past[id]
	}
	n.mu.Unlock()
	if s == nil {
		return "", skerry.Errorf(skerry.CodeNotFound, "no session %s", id)
	}
	select {
	case <-s.ended:
		return s.reason, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (n *processNode) SetNetwork(_ context.Context, id string, network NetworkSpec) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sessions[id] == nil {
		return skerry.Errorf(skerry.CodeSandboxStopped, "no session %s", id)
	}
	if n.netErr != nil {
		return n.netErr
	}
	n.networks[id] = network
	return nil
}

func (n *processNode) NetworkEvents(_ context.Context, id string, limit int) ([]skerry.NetworkEvent, error) {
	return []skerry.NetworkEvent{{Protocol: "tls", Domain: id}}[:min(limit, 1)], nil
}

// network is what a session may reach.
func (n *processNode) network(id string) NetworkSpec {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.networks[id]
}

func (n *processNode) Recover(_ context.Context, keep map[string]NetworkSpec) ([]string, error) {
	var adopted []string
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.sessions {
		if network, ok := keep[id]; ok {
			n.networks[id] = network
			adopted = append(adopted, id)
		}
	}
	return adopted, nil
}

func (n *processNode) Retain(ctx context.Context, ids []string) error {
	entries, err := os.ReadDir(n.dir)
	for _, e := range entries {
		if e.Name() != savedDir && e.Name() != drivesDir && !slices.Contains(ids, e.Name()) {
			err = errors.Join(err, n.Forget(ctx, e.Name()))
		}
	}
	return err
}

func (n *processNode) Exec(_ context.Context, id string, spec CommandSpec, attach bool) (skerry.OutputReader, error) {
	s, err := n.session(id)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(spec.Name, spec.Args...), done: make(chan struct{})}
	p.cmd.Dir = s.dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Env = os.Environ()
	for k, v := range s.spec.Env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	for k, v := range spec.Env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stdout
	start := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	s.commands[spec.ID] = p
	n.mu.Unlock()
	go func() {
		p.cmd.Wait()
		p.exit = Exit{Code: p.cmd.ProcessState.ExitCode(), Duration: time.Since(start)}
		if ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			p.exit.Code = 128 + int(ws.Signal())
		}
		close(p.done)
	}()
	if !attach {
		return nil, nil
	}
	return &processOutput{p: p}, nil
}

// processOutput yields a process's output in one piece when it has ended.
type processOutput struct {
	p    *process
	read bool
}

func (o *processOutput) Next() (skerry.Stream, []byte, error) {
	<-o.p.done
	if o.read || o.p.stdout.Len() == 0 {
		return "", nil, io.EOF
	}
	o.read = true
	return skerry.Stdout, o.p.stdout.Bytes(), nil
}

func (o *processOutput) Close() error { return nil }

func (n *processNode) process(session, id string) (*process, error) {
	s, err := n.session(session)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := s.commands[id]; p != nil {
		return p, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "no command %s", id)
}

func (n *processNode) Wait(ctx context.Context, session, id string) (Exit, error) {
	p, err := n.process(session, id)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (n *processNode) Output(_ context.Context, session, id string) (skerry.OutputReader, error) {
	p, err := n.process(session, id)
	if err != nil {
		return nil, err
	}
	return &processOutput{p: p}, nil
}

func (n *processNode) Drop(_ context.Context, session, id string) error {
	s, err := n.session(session)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(s.commands, id)
	return nil
}

func (n *processNode) Signal(_ context.Context, session, id string, signal int) error {
	p, err := n.process(session, id)
	if err != nil {
		return err
	}
	return syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(signal))
}

var errNotHere = errors.New("processes of this machine have no files or terminals of their own")

func (n *processNode) Terminal(context.Context, string, skerry.TerminalParams) (skerry.Terminal, error) {
	return nil, errNotHere
}
func (n *processNode) WriteFiles(context.Context, string, string, io.Reader) error { return errNotHere }
func (n *processNode) ReadFile(context.Context, string, string, string) (io.ReadCloser, error) {
	return nil, errNotHere
}
func (n *processNode) Dial(context.Context, string, int) (net.Conn, error)         { return nil, errNotHere }
func (n *processNode) MakeDir(context.Context, string, string, string, bool) error { return errNotHere }

const oneDigest = "sha256:0"

// oneImage knows the default image and nothing else.
type oneImage struct{}

func (oneImage) Resolve(_ context.Context, ref string) (Image, error) {
	if ref != "" && ref != oneDigest {
		return Image{}, skerry.Errorf(skerry.CodeNotFound, "there is no image %q", ref)
	}
	return Image{Digest: oneDigest, Runtimes: []string{"node24", "python3.13"}}, nil
}

// CreateDrive makes a folder; a session with the drive is told where it is.
func (n *processNode) CreateDrive(_ context.Context, id string, _ int64) error {
	return os.MkdirAll(filepath.Join(n.dir, drivesDir, id), 0o700)
}

func (n *processNode) WriteStdin(context.Context, string, string, skerry.StdinParams) (int64, error) {
	return 0, skerry.Errorf(skerry.CodeStdinUnavailable, "these commands have none")
}

func (n *processNode) ForkDrive(_ context.Context, id, from string) error {
	return os.CopyFS(filepath.Join(n.dir, drivesDir, id), os.DirFS(filepath.Join(n.dir, drivesDir, from)))
}

func (n *processNode) DeleteDrive(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(n.dir, drivesDir, id))
}

func (n *processNode) RetainDrives(ctx context.Context, ids []string) error {
	var err error
	for _, id := range n.drives() {
		if !slices.Contains(ids, id) {
			err = errors.Join(err, n.DeleteDrive(ctx, id))
		}
	}
	return err
}

// drivesDir is where the drives are, a folder each.
const drivesDir = "drives"

func (n *processNode) drives() []string {
	var names []string
	entries, _ := os.ReadDir(filepath.Join(n.dir, drivesDir)) // none yet
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
