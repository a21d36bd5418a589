package drivertest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
)

// fork begins to save the machine for others.
func (b *box) fork(dir string, goesOn func()) driver.Fork {
	b.t.Helper()
	f, err := b.Fork(b.t.Context(), dir, goesOn)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// forks reports whether the driver forks. It fails if the driver says otherwise.
func (b *box) forks() bool {
	b.t.Helper()
	if b.l.Driver.Capabilities().Fork {
		return true
	}
	if _, err := b.Fork(b.t.Context(), b.t.TempDir(), func() {}); err == nil {
		b.t.Error("the driver forks, but says otherwise")
	}
	b.answers()
	return false
}

func fork(t *testing.T, l *Lab) {
	b := l.start(t, "parent", driver.Source{})
	if !b.forks() {
		return
	}
	b.command("count", "n")
	n := b.goesOn("n", 0)
	dir := t.TempDir()
	var went atomic.Int32
	f := b.fork(dir, func() { went.Add(1) })
	child := l.start(t, "child", driver.Source{Fork: f})
	select {
	case <-f.Done():
	default:
		t.Error("a machine has started before its source was saved")
	}
	if err := f.Err(); went.Load() != 1 || err != nil || f.Standing() {
		t.Errorf("the source went on %d times, the save: %v, it stands still: %v", went.Load(), err, f.Standing())
	}
	child.goesOn("n", n)
	b.goesOn("n", n)
	l.start(t, "later", driver.Source{Memory: dir}).goesOn("n", n)
	// A machine that has ended cannot be forked.
	l.Kill(t, b.Machine)
	<-b.Machine.Done()
	spec := l.Spec("orphan")
	went.Store(0)
	spec.Source.Fork = b.fork(t.TempDir(), func() { went.Add(1) })
	if _, err := l.Driver.Start(within(t, patience), spec); err == nil {
		t.Error("a machine that has ended is forked")
	}
	<-spec.Source.Fork.Done()
	if err := spec.Source.Fork.Err(); err == nil || went.Load() != 1 {
		t.Errorf("the save of a machine that has ended: %v, it went on %d times", err, went.Load())
	}
	if left := l.Left(t, "orphan"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// forkShared: machines share the save of another one, and each has what that one had done
// when it was still standing.
func forkShared(t *testing.T, l *Lab) {
	b := l.start(t, "source", driver.Source{})
	if !b.forks() {
		return
	}
	tally := b.command("tally", "n")
	lines := bufio.NewReader(&reader{b, tally, nil})
	for round := range 3 {
		f := b.fork(t.TempDir(), func() {})
		var last string
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			// What the line tells was done before. If the machine is still standing now, it
			// is in the save.
			if !f.Standing() {
				break
			}
			last = strings.TrimSpace(line)
		}
		var together sync.WaitGroup
		var machines [3]driver.Machine
		var errs [3]error
		from := driver.Source{Fork: f}
		for i := range machines {
			spec := l.Spec(fmt.Sprintf("child%d%d", round, i))
			spec.Source = from
			together.Go(func() { machines[i], errs[i] = l.Driver.Start(within(t, patience), spec) })
		}
		together.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		file, text, _ := strings.Cut(last, " ")
		for _, m := range machines {
			child := l.greet(t, m, from)
			if last != "" {
				child.says(text, "read", file)
			}
			child.stop(t)
		}
	}
}

// reader reads the standard output of a command.
type reader struct {
	b    *box
	p    *guest.Process
	rest []byte
}

func (r *reader) Read(to []byte) (int, error) {
	if len(r.rest) == 0 {
		chunk, err := r.p.Next(within(r.b.t, patience))
		if err != nil {
			return 0, err
		}
		r.rest = bytes.Clone(chunk.Data)
		if err := r.p.Ack(chunk.Stream, chunk.End()); err != nil {
			return 0, err
		}
	}
	n := copy(to, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
