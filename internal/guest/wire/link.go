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

// Transport carries a Link's bytes.
type Transport interface {
	io.Reader
	// WriteVec writes the buffers one after the other, all of them or with an
	// error. It may change the slice.
	WriteVec(bufs [][]byte) error
	// Close ends the transport; a blocked Read or WriteVec returns.
	Close() error
}

// ErrClosed is the error of a Link that this side closed.
var ErrClosed = errors.New("connection closed")

// ErrTooLong is in the chain of Send's error for a payload that no frame of
// its type can have. The Link is as good as before.
var ErrTooLong = errors.New("frame too long")

// Link frames one connection. Many goroutines may send; one receives.
type Link struct {
	t Transport
	r *bufio.Reader

	writing sync.Mutex // held for the writing of one frame
	header  [HeaderSize]byte
	vec     [3][]byte

	failing sync.Once
	done    chan struct{}
	err     error // set before done is closed
}

// readBuffer holds the headers and small frames that come together; larger
// payloads are read past it.
const readBuffer = 64 << 10

// NewLink returns a Link over t, which it owns.
func NewLink(t Transport) *Link {
	return &Link{t: t, r: bufio.NewReaderSize(t, readBuffer), done: make(chan struct{})}
}

// Done is closed when the link has failed or was closed.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err returns why the link ended, nil while it has not.
func (l *Link) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Fail ends the link for the given reason; the first reason stays.
func (l *Link) Fail(err error) {
	l.failing.Do(func() {
		l.err = err
		close(l.done)
		l.t.Close() // its error would add nothing to err
	})
}

// Settle returns when no writing is under way. After Fail none begins.
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
	l.vec = [3][]byte{} // do not hold the payload
	if err != nil {
		l.Fail(fmt.Errorf("writing a frame: %w", err))
		return l.Err()
	}
	return nil
}

// SendJSON sends one frame with v as its payload.
func (l *Link) SendJSON(t Type, id uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	return l.Send(t, 0, id, b, nil)
}

// SendOffset sends an Ack or EOF.
func (l *Link) SendOffset(t Type, stream uint8, id uint32, offset int64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(offset))
	return l.Send(t, stream, id, b[:], nil)
}

// Receive reads the next header. The payload has to be taken by one of the
// Read functions or dropped by Discard before the next call.
func (l *Link) Receive() (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(l.r, b[:]); err != nil {
		return Header{}, err
	}
	return parseHeader(b[:])
}

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

// noEOF keeps an end in the middle of a frame from looking like one between
// two frames.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
