package agent

import (
	"sync"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// output is one output stream of a process. It is a ring buffer of the bytes that the
// host has not acknowledged, at most the window. When it is full, the agent stops
// reading the pipe of the process, so the process waits for its reader.
//
// One goroutine, the pump, appends. Any goroutine with new data sends. The receiver of
// the connection acknowledges. Bytes between base and end do not change, so they are
// read and sent without the lock.
type output struct {
	id     uint32 // of the process
	stream uint8

	mu       sync.Mutex
	changed  sync.Cond // space became free, or the output was closed
	ring     []byte    // its length is a power of two, or nil
	base     int64     // acknowledged
	end      int64     // produced
	filling  bool      // the pump is reading into the ring
	busy     bool      // the stream has needed the full ring before
	closed   bool      // all bytes are dropped, and the pump ends
	disowned bool      // all bytes are dropped, but the pump still reads

	// sending is held while a frame is sent. It guards link and sent.
	sending sync.Mutex
	link    *wire.Link // the current connection of the stream
	sent    int64
}

const (
	// minRing is enough for most commands. A full ring grows by a factor of four.
	minRing = 4 << 10
	// idleRing is the largest ring of an idle stream.
	idleRing = 16 << 10
	// minSpace must be free before the pump reads again. Otherwise a slow host would
	// cause tiny frames.
	minSpace = wire.Window / 8
)

// fullRings recycles rings of the maximum size.
var fullRings = sync.Pool{New: func() any { return new([wire.Window]byte) }}

func newOutput(id uint32, stream uint8, l *wire.Link) *output {
	o := &output{id: id, stream: stream, link: l}
	o.changed.L = &o.mu
	return o
}

// waitSpace waits until there is space. It returns false if the output was closed.
func (o *output) waitSpace() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && int64(wire.Window)-(o.end-o.base) < minSpace {
		o.changed.Wait()
	}
	return !o.closed
}

// space returns a free part of the ring to read into. The caller must then call commit.
func (o *output) space() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if used := int(o.end - o.base); o.ring == nil || used == len(o.ring) {
		o.grow()
	}
	size := int64(len(o.ring))
	from := o.end & (size - 1)
	free := min(size-(o.end-o.base), size-from, wire.MaxData)
	o.filling = true
	return o.ring[from : from+free]
}

// grow replaces the ring by a larger one. Senders may still read from the old one.
func (o *output) grow() {
	size := max(minRing, min(4*len(o.ring), wire.Window))
	if o.busy {
		size = wire.Window
	}
	if size < wire.Window {
		o.move(make([]byte, size))
		return
	}
	o.busy = true
	o.move(fullRings.Get().(*[wire.Window]byte)[:])
}

// move copies the bytes that are not acknowledged to another ring.
func (o *output) move(ring []byte) {
	for at := o.base; at < o.end; {
		from := o.ring[at&int64(len(o.ring)-1):]
		to := ring[at&int64(len(ring)-1):]
		at += int64(copy(to, from[:min(int64(len(from)), o.end-at)]))
	}
	o.ring = ring
}

// commit appends the first n bytes of the part that space returned.
func (o *output) commit(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.filling = false
	o.end += int64(n)
	if o.disowned {
		o.base = o.end
	}
}

// add appends a message of the agent. It must fit into the window.
func (o *output) add(p []byte) {
	for len(p) > 0 {
		n := copy(o.space(), p)
		o.commit(n)
		p = p[n:]
	}
}

// flush sends all unsent bytes. Without a connection they stay, and resume sends them.
func (o *output) flush() {
	o.sending.Lock()
	defer o.sending.Unlock()
	for o.link != nil {
		a, b := o.unsent()
		if len(a) == 0 {
			return
		}
		if err := o.link.Send(wire.TypeData, o.stream, o.id, a, b); err != nil {
			o.link = nil
			return
		}
		o.sent += int64(len(a) + len(b))
	}
}

// unsent returns the bytes for the next frame, in up to two parts.
func (o *output) unsent() (a, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, nil
	}
	o.sent = max(o.sent, o.base)
	n := min(o.end-o.sent, wire.MaxData)
	if n == 0 {
		return nil, nil
	}
	from := o.sent & int64(len(o.ring)-1)
	a = o.ring[from:min(from+n, int64(len(o.ring)))]
	return a, o.ring[:n-int64(len(a))]
}

// ack frees the bytes up to offset.
func (o *output) ack(offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || offset <= o.base || offset > o.end {
		return // outdated, or invalid
	}
	o.base = offset
	if o.end-o.base <= idleRing && !o.filling && len(o.ring) > idleRing {
		o.shrink()
	}
	o.changed.Signal()
}

// shrink moves the remaining bytes to a small ring, unless a sender uses the large one.
func (o *output) shrink() {
	if !o.sending.TryLock() {
		return
	}
	defer o.sending.Unlock()
	old := o.ring
	o.move(make([]byte, idleRing))
	if len(old) == wire.Window {
		fullRings.Put((*[wire.Window]byte)(old))
	}
}

// offer returns the offset nearest to want at which the stream can continue.
func (o *output) offer(want int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(o.base, min(want, o.end))
}

// resume continues the stream over l at an offset that offer returned.
func (o *output) resume(l *wire.Link, offset int64) {
	o.ack(offset)
	o.sending.Lock()
	o.link, o.sent = l, offset
	o.sending.Unlock()
	o.flush()
}

// produced returns the current length of the stream.
func (o *output) produced() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end
}

// disown drops all bytes of the stream, including later ones.
func (o *output) disown() {
	o.sending.Lock()
	o.link = nil
	o.sending.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.disowned = true
	o.base = o.end
	o.changed.Signal()
}

// close drops all bytes and ends a wait for space. It does not recycle the ring, because
// a sender may still read from it.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.ring = nil
	o.base = o.end
	o.changed.Broadcast()
}
