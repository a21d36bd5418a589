package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// run writes until the log is closed.
func (l *Log) run() {
	defer close(l.done)
	summarize, anchor := time.NewTicker(summarizeEvery), time.NewTicker(anchorEvery)
	defer summarize.Stop()
	defer anchor.Stop()
	// A timer is nil while there is nothing to wait for.
	var retry, sync <-chan time.Time
	wake := l.wake
	write := func() {
		if err := l.drain(); err != nil {
			wake, retry = nil, time.After(retryEvery) // what is queued waits for the next attempt
			return
		}
		wake, retry = l.wake, nil
		switch {
		case l.head.Seq == 0:
			l.beginSync() // so that a log has a head from its beginning
		case sync == nil && l.seq != l.head.Seq:
			sync = time.After(syncEvery)
		}
	}
	for {
		select {
		case <-wake:
			write()
		case <-retry:
			write()
		case <-sync:
			sync = nil
			l.beginSync()
		case r := <-l.syncing:
			l.endSync(r)
			if l.seq != l.head.Seq {
				sync = time.After(syncEvery)
			}
		case <-summarize.C:
			l.summarize()
		case <-anchor.C:
			l.retire = true
			l.anchor()
			l.poke()
		case <-l.stop:
			l.finish()
			return
		}
	}
}

// summarize records the refused calls that have no record.
func (l *Log) summarize() {
	l.mu.Lock()
	n := l.flood.summary(time.Now())
	l.mu.Unlock()
	if n != nil {
		l.note(opSuppressed, n)
	}
}

// drain writes what is queued.
func (l *Log) drain() error {
	l.mu.Lock()
	batch, g := l.queue, l.group
	l.group = &group{done: make(chan struct{})} // of the records that are added meanwhile
	lost, since := l.lost, l.since
	l.mu.Unlock()
	written, err := l.writeAll(batch, lost, since)
	l.mu.Lock()
	if l.queue = l.queue[written:]; len(l.queue) == 0 {
		l.queue = nil // its array may be large
	}
	if l.failing = err; err == nil {
		l.stuck = false
		if l.lost -= lost; l.lost == 0 {
			l.since = time.Time{}
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	g.err = err
	close(g.done)
	if err != nil {
		l.complain("the audit log cannot be written", err)
		return err
	}
	if l.tell == 0 {
		l.anchor()
	}
	if l.retire {
		l.retire = false
		if err := l.retain(); err != nil {
			l.complain("old files of the audit log cannot be removed", err)
		}
	}
	return nil
}

func (l *Log) complain(what string, err error) {
	l.fault.Do(func() { l.o.Log.Error(what, "dir", l.o.Dir, "lost", l.Lost(), "error", err) })
}

// writeAll writes a batch in parts, and returns how many of its records are written.
func (l *Log) writeAll(batch []Record, lost int64, since time.Time) (written int, err error) {
	for {
		part := batch[written:min(written+maxWrite, len(batch))]
		last := written+len(part) == len(batch)
		n := lost
		if !last {
			n = 0
		}
		if err := l.write(part, n, since); err != nil {
			return written, err
		}
		if written += len(part); last {
			return written, nil
		}
	}
}

// write appends records to the file. If it fails, it can be repeated with the same ones.
func (l *Log) write(batch []Record, lost int64, since time.Time) error {
	if len(batch) == 0 && lost == 0 {
		return nil
	}
	if err := l.prepare(); err != nil {
		return err
	}
	seq, hash := l.seq, l.hash
	add := func(r Record) {
		seq++
		r.Seq, r.Prev = seq, hash
		hash = seal(&l.buf, &r)
	}
	for _, r := range batch {
		add(r)
	}
	if lost > 0 {
		add(noteRecord(opLost, &Note{Count: lost, Since: formatTime(since)}))
	}
	err := l.append(l.buf.Bytes())
	if l.buf.Reset(); l.buf.Cap() > keepBuffer {
		l.buf = bytes.Buffer{}
	}
	if err != nil {
		return err
	}
	l.seq, l.hash = seq, hash
	return nil
}

// append writes lines, or takes back what was written of them.
func (l *Log) append(lines []byte) error {
	n, err := l.file.Write(lines)
	if err != nil {
		l.dirty = n > 0
		return fmt.Errorf("write to %s: %w", fileName(l.number), errors.Join(err, l.clean()))
	}
	l.size += int64(n)
	return nil
}

// clean removes a part of a line at the end of the file.
func (l *Log) clean() error {
	if !l.dirty {
		return nil
	}
	if err := l.file.Truncate(l.size); err != nil {
		return err
	}
	l.dirty = false
	return nil
}

// prepare sees to it that there is a file to append to, which ends with a whole line.
func (l *Log) prepare() error {
	if err := l.takeOver(); err != nil {
		return err
	}
	if err := l.clean(); err != nil {
		return err
	}
	if l.file != nil && (l.size == 0 || l.size < l.o.FileBytes && time.Since(l.begun) < fileAge) {
		return nil
	}
	return l.rotate()
}

// takeOver opens the last file of an earlier process.
func (l *Log) takeOver() error {
	t := l.found
	if t == nil {
		return nil
	}
	if t.extra > 0 {
		if err := t.setAside(l.o.Dir); err != nil {
			return fmt.Errorf("set aside the end of %s: %w", fileName(t.file), err)
		}
		t.extra = 0
	}
	if t.file > 0 {
		f, err := l.o.open(filepath.Join(l.o.Dir, fileName(t.file)), false)
		if err != nil {
			return err
		}
		l.file, l.number, l.size, l.begun = f, t.file, t.size, time.Now()
		if begun, err := time.Parse(timeFormat, t.begun); err == nil {
			l.begun = begun
		}
	}
	l.found = nil
	return nil
}

// rotate begins the next file. If that fails, the present one is kept.
func (l *Log) rotate() error {
	path := filepath.Join(l.o.Dir, fileName(l.number+1))
	f, err := l.o.open(path, true)
	if errors.Is(err, os.ErrExist) {
		// An earlier attempt has made it. Nothing was written to it.
		f, err = l.o.open(path, false)
	}
	if err != nil {
		return err
	}
	if err := atomicfile.Sync(l.o.Dir); err != nil {
		return errors.Join(err, f.Close())
	}
	if l.file != nil {
		err := l.syncNow()
		if err := errors.Join(err, l.file.Close()); err != nil {
			l.complain("a file of the audit log may not be on disk", err)
		}
		l.anchor()
	}
	l.file, l.number, l.size, l.begun, l.retire = f, l.number+1, 0, time.Now(), true
	return nil
}

// beginSync has the file written to disk by another goroutine, unless one is at it: a
// slow disk delays no record.
func (l *Log) beginSync() {
	if l.syncing != nil || l.file == nil || l.seq == l.head.Seq {
		return
	}
	l.syncing = make(chan syncResult, 1)
	go func(f file, h head, out chan<- syncResult) {
		err := f.Sync()
		if err == nil {
			err = writeHead(l.o.Dir, h)
		}
		out <- syncResult{h, err}
	}(l.file, head{l.seq, l.hash}, l.syncing)
}

func (l *Log) endSync(r syncResult) {
	l.syncing = nil
	l.mu.Lock()
	l.syncErr = r.err
	l.mu.Unlock()
	if r.err == nil {
		l.head = r.head
		return
	}
	l.complain("the audit log cannot be written to disk", r.err)
}

// syncNow writes the file to disk, and the head.
func (l *Log) syncNow() error {
	if l.syncing != nil {
		l.endSync(<-l.syncing)
	}
	if l.seq == l.head.Seq {
		return nil
	}
	l.beginSync()
	r := <-l.syncing
	l.endSync(r)
	return r.err
}

// anchor names the last record in the server's log.
func (l *Log) anchor() {
	if l.seq != l.tell {
		l.o.Log.Info("audit log", "file", fileName(l.number), "seq", l.seq, "hash", l.hash)
		l.tell = l.seq
	}
}

// retain removes the oldest files while the log is too large or too old. A record of each
// is on disk before.
func (l *Log) retain() error {
	numbers, err := fileNumbers(l.o.Dir)
	if err != nil {
		return err
	}
	sizes, total := make([]int64, len(numbers)), int64(0)
	for i, n := range numbers {
		info, err := os.Stat(filepath.Join(l.o.Dir, fileName(n)))
		if err != nil {
			return err
		}
		sizes[i] = info.Size()
		total += sizes[i]
	}
	var notes []Record
	var remove []int
	for i, n := range numbers {
		if n >= l.number || i+1 == len(numbers) {
			break
		}
		// The next file begins where this one ends.
		next, err := firstRecord(filepath.Join(l.o.Dir, fileName(numbers[i+1])))
		if err != nil {
			return err
		}
		note := &Note{File: fileName(n), Bytes: sizes[i]}
		old := false
		if next != nil {
			note.Through, note.Hash = next.Seq-1, next.Prev
			began, err := time.Parse(timeFormat, next.Time)
			old = err == nil && l.o.Keep > 0 && time.Since(began) > l.o.Keep
		}
		if !old && (l.o.MaxBytes <= 0 || total <= l.o.MaxBytes) {
			break
		}
		total -= sizes[i]
		notes, remove = append(notes, noteRecord(opRemoved, note)), append(remove, n)
	}
	if len(remove) == 0 {
		return nil
	}
	if err := l.write(notes, 0, time.Time{}); err != nil {
		return err
	}
	if err := l.syncNow(); err != nil {
		return err
	}
	for _, n := range remove {
		if err := removeFile(l.o.Dir, n); err != nil {
			return err
		}
	}
	return atomicfile.Sync(l.o.Dir)
}

// finish writes what is queued, and closes the file.
func (l *Log) finish() {
	l.summarize()
	l.note(opClosed, &Note{Instance: l.o.Instance})
	err := l.drain()
	if l.file != nil {
		err = errors.Join(err, l.syncNow(), l.file.Close())
	}
	if err == nil {
		l.anchor()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failing = err
}
