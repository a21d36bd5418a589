// Package output stores the output of one command. A log has a limited size, lives on
// disk, and any number of readers can follow it.
//
// A log is a sequence of records in the order of the calls of Append. The first 64 KiB
// are held in memory only. When the command prints more, or when the log is finished,
// the records go to up to two files, "<id>.0.out" and "<id>.1.out". The files are used
// in turn: when the newer one is full, the older one is replaced. So the newest
// Config.Keep bytes are kept at most. A command without output has no file. Once the
// log has files, Append returns after its data is in the page cache: the data survives
// the process, but not a power loss.
//
// An attached follower misses nothing: Append waits for it before it replaces records
// that the follower has not read. A follower that attaches late starts at the oldest
// record kept.
//
// # Files
//
// Numbers are little-endian, checksums are CRC-32C. A file begins with a header of 40
// bytes:
//
//	magic     8 bytes  "SKYOUT01"
//	sequence  uint64   number of the file in the log; its parity is in the name
//	stdout    uint64   offset of standard output where the file begins
//	stderr    uint64   offset of standard error where the file begins
//	checksum  uint32   of the 32 bytes before
//	zero      uint32
//
// Records follow:
//
//	checksum  uint32   of the rest of the record
//	stream    uint8    1 standard output, 2 standard error
//	length    uint24   of data, 1 to 65536
//	offset    uint64   of data in its stream
//	data
//
// The offsets of a stream have no gaps, neither within a file nor between the two
// files. A crash can leave incomplete records. Open truncates a file at the first
// record that breaks these rules.
package output

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/skerry-dev/skerry"
)

// MemoryBytes is how much a log holds in memory only. When more has been appended,
// everything is on disk.
const MemoryBytes = 64 << 10

const (
	// defaultKeep is the default of Config.Keep.
	defaultKeep = 16 << 20
	// minKeep is a minimum: each file has space for the records that were in memory
	// and one more.
	minKeep = 4 * (segmentHeader + spillSize + recordHeader + maxRecord)
	// spillSize is how much a log holds in memory before it creates a file. Most
	// commands print less.
	spillSize = MemoryBytes
	// blockSize and maxTail bound the newest records in memory, from which fast
	// followers read.
	blockSize = 256 << 10
	maxTail   = 4
	// smallBlock and smallTail are the same with Config.Small.
	smallBlock = 128 << 10
	smallTail  = 2
)

// ErrClosed is the error of a closed log or reader.
var ErrClosed = errors.New("output is closed")

// Config sets how much a log keeps.
type Config struct {
	// Keep limits the bytes on disk. The default is 16 MiB, the minimum 513 KiB.
	Keep int64
	// Small reduces the memory of the log to a quarter. Followers then read more from
	// disk. It is for a log that is one of many.
	Small bool
}

// Log is the output of one command. It is safe for concurrent use.
type Log struct {
	dir, id string
	segMax  int64
	// blockSize and maxTail bound the memory in use.
	blockSize, maxTail int

	mu      sync.Mutex
	offsets [len(streams)]int64
	end     int64 // position after the last record
	// segs are the files, the oldest first. There are none before the log spills.
	segs []*segment
	file *os.File // of the last segment, nil until it is opened for writing
	// tail is the newest part of the log, encoded as on disk.
	tail      []*block
	followers map[*follower]struct{}
	finished  bool
	closed    bool
	more      signal // records were added, or none will be
	room      signal // a follower has read the oldest segment, or has closed
}

// block holds encoded records that start at position base. Bytes within its length do
// not change while it is in the tail or held by a follower. So readers use them
// without the lock.
type block struct {
	base int64
	buf  []byte
	// lent is set if the buffer must never be reused: a follower returned bytes of it
	// and was closed, and its caller may still read them.
	lent bool
}

// New returns an empty log. It creates no file.
func New(dir, id string, cfg Config) *Log {
	keep := cfg.Keep
	if keep <= 0 {
		keep = defaultKeep
	}
	keep = max(keep, minKeep)
	l := &Log{dir: dir, id: id, segMax: keep / 2, blockSize: blockSize, maxTail: maxTail, followers: map[*follower]struct{}{}}
	if cfg.Small {
		l.blockSize, l.maxTail = smallBlock, smallTail
	}
	return l
}

// Open returns the log that an earlier Log, perhaps of an earlier process, left on
// disk. Without files the log is empty. The log continues after the last complete
// record. If the command has ended, call Finish.
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
		// A crash of the machine destroyed the end of the older file, so there is a
		// gap between the files. Keep only the newer one.
		found = found[1:]
	}
	for _, s := range found {
		l.segs = append(l.segs, &segment{segmentStart: s.segmentStart, base: l.end, size: s.size})
		l.end += s.size
		l.offsets = s.ends
	}
	return l, nil
}

// Append adds b to a stream. offset is the position of b in the stream. Append skips
// bytes that the log already has; a gap is an error. It waits, until ctx ends, for
// followers that would lose unread records. After an error, Offsets tells how much of
// b was kept.
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
			return fmt.Errorf("%s at offset %d does not continue the log, which ends at %d", stream, offset, have)
		case have-offset >= int64(len(b)):
			return nil
		case l.finished:
			return fmt.Errorf("append to %s: the log is finished", stream)
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
			return fmt.Errorf("write %s: %w", stream, err)
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

// mustWait returns nil if there is space for rec. Otherwise rec would replace records
// that a follower has not read, and mustWait returns a channel to wait on.
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

// put adds one record to memory and, after the log has spilled, to disk. After an
// error the log has no part of the record.
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

// lastBlock returns a block with space for n bytes. Once the log has spilled, it
// drops the oldest block of a full tail: that data is on disk.
func (l *Log) lastBlock(n int) *block {
	if k := len(l.tail); k > 0 && (len(l.segs) == 0 || len(l.tail[k-1].buf)+n <= l.blockSize) {
		return l.tail[k-1]
	}
	blk := &block{base: l.end}
	if len(l.tail) == l.maxTail {
		if oldest := l.tail[0]; !l.held(oldest) {
			blk.buf = oldest.buf[:0]
		}
		copy(l.tail, l.tail[1:])
		l.tail = l.tail[:l.maxTail-1]
	}
	if cap(blk.buf) < l.blockSize && (len(l.tail) > 0 || len(l.segs) > 0) {
		blk.buf = make([]byte, 0, l.blockSize)
	}
	l.tail = append(l.tail, blk)
	return blk
}

// held reports whether the caller of a follower may still read bytes of blk.
func (l *Log) held(blk *block) bool {
	if blk.lent {
		return true
	}
	for f := range l.followers {
		if f.holds == blk {
			return true
		}
	}
	return false
}

// spill creates the first file and writes the records in memory to it.
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

// rotate starts a new segment. It replaces the older of two.
func (l *Log) rotate() error {
	if err := l.closeFile(); err != nil {
		return err
	}
	if len(l.segs) == 2 {
		// Forget the older file first: create may fail after it has overwritten a
		// part.
		l.segs = l.segs[1:]
	}
	return l.create(segmentStart{seq: l.segs[0].seq + 1, offsets: l.offsets}, l.end)
}

// create starts a new last segment. It overwrites an existing file without truncating
// it, because new pages would cost more than the copy into them. The offsets of the
// old records after the new ones do not continue the stream, so a reader takes them
// for damaged. closeFile truncates them.
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

// closeFile truncates and closes the file of the last segment.
func (l *Log) closeFile() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Truncate(segmentHeader + l.segs[len(l.segs)-1].size)
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}

// Offsets returns the length of each stream, including the bytes that are no longer
// kept. The next Append continues there.
func (l *Log) Offsets() (stdout, stderr int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offsets[0], l.offsets[1]
}

// Followed reports whether the log has followers.
func (l *Log) Followed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.followers) > 0
}

// Size returns the number of bytes on disk.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var size int64
	for _, s := range l.segs {
		size += s.size
	}
	return size
}

// Dropped returns the number of bytes, of both streams, that are no longer kept.
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

// Finish marks the end of the output, so followers reach their end, and writes the
// output to disk. After it the log holds neither memory nor an open file. If Finish
// fails, followers end too, and it can be called again.
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
			return fmt.Errorf("write the output of %s: %w", l.id, err)
		}
	}
	l.tail = nil
	return l.closeFile()
}

// Close closes the log without marking the end of the output. The files stay for Open.
// Followers, and an Append that waits, return ErrClosed. Followers of a finished log read
// on to its end, as long as its files are there: they may not have come to see it before
// the session of the command is stopped.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.tail = nil
	l.more.fire()
	l.room.fire()
	return l.closeFile()
}

// signal wakes all goroutines that wait for an event. The zero value is ready to use.
// Log.mu guards it.
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
