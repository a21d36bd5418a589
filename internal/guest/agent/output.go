package agent

import (
	"sync"

	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// output is one output stream of a process: a ring of the bytes that the host
// has not acknowledged. The ring never holds more than the window, and a full
// one stops the reading of the process's pipe, so that the process waits for
// its reader.
//
// Three parties meet here: the pump (one goroutine) appends, whoever has news
// sends, and the connection's receiver acknowledges. Bytes between base and
// end stay as they are while they are there, so they are read and sent outside
// the lock.
type output struct {
	id     uint32 // of the process
	stream uint8

	mu       sync.Mutex
	changed  sync.Cond // space became free, or the output was closed
	ring     []byte    // its length is a power of two, or nil
	base     int64     // acknowledged
	end      int64     // produced
	filling  bool      // the pump reads into the ring right now
	busy     bool      // it has needed the full ring before
	closed   bool      // nobody will ask for the bytes any more
	disowned bool      // nor for what is still to come, which is read and dropped

	// sending serializes the senders; link and sent are under it.
	sending sync.Mutex
	link    *wire.Link // the connection that the stream goes on over
	sent    int64
}

const (
	// minRing is enough for most commands; a ring grows fourfold when it fills.
	minRing = 4 << 10
	// idleRing is the largest ring that an idle stream keeps.
	idleRing = 16 << 10
	// minSpace is how much must be free before the pump reads on: reading
	// whatever a slow host frees would make tiny frames.
	minSpace = wire.Window / 8
)

// fullRings recycles rings of the full size.
var fullRings = sync.Pool{New: func() any { return new([wire.Window]byte) }}

func newOutput(id uint32, stream uint8, l *wire.Link) *output {
	o := &output{id: id, stream: stream, link: l}
	o.changed.L = &o.mu
	return o
}

// waitSpace waits until there is room for new bytes; false says that the
// output was closed.
func (o *output) waitSpace() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && int64(wire.Window)-(o.end-o.base) < minSpace {
		o.changed.Wait()
	}
	return !o.closed
}

// space returns a free part of the ring for the pump to read into. commit must
// follow.
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

// grow makes the ring larger. Senders may still read from the old one.
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

// move puts the bytes that are not acknowledged into another ring.
func (o *output) move(ring []byte) {
	for at := o.base; at < o.end; {
		from := o.ring[at&int64(len(o.ring)-1):]
		to := ring[at&int64(len(ring)-1):]
		at += int64(copy(to, from[:min(int64(len(from)), o.end-at)]))
	}
	o.ring = ring
}

// commit appends the first n bytes of what space returned.
func (o *output) commit(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.filling = false
	o.end += int64(n)
	if o.disowned {
		o.base = o.end
	}
}

// add appends p, which must fit the window, as the agent's own words.
func (o *output) add(p []byte) {
	for len(p) > 0 {
		n := copy(o.space(), p)
		o.commit(n)
		p = p[n:]
	}
}

// flush sends what has not been sent. Without a connection nothing is lost:
// resume and flush follow.
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

// unsent returns the bytes of one frame.
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

// ack frees what the host has up to offset.
func (o *output) ack(offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || offset <= o.base || offset > o.end {
		return // late, or a lie that frees nothing
	}
	o.base = offset
	if o.end-o.base <= idleRing && !o.filling && len(o.ring) > idleRing {
		o.shrink()
	}
	o.changed.Signal()
}

// shrink moves the few bytes that are left to a small ring, unless somebody
// sends from the large one.
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

// offer returns the offset nearest to want from which the stream can go on.
func (o *output) offer(want int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(o.base, min(want, o.end))
}

// resume makes the stream go on over l from offset, which offer returned.
func (o *output) resume(l *wire.Link, offset int64) {
	o.ack(offset)
	o.sending.Lock()
	o.link, o.sent = l, offset
	o.sending.Unlock()
	o.flush()
}

// produced returns the length of the stream so far.
func (o *output) produced() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end
}

// disown drops the bytes that are left and all that follow.
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

// close drops the bytes that are left, and ends a wait for space. The ring is
// left to the collector: a sender may still be reading it.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.ring = nil
	o.base = o.end
	o.changed.Broadcast()
}
