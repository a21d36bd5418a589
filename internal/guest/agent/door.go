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

// door is where a host says that it begins anew on the agent's pipes. See
// package pipes, which has the host's side.
//
// The agent keeps the pipes that it was started with for good, since a sandbox
// that is restored from a snapshot of its memory gets new ones in the place of
// those and of no others. What a connection closes are duplicates.
type door struct {
	a  *Agent
	f  *os.File
	wg sync.WaitGroup

	mu      sync.Mutex
	in, out int // -1 after shut
}

// openDoor takes over the three descriptors and serves the first connection.
func openDoor(a *Agent, in, out, knocks int) (*door, error) {
	for _, fd := range []int{in, out, knocks} {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
		}
	}
	d := &door{a: a, in: in, out: out, f: os.NewFile(uintptr(knocks), "door")}
	t, err := d.open()
	if err != nil {
		return nil, errors.Join(err, d.f.Close())
	}
	d.wg.Go(func() { d.run(d.a.serve(t, d.shut)) })
	return d, nil
}

func (d *door) close() {
	d.f.Close()
	d.wg.Wait()
}

// shut gives the pipes up after a host has broken the protocol: it meets their
// end.
func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.in >= 0 {
		unix.Close(d.in)
		unix.Close(d.out)
		d.in, d.out = -1, -1
	}
}

// open returns a transport over the pipes.
func (d *door) open() (*wire.Duplex, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in, err := unix.FcntlInt(uintptr(d.in), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the connection: %w", err)
	}
	out, err := unix.FcntlInt(uintptr(d.out), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(in)
		return nil, fmt.Errorf("opening the connection: %w", err)
	}
	return wire.NewDuplex(in, out)
}

// knockPatience is how long a host that has knocked may leave its pipe full.
const knockPatience = 10 * time.Second

// run begins anew as often as somebody knocks.
func (d *door) run(s *session) {
	nonce := make([]byte, wire.KnockSize)
	for {
		if _, err := io.ReadFull(d.f, nonce); err != nil {
			return // closed
		}
		s.replace()
		t, err := d.open()
		if err != nil {
			return // shut
		}
		d.drain()
		t.SetWriteDeadline(time.Now().Add(knockPatience))
		err = t.WriteVec([][]byte{nonce})
		t.SetWriteDeadline(time.Time{})
		if err != nil {
			t.Close()
			continue // the host has gone, and another one may come
		}
		s = d.a.serve(t, d.shut)
	}
}

// drain drops what the host before has sent and nobody has read. The new one
// sends nothing before it is answered.
func (d *door) drain() {
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

// replace ends the session for a new one on the same pipes, and returns when it
// neither reads nor writes any more.
func (s *session) replace() {
	s.l.Fail(errReplaced)
	s.l.Settle()
	<-s.received
}

// hostGone says whether a connection ended as it does with its host, and not
// since something on it was wrong.
func hostGone(err error) bool {
	for _, end := range []error{errReplaced, wire.ErrClosed, io.EOF, io.ErrUnexpectedEOF, unix.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}
