package output

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/skerry-dev/skerry"
)

// follower reads a log from a position on. It reads from memory, or from the files if
// it is too slow.
type follower struct {
	log *Log
	// pos is the position of the next record. log.mu guards it, because Append waits
	// for it.
	pos int64
	// holds is the block of the last returned record, if it was in memory. log.mu
	// guards it too.
	holds *block

	// reading is held by a call of Next, and by Close when it closes disk.
	reading sync.Mutex
	disk    diskReader

	done chan struct{}
	once sync.Once
}

// diskReader reads a segment ahead for a follower.
type diskReader struct {
	file *os.File
	seq  uint64
	buf  []byte
	// ahead is the read part of buf, at position pos.
	ahead []byte
	pos   int64
}

// readAhead is the size of the buffer. Every record fits.
const readAhead = 2 * (recordHeader + maxRecord)

// Follow attaches a reader that starts at the oldest record kept. The caller must
// close it.
func (l *Log) Follow() skerry.OutputReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &follower{log: l, done: make(chan struct{})}
	if len(l.segs) > 0 {
		f.pos = l.segs[0].base
	}
	l.followers[f] = struct{}{}
	return f
}

// Next implements skerry.OutputReader.
func (f *follower) Next() (skerry.Output, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	l := f.log
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		wait, err := f.waitFor()
		if err != nil {
			return skerry.Output{}, err
		}
		if wait == nil {
			break
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-f.done:
		}
		l.mu.Lock()
	}
	rec, err := f.read()
	if _, closed := f.waitFor(); closed != nil {
		// After the close of a log that is not finished, the file may have been replaced
		// during the read.
		return skerry.Output{}, closed
	}
	if err != nil {
		return skerry.Output{}, err
	}
	f.pos += int64(rec.size())
	if len(l.segs) > 0 && f.pos >= l.segs[0].end() {
		l.room.fire()
	}
	return skerry.Output{Stream: streams[rec.stream], Offset: rec.offset, Data: rec.data}, nil
}

// waitFor returns nil if there is a record to read. Otherwise it returns a channel to
// wait on, or an error if there will be no more records.
func (f *follower) waitFor() (<-chan struct{}, error) {
	select {
	case <-f.done:
		return nil, ErrClosed
	default:
	}
	switch l := f.log; {
	case l.closed && !l.finished:
		return nil, ErrClosed
	case f.pos < l.end:
		return nil, nil
	case l.finished:
		return nil, io.EOF
	default:
		return l.more.wait(), nil
	}
}

// read returns the record at f.pos. It unlocks the log while it reads a file. Append
// does not replace that file meanwhile, because f has not read it.
func (f *follower) read() (record, error) {
	l := f.log
	f.holds = nil
	for i := len(l.tail) - 1; i >= 0; i-- {
		if blk := l.tail[i]; blk.base <= f.pos {
			f.disk.close()
			f.holds = blk
			return decodeRecord(blk.buf[f.pos-blk.base:], false)
		}
	}
	for _, seg := range l.segs {
		if f.pos < seg.end() {
			at := *seg
			l.mu.Unlock()
			rec, err := f.disk.read(l, at, f.pos)
			l.mu.Lock()
			return rec, err
		}
	}
	return record{}, fmt.Errorf("output at position %d is in no file", f.pos)
}

// read returns the record at pos, which seg contains.
func (d *diskReader) read(l *Log, seg segment, pos int64) (record, error) {
	if d.file == nil || d.seq != seg.seq {
		d.close()
		f, err := os.Open(segmentPath(l.dir, l.id, seg.seq))
		if err != nil {
			return record{}, fmt.Errorf("read output: %w", err)
		}
		d.file, d.seq = f, seg.seq
	}
	if skip := pos - d.pos; skip >= 0 && skip <= int64(len(d.ahead)) {
		if rec, err := decodeRecord(d.ahead[skip:], true); err == nil {
			return rec, nil
		}
	}
	if d.buf == nil {
		d.buf = make([]byte, readAhead)
	}
	n, err := d.file.ReadAt(d.buf[:min(readAhead, seg.end()-pos)], segmentHeader+pos-seg.base)
	if err != nil && err != io.EOF {
		return record{}, fmt.Errorf("read output: %w", err)
	}
	d.ahead, d.pos = d.buf[:n], pos
	rec, err := decodeRecord(d.ahead, true)
	if err != nil {
		return record{}, fmt.Errorf("read output at position %d: %w", pos, err)
	}
	return rec, nil
}

func (d *diskReader) close() {
	if d.file != nil {
		d.file.Close()
	}
	*d = diskReader{}
}

// Close implements skerry.OutputReader. A Next that waits returns ErrClosed.
func (f *follower) Close() error {
	f.once.Do(func() {
		close(f.done)
		f.log.mu.Lock()
		if f.holds != nil {
			f.holds.lent = true
		}
		delete(f.log.followers, f)
		f.log.room.fire()
		f.log.mu.Unlock()
		f.reading.Lock()
		f.disk.close()
		f.reading.Unlock()
	})
	return nil
}
