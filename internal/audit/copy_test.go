package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a sink that keeps what it gets, unless it has an error.
type memory struct {
	mu    sync.Mutex
	err   error
	lines []string
	calls int
	hang  bool // until the context ends
}

func (m *memory) Deliver(ctx context.Context, lines [][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if m.err != nil {
		return m.err
	}
	for _, l := range lines {
		m.lines = append(m.lines, string(l))
	}
	return nil
}

func (m *memory) Idle() error  { return nil }
func (m *memory) Close() error { return nil }

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// seqs returns the numbers of the records that a sink has got.
func seqs(t *testing.T, lines []string) (numbers []int64) {
	t.Helper()
	for _, line := range lines {
		r, err := unseal([]byte(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		numbers = append(numbers, r.Seq)
	}
	return numbers
}

func upTo(n int64) (numbers []int64) {
	for i := range n {
		numbers = append(numbers, i+1)
	}
	return numbers
}

// TestCopy has a sink get every record once: over files, while it fails, and when the
// server starts again.
func TestCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		o.FileBytes = 3000
		sink := &memory{}
		n := 0
		for range 3 {
			l := open(t, o)
			c := StartCopy(l, "test", sink)
			record(t, l, n, 20)
			synctest.Wait()
			sink.fail(errors.New("no"))
			record(t, l, n+20, 20)
			time.Sleep(time.Minute)
			sink.fail(nil)
			n += 40
			time.Sleep(backoffMax)
			record(t, l, n, 1)
			n++
			closeLog(t, l)
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if delivered, refused := c.Delivered(); delivered < 42 || refused != 0 {
				t.Errorf("%d delivered, %d refused", delivered, refused)
			}
		}
		if got := seqs(t, sink.lines); !slices.Equal(got, upTo(3*43)) {
			t.Errorf("got %v", got)
		}
	})
}

// TestCopyBegins has a new copy have nothing from before this process.
func TestCopyBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		l := open(t, o)
		record(t, l, 0, 5)
		closeLog(t, l)
		l = open(t, o)
		record(t, l, 0, 5)
		sink := &memory{}
		c := StartCopy(l, "test", sink)
		synctest.Wait()
		closeLog(t, l)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got := seqs(t, sink.lines); !slices.Equal(got, upTo(14)[7:]) {
			t.Errorf("got %v", got)
		}
	})
}

// TestCopyRefused has records that a sink will never take not be in the way of others.
func TestCopyRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, options(t.TempDir()))
		sink := &memory{err: ErrRefused}
		c := StartCopy(l, "test", sink)
		record(t, l, 0, 1)
		synctest.Wait()
		sink.fail(nil)
		record(t, l, 1, 1)
		synctest.Wait()
		closeLog(t, l)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got := seqs(t, sink.lines); !slices.Equal(got, []int64{3, 4}) {
			t.Errorf("got %v", got)
		}
		if delivered, refused := c.Delivered(); delivered != 2 || refused != 2 {
			t.Errorf("%d delivered, %d refused", delivered, refused)
		}
	})
}

// TestDeadSink has a sink that does not answer delay nothing, and the end of the server no
// longer than it may; what it has not got it gets from the next process.
func TestDeadSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t.TempDir())
		l := open(t, o)
		dead := &memory{hang: true}
		c := StartCopy(l, "test", dead)
		before := time.Now()
		record(t, l, 0, 2000)
		if waited := time.Since(before); waited != 0 {
			t.Errorf("the records waited for %s", waited)
		}
		closeLog(t, l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Close(ctx); err == nil || time.Since(before) != time.Second {
			t.Errorf("%v after %s", err, time.Since(before))
		}
		l = open(t, o)
		sink := &memory{}
		c = StartCopy(l, "test", sink)
		closeLog(t, l)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if got := seqs(t, sink.lines); !slices.Equal(got, upTo(2004)) {
			t.Errorf("got %d records, from %d", len(got), got[0])
		}
	})
}

// TestCopyMisses has a copy that is slower than the log's retention go on with what there
// is.
func TestCopyMisses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		o := options(t.TempDir())
		o.MaxBytes = 20_000
		o.Log = textLog(&logged)
		l := open(t, o)
		sink := &memory{err: errors.New("no")}
		c := StartCopy(l, "test", sink)
		record(t, l, 0, 1)
		synctest.Wait()
		record(t, l, 1, 300)
		sink.fail(nil)
		c.Wake()
		synctest.Wait()
		record(t, l, 301, 1)
		closeLog(t, l)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		got := seqs(t, sink.lines)
		report := verified(t, o.Dir)
		if !slices.IsSorted(got) || got[0] != 1 || got[len(got)-1] != report.Last || int64(len(got)) < report.Records || int64(len(got)) == report.Last {
			t.Errorf("got %v, the log has %+v", got, report)
		}
		if !strings.Contains(logged.String(), "files of the audit log were removed before they were copied") {
			t.Errorf("the server's log says %s", &logged)
		}
	})
}

// TestFileSink has a file get the records that others rename, remove and cut.
func TestFileSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, options(t.TempDir()))
		dir := t.TempDir()
		path := filepath.Join(dir, "audit.jsonl")
		c := StartCopy(l, "file", NewFileSink(path))
		record(t, l, 0, 1)
		synctest.Wait()
		rename := func(to string) {
			if err := os.Rename(path, filepath.Join(dir, to)); err != nil {
				t.Fatal(err)
			}
		}
		rename("1")
		record(t, l, 1, 1) // without a word
		synctest.Wait()
		rename("2")
		c.Wake() // as SIGHUP does
		synctest.Wait()
		if info, err := os.Stat(path); err != nil || info.Size() != 0 || info.Mode() != 0o600 {
			t.Errorf("after a wake: %v, %v", info, err)
		}
		record(t, l, 2, 1)
		synctest.Wait()
		rename("3")
		if err := os.Mkdir(path, 0o700); err != nil { // cannot be written
			t.Fatal(err)
		}
		record(t, l, 3, 1)
		synctest.Wait()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * backoffMin)
		copyFile(t, path, filepath.Join(dir, "4"))
		if err := os.Truncate(path, 0); err != nil { // as logrotate's copytruncate
			t.Fatal(err)
		}
		closeLog(t, l)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		var got []string
		for _, name := range []string{"1", "2", "3", "4", "audit.jsonl"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(data)) {
				got = append(got, strings.TrimSuffix(line, "\n"))
			}
		}
		if n := seqs(t, got); !slices.Equal(n, upTo(6)) {
			t.Errorf("got %v", n)
		}
	})
}
