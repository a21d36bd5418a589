package audit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Defaults of Options.
const (
	DefaultMaxBytes = 1 << 30
	DefaultKeep     = 90 * 24 * time.Hour
	// DefaultFileBytes is the size at which a file ends.
	DefaultFileBytes = 64 << 20
)

const (
	// fileAge is the age at which a file ends, so that records do not get much older
	// than Options.Keep.
	fileAge = 24 * time.Hour
	// filesLeast is the least number of files that Options.MaxBytes is divided into.
	filesLeast = 8
	// maxWait is how long a call waits for its record.
	maxWait = 2 * time.Second
	// syncEvery is how long a record may be in memory only. A loss of power loses it.
	syncEvery = time.Second
	// retryEvery is the interval of attempts to write after one has failed.
	retryEvery = time.Second
	// maxQueue bounds the records that wait to be written.
	maxQueue = 8192
	// maxWrite is the number of records that are written at once.
	maxWrite = 512
	// keepBuffer is the largest buffer for lines that is kept, in bytes.
	keepBuffer = 1 << 20
	// complainEvery is the least time between two lines in the server's log about the
	// same fault.
	complainEvery = time.Minute
	// anchorEvery is the interval of the lines in the server's log that name the last
	// record: whoever keeps that log elsewhere can tell whether this one was rewritten.
	anchorEvery = time.Hour
)

// Errors of Record.
var (
	errClosed = errors.New("the audit log is closed")
	errFull   = errors.New("too many records wait to be written to the audit log")
	errSlow   = fmt.Errorf("the audit log was not written within %s", maxWait)
)

// Options are the options of a Log.
type Options struct {
	// Dir is the folder of the log. It is created if needed.
	Dir string
	// MaxBytes and Keep limit the size and the age of the log. Whole files are removed,
	// the oldest first, but never the last one. Zero values are the defaults, negative
	// ones are no limit.
	MaxBytes int64
	Keep     time.Duration
	// FileBytes is the size at which a file ends.
	FileBytes int64
	// Instance and Version name the writer.
	Instance, Version string
	// Log gets faults, and the last record from time to time. Required.
	Log *slog.Logger

	// wait is maxWait, and open is openFile, except in tests.
	wait time.Duration
	open func(path string, create bool) (file, error)
}

// file is what a Log needs of an *os.File.
type file interface {
	Write([]byte) (int, error)
	Truncate(int64) error
	Sync() error
	Close() error
}

func openFile(path string, create bool) (file, error) {
	flags := os.O_WRONLY | os.O_APPEND
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Log writes an audit log. Its methods may be called by several goroutines.
type Log struct {
	o     Options
	fault rate.Sometimes // limits complaints

	mu      sync.Mutex
	queue   []Record
	group   *group // of the records in queue
	flood   *flood
	lost    int64 // records that were dropped
	since   time.Time
	failing error // of the last attempt to write; nil if it went well
	syncErr error // of the last attempt to write to disk
	stuck   bool  // an attempt takes too long
	closed  bool
	changed chan struct{} // closed when lines were written
	began   Position      // where the lines of this process begin

	wake chan struct{}
	stop chan struct{}
	done chan struct{}

	// The rest belongs to the goroutine that writes.
	file    file
	number  int   // of the file
	size    int64 // of its whole lines
	begun   time.Time
	dirty   bool // there is a part of a line behind size
	found   *tail
	seq     int64
	hash    string
	tell    int64 // seq of the last record that the server's log names
	buf     bytes.Buffer
	syncing chan syncResult // nil if none is in progress
	head    head            // as it was written
	retire  bool            // old files may have to be removed
}

// group are records that are written together. err is set before done is closed.
type group struct {
	done chan struct{}
	err  error
}

// syncResult is the end of a sync, and what is on disk if it went well.
type syncResult struct {
	head head
	err  error
}

// Open opens the log in a folder, which no other process may write to meanwhile. A log
// that cannot be written, because the disk is full for example, is no error: see Ready.
func Open(o Options) (*Log, error) {
	o.MaxBytes, o.Keep = cmp.Or(o.MaxBytes, DefaultMaxBytes), cmp.Or(o.Keep, DefaultKeep)
	o.FileBytes = cmp.Or(o.FileBytes, DefaultFileBytes)
	if o.MaxBytes > 0 {
		o.FileBytes = min(o.FileBytes, max(o.MaxBytes/filesLeast, 1))
	}
	o.wait = cmp.Or(o.wait, maxWait)
	if o.open == nil {
		o.open = openFile
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	found, err := findTail(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l := &Log{
		o: o, fault: rate.Sometimes{Interval: complainEvery}, flood: newFlood(), group: &group{done: make(chan struct{})},
		changed: make(chan struct{}), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		found: found, seq: found.seq, hash: found.hash, retire: true,
		began: Position{File: found.file, Offset: found.size},
	}
	l.begin()
	go l.run()
	return l, nil
}

// begin queues the first records of this process.
func (l *Log) begin() {
	t := l.found
	if m := t.missing; m != nil {
		l.o.Log.Error("records are missing at the end of the audit log", "first", t.seq+1, "last", m.Seq)
		l.note(opMissing, &Note{Through: m.Seq, Hash: m.Hash, Count: m.Seq - t.seq})
		// No number is used twice: a copy elsewhere may have the records.
		l.seq = m.Seq
	}
	if t.extra > 0 {
		l.o.Log.Warn("the end of the audit log is not whole and is moved aside", "file", t.tornName(), "bytes", t.extra)
		l.note(opTorn, &Note{File: t.tornName(), Bytes: t.extra})
	}
	l.note(opOpened, &Note{Instance: l.o.Instance, Version: l.o.Version})
}

// note queues a record of the log about itself. It is never dropped: there are few.
func (l *Log) note(op string, n *Note) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, noteRecord(op, n))
	l.poke()
}

func noteRecord(op string, n *Note) Record {
	return Record{Time: formatTime(time.Now()), Operation: op, Actor: &Actor{Kind: ActorServer}, Log: n}
}

// poke wakes the writer.
func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Record adds an event. With wait it returns when the record is in the log's file, or has
// not got there in two seconds. After an error the record is written later if it can be,
// and otherwise counted.
func (l *Log) Record(e Event, wait bool) error {
	e = e.bounded()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errClosed
	}
	if e.Refused && !l.flood.admit(&e, time.Now()) {
		l.mu.Unlock()
		return nil
	}
	if len(l.queue) >= maxQueue {
		if l.lost++; l.since.IsZero() {
			l.since = time.Now()
		}
		l.mu.Unlock()
		return errFull
	}
	l.queue = append(l.queue, e.record())
	group, failing := l.group, l.unready()
	l.poke()
	l.mu.Unlock()
	if !wait || failing != nil {
		return failing
	}
	timer := time.NewTimer(l.o.wait)
	defer timer.Stop()
	select {
	case <-group.done:
		return group.err
	case <-timer.C:
		l.mu.Lock()
		l.stuck = true
		l.mu.Unlock()
		return errSlow
	}
}

// Ready returns an error while the log cannot be written.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	return l.unready()
}

func (l *Log) unready() error {
	if l.failing == nil && l.syncErr == nil && l.stuck {
		return errSlow
	}
	return cmp.Or(l.failing, l.syncErr)
}

// Lost returns the number of records that were dropped and that no record tells of yet.
func (l *Log) Lost() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Close writes what is queued, and ends the log.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing != nil {
		return fmt.Errorf("close the audit log: %w; %d records are lost", l.failing, int64(len(l.queue))+l.lost)
	}
	return nil
}
