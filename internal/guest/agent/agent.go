// Package agent is the process inside a sandbox that does what the host asks:
// it runs commands, moves files and reaps what dies. It is the sandbox's init.
//
// The agent trusts the host at the other ends of its pipes, and nothing in the
// sandbox, which has no way to them (see door.go). It keeps no more for a
// command than the window of each of its streams.
//
// Package wire tells what goes over the connection.
package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// maxRequests bounds the requests that are worked on at once. A command counts
// only until it runs.
const maxRequests = 512

// Agent is the state of the process: there is one.
type Agent struct {
	reaper   *reaper
	requests chan struct{} // a token for each request in progress
	work     sync.WaitGroup
	// carrying ends the carrying of streams when the agent itself ends.
	carrying context.Context
	// protect says that commands must be made killable again: the agent has
	// put itself out of the out-of-memory killer's reach.
	protect bool

	mu       sync.Mutex
	setup    *wire.Setup // nil before the first connection's Setup
	user     account
	link     *wire.Link // the connection in use, nil without one
	procs    map[uint32]*process
	lastID   uint32
	stopping bool
}

// Run serves the host on a connection of two pipes, whose ends for reading and
// for writing in and out are, and again for every knock at the door, until ctx
// ends or the process gets SIGTERM or SIGINT. It then ends all commands.
func Run(ctx context.Context, in, out, knocks int) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A pid 1 is not to die of these, and ignoring them would be inherited by
	// every command.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(ignored)

	// What the agent was started with is not for the commands. A kernel without
	// the call has nothing but the pipes, which openDoor sees to.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)

	carrying, hangUp := context.WithCancel(context.Background())
	defer hangUp()

	a := &Agent{
		reaper:   newReaper(),
		requests: make(chan struct{}, maxRequests),
		procs:    make(map[uint32]*process),
		carrying: carrying,
		protect:  os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) == nil,
	}
	defer a.reaper.close()
	syscall.Umask(0o022)

	door, err := openDoor(a, in, out, knocks)
	if err != nil {
		return err
	}
	<-ctx.Done()
	door.close()
	a.terminate(shutdownGrace)
	hangUp()
	a.drop()
	a.work.Wait()
	return nil
}

// serve makes t the connection in use, in place of the one before. broken is
// called if what came over it was not right.
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

// drop closes the connection and forgets all output.
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

// processes returns all processes; a.mu is held.
func (a *Agent) processes() []*process {
	procs := make([]*process, 0, len(a.procs))
	for _, p := range a.procs {
		procs = append(procs, p)
	}
	return procs
}

func (a *Agent) process(id uint32) *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.procs[id]
}

// register makes p known. It is the moment from which a new connection takes
// p over.
func (a *Agent) register(l *wire.Link, p *process) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.link != l:
		return wire.ErrClosed
	case a.stopping:
		return errStopping
	case len(a.procs) >= wire.MaxProcesses:
		return wire.Failf(wire.FailBusy, "%d commands are running, the most that a sandbox may have", len(a.procs))
	}
	for _, other := range a.procs {
		if other.key == p.key {
			return wire.Failf(wire.FailExists, "command %s exists", p.key)
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

// config returns what Setup has set.
func (a *Agent) config() (*wire.Setup, account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setup, a.user
}

// start runs a command. It replies to the host itself, before any of the
// command's output.
func (a *Agent) start(l *wire.Link, id uint32, req *wire.Start) error {
	setup, user := a.config()
	creds := credentials{account: account{name: "root", home: "/root", shell: "/bin/sh"}, groups: []int{0}}
	if !req.Root {
		creds = lookup("", user)
	} else if st, err := os.Stat("/bin/bash"); err == nil && st.Mode().IsRegular() {
		creds.shell = "/bin/bash"
	}
	ln := &launch{
		name: req.Name, args: req.Args, creds: creds, tty: req.TTY != nil,
		env: environ(&creds, req.Root, setup.Env, req.Env),
		cwd: absolute(setup.WorkDir, req.Cwd),
	}
	if _, set := ln.env["TERM"]; ln.tty && !set {
		ln.env["TERM"] = "xterm-256color"
	}
	p := newProcess(l, id, req)
	err := a.launch(l, p, ln, req)
	if e := (*execError)(nil); errors.As(err, &e) {
		// Errors of sending are the connection's: resume sends again.
		_ = l.SendJSON(wire.TypeReply, id, wire.Reply{})
		p.fail(e)
		return nil
	}
	if err != nil {
		return err
	}
	_ = l.SendJSON(wire.TypeReply, id, wire.Reply{PID: p.pid})
	a.work.Go(func() { p.follow(a.carrying, time.Duration(req.TimeoutMillis)*time.Millisecond) })
	return nil
}

// launch opens the process's files, makes it known and forks it. After an
// *execError it is known and has no files; after any other error nothing of it
// is left.
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
	if a.protect {
		// Best effort: the process may have ended.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0)
	}
	return nil
}

var errStopping = wire.Failf(wire.FailBusy, "the sandbox is shutting down")

// noRoom is the failure of a command for which the sandbox lacked something.
func noRoom(err error) error {
	if f := (*wire.Failure)(nil); errors.As(err, &f) {
		return f
	}
	return wire.Failf(wire.FailBusy, "the sandbox has no room for the command: %v", err)
}

func (a *Agent) isStopping() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopping
}

// disown lets all processes go.
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

// shutdownGrace is how long commands have between SIGTERM and SIGKILL when
// the agent itself is told to end.
const shutdownGrace = 2 * time.Second

// terminate ends all processes: SIGTERM, and SIGKILL for what is left when the
// grace is over. No command starts meanwhile.
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
	signalAll(procs, unix.SIGTERM)
	for _, p := range procs {
		select {
		case <-p.ended:
			continue
		case <-timer.C:
		}
		break
	}
	// This is for what no command is the leader of, too.
	signalAll(procs, unix.SIGKILL)
	for _, p := range procs {
		<-p.ended
	}
}

// signalAll signals every process of the sandbox, if the agent is its init,
// and the commands' groups otherwise.
func signalAll(procs []*process, sig unix.Signal) {
	if os.Getpid() == 1 {
		_ = unix.Kill(-1, sig) // it fails when there is nobody
		return
	}
	for _, p := range procs {
		p.signal(sig, false)
	}
}
