package output

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/skerry-dev/skerry"
)

// follower reads a log from a position on: from memory while it keeps up, from
// the files when it is behind.
type follower struct {
	log *Log
	// pos is the position of the next record; guarded by log.mu, because
	// Append waits for it.
	pos int64
	// holds is the block, if any, that the record returned last is in; also
	// guarded by log.mu.
	holds *block

	// calls serializes Next with the release of what Next reads from.
	calls sync.Mutex
	disk  diskReader

	done chan struct{}
	once sync.Once
}

// diskReader holds what a follower has read ahead from a segment.
type diskReader struct {
	file *os.File
	seq  uint64
	buf  []byte
	// ahead is the read part of buf, at position pos.
	ahead []byte
	pos   int64
}

// readAhead is large enough for any record.
const readAhead = 2 * (recordHeader + maxRecord)

// Follow attaches a reader that starts at the oldest record kept. It must be
// closed.
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
func (f *follower) Next() (skerry.Stream, []byte, error) {
	f.calls.Lock()
	defer f.calls.Unlock()
	l := f.log
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		wait, err := f.waitFor()
		if err != nil {
			return "", nil, err
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
		// Since the close nothing kept the file that was being read.
		return "", nil, closed
	}
	if err != nil {
		return "", nil, err
	}
	f.pos += int64(rec.size())
	if len(l.segs) > 0 && f.pos >= l.segs[0].end() {
		l.room.fire()
	}
	return streams[rec.stream], rec.data, nil
}

// waitFor returns nil when there is a record to read, and otherwise what to
// wait on or why there will be none.
func (f *follower) waitFor() (<-chan struct{}, error) {
	select {
	case <-f.done:
		return nil, ErrClosed
	default:
	}
	switch l := f.log; {
	case l.closed:
		return nil, ErrClosed
	case f.pos < l.end:
		return nil, nil
	case l.finished:
		return nil, io.EOF
	default:
		return l.more.wait(), nil
	}
}

// read returns the record at f.pos. It gives up the lock while it reads a
// file; that file stays, as f has not read it.
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
		delete(f.log.followers, f)
		f.log.room.fire()
		f.log.mu.Unlock()
		f.calls.Lock()
		f.disk.close()
		f.calls.Unlock()
	})
	return nil
}
