package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// StartSpec describes a command to run.
type StartSpec struct {
	// ID is the caller's name for the process. It must be unique among the processes
	// of the agent.
	ID   string
	Name string
	Args []string
	Env  map[string]string
	// Cwd is the directory of the command. A relative path is relative to the working
	// directory.
	Cwd string
	// Root runs the command as root.
	Root bool
	// Timeout, if positive, is the time after which the process group gets SIGKILL.
	Timeout time.Duration
	// TTY, if set, runs the command on a terminal of this size. All its output is on
	// skerry.Stdout.
	TTY *Size
	// Stdin gives the command a standard input. Otherwise it is /dev/null. A command
	// on a terminal always has one.
	Stdin bool
}

// Size is the size of a terminal.
type Size struct{ Cols, Rows uint16 }

// Exit is how a process ended, with details for the host only.
type Exit struct {
	nodeapi.Exit
	Signal   syscall.Signal
	TimedOut bool
	// Killed are processes of the command that were killed to free memory.
	Killed []Victim
}

// Chunk is a piece of a process's output.
type Chunk struct {
	Stream skerry.Stream
	// Offset is the position of the first byte in the stream.
	Offset int64
	Data   []byte
}

// End returns the offset after the chunk.
func (c Chunk) End() int64 { return c.Offset + int64(len(c.Data)) }

// Process is a command in the sandbox.
type Process struct {
	c   *Client
	id  uint32
	key string
	pid int
	// timeout is when the agent kills it, zero for never.
	timeout time.Time
	in      *wire.Inbox
	stdin   *Stdin // nil for /dev/null

	// again is true if the agent tells the end again after Resume. The receiving
	// goroutine uses it.
	again bool
	// from is where the agent continues its output after Resume.
	from ResumePoint

	ended sync.Once
	done  chan struct{} // closed when exit or err is set
	exit  Exit
	err   error
}

// Start starts a command and returns when it runs. If the program does not exist, it
// fails with CodeExecutableNotFound. If the program cannot be executed, Start succeeds
// and the exit code is 126.
func (c *Client) Start(ctx context.Context, spec StartSpec) (_ *Process, err error) {
	ctx, span := tracing.Start(ctx, tracing.AgentExec)
	defer span.Done(&err)
	req := &wire.Start{
		Key: spec.ID, Name: spec.Name, Args: spec.Args, Env: spec.Env, Cwd: spec.Cwd, Root: spec.Root,
		TimeoutMillis: spec.Timeout.Milliseconds(), Stdin: spec.Stdin,
	}
	if spec.Timeout > 0 && req.TimeoutMillis == 0 {
		req.TimeoutMillis = 1
	}
	if spec.TTY != nil {
		req.TTY = &wire.TTY{Cols: spec.TTY.Cols, Rows: spec.TTY.Rows}
	}
	if err := req.Validate(); err != nil {
		return nil, badRequest(err)
	}
	p := &Process{c: c, key: spec.ID, done: make(chan struct{}), in: wire.NewInbox(wire.StreamOut, wire.StreamErr)}
	if spec.Stdin || spec.TTY != nil {
		p.stdin = &Stdin{p: p, gate: wire.NewGate()}
	}
	cl := &call{reply: make(chan wire.Reply, 1)}
	id := c.begin(cl, p)
	if id == 0 {
		return nil, failure(wire.Failf(wire.FailBusy, "limit of %d running commands reached", wire.MaxProcesses))
	}
	err = c.send(wire.TypeStart, id, req)
	if err == nil {
		var r wire.Reply
		r, err = c.await(ctx, cl)
		if err == nil {
			p.pid = r.PID
			if spec.Timeout > 0 {
				p.timeout = time.Now().Add(spec.Timeout)
			}
			c.close(id)
			return p, nil
		}
		if ctx.Err() != nil && c.abandon(cl, p) {
			return nil, err
		}
	}
	c.close(id)
	c.drop(p)
	return nil, err
}

// abandon kills and forgets a process whose Start was cancelled. The process may still
// start, and the agent would keep it for ever. abandon returns false if the connection
// has ended.
func (c *Client) abandon(cl *call, p *Process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.work.Go(func() {
		defer c.close(p.id)
		ctx := context.Background() // all waits end with the connection
		if _, err := c.await(ctx, cl); err != nil {
			c.drop(p)
			return
		}
		_ = p.Signal(syscall.SIGKILL)
		p.Discard(ctx)
	})
	return true
}

// resume tells the agent which output the caller has, and takes over its processes.
func (c *Client) resume(ctx context.Context, points []ResumePoint) ([]*Process, error) {
	if _, err := c.request(ctx, wire.TypeResume, &wire.Resume{Version: wire.Version, Points: points}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, c.lost(c.link().Err())
	}
	procs := make([]*Process, 0, len(c.procs))
	for _, p := range c.procs {
		procs = append(procs, p)
	}
	return procs, nil
}

// adopt registers the processes of the first listing. It runs in the receiving
// goroutine, because their output follows right after the listing.
func (c *Client) adopt(r *wire.Reply) error {
	const maxID = 1 << 31 // leaves room before ids would wrap around
	if r.LastID > maxID {
		return fmt.Errorf("%w: last id %d", errProtocol, r.LastID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, keys := make(map[uint32]bool, len(r.Processes)), make(map[string]bool, len(r.Processes))
	for _, s := range r.Processes {
		if s.ID == 0 || len(s.Key) > wire.MaxKey || s.Stdout < 0 || s.Stderr < 0 || s.TimeoutMillis < 0 || s.ID > r.LastID || ids[s.ID] || keys[s.Key] {
			return fmt.Errorf("%w: process %d of %d", errProtocol, s.ID, r.LastID)
		}
		ids[s.ID], keys[s.Key] = true, true
	}
	if c.resumed {
		return nil // a later listing
	}
	c.resumed = true
	if c.suspended {
		return c.readopt(r.Processes)
	}
	for _, s := range r.Processes {
		p := &Process{c: c, id: s.ID, key: s.Key, pid: s.PID, done: make(chan struct{}), in: wire.NewInbox()}
		p.in.StartAt(wire.StreamOut, s.Stdout)
		p.in.StartAt(wire.StreamErr, s.Stderr)
		if s.TimeoutMillis > 0 {
			p.timeout = time.Now().Add(time.Duration(min(s.TimeoutMillis, maxTimeoutMillis)) * time.Millisecond)
		}
		c.procs[s.ID] = p
	}
	c.nextID = max(c.nextID, r.LastID)
	return nil
}

// drop forgets a process on the host's side.
func (c *Client) drop(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.procs, p.id)
}

// ID returns the caller's name for the process.
func (p *Process) ID() string { return p.key }

// Timeout returns when the agent kills the process, zero for never.
func (p *Process) Timeout() time.Time { return p.timeout }

// maxTimeoutMillis is the maximum rest of a timeout that an agent may report.
const maxTimeoutMillis = math.MaxInt64 / int64(time.Millisecond)

// PID returns the process id in the sandbox. It is 0 if the program was not executed.
func (p *Process) PID() int { return p.pid }

// Offset returns the offset of a stream at which the next chunk starts.
func (p *Process) Offset(s skerry.Stream) int64 { return p.in.Offset(streamID(s)) }

// Next returns the next chunk of output, in the order in which the agent sent it. The
// data is valid until the next call. After the last chunk it returns io.EOF. If the
// connection is lost before, it fails with CodeUnavailable. Only one goroutine at a
// time may call it.
//
// The process blocks when more than wire.Window bytes of a stream are not
// acknowledged. Other processes are not affected.
func (p *Process) Next(ctx context.Context) (Chunk, error) {
	c, err := p.in.Next(ctx)
	if err != nil {
		return Chunk{}, err
	}
	stream := skerry.Stdout
	if c.Stream == wire.StreamErr {
		stream = skerry.Stderr
	}
	return Chunk{Stream: stream, Offset: c.Offset, Data: c.Data}, nil
}

// Ack tells the agent that the caller has stored a stream up to offset, or does not
// need it. The agent may drop that output. Small advances are sent later, together.
func (p *Process) Ack(s skerry.Stream, offset int64) error {
	id := streamID(s)
	if !p.in.Ack(id, offset) {
		return nil
	}
	return p.c.unheard(p.c.link().SendOffset(wire.TypeAck, id, p.id, offset))
}

func streamID(s skerry.Stream) uint8 {
	if s == skerry.Stderr {
		return wire.StreamErr
	}
	return wire.StreamOut
}

// Wait waits until the process has ended and all its output has been received. Next may
// still have to return some.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Forget tells the agent that the caller has stored the exit and the output. The agent
// then drops the process. For a process that has not ended, Forget does nothing.
func (p *Process) Forget() error {
	select {
	case <-p.done:
		p.c.drop(p)
	default:
		return nil
	}
	return p.c.unheard(p.c.link().Send(wire.TypeForget, 0, p.id, nil, nil))
}

// Discard drops the output of the process until it ends, and then forgets it.
func (p *Process) Discard(ctx context.Context) {
	for {
		chunk, err := p.Next(ctx)
		if err != nil {
			break // the output or the connection has ended
		}
		if p.Ack(chunk.Stream, chunk.End()) != nil {
			break
		}
	}
	if _, err := p.Wait(ctx); err == nil {
		_ = p.Forget()
	}
}

// Signal sends a signal to the process group. It has no effect after the process has
// ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := skerry.ValidateSignal("signal", int64(sig)); err != nil {
		return err
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(sig))
	return p.c.broken(p.c.link().Send(wire.TypeSignal, 0, p.id, b[:], nil))
}

// Resize sets the size of the terminal. It has no effect without a terminal.
func (p *Process) Resize(size Size) error {
	var b [4]byte
	binary.LittleEndian.PutUint16(b[:], size.Cols)
	binary.LittleEndian.PutUint16(b[2:], size.Rows)
	return p.c.broken(p.c.link().Send(wire.TypeResize, 0, p.id, b[:], nil))
}

// exited handles the Exit of the process. The lengths of the output must match.
func (p *Process) exited(e wire.Exit) error {
	const maxCode = 255
	if e.Code < 0 || e.Code > maxCode || e.Signal < 0 || e.Signal > 64 || e.DurationMicros < 0 ||
		e.DurationMicros > int64(1<<63-1)/int64(time.Microsecond) {
		return fmt.Errorf("%w: exit %+v", errProtocol, e)
	}
	select {
	case <-p.done:
		return fmt.Errorf("%w: a second Exit", errProtocol)
	default:
	}
	if err := p.in.End(wire.StreamOut, e.Stdout); err != nil {
		return err
	}
	if err := p.in.End(wire.StreamErr, e.Stderr); err != nil {
		return err
	}
	p.finish(Exit{
		Exit:   nodeapi.Exit{Code: e.Code, Duration: time.Duration(e.DurationMicros) * time.Microsecond},
		Signal: syscall.Signal(e.Signal), TimedOut: e.TimedOut, Killed: e.Killed,
	}, nil)
	return nil
}

// lose ends all waits for the process after the connection has ended.
func (p *Process) lose(err error) {
	p.in.Close(err)
	p.finish(Exit{}, err)
}

func (p *Process) finish(exit Exit, err error) {
	p.ended.Do(func() {
		p.exit, p.err = exit, err
		if p.stdin != nil {
			p.stdin.gate.Close(io.ErrClosedPipe)
		}
		close(p.done)
	})
}

// Stdin returns the standard input, or the input of the terminal. It is nil for a
// process without one, and for a process that Reconnect returned.
func (p *Process) Stdin() *Stdin { return p.stdin }

// Stdin is the standard input of a process. A Write blocks until the process reads.
// After the process has ended, it fails with io.ErrClosedPipe.
type Stdin struct {
	p    *Process
	gate *wire.Gate

	writing sync.Mutex // held during a Write; guards closed
	closed  bool
}

// Sent returns how many bytes were sent so far.
func (s *Stdin) Sent() int64 { return s.gate.Sent() }

// Write implements io.Writer.
func (s *Stdin) Write(b []byte) (int, error) { return s.WriteContext(context.Background(), b) }

// WriteContext is Write with a context. It returns the number of bytes that were sent
// before ctx ended.
func (s *Stdin) WriteContext(ctx context.Context, b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	written := 0
	for written < len(b) {
		if s.closed {
			return written, io.ErrClosedPipe
		}
		n, err := s.gate.Reserve(ctx, len(b)-written)
		if err != nil {
			return written, err
		}
		if err := s.p.c.link().Send(wire.TypeData, wire.StreamIn, s.p.id, b[written:written+n], nil); err != nil {
			return written, s.p.c.broken(err)
		}
		written += n
	}
	return written, nil
}

// Close ends the input, or hangs up the terminal. A Write in progress fails.
func (s *Stdin) Close() error {
	s.gate.Close(io.ErrClosedPipe)
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.p.c.link().SendOffset(wire.TypeEOF, wire.StreamIn, s.p.id, s.gate.Sent())
	if errors.Is(err, wire.ErrClosed) {
		return nil
	}
	return s.p.c.broken(err)
}
