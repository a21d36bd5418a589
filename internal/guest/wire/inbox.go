package wire

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Chunk is a piece of a stream.
type Chunk struct {
	Stream uint8
	Offset int64
	Data   []byte
}

// Inbox holds what was received of a call's streams and not yet consumed, in
// the order in which it came. The receiving goroutine fills it and never
// waits; one consumer empties it.
//
// The bytes lie one after the other in blocks, and runs tell which stream
// they belong to, so that the memory of a hostile sender's one-byte frames
// stays a small multiple of the window.
type Inbox struct {
	mu     sync.Mutex
	blocks []*block
	runs   []run
	given  int // length of the chunk that the consumer holds
	stream [streams]inStream
	err    error         // no more comes, or io.EOF
	wake   chan struct{} // holds a token when the state has changed
}

// inStream is the receiver's end of one stream.
type inStream struct {
	received int64
	consumed int64
	acked    int64 // what the sender was told
	open     bool
}

// run is the length of a piece, which the window bounds, and its stream in one
// number: there may be one for every byte held.
type run uint32

const runStream = 24 // where a run's stream begins

// addRun's sum must not reach the stream.
var _ [1<<runStream - streams*Window]struct{}

func (r run) stream() uint8 { return uint8(r >> runStream) }
func (r run) len() int      { return int(r & (1<<runStream - 1)) }

// block is a buffer that is filled at w and consumed at r.
type block struct {
	buf     []byte
	r, w    int
	filling bool // being written outside the lock
}

const (
	smallBlock = 4 << 10
	largeBlock = MaxData
)

// largeBlocks recycles the buffers of busy streams.
var largeBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, largeBlock)} }}

// NewInbox returns an Inbox that takes the given streams from offset 0.
func NewInbox(ids ...uint8) *Inbox {
	in := &Inbox{wake: make(chan struct{}, 1)}
	for _, id := range ids {
		in.stream[id].open = true
	}
	return in
}

// StartAt sets the offset at which a stream goes on.
func (in *Inbox) StartAt(stream uint8, offset int64) {
	in.stream[stream] = inStream{received: offset, consumed: offset, acked: offset, open: true}
}

// Fill reads the payload of a Data frame. An error of the sender's making has
// errFrame in its chain.
func (in *Inbox) Fill(l *Link, h Header) error {
	n := int(h.Length)
	in.mu.Lock()
	s := &in.stream[h.Stream]
	switch {
	case !s.open:
		in.mu.Unlock()
		return fmt.Errorf("%w: data on stream %d, which is not open", errFrame, h.Stream)
	case s.received+int64(n) > s.acked+Window:
		in.mu.Unlock()
		return fmt.Errorf("%w: data beyond the window", errFrame)
	case in.err != nil:
		in.mu.Unlock()
		return l.Discard(h.Length)
	}
	for n > 0 {
		b := in.tail(n)
		part := b.buf[b.w:min(len(b.buf), b.w+n)]
		b.filling = true
		in.mu.Unlock()
		err := l.ReadFull(part)
		in.mu.Lock()
		b.filling = false
		if err != nil {
			in.mu.Unlock()
			return err
		}
		b.w += len(part)
		n -= len(part)
		s.received += int64(len(part))
		in.addRun(h.Stream, len(part))
	}
	in.signal()
	in.mu.Unlock()
	return nil
}

// tail returns the block to be filled next, with room for at least a byte.
func (in *Inbox) tail(n int) *block {
	if k := len(in.blocks); k > 0 {
		if b := in.blocks[k-1]; b.w < len(b.buf) {
			return b
		}
	}
	var b *block
	if len(in.blocks) == 0 && n <= smallBlock {
		b = &block{buf: make([]byte, smallBlock)}
	} else {
		b = largeBlocks.Get().(*block)
	}
	in.blocks = append(in.blocks, b)
	return b
}

func (in *Inbox) addRun(stream uint8, n int) {
	if k := len(in.runs); k > 0 && in.runs[k-1].stream() == stream {
		in.runs[k-1] += run(n)
		return
	}
	in.runs = append(in.runs, run(stream)<<runStream|run(n))
}

// End closes one stream at the length that the sender named.
func (in *Inbox) End(stream uint8, length int64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := &in.stream[stream]
	if !s.open || s.received != length {
		return fmt.Errorf("%w: stream %d ends at %d, received %d", errFrame, stream, length, s.received)
	}
	s.open = false
	for i := range in.stream {
		if in.stream[i].open {
			return nil
		}
	}
	in.close(io.EOF)
	return nil
}

// Close lets Next return err once everything received was returned.
func (in *Inbox) Close(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.close(err)
}

func (in *Inbox) close(err error) {
	if in.err == nil {
		in.err = err
	}
	in.signal()
}

func (in *Inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// Next waits for the next piece of any stream. Its bytes are valid until the
// following call. After the last one it returns io.EOF, or the error that
// ended the streams early.
func (in *Inbox) Next(ctx context.Context) (Chunk, error) {
	for {
		in.mu.Lock()
		in.release()
		if len(in.runs) > 0 {
			c := in.take()
			in.mu.Unlock()
			return c, nil
		}
		err := in.err
		in.mu.Unlock()
		if err != nil {
			return Chunk{}, err
		}
		select {
		case <-in.wake:
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

// take hands out the front of the first run as far as it lies in one block.
func (in *Inbox) take() Chunk {
	b, first := in.blocks[0], &in.runs[0]
	n := min(first.len(), b.w-b.r)
	s := &in.stream[first.stream()]
	c := Chunk{Stream: first.stream(), Offset: s.consumed, Data: b.buf[b.r : b.r+n]}
	s.consumed += int64(n)
	in.given = n
	if *first -= run(n); first.len() == 0 {
		in.runs = in.runs[1:]
		if len(in.runs) == 0 {
			in.runs = nil
		}
	}
	return c
}

// release takes back the chunk that the consumer held.
func (in *Inbox) release() {
	if len(in.blocks) == 0 {
		return
	}
	b := in.blocks[0]
	b.r += in.given
	in.given = 0
	if b.r < b.w || b.filling {
		return
	}
	b.r, b.w = 0, 0
	in.blocks = in.blocks[1:]
	if len(in.blocks) == 0 {
		in.blocks = nil
	}
	if len(b.buf) == largeBlock {
		largeBlocks.Put(b)
	}
}

// Ack notes that the consumer is done with a stream up to offset, and reports
// whether it is time to tell the sender.
func (in *Inbox) Ack(stream uint8, offset int64) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := &in.stream[stream]
	offset = min(offset, s.consumed)
	if offset < s.acked+AckEvery {
		return false
	}
	s.acked = offset
	return true
}

// Offset returns how much of a stream was handed to the consumer.
func (in *Inbox) Offset(stream uint8) int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stream[stream].consumed
}

// Reader reads one stream of a call as an io.Reader and acknowledges what was
// read.
type Reader struct {
	Ctx    context.Context
	In     *Inbox
	Link   *Link
	ID     uint32
	Stream uint8
	rest   []byte
	offset int64
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		c, err := r.In.Next(r.Ctx)
		if err != nil {
			return 0, err
		}
		r.rest, r.offset = c.Data, c.Offset
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.offset += int64(n)
	if len(r.rest) == 0 && r.In.Ack(r.Stream, r.offset) {
		return n, r.Link.SendOffset(TypeAck, r.Stream, r.ID, r.offset)
	}
	return n, nil
}
