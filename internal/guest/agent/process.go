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

// process is one command, from Start until Forget.
type process struct {
	id  uint32
	key string
	tty bool

	outs  []*output // standard output or terminal, then standard error
	srcs  []*source // the agent's ends of outs; none if it was not executed
	stdin *stdin    // nil for /dev/null

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
	deadline time.Time  // of the timeout; zero without
	done     bool       // exit is complete
	exit     wire.Exit  // valid when done
	link     *wire.Link // the connection for the exit
	exitSent *wire.Link // the connection over which it was last sent
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

// output returns a stream of the process, or nil.
func (p *process) output(stream uint8) *output {
	if i := int(stream) - 1; i >= 0 && i < len(p.outs) {
		return p.outs[i]
	}
	return nil
}

// open creates the standard files of the process. The returned files are for the child,
// and the caller closes them after the fork.
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
		// Not os.Open, which tries whether the file can be polled.
		fd, err := openRetry(unix.AT_FDCWD, os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return child, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
		}
		child[0] = os.NewFile(uintptr(fd), os.DevNull)
		return child, nil
	}
	child[0], p.stdin.file, err = newStdinPipe()
	return child, err
}

func closeFiles(files [3]*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close() // fails for a terminal, which is in all three places
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

// launched records the pid. It runs before the process can be signalled or reaped.
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

// exited is called by the reaper before the pid can be reused.
func (p *process) exited(status unix.WaitStatus) {
	// Interrupt before ended is closed. After that, a pump lifts the interrupt and
	// reads the rest, and a later interrupt would stop it.
	for _, s := range p.srcs {
		s.interrupt()
	}
	p.mu.Lock()
	p.status, p.running, p.endedAt = status, false, time.Now()
	close(p.ended)
	p.mu.Unlock()
}

// follow copies the streams of the process until the process has ended and all its
// output was read. Then it sends the exit. It returns when all streams have ended.
func (p *process) follow(ctx context.Context, timeout time.Duration) {
	defer context.AfterFunc(ctx, p.closeFiles)()
	if timeout > 0 {
		p.mu.Lock()
		p.deadline = time.Now().Add(timeout)
		p.mu.Unlock()
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

// pump copies the output in s to o and to the host.
func (p *process) pump(s *source, o *output) {
	defer s.f.Close()
	eof := p.pumpWhileRunning(s, o)
	if !eof || p.tty {
		// Read a terminal until the process ends, even if nobody has it open: it can
		// be opened again, and must not be hung up before.
		<-p.ended
		s.uninterrupt()
		eof = p.drain(s, o)
	}
	// A stream can end long before its process.
	p.drained.Done()
	if !eof && !p.tty {
		s.discard()
	}
}

// pumpWhileRunning reads until the stream or the process ends. It reports whether the
// stream ended.
func (p *process) pumpWhileRunning(s *source, o *output) bool {
	for o.waitSpace() && !p.isEnded() {
		n, err := s.read(o, true)
		switch {
		case n > 0:
			o.flush()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false
		default:
			return true // the end, or an error of a closed stream
		}
	}
	return false
}

// drain reads the rest of the output after the process has ended. It stops after
// capacity bytes: anything later is from processes that are left, which may write for
// ever.
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

// complete sets the fields that every exit has. The caller holds p.mu.
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

// fail ends a process that could not be executed. The reason is its output.
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

// sendExit sends the exit, once over each connection.
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
	// If this fails, the next connection sends it.
	_ = l.SendJSON(wire.TypeExit, p.id, exit)
}

// signal sends sig to the process group. It does nothing after the process has ended,
// because the pid may then belong to another.
func (p *process) signal(sig unix.Signal, timeout bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		return
	}
	p.timedOut = p.timedOut || timeout
	_ = unix.Kill(-p.pid, sig) // fails only if the group is already gone
}

// resize sets the size of the terminal.
func (p *process) resize(size wire.TTY) {
	if p.tty && len(p.srcs) == 1 {
		p.srcs[0].raw.Control(func(fd uintptr) { _ = resizeTerminal(int(fd), size) })
	}
}

// resume continues over l from the given offsets, and sends the exit again.
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

// state describes the process. have is the output that the host has.
func (p *process) state(have wire.ResumePoint) wire.ProcessState {
	s := wire.ProcessState{ID: p.id, Key: p.key, TTY: p.tty, Stdout: p.outs[0].offer(have.Stdout)}
	if len(p.outs) > 1 {
		s.Stderr = p.outs[1].offer(have.Stderr)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.PID, s.Ended = p.pid, p.done
	if !p.done && !p.deadline.IsZero() {
		s.TimeoutMillis = max(1, time.Until(p.deadline).Milliseconds())
	}
	return s
}

// forget drops the output of a process that has ended. It reports whether the process
// has ended.
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

// disown lets the process continue without the host. A process on a terminal is hung
// up, because its user is gone.
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

// hangUpGrace is the time for a command to end after its terminal was hung up.
const hangUpGrace = 2 * time.Second

// stdin copies input from the host to a process. It ends with the connection of its
// Start.
type stdin struct {
	in   *wire.Inbox
	link *wire.Link
	id   uint32
	file *os.File // writing end of a pipe, or master of a terminal
	ctx  context.Context
	stop context.CancelFunc
}

func newStdin(l *wire.Link, id uint32) *stdin {
	s := &stdin{in: wire.NewInbox(wire.StreamIn), link: l, id: id}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// newStdinPipe returns a pipe: the reading end for the process, and the non-blocking
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

// run writes until the end of the input, and then closes the file. This ends a pipe or
// hangs up a terminal. If the process has closed its end, run drops the rest of the
// input, so the host does not block.
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

// close ends run, even during a write.
func (s *stdin) close() {
	s.stop()
	if s.file != nil {
		s.file.Close()
	}
}
