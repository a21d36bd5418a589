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

// Inbox buffers the received data of a call's streams, in the order of arrival. The
// receiving goroutine fills it and never waits. One consumer empties it.
//
// The data of all streams lies in the same blocks, and runs tell the stream of each
// piece. So even if a hostile sender sends frames of one byte, the memory stays a small
// multiple of the window.
type Inbox struct {
	mu     sync.Mutex
	blocks []*block
	runs   []run
	held   int // length of the chunk that the consumer holds
	stream [streams]inStream
	err    error         // why no more data will arrive; io.EOF at the end
	wake   chan struct{} // holds a token when the state has changed
}

// inStream is the receiver's end of one stream.
type inStream struct {
	received int64
	consumed int64
	acked    int64 // last Ack to the sender
	again    int64 // of what the sender sends next, this much was received before
	open     bool
}

// run is the stream and the length of a piece in one number. It is compact, because
// there may be one for every byte. The window limits the length.
type run uint32

const runStream = 24 // position of the stream's bits

// The largest sum in addRun must fit below the stream's bits.
var _ [1<<runStream - streams*Window]struct{}

func (r run) stream() uint8 { return uint8(r >> runStream) }
func (r run) len() int      { return int(r & (1<<runStream - 1)) }

// block is a buffer. w is where it is filled, r where it is consumed.
type block struct {
	buf     []byte
	r, w    int
	filling bool // being filled without the lock
}

const (
	smallBlock = 4 << 10
	largeBlock = MaxData
)

// largeBlocks recycles the buffers of busy streams.
var largeBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, largeBlock)} }}

// NewInbox returns an Inbox for the given streams, from offset 0.
func NewInbox(ids ...uint8) *Inbox {
	in := &Inbox{wake: make(chan struct{}, 1)}
	for _, id := range ids {
		in.stream[id].open = true
	}
	return in
}

// StartAt opens a stream at an offset.
func (in *Inbox) StartAt(stream uint8, offset int64) {
	in.stream[stream] = inStream{received: offset, consumed: offset, acked: offset, open: true}
}

// Restart prepares a stream for a new connection of the sender, and returns the last
// acknowledged offset, from which the sender must go on: it must not drop what has been
// received and not acknowledged. The Inbox drops what it receives again.
func (in *Inbox) Restart(stream uint8) int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := &in.stream[stream]
	s.again = s.received - s.acked
	return s.acked
}

// Fill reads the payload of a Data frame. Its error wraps errFrame if the sender
// violated the protocol.
func (in *Inbox) Fill(l *Link, h Header) error {
	n := int(h.Length)
	in.mu.Lock()
	s := &in.stream[h.Stream]
	if again := min(s.again, int64(n)); again > 0 {
		s.again -= again
		n -= int(again)
		in.mu.Unlock()
		if err := l.Discard(uint32(again)); err != nil || n == 0 {
			return err
		}
		in.mu.Lock()
	}
	switch {
	case !s.open:
		in.mu.Unlock()
		return fmt.Errorf("%w: data on stream %d, which is not open", errFrame, h.Stream)
	case s.received+int64(n) > s.acked+Window:
		in.mu.Unlock()
		return fmt.Errorf("%w: data beyond the window", errFrame)
	case in.err != nil:
		in.mu.Unlock()
		return l.Discard(uint32(n))
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

// tail returns the block to fill next. It has space for at least one byte.
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

// End ends one stream. length is its length according to the sender.
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

// Close makes Next return err after all received data.
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

// Next waits for the next chunk of any stream. Its data is valid until the next call.
// After the last chunk it returns io.EOF, or the error of Close.
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

// take returns the start of the first run, as much as lies in one block.
func (in *Inbox) take() Chunk {
	b, first := in.blocks[0], &in.runs[0]
	n := min(first.len(), b.w-b.r)
	s := &in.stream[first.stream()]
	c := Chunk{Stream: first.stream(), Offset: s.consumed, Data: b.buf[b.r : b.r+n]}
	s.consumed += int64(n)
	in.held = n
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
	b.r += in.held
	in.held = 0
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

// Ack records that the consumer needs a stream up to offset no more. It reports whether
// the caller must now send an Ack.
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

// Offset returns how much of a stream Next has returned.
func (in *Inbox) Offset(stream uint8) int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.stream[stream].consumed
}

// Reader reads one stream of a call as an io.Reader, and acknowledges the data.
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
