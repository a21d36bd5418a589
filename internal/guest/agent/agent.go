// Package agent is the init process of a sandbox. For the host it runs commands and
// transfers files, and it reaps all processes that end.
//
// The agent trusts the host at the other ends of its pipes. It trusts nothing in the
// sandbox, which cannot reach the pipes (see door.go). For a command it keeps at most
// the window of each stream.
//
// Package wire describes the protocol.
package agent

import (
	"context"
	"errors"
	"math"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// maxRequests limits the concurrent requests. A command counts only until it runs.
const maxRequests = 512

// Agent is the state of the process. There is only one.
type Agent struct {
	reaper   *reaper
	requests chan struct{} // a token for each request in progress
	work     sync.WaitGroup
	// copying ends the copying of streams when the agent ends.
	copying  context.Context
	platform Platform
	root     string // Platform.Root
	accounts accounts
	// protected is set if commands must be exposed; see Platform.
	protected bool

	// tokens is held while the workload token is replaced; lastToken is the number of the last.
	tokens    sync.Mutex
	lastToken int64

	mu       sync.Mutex
	setup    *wire.Setup // nil before the first connection's Setup
	user     account
	link     *wire.Link // the current connection, or nil
	procs    map[uint32]*process
	lastID   uint32
	stopping bool
}

// Run serves the connections of a door, one after the other. It ends with ctx, or when
// the process gets SIGTERM or SIGINT, and then ends all commands.
func Run(ctx context.Context, door Door, platform Platform) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// These signals must not kill the init process. They are caught instead of
	// ignored, because commands would inherit that.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(ignored)

	// Commands must not inherit descriptors of the agent. Without this system call,
	// only those of the door are marked, by the door itself.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)

	copying, stopCopying := context.WithCancel(context.Background())
	defer stopCopying()

	a := &Agent{
		reaper:    newReaper(),
		requests:  make(chan struct{}, maxRequests),
		procs:     make(map[uint32]*process),
		copying:   copying,
		platform:  platform,
		root:      platform.Root(),
		protected: platform.Protect(),
	}
	defer a.reaper.close()
	syscall.Umask(0o022)

	first, err := door.Next(func() {})
	if err != nil {
		return errors.Join(err, door.Close())
	}
	var hosts sync.WaitGroup
	hosts.Go(func() { a.admit(door, first) })
	<-ctx.Done()
	door.Close()
	hosts.Wait()
	a.terminate(shutdownGrace)
	stopCopying()
	a.drop()
	a.work.Wait()
	return nil
}

// admit serves the first connection and all later ones.
func (a *Agent) admit(door Door, t wire.Transport) {
	for {
		s := a.serve(t, door.Shut)
		var err error
		if t, err = door.Next(s.replace); err != nil {
			return // closed or shut
		}
	}
}

// serve replaces the current connection by t. broken is called if the host violates the
// protocol.
func (a *Agent) serve(t wire.Transport, broken func()) *session {
	l := wire.NewLink(t)
	a.mu.Lock()
	old := a.link
	a.link = l
	a.mu.Unlock()
	if old != nil {
		old.Fail(errReplaced)
	}
	s := &session{a: a, l: l, calls: make(map[uint32]*call), received: make(chan struct{})}
	a.work.Go(func() {
		l.Fail(s.run())
		close(s.received)
		if !hostGone(l.Err()) {
			broken()
		}
		s.end()
	})
	return s
}

// drop closes the connection and drops all output.
func (a *Agent) drop() {
	a.mu.Lock()
	l := a.link
	procs := a.processes()
	a.mu.Unlock()
	if l != nil {
		l.Close()
	}
	for _, p := range procs {
		for _, o := range p.outs {
			o.close()
		}
	}
}

// processes returns all processes. The caller holds a.mu.
func (a *Agent) processes() []*process {
	procs := make([]*process, 0, len(a.procs))
	for _, p := range a.procs {
		procs = append(procs, p)
	}
	return procs
}

// busy reports whether there is any process.
func (a *Agent) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.procs) > 0
}

func (a *Agent) process(id uint32) *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.procs[id]
}

// register makes p known. From then on, a new connection takes over p.
func (a *Agent) register(l *wire.Link, p *process) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.link != l:
		return wire.ErrClosed
	case a.stopping:
		return errStopping
	case len(a.procs) >= wire.MaxProcesses:
		return wire.Failf(wire.FailBusy, "limit of %d running commands reached", wire.MaxProcesses)
	}
	for _, other := range a.procs {
		if other.key == p.key {
			return wire.Failf(wire.FailExists, "command %s already exists", p.key)
		}
	}
	a.procs[p.id] = p
	return nil
}

func (a *Agent) unregister(p *process) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.procs, p.id)
}

// config returns the Setup and the default user.
func (a *Agent) config() (*wire.Setup, account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setup, a.user
}

// start runs a command. Unless it returns an error, it sends the reply itself, before
// any output of the command.
func (a *Agent) start(l *wire.Link, id uint32, req *wire.Start) error {
	setup, user := a.config()
	creds := credentials{account: account{name: "root", home: "/root", shell: "/bin/sh"}, groups: []int{0}}
	if !req.Root {
		creds = a.accounts.lookup(a.root, user)
	} else if st, err := os.Stat("/bin/bash"); err == nil && st.Mode().IsRegular() {
		creds.shell = "/bin/bash"
	}
	ln := &launch{
		platform: a.platform, root: a.root,
		name: req.Name, args: req.Args, creds: creds, tty: req.TTY != nil,
		env: environ(&creds, req.Root, user, setup.Env, req.Env),
		cwd: absolute(setup.WorkDir, req.Cwd),
	}
	if _, set := ln.env["TERM"]; ln.tty && !set {
		ln.env["TERM"] = "xterm-256color"
	}
	a.platform.Environ(ln.env)
	p := newProcess(l, id, req)
	err := a.launch(l, p, ln, req)
	if e := (*execError)(nil); errors.As(err, &e) {
		if e.code == exitNotFound && !p.tty {
			a.unregister(p)
			close(p.ended)
			return wire.Failf(wire.FailNoExecutable, "%s", e.text)
		}
		// A send fails only with the connection, and then resume sends again.
		_ = l.SendJSON(wire.TypeReply, id, wire.Reply{})
		p.fail(e)
		return nil
	}
	if err != nil {
		return err
	}
	_ = l.SendJSON(wire.TypeReply, id, wire.Reply{PID: p.pid})
	a.work.Go(func() { p.follow(a.copying, time.Duration(req.TimeoutMillis)*time.Millisecond) })
	return nil
}

// launch opens the files of the process, registers it and forks. After an *execError
// the process is registered and has no files. After any other error nothing is left of
// it.
func (a *Agent) launch(l *wire.Link, p *process, ln *launch, req *wire.Start) error {
	files, err := p.open(req, &ln.creds)
	if err != nil {
		return noRoom(err)
	}
	defer closeFiles(files)
	for i, f := range files {
		ln.files[i] = f.Fd()
	}
	if err := a.register(l, p); err != nil {
		p.closeFiles()
		return err
	}
	pid, err := a.reaper.start(func() (int, error) {
		if a.isStopping() {
			return 0, errStopping
		}
		pid, err := ln.fork()
		if err == nil {
			p.launched(pid)
		}
		return pid, err
	}, p.exited)
	if err != nil {
		p.closeFiles()
		if e := (*execError)(nil); errors.As(err, &e) {
			return err
		}
		a.unregister(p)
		close(p.ended)
		return noRoom(err)
	}
	if a.protected {
		a.platform.Expose(pid)
	}
	return nil
}

var errStopping = wire.Failf(wire.FailBusy, "the sandbox is shutting down")

// noRoom is the failure of a command for which the sandbox has not enough resources.
func noRoom(err error) error {
	if f := (*wire.Failure)(nil); errors.As(err, &f) {
		return f
	}
	return wire.Failf(wire.FailBusy, "the sandbox has not enough resources to start the command: %v", err)
}

func (a *Agent) isStopping() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopping
}

// disown drops all processes. They continue without the agent.
func (a *Agent) disown() {
	a.mu.Lock()
	procs := a.processes()
	clear(a.procs)
	a.mu.Unlock()
	for _, p := range procs {
		p.disown()
	}
}

// forget drops a process that has ended.
func (a *Agent) forget(id uint32) {
	if p := a.process(id); p != nil && p.forget() {
		a.unregister(p)
	}
}

// shutdownGrace is the time between SIGTERM and SIGKILL for commands when the agent
// ends.
const shutdownGrace = 2 * time.Second

// terminate ends all processes with SIGTERM, and after grace with SIGKILL. No command
// can start in the meantime.
func (a *Agent) terminate(grace time.Duration) {
	a.mu.Lock()
	a.stopping = true
	procs := a.processes()
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.stopping = false
		a.mu.Unlock()
	}()
	a.reaper.settle()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	a.signalAll(procs, unix.SIGTERM)
	for _, p := range procs {
		select {
		case <-p.ended:
			continue
		case <-timer.C:
		}
		break
	}
	// Send it even if all commands have ended: other processes may be left.
	a.signalAll(procs, unix.SIGKILL)
	for _, p := range procs {
		<-p.ended
	}
}

// signalAll signals every process of the sandbox. If the agent also sees other
// processes, it signals only the process groups of the commands.
func (a *Agent) signalAll(procs []*process, sig unix.Signal) {
	if a.platform.Alone() {
		_ = unix.Kill(-1, sig) // fails if there is no other process
		return
	}
	for _, p := range procs {
		p.signal(sig, false)
	}
}
