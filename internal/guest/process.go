package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// StartSpec is a command to be run.
type StartSpec struct {
	// ID is the caller's name for the process, unique among those that the
	// agent has.
	ID   string
	Name string
	Args []string
	Env  map[string]string
	// Cwd is relative to the working directory when it is not absolute.
	Cwd string
	// Root runs the command as root.
	Root bool
	// Timeout, when positive, is after how long the process group gets
	// SIGKILL.
	Timeout time.Duration
	// TTY, if set, runs the command on a terminal of that size. Its output
	// is all on skerry.Stdout.
	TTY *Size
	// Stdin asks for a standard input; without, it is /dev/null. A terminal
	// has one always.
	Stdin bool
}

// Size is that of a terminal's window.
type Size struct{ Cols, Rows uint16 }

// Exit is how a process ended.
type Exit struct {
	// Code is the exit code; 128 plus the signal's number for a process that
	// a signal ended, 127 for a command that was not found and 126 for one
	// that could not be executed otherwise or whose cwd could not be entered
	// (its standard error says what it was).
	Code     int
	Signal   syscall.Signal
	TimedOut bool
	Duration time.Duration
}

// Chunk is a piece of a process's output.
type Chunk struct {
	Stream skerry.Stream
	// Offset is the place of the first byte in its stream.
	Offset int64
	Data   []byte
}

// End returns the offset after the chunk.
func (c Chunk) End() int64 { return c.Offset + int64(len(c.Data)) }

// Process is a command in the sandbox.
type Process struct {
	c     *Client
	id    uint32
	key   string
	pid   int
	in    *wire.Inbox
	stdin *Stdin // nil without one

	ended sync.Once
	done  chan struct{} // closed when exit or err is set
	exit  Exit
	err   error
}

// Start runs a command and returns once it runs. A command that cannot be
// executed is no error: it ends with 126 or 127.
func (c *Client) Start(ctx context.Context, spec StartSpec) (*Process, error) {
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
	id := c.open(cl, p)
	defer c.close(id)
	err := c.send(wire.TypeStart, id, req)
	if err == nil {
		var r wire.Reply
		if r, err = c.await(ctx, cl); err == nil {
			p.pid = r.PID
			return p, nil
		}
		if ctx.Err() != nil {
			// It may start all the same: nobody will want it.
			_ = p.Signal(syscall.SIGKILL)
		}
	}
	c.drop(p)
	return nil, err
}

// resume tells the agent what the caller has and takes its processes over.
func (c *Client) resume(ctx context.Context, points []ResumePoint) ([]*Process, error) {
	if _, err := c.request(ctx, wire.TypeResume, &wire.Resume{Version: wire.Version, Points: points}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	procs := make([]*Process, 0, len(c.procs))
	for _, p := range c.procs {
		procs = append(procs, p)
	}
	return procs, nil
}

// adopt makes the processes of a listing known where they are not. It runs in
// the receiving goroutine: their output comes right after the listing.
func (c *Client) adopt(r *wire.Reply) error {
	const maxID = 1 << 31 // far from where the counting would begin anew
	if r.LastID > maxID {
		return fmt.Errorf("%w: last id %d", errProtocol, r.LastID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, keys := make(map[uint32]bool, len(r.Processes)), make(map[string]bool, len(r.Processes))
	for _, s := range r.Processes {
		if s.ID == 0 || s.Stdout < 0 || s.Stderr < 0 || s.ID > r.LastID || ids[s.ID] || keys[s.Key] {
			return fmt.Errorf("%w: process %d of %d", errProtocol, s.ID, r.LastID)
		}
		ids[s.ID], keys[s.Key] = true, true
	}
	if c.resumed {
		return nil // a listing that was asked for later
	}
	c.resumed = true
	for _, s := range r.Processes {
		p := &Process{c: c, id: s.ID, key: s.Key, pid: s.PID, done: make(chan struct{}), in: wire.NewInbox()}
		p.in.StartAt(wire.StreamOut, s.Stdout)
		p.in.StartAt(wire.StreamErr, s.Stderr)
		c.procs[s.ID] = p
	}
	c.nextID = max(c.nextID, r.LastID)
	return nil
}

// drop forgets a process on this side.
func (c *Client) drop(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.procs, p.id)
}

// ID returns the caller's name for the process.
func (p *Process) ID() string { return p.key }

// PID returns the process's id in the sandbox, 0 if it was never executed.
func (p *Process) PID() int { return p.pid }

// Offset returns up to where a stream was returned by Next; of a process that
// Reconnect returned, where it goes on.
func (p *Process) Offset(s skerry.Stream) int64 { return p.in.Offset(streamID(s)) }

// Next returns the next piece of output, in the order in which the agent sent
// it. Its bytes are valid until the following call. After the last one it
// returns io.EOF; if the connection is lost before, an Unavailable error. One
// goroutine at a time may call it.
//
// The process waits when more than wire.Window bytes of a stream are not
// acknowledged, and disturbs no other by it.
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

// Ack says that the caller has stored a stream up to offset, or has no need
// of it: the agent may drop it. It may be told so later.
func (p *Process) Ack(s skerry.Stream, offset int64) error {
	id := streamID(s)
	if !p.in.Ack(id, offset) {
		return nil
	}
	return p.c.lost(p.c.link.SendOffset(wire.TypeAck, id, p.id, offset))
}

func streamID(s skerry.Stream) uint8 {
	if s == skerry.Stderr {
		return wire.StreamErr
	}
	return wire.StreamOut
}

// Wait returns once the process has ended and all its output is here (though
// maybe not read by Next).
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Forget says that the caller has stored the exit and the output: the agent
// drops the process. One that has not ended is left as it is.
func (p *Process) Forget() error {
	select {
	case <-p.done:
		p.c.drop(p)
	default:
		return nil
	}
	return p.c.lost(p.c.link.Send(wire.TypeForget, 0, p.id, nil, nil))
}

// Signal sends a signal to the process group. A process that has ended
// ignores it.
func (p *Process) Signal(sig syscall.Signal) error {
	if sig < 1 || sig > 64 {
		return skerry.Invalid("signal", "%d is not a signal", int(sig))
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(sig))
	return p.c.lost(p.c.link.Send(wire.TypeSignal, 0, p.id, b[:], nil))
}

// Resize tells the process's terminal its new size; without a terminal it has
// no effect.
func (p *Process) Resize(size Size) error {
	var b [4]byte
	binary.LittleEndian.PutUint16(b[:], size.Cols)
	binary.LittleEndian.PutUint16(b[2:], size.Rows)
	return p.c.lost(p.c.link.Send(wire.TypeResize, 0, p.id, b[:], nil))
}

// exited takes the agent's word, if the output is what it says.
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
		Code: e.Code, Signal: syscall.Signal(e.Signal), TimedOut: e.TimedOut,
		Duration: time.Duration(e.DurationMicros) * time.Microsecond,
	}, nil)
	return nil
}

// lose ends what waits for the process when the connection has ended.
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

// Stdin returns the standard input or the terminal's keyboard. It is nil for a
// process without, and for one that Reconnect returned.
func (p *Process) Stdin() *Stdin { return p.stdin }

// Stdin is the standard input of a process. It takes bytes as fast as the
// process does; a process that has ended takes none (io.ErrClosedPipe).
type Stdin struct {
	p    *Process
	gate *wire.Gate

	mu     sync.Mutex // one Write at a time
	closed bool
}

// Sent returns how many bytes were taken so far.
func (s *Stdin) Sent() int64 { return s.gate.Sent() }

// Write implements io.Writer.
func (s *Stdin) Write(b []byte) (int, error) { return s.WriteContext(context.Background(), b) }

// WriteContext writes until ctx ends, and returns how much was taken.
func (s *Stdin) WriteContext(ctx context.Context, b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for written < len(b) {
		if s.closed {
			return written, io.ErrClosedPipe
		}
		n, err := s.gate.Reserve(ctx, len(b)-written)
		if err != nil {
			return written, err
		}
		if err := s.p.c.link.Send(wire.TypeData, wire.StreamIn, s.p.id, b[written:written+n], nil); err != nil {
			return written, s.p.c.lost(err)
		}
		written += n
	}
	return written, nil
}

// Close ends the input, or hangs the terminal up. A Write in progress fails.
func (s *Stdin) Close() error {
	s.gate.Close(io.ErrClosedPipe)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.p.c.link.SendOffset(wire.TypeEOF, wire.StreamIn, s.p.id, s.gate.Sent())
	if errors.Is(err, wire.ErrClosed) {
		return nil
	}
	return s.p.c.lost(err)
}
