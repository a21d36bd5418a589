package agent

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// process is one command, from its Start until the host forgets it.
type process struct {
	id  uint32
	key string
	tty bool

	outs  []*output // standard output or terminal, then standard error
	srcs  []*source // the agent's ends of outs; none if it was never executed
	stdin *stdin    // nil when it is /dev/null

	ended   chan struct{} // closed when the main process has ended
	drained sync.WaitGroup
	pumps   sync.WaitGroup

	mu       sync.Mutex
	pid      int
	status   unix.WaitStatus
	running  bool
	timedOut bool
	started  time.Time
	endedAt  time.Time
	done     bool       // exit is complete
	exit     wire.Exit  // when done
	link     *wire.Link // where the exit is to be sent
	exitSent *wire.Link // where it was sent last
}

func newProcess(l *wire.Link, id uint32, req *wire.Start) *process {
	p := &process{
		id: id, key: req.Key, tty: req.TTY != nil,
		ended: make(chan struct{}), link: l, started: time.Now(),
		outs: []*output{newOutput(id, wire.StreamOut, l)},
	}
	if !p.tty {
		p.outs = append(p.outs, newOutput(id, wire.StreamErr, l))
	}
	if req.Stdin || p.tty {
		p.stdin = newStdin(l, id)
	}
	return p
}

// output returns a stream of the process, nil if it has none of that name.
func (p *process) output(stream uint8) *output {
	if i := int(stream) - 1; i >= 0 && i < len(p.outs) {
		return p.outs[i]
	}
	return nil
}

// open makes the process's standard files. The returned ones are the child's
// and are closed by the caller once it has been forked.
func (p *process) open(req *wire.Start, creds *credentials) (child [3]*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(child)
			p.closeFiles()
		}
	}()
	if req.TTY != nil {
		master, slave, err := openTerminal(creds, *req.TTY)
		if err != nil {
			return child, err
		}
		src, err := newSource(master, pipeSize)
		if err != nil {
			slave.Close()
			return child, err
		}
		p.srcs = []*source{src}
		p.stdin.file = src.f
		return [3]*os.File{slave, slave, slave}, nil
	}
	for i := range p.outs {
		src, w, err := newPipeSource()
		if err != nil {
			return child, err
		}
		p.srcs = append(p.srcs, src)
		child[i+1] = w
	}
	if p.stdin == nil {
		child[0], err = os.Open(os.DevNull)
		return child, err
	}
	child[0], p.stdin.file, err = newStdinPipe()
	return child, err
}

func closeFiles(files [3]*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close() // closing a terminal thrice is an error that says nothing
		}
	}
}

// closeFiles closes the agent's ends.
func (p *process) closeFiles() {
	for _, s := range p.srcs {
		s.f.Close()
	}
	if p.stdin != nil {
		p.stdin.close()
	}
}

// launched notes the pid. It runs before anyone may signal or reap it.
func (p *process) launched(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.running = pid, true
}

func (p *process) isEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// exited is called by the reaper, while the pid is still the process's own.
func (p *process) exited(status unix.WaitStatus) {
	// Before the end is told: a pump that hears of it lifts the interruption
	// and reads the rest, which one that came later would cut off.
	for _, s := range p.srcs {
		s.interrupt()
	}
	p.mu.Lock()
	p.status, p.running, p.endedAt = status, false, time.Now()
	close(p.ended)
	p.mu.Unlock()
}

// follow carries the process's streams until it has ended and all that it
// wrote was read, then sends its exit. It returns when nothing of the process
// is left to carry.
func (p *process) follow(ctx context.Context, timeout time.Duration) {
	defer context.AfterFunc(ctx, p.closeFiles)()
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() { p.signal(unix.SIGKILL, true) })
		defer timer.Stop()
	}
	p.drained.Add(len(p.srcs))
	for i, s := range p.srcs {
		p.pumps.Go(func() { p.pump(s, p.outs[i]) })
	}
	if p.stdin != nil {
		p.pumps.Go(p.stdin.run)
	}
	<-p.ended
	p.drained.Wait()
	p.finish(p.status)
	if p.stdin != nil {
		p.stdin.close()
	}
	p.pumps.Wait()
}

// pump moves what the process writes to s into o and to the host.
func (p *process) pump(s *source, o *output) {
	defer s.f.Close()
	eof := p.pumpWhileRunning(s, o)
	if !eof || p.tty {
		// A terminal that nobody has open may be opened again, and must not be
		// hung up while its process lives.
		<-p.ended
		s.uninterrupt()
		eof = p.drain(s, o)
	}
	// A stream can be at its end long before its process is.
	p.drained.Done()
	if !eof && !p.tty {
		s.discard()
	}
}

// pumpWhileRunning reads until the stream or the process ends, and reports
// whether it was the stream.
func (p *process) pumpWhileRunning(s *source, o *output) bool {
	for o.waitSpace() && !p.isEnded() {
		n, err := s.read(o, true)
		switch {
		case n > 0:
			o.flush()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		default:
			return true // the end; an error is one of a stream that is none any more
		}
	}
	return false
}

// drain reads what the ended process has left in s. What it left lies within
// the first capacity bytes; anything after is of processes that it left
// behind, which might write for ever.
func (p *process) drain(s *source, o *output) (eof bool) {
	for left := s.capacity; left > 0 && o.waitSpace(); {
		n, err := s.read(o, false)
		if n == 0 {
			return err != errAgain
		}
		o.flush()
		left -= n
	}
	return false
}

// finish completes the exit and sends it.
func (p *process) finish(status unix.WaitStatus) {
	p.mu.Lock()
	p.exit.Code = status.ExitStatus()
	if status.Signaled() {
		p.exit.Signal = int(status.Signal())
		p.exit.Code = 128 + p.exit.Signal
		p.exit.TimedOut = p.timedOut
	}
	p.complete()
	p.mu.Unlock()
	p.sendExit()
}

// complete fills in what every exit has; p.mu is held.
func (p *process) complete() {
	if p.endedAt.IsZero() {
		p.endedAt = time.Now()
	}
	p.exit.DurationMicros = p.endedAt.Sub(p.started).Microseconds()
	p.exit.Stdout = p.outs[0].produced()
	if len(p.outs) > 1 {
		p.exit.Stderr = p.outs[1].produced()
	}
	p.done = true
}

// fail ends a process that could not be executed, with the reason as its last
// words.
func (p *process) fail(e *execError) {
	last := p.outs[len(p.outs)-1]
	text := e.text + "\n"
	if p.tty {
		text = e.text + "\r\n"
	}
	last.add([]byte(text))
	last.flush()
	p.mu.Lock()
	p.exit.Code = e.code
	p.complete()
	close(p.ended)
	p.mu.Unlock()
	p.sendExit()
}

// sendExit sends the exit, once for each connection.
func (p *process) sendExit() {
	p.mu.Lock()
	l := p.link
	if !p.done || l == p.exitSent {
		p.mu.Unlock()
		return
	}
	p.exitSent = l
	exit := p.exit
	p.mu.Unlock()
	// On failure the exit waits for the next connection.
	_ = l.SendJSON(wire.TypeExit, p.id, exit)
}

// signal sends sig to the process group while the process is its leader; one
// that has ended gets none.
func (p *process) signal(sig unix.Signal, timeout bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		return
	}
	p.timedOut = p.timedOut || timeout
	_ = unix.Kill(-p.pid, sig) // it can only have gone already
}

// resize tells the terminal its size.
func (p *process) resize(size wire.TTY) {
	if p.tty && len(p.srcs) == 1 {
		p.srcs[0].raw.Control(func(fd uintptr) { _ = resizeTerminal(int(fd), size) })
	}
}

// resume goes on over l from the given offsets and repeats the exit.
func (p *process) resume(l *wire.Link, state wire.ProcessState) {
	p.outs[0].resume(l, state.Stdout)
	if len(p.outs) > 1 {
		p.outs[1].resume(l, state.Stderr)
	}
	p.mu.Lock()
	p.link = l
	p.mu.Unlock()
	p.sendExit()
}

// state describes the process to a host that has the given output of it.
func (p *process) state(have wire.ResumePoint) wire.ProcessState {
	s := wire.ProcessState{ID: p.id, Key: p.key, TTY: p.tty, Stdout: p.outs[0].offer(have.Stdout)}
	if len(p.outs) > 1 {
		s.Stderr = p.outs[1].offer(have.Stderr)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.PID, s.Ended = p.pid, p.done
	return s
}

// forget drops the output and exit of a process that has ended, and reports
// whether it has.
func (p *process) forget() bool {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done {
		for _, o := range p.outs {
			o.close()
		}
	}
	return done
}

// disown lets the process go on although nobody will ask for it any more. Who
// typed into its terminal has gone.
func (p *process) disown() {
	for _, o := range p.outs {
		o.disown()
	}
	if !p.tty {
		return
	}
	p.stdin.close()
	p.signal(unix.SIGHUP, false)
	time.AfterFunc(hangUpGrace, func() { p.signal(unix.SIGKILL, false) })
}

// hangUpGrace is how long a command may take to end after its terminal was
// hung up.
const hangUpGrace = 2 * time.Second

// stdin carries what the host writes to a process. It ends with the connection
// that it began on.
type stdin struct {
	in   *wire.Inbox
	link *wire.Link
	id   uint32
	file *os.File // a pipe's writing end or a terminal's master
	ctx  context.Context
	stop context.CancelFunc
}

func newStdin(l *wire.Link, id uint32) *stdin {
	s := &stdin{in: wire.NewInbox(wire.StreamIn), link: l, id: id}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// newStdinPipe returns the reading end for the process and the non-blocking
// writing end for the agent.
func newStdinPipe() (child, agent *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	child = os.NewFile(uintptr(fds[0]), "stdin")
	if err := unix.SetNonblock(fds[1], true); err != nil {
		child.Close()
		unix.Close(fds[1])
		return nil, nil, err
	}
	return child, os.NewFile(uintptr(fds[1]), "stdin"), nil
}

// run writes until the host has sent everything, and then closes the file: the
// end of a pipe, the hanging up of a terminal. A process that takes no more
// input does not stop the host from sending it.
func (s *stdin) run() {
	defer s.stop()
	gone := false
	for {
		c, err := s.in.Next(s.ctx)
		if err != nil {
			s.file.Close()
			return
		}
		if !gone {
			_, err := s.file.Write(c.Data)
			gone = err != nil
		}
		end := c.Offset + int64(len(c.Data))
		if s.in.Ack(wire.StreamIn, end) && s.link.SendOffset(wire.TypeAck, wire.StreamIn, s.id, end) != nil {
			gone = true
		}
	}
}

// close ends run, in the middle of a write too.
func (s *stdin) close() {
	s.stop()
	if s.file != nil {
		s.file.Close()
	}
}
