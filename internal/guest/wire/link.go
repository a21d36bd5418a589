package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Transport carries the bytes of a Link.
type Transport interface {
	io.Reader
	// WriteVec writes all buffers in order, or returns an error. It may change the
	// slice.
	WriteVec(bufs [][]byte) error
	// Close ends the transport; a blocked Read or WriteVec returns.
	Close() error
}

// ErrClosed is the error of a Link that was closed on this side.
var ErrClosed = errors.New("connection closed")

// ErrTooLong is the error of Send for a payload over the limit of its type. The Link
// stays usable.
var ErrTooLong = errors.New("frame too long")

// Link sends and receives the frames of one connection. Any number of goroutines may
// send, but only one may receive.
type Link struct {
	t Transport
	r *bufio.Reader

	writing sync.Mutex // held while one frame is written
	header  [HeaderSize]byte
	vec     [3][]byte

	failing sync.Once
	done    chan struct{}
	err     error // set before done is closed
}

// readBuffer is the size of the read buffer. It is for headers and small frames. Larger
// payloads are read directly.
const readBuffer = 64 << 10

// NewLink returns a Link over t. The Link owns t.
func NewLink(t Transport) *Link {
	return &Link{t: t, r: bufio.NewReaderSize(t, readBuffer), done: make(chan struct{})}
}

// Done is closed when the link has failed or was closed.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err returns why the link ended. It is nil before the end.
func (l *Link) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Fail ends the link for the given reason. Only the first call has an effect.
func (l *Link) Fail(err error) {
	l.failing.Do(func() {
		l.err = err
		close(l.done)
		l.t.Close() // err is the reason that matters
	})
}

// Settle waits for a write in progress. After Fail no new one starts.
func (l *Link) Settle() {
	l.writing.Lock()
	defer l.writing.Unlock()
}

// Close ends the link with ErrClosed.
func (l *Link) Close() { l.Fail(ErrClosed) }

// Send sends one frame, whose payload is a followed by b.
func (l *Link) Send(t Type, stream uint8, id uint32, a, b []byte) error {
	n := len(a) + len(b)
	if n > t.MaxPayload() {
		return fmt.Errorf("%w: type %d with %d bytes, at most %d", ErrTooLong, t, n, t.MaxPayload())
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.Err(); err != nil {
		return err
	}
	Header{Type: t, Stream: stream, ID: id, Length: uint32(n)}.put(&l.header)
	vec := append(l.vec[:0], l.header[:])
	if len(a) > 0 {
		vec = append(vec, a)
	}
	if len(b) > 0 {
		vec = append(vec, b)
	}
	err := l.t.WriteVec(vec)
	l.vec = [3][]byte{} // release the payload
	if err != nil {
		l.Fail(fmt.Errorf("write a frame: %w", err))
		return l.Err()
	}
	return nil
}

// SendJSON sends one frame with v as its payload.
func (l *Link) SendJSON(t Type, id uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	return l.Send(t, 0, id, b, nil)
}

// SendOffset sends an Ack or EOF.
func (l *Link) SendOffset(t Type, stream uint8, id uint32, offset int64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(offset))
	return l.Send(t, stream, id, b[:], nil)
}

// Receive reads the next header. The caller must read the payload with one of the Read
// methods, or drop it with Discard, before the next call.
func (l *Link) Receive() (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		return Header{}, err
	}
	return parseHeader(b[:])
}

// Received releases the read buffer. Receive must not be called any more.
func (l *Link) Received() { l.r = nil }

// ReadFull fills p from the payload.
func (l *Link) ReadFull(p []byte) error {
	_, err := io.ReadFull(l.r, p)
	return noEOF(err)
}

// Discard drops n bytes of the payload.
func (l *Link) Discard(n uint32) error {
	_, err := l.r.Discard(int(n))
	return noEOF(err)
}

// ReadJSON decodes the payload of h into v.
func (l *Link) ReadJSON(h Header, v any) error {
	b := make([]byte, h.Length)
	if err := l.ReadFull(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: type %d: %v", errFrame, h.Type, err)
	}
	return nil
}

// ReadOffset reads the payload of an Ack or EOF.
func (l *Link) ReadOffset() (int64, error) {
	var b [8]byte
	if err := l.ReadFull(b[:]); err != nil {
		return 0, err
	}
	n := int64(binary.LittleEndian.Uint64(b[:]))
	if n < 0 {
		return 0, fmt.Errorf("%w: offset %d", errFrame, uint64(n))
	}
	return n, nil
}

// noEOF makes an EOF in the middle of a frame differ from one between frames.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
