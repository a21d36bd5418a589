package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry/internal/atomicfile"
)

// Sink is where a log is copied to.
type Sink interface {
	// Deliver sends lines, which have no line feeds. After an error they are sent again,
	// unless it is ErrRefused.
	Deliver(ctx context.Context, lines [][]byte) error
	// Idle is called when there is nothing to deliver, and after Copy.Wake.
	Idle() error
	Close() error
}

// ErrRefused is the error of lines that a sink will never take.
var ErrRefused = errors.New("the records were refused")

const (
	copyLines = 256
	// cursorEvery is how often the position of a copy is written. After a crash the
	// copy has the records since twice.
	cursorEvery = time.Second
	backoffMin  = time.Second
	backoffMax  = 30 * time.Second
)

// Copy copies a log to a sink. It reads the files of the log, at its own speed: a sink that
// is slow or dead costs neither memory nor time of others, and gets what it has missed
// when it works again, unless that was removed from the log meanwhile.
type Copy struct {
	l      *Log
	name   string
	sink   Sink
	log    *slog.Logger
	fault  rate.Sometimes
	wake   chan struct{}
	stop   chan struct{}
	done   chan struct{}
	cancel context.CancelFunc

	delivered, refused atomic.Int64
	cursor             Position // as it was written
	cursorAt           time.Time
}

// StartCopy starts to copy a log to a sink, which it closes at its end. It goes on where
// the copy of this name in an earlier process ended. A new one begins with the present
// process.
func StartCopy(l *Log, name string, sink Sink) *Copy {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Copy{
		l: l, name: name, sink: sink, log: l.o.Log, fault: rate.Sometimes{Interval: complainEvery},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), cancel: cancel,
	}
	go c.run(ctx)
	return c
}

// Wake has the sink called.
func (c *Copy) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Delivered returns how many records the sink took, and how many it refused.
func (c *Copy) Delivered() (delivered, refused int64) { return c.delivered.Load(), c.refused.Load() }

// Close delivers what is in the log, and ends the copy. It returns when that is done or ctx
// ends. The next process delivers the rest.
func (c *Copy) Close(ctx context.Context) error {
	close(c.stop)
	defer c.cancel()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.cancel()
	select {
	case <-c.done:
	case <-time.After(time.Second): // a sink that does not look at its context
	}
	return fmt.Errorf("the copy %q of the audit log is not complete", c.name)
}

func (c *Copy) run(ctx context.Context) {
	defer close(c.done)
	defer func() {
		if err := c.sink.Close(); err != nil {
			c.complain(err)
		}
	}()
	at := c.begin()
	c.cursor = Position{File: -1} // there may be none
	c.save(at, true)
	r := NewReader(c.l.o.Dir, at)
	defer r.Close()
	for {
		changed := c.l.progress()
		stopping := closed(c.stop)
		lines, err := c.read(r)
		if err != nil {
			c.complain(err)
			if !c.pause(ctx, backoffMax) {
				return
			}
			continue
		}
		if len(lines) > 0 {
			if !c.deliver(ctx, lines) {
				return
			}
			c.save(r.Position(), false)
			continue
		}
		c.save(r.Position(), true)
		if stopping {
			return
		}
		if err := c.sink.Idle(); err != nil {
			c.complain(err)
		}
		select {
		case <-changed:
		case <-c.wake:
		case <-c.stop:
		case <-ctx.Done():
			return
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// progress returns a channel that is closed when there are more lines.
func (l *Log) progress() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (c *Copy) complain(err error) {
	c.fault.Do(func() { c.log.Warn("the audit log cannot be copied", "to", c.name, "error", err) })
}

// read returns the next lines. Those that are no records are left out: a copy has nothing
// that the server did not write.
func (c *Copy) read(r *Reader) (lines [][]byte, err error) {
	for len(lines) < copyLines {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if len(lines) > 0 {
				break // it will be met again
			}
			return nil, err
		}
		if _, err := unseal(line.Bytes); err != nil {
			c.complain(fmt.Errorf("%s, line %d: %w", line.File, line.Number, err))
			continue
		}
		lines = append(lines, slices.Clone(line.Bytes))
	}
	if r.Missed() {
		c.log.Warn("files of the audit log were removed before they were copied", "to", c.name)
	}
	return lines, nil
}

// deliver sends lines until they are taken or refused, and reports false if ctx ended
// before.
func (c *Copy) deliver(ctx context.Context, lines [][]byte) bool {
	for wait := backoffMin; ; wait = min(2*wait, backoffMax) {
		err := c.sink.Deliver(ctx, lines)
		switch {
		case err == nil:
			c.delivered.Add(int64(len(lines)))
			return true
		case errors.Is(err, ErrRefused):
			c.refused.Add(int64(len(lines)))
			c.complain(fmt.Errorf("%w; %d records so far", err, c.refused.Load()))
			return true
		}
		c.complain(err)
		if !c.pause(ctx, wait) {
			return false
		}
	}
}

// pause waits, less if the copy is woken, and reports false if ctx ended.
func (c *Copy) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.wake:
	case <-ctx.Done():
		return false
	}
	return true
}

func (c *Copy) cursorPath() string { return filepath.Join(c.l.o.Dir, "cursor."+c.name) }

// begin returns the position at which the copy goes on.
func (c *Copy) begin() Position {
	var at Position
	data, err := os.ReadFile(c.cursorPath())
	if errors.Is(err, os.ErrNotExist) {
		return c.l.began
	}
	if err == nil {
		err = json.Unmarshal(data, &at)
	}
	if err != nil || at.File < 0 || at.Offset < 0 {
		c.complain(fmt.Errorf("its position is lost, and all records are copied again: %v", err))
		return Position{}
	}
	if at.File > c.l.began.File || at.File == c.l.began.File && at.Offset > c.l.began.Offset {
		return c.l.began // what it had is not in the log any more
	}
	return at
}

// save writes the position, at most each cursorEvery unless now is set.
func (c *Copy) save(at Position, now bool) {
	if at == c.cursor || !now && time.Since(c.cursorAt) < cursorEvery {
		return
	}
	data, err := json.Marshal(at)
	if err == nil {
		err = atomicfile.Write(c.cursorPath(), append(data, '\n'))
	}
	if err != nil {
		c.complain(err)
		return
	}
	c.cursor, c.cursorAt = at, time.Now()
}

// FileSink appends the log to a file, which others may rotate.
type FileSink struct {
	path string
	f    *os.File
}

// NewFileSink returns a sink that appends to the file at path; "-" is standard output. The
// file is opened when it is needed, and again after it was renamed or removed.
func NewFileSink(path string) *FileSink { return &FileSink{path: path} }

// open sees to it that f is the file that is at the path.
func (s *FileSink) open() error {
	if s.path == "-" {
		s.f = os.Stdout
		return nil
	}
	if s.f != nil {
		have, err := s.f.Stat()
		if err != nil {
			return err
		}
		at, err := os.Stat(s.path)
		if err == nil && os.SameFile(have, at) {
			return nil
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	// A pipe without a reader is an error and does not block.
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	s.f = f
	return nil
}

// Deliver implements Sink.
func (s *FileSink) Deliver(_ context.Context, lines [][]byte) error {
	if err := s.open(); err != nil {
		return err
	}
	var all []byte
	for _, line := range lines {
		all = append(append(all, line...), '\n')
	}
	before, err := s.f.Stat()
	if err != nil {
		return err
	}
	n, err := s.f.Write(all)
	if err != nil && n > 0 && s.path != "-" && before.Mode().IsRegular() {
		err = errors.Join(err, s.f.Truncate(before.Size())) // all lines are sent again
	}
	return err
}

// Idle implements Sink.
func (s *FileSink) Idle() error {
	if s.f == nil {
		return nil
	}
	return s.open()
}

// Close implements Sink.
func (s *FileSink) Close() error {
	if s.f == nil || s.path == "-" {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}
