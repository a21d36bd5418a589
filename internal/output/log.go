// Package output keeps what one command prints: bounded, on disk, and
// followed by any number of readers.
//
// A log is one sequence of records in the order in which they were appended.
// The first 64 KiB are held in memory; a command that prints more, or whose
// log is finished, has them in up to two files, "<id>.0.out" and
// "<id>.1.out", used in turn: when the newer one is full the older one is
// replaced. So at most Config.Keep bytes stay, the newest. A silent command
// has no file. What Append returned from is on disk once the log has spilled
// (in the page cache: it survives the process, not a loss of power).
//
// A follower that is attached misses nothing: Append waits for it rather than
// replace records that it has not read. One that attaches late starts at the
// oldest record kept.
//
// # Files
//
// Numbers are little-endian, checksums CRC-32C. A file begins with a header
// of 40 bytes:
//
//	magic     8 bytes  "SKYOUT01"
//	sequence  uint64   the file's number in the log, its parity that of the name
//	stdout    uint64   offset of standard output where the file begins
//	stderr    uint64   offset of standard error where the file begins
//	checksum  uint32   of the 32 bytes before
//	zero      uint32
//
// and goes on with records:
//
//	checksum  uint32   of the rest of the record
//	stream    uint8    1 standard output, 2 standard error
//	length    uint24   of data, 1 to 65536
//	offset    uint64   of data in its stream
//	data
//
// Offsets of a stream have no gaps within a file, nor from one file to the
// next. The first record that breaks a rule, and all that follows it, is what
// a crash left half written and is cut off when the log is opened.
package output

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/skerry-dev/skerry"
)

// MemoryBytes is how much a log holds in memory alone: once more has been
// appended, everything is on disk.
const MemoryBytes = 64 << 10

const (
	// defaultKeep is what a log keeps on disk when Config does not say.
	defaultKeep = 16 << 20
	// minKeep leaves room in each file for what was in memory and one record.
	minKeep = 4 * (segmentHeader + spillSize + recordHeader + maxRecord)
	// spillSize is how much a log holds in memory before it makes a file:
	// most commands print less.
	spillSize = MemoryBytes
	// blockSize and maxTail are the memory from which followers that keep up
	// are served.
	blockSize = 256 << 10
	maxTail   = 4
)

// ErrClosed is what a closed log or reader returns.
var ErrClosed = errors.New("output is closed")

// Config says how much a log keeps.
type Config struct {
	// Keep bounds the bytes on disk; 0 is 16 MiB. Less than 513 KiB is raised
	// to that.
	Keep int64
}

// Log is the output of one command. Its methods may be called concurrently.
type Log struct {
	dir, id string
	segMax  int64

	mu      sync.Mutex
	offsets [len(streams)]int64
	end     int64 // position after the last record
	// segs are the files, the oldest first; none before the log spills.
	segs []*segment
	file *os.File // of the last segment, while it is written
	// tail is the newest part of the log, encoded as on disk.
	tail      []*block
	followers map[*follower]struct{}
	finished  bool
	closed    bool
	more      signal // records were added, or none will be
	room      signal // a follower has read the oldest segment, or has gone
}

// block is encoded records from position base on. Bytes within its length do
// not change while it is in the tail or held by a follower, so readers use
// them without the lock.
type block struct {
	base int64
	buf  []byte
}

// New returns the empty log of a command that starts. It makes no file.
func New(dir, id string, cfg Config) *Log {
	keep := cfg.Keep
	if keep <= 0 {
		keep = defaultKeep
	}
	keep = max(keep, minKeep)
	return &Log{dir: dir, id: id, segMax: keep / 2, followers: map[*follower]struct{}{}}
}

// Open returns the log that an earlier process, or an earlier Log, left on
// disk; without files it is empty. It goes on where the last whole record
// ends: call Finish if the command is known to have ended.
func Open(dir, id string, cfg Config) (*Log, error) {
	l := New(dir, id, cfg)
	var found []*loaded
	for seq := range uint64(2) {
		path := segmentPath(dir, id, seq)
		s, err := loadSegment(path)
		if err != nil {
			return nil, fmt.Errorf("open the output of %s: %w", id, err)
		}
		if s != nil && s.seq%2 == seq {
			found = append(found, s)
		}
	}
	if len(found) == 2 && found[0].seq > found[1].seq {
		found[0], found[1] = found[1], found[0]
	}
	if len(found) == 2 && (found[0].seq+1 != found[1].seq || found[0].ends != found[1].offsets) {
		// The older file lost its end to a crash of the machine: what is left
		// of it does not join the newer one.
		found = found[1:]
	}
	for _, s := range found {
		l.segs = append(l.segs, &segment{segmentStart: s.segmentStart, base: l.end, size: s.size})
		l.end += s.size
		l.offsets = s.ends
	}
	return l, nil
}

// Append adds what a stream printed at offset, its absolute position in the
// stream. What the log already has is skipped; a gap is an error. It waits,
// until ctx ends, for followers that would lose what they have not read. When
// it fails, Offsets tells how much of b was kept.
func (l *Log) Append(ctx context.Context, stream skerry.Stream, offset int64, b []byte) error {
	i, err := streamIndex(stream)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		have := l.offsets[i]
		switch {
		case l.closed:
			return ErrClosed
		case offset < 0 || offset > have || have > maxOffset-int64(len(b)):
			return fmt.Errorf("%s at offset %d does not follow the %d bytes kept", stream, offset, have)
		case have-offset >= int64(len(b)):
			return nil
		case l.finished:
			return fmt.Errorf("%s after the end of the output", stream)
		}
		rest := b[have-offset:]
		rec := record{stream: i, offset: have, data: rest[:min(len(rest), maxRecord)]}
		if wait := l.mustWait(rec); wait != nil {
			l.mu.Unlock()
			select {
			case <-wait:
			case <-ctx.Done():
			}
			l.mu.Lock()
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("wait for readers of %s: %w", stream, err)
			}
			continue
		}
		if err := l.put(rec); err != nil {
			return fmt.Errorf("keep %s: %w", stream, err)
		}
	}
}

func streamIndex(s skerry.Stream) (int, error) {
	for i, t := range streams {
		if s == t {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%q is not a stream", s)
}

// mustWait returns what to wait on when rec has no room without taking away
// what a follower has not read; otherwise nil.
func (l *Log) mustWait(rec record) <-chan struct{} {
	if len(l.segs) < 2 || l.fits(rec) {
		return nil
	}
	for f := range l.followers {
		if f.pos < l.segs[0].end() {
			return l.room.wait()
		}
	}
	return nil
}

// fits reports whether the last segment has room for rec.
func (l *Log) fits(rec record) bool {
	last := l.segs[len(l.segs)-1]
	return segmentHeader+last.size+int64(rec.size()) <= l.segMax
}

// put adds one record to memory and, once the log has spilled, to disk. If
// that fails the log is as before.
func (l *Log) put(rec record) error {
	if len(l.segs) == 0 && l.end+int64(rec.size()) > spillSize {
		if err := l.spill(); err != nil {
			return err
		}
	}
	if len(l.segs) > 0 {
		if !l.fits(rec) {
			if err := l.rotate(); err != nil {
				return err
			}
		}
		if err := l.reopen(); err != nil {
			return err
		}
	}
	blk := l.lastBlock(rec.size())
	start := len(blk.buf)
	buf := appendRecord(blk.buf, rec)
	if l.file != nil {
		seg := l.segs[len(l.segs)-1]
		if _, err := l.file.WriteAt(buf[start:], segmentHeader+seg.size); err != nil {
			return err
		}
		seg.size += int64(rec.size())
	}
	blk.buf = buf
	l.end += int64(rec.size())
	l.offsets[rec.stream] += int64(len(rec.data))
	l.more.fire()
	return nil
}

// lastBlock returns a block with room for n bytes, and lets go of the oldest
// blocks once they are only a copy of what is on disk.
func (l *Log) lastBlock(n int) *block {
	if k := len(l.tail); k > 0 && (len(l.segs) == 0 || len(l.tail[k-1].buf)+n <= blockSize) {
		return l.tail[k-1]
	}
	blk := &block{base: l.end}
	if len(l.tail) == maxTail {
		if oldest := l.tail[0]; !l.held(oldest) {
			blk.buf = oldest.buf[:0]
		}
		copy(l.tail, l.tail[1:])
		l.tail = l.tail[:maxTail-1]
	}
	if cap(blk.buf) < blockSize && (len(l.tail) > 0 || len(l.segs) > 0) {
		blk.buf = make([]byte, 0, blockSize)
	}
	l.tail = append(l.tail, blk)
	return blk
}

// held reports whether a follower may still be using what it got from blk.
func (l *Log) held(blk *block) bool {
	for f := range l.followers {
		if f.holds == blk {
			return true
		}
	}
	return false
}

// spill makes the first file and writes what was in memory to it.
func (l *Log) spill() error {
	if err := l.create(segmentStart{}, l.end); err != nil || len(l.tail) == 0 {
		return err
	}
	seg := l.segs[0]
	seg.base = 0
	if _, err := l.file.WriteAt(l.tail[0].buf, segmentHeader); err != nil {
		err = errors.Join(err, l.closeFile())
		l.segs = nil
		return err
	}
	seg.size = l.end
	return nil
}

// rotate starts a new segment in the place of the older of two.
func (l *Log) rotate() error {
	if err := l.closeFile(); err != nil {
		return err
	}
	if len(l.segs) == 2 {
		// Nothing of this file is wanted any more; forget it before its
		// replacement can fail half way.
		l.segs = l.segs[1:]
	}
	return l.create(segmentStart{seq: l.segs[0].seq + 1, offsets: l.offsets}, l.end)
}

// create begins a new last segment. It writes over the file of that name, as
// new pages would cost more than the copy into them: the old records left
// beyond the new ones have offsets that do not follow, so that they count as
// torn until closeFile cuts them off.
func (l *Log) create(start segmentStart, base int64) error {
	f, err := os.OpenFile(segmentPath(l.dir, l.id, start.seq), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(start.encode(), 0); err != nil {
		return errors.Join(err, f.Close())
	}
	l.file = f
	l.segs = append(l.segs, &segment{segmentStart: start, base: base})
	return nil
}

// reopen opens the last segment's file for a log that Open found.
func (l *Log) reopen() error {
	if l.file != nil {
		return nil
	}
	f, err := os.OpenFile(segmentPath(l.dir, l.id, l.segs[len(l.segs)-1].seq), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	l.file = f
	return nil
}

// closeFile ends the writing of the last segment.
func (l *Log) closeFile() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Truncate(segmentHeader + l.segs[len(l.segs)-1].size)
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}

// Offsets returns how much of each stream the log has taken in: where the
// next Append goes on.
func (l *Log) Offsets() (stdout, stderr int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offsets[0], l.offsets[1]
}

// Followed says whether someone reads the log.
func (l *Log) Followed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.followers) > 0
}

// Size returns how many bytes the log has on disk.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var size int64
	for _, s := range l.segs {
		size += s.size
	}
	return size
}

// Dropped returns how many bytes of both streams are no longer kept.
func (l *Log) Dropped() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) == 0 {
		return 0
	}
	var n int64
	for _, o := range l.segs[0].offsets {
		n += o
	}
	return n
}

// Finish marks the end of the output, so that followers end too, and puts
// what was printed on disk. The log holds neither memory nor a file after it.
// Followers end even if it fails, and it may be called again to try again.
func (l *Log) Finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.finished = true
	l.more.fire()
	if len(l.segs) == 0 && l.end > 0 {
		if err := l.spill(); err != nil {
			return fmt.Errorf("keep the output of %s: %w", l.id, err)
		}
	}
	l.tail = nil
	return l.closeFile()
}

// Close lets go of the log without ending the output: what is on disk stays
// there for Open. Its followers, and an Append that waits, return ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.tail = nil
	l.more.fire()
	l.room.fire()
	return l.closeFile()
}

// signal wakes all that wait for an event; the zero value is ready. It is
// guarded by the log's lock.
type signal struct{ ch chan struct{} }

func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
