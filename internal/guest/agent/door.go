package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// Door accepts the connections of hosts, one after the other.
type Door interface {
	// Next waits for a host and returns its connection. It calls leave before it uses
	// the pipes of the previous connection. leave returns when that connection neither
	// reads nor writes any more.
	Next(leave func()) (wire.Transport, error)
	// Shut refuses all further connections, because a host has violated the protocol.
	// The host reads an EOF.
	Shut()
	// Close ends Next.
	Close() error
}

// Pipes is a door over three pipes. On the third pipe a host announces a new connection
// over the other two. The host's side is in package pipes.
//
// The agent never closes the pipes that it was started with. When a sandbox is restored
// from a memory snapshot, these are the ones that gVisor replaces. A connection uses
// duplicates of them.
type Pipes struct {
	knocks *os.File
	// begun is set by the first Next, which needs no knock.
	begun bool

	mu      sync.Mutex
	in, out int // -1 after Shut
}

var _ Door = (*Pipes)(nil)

// OpenPipes returns a door that owns three descriptors: the ends of the connection for
// reading and for writing, and the pipe for knocks.
func OpenPipes(in, out, knocks int) (*Pipes, error) {
	for _, fd := range []int{in, out, knocks} {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("prepare descriptor %d of the connection: %w", fd, err)
		}
	}
	return &Pipes{in: in, out: out, knocks: os.NewFile(uintptr(knocks), "door")}, nil
}

// Close implements Door.
func (d *Pipes) Close() error { return d.knocks.Close() }

// Shut implements Door.
func (d *Pipes) Shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.in >= 0 {
		unix.Close(d.in)
		unix.Close(d.out)
		d.in, d.out = -1, -1
	}
}

// open returns a transport over the pipes.
func (d *Pipes) open() (*wire.Duplex, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in, err := unix.FcntlInt(uintptr(d.in), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the connection: %w", err)
	}
	out, err := unix.FcntlInt(uintptr(d.out), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(in)
		return nil, fmt.Errorf("duplicate the connection: %w", err)
	}
	return wire.NewDuplex(in, out)
}

// knockTimeout limits the write of the nonce to a host that has knocked and does not
// read.
const knockTimeout = 10 * time.Second

// Next implements Door.
func (d *Pipes) Next(leave func()) (wire.Transport, error) {
	if !d.begun {
		d.begun = true
		return d.open()
	}
	nonce := make([]byte, wire.KnockSize)
	for {
		if _, err := io.ReadFull(d.knocks, nonce); err != nil {
			return nil, err // closed
		}
		leave()
		t, err := d.open()
		if err != nil {
			return nil, err // shut
		}
		d.drain()
		t.SetWriteDeadline(time.Now().Add(knockTimeout))
		err = t.WriteVec([][]byte{nonce})
		t.SetWriteDeadline(time.Time{})
		if err == nil {
			return t, nil
		}
		t.Close() // the host is gone, and another one may connect
	}
}

// drain drops unread data of the previous host. The new host sends nothing before it
// has the nonce.
func (d *Pipes) drain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(d.in, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
	}
}

var errReplaced = errors.New("replaced by a new connection")

// replace ends the connection, because a new one uses the same pipes. It returns when
// this one neither reads nor writes any more.
func (s *session) replace() {
	s.l.Fail(errReplaced)
	s.l.Settle()
	<-s.received
}

// hostGone reports whether a connection ended because its host is gone or has closed
// it, and not because of a violation of the protocol.
func hostGone(err error) bool {
	for _, end := range []error{errReplaced, wire.ErrClosed, io.EOF, io.ErrUnexpectedEOF, unix.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}
