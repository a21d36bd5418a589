package drivertest

import (
	"context"
	"errors"
	"testing"

	"github.com/skerry-dev/skerry/internal/driver"
)

// blank prepares a machine from no more than counts, and stops it at the end of the test.
func (l *Lab) blank(t *testing.T, id string) driver.Blank {
	t.Helper()
	whole := l.Spec(id)
	b, err := l.Driver.Prepare(within(t, patience), driver.Spec{
		ID: id, Interfaces: whole.Interfaces, VCPUs: whole.VCPUs, MemoryBytes: whole.MemoryBytes, DiskBytes: whole.DiskBytes,
		Processes: whole.Processes, Background: true, Agent: whole.Agent,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := l.Driver
	t.Cleanup(func() {
		if l.Driver == d {
			l.stopBlank(t, b)
		}
	})
	if b.ID() != id {
		t.Errorf("machine %s has the id %s", id, b.ID())
	}
	return b
}

// stopBlank stops a machine that was prepared.
func (l *Lab) stopBlank(t *testing.T, b driver.Blank) {
	t.Helper()
	if err := b.Stop(within(t, patience)); err != nil {
		t.Error(err)
	}
}

func (l *Lab) nothingIsLeft(t *testing.T, id string) {
	t.Helper()
	if left := l.Left(t, id); len(left) > 0 {
		t.Errorf("machine %s has left %v", id, left)
	}
}

// become starts a machine that was prepared.
func (l *Lab) become(t *testing.T, id string, from driver.Source) *box {
	t.Helper()
	b := l.blank(t, id)
	if err := b.Check(within(t, patience)); err != nil || !b.Alive() {
		t.Fatalf("a machine that was prepared: alive %v, %v", b.Alive(), err)
	}
	spec := l.Spec(id)
	spec.Source = from
	m, err := b.Start(within(t, patience), spec)
	if err != nil {
		t.Fatal(err)
	}
	return l.greet(t, m, from)
}

// prepare: a machine that was prepared becomes whatever a machine can be.
func prepare(t *testing.T, l *Lab) {
	if !l.Driver.Capabilities().Prepare {
		if b, err := l.Driver.Prepare(within(t, patience), l.Spec("none")); err == nil {
			t.Error("the driver prepares machines, but says otherwise")
			l.stopBlank(t, b)
		}
		return
	}
	fresh := l.become(t, "fresh", driver.Source{})
	fresh.says("", "write", "file", "kept")
	files := fresh.save(driver.Saving{})
	fresh.says("", "write", "file", "changed")
	l.become(t, "resumed", driver.Source{Files: files}).says("kept", "read", "file")
	if !l.Driver.Capabilities().Memory || !l.Driver.Capabilities().Fork {
		return
	}
	fresh.command("count", "n")
	n := fresh.goesOn("n", 0)
	dir := t.TempDir()
	child := l.become(t, "child", driver.Source{Fork: fresh.fork(dir, func() {})})
	n = child.goesOn("n", n)
	child.says("changed", "read", "file")
	// What it has become can be saved like any other.
	l.become(t, "woken", driver.Source{Memory: child.save(driver.Saving{Memory: true})}).goesOn("n", n)
	l.become(t, "later", driver.Source{Memory: dir}).goesOn("n", 0)
}

// unprepared: a machine that was prepared and does not start leaves nothing.
func unprepared(t *testing.T, l *Lab) {
	if !l.Driver.Capabilities().Prepare {
		return // prepare has seen that
	}
	b := l.blank(t, "blank")
	if _, err := l.Driver.Prepare(within(t, patience), l.Spec("blank")); err == nil {
		t.Error("two machines of one name are prepared")
	}
	if err := b.Check(within(t, patience)); err != nil {
		t.Error(err)
	}
	for range 2 {
		l.stopBlank(t, b)
		l.nothingIsLeft(t, "blank")
	}
	if _, err := b.Start(within(t, patience), l.Spec("blank")); err == nil {
		t.Error("a machine starts that was stopped")
	}
	for name, spec := range l.Broken(t, "broken") {
		b := l.blank(t, "broken")
		if m, err := b.Start(within(t, patience), spec); err == nil {
			t.Errorf("%s: it has started", name)
			m.Stop(within(t, patience))
		} else {
			t.Logf("%s: %v", name, err)
		}
		l.nothingIsLeft(t, "broken")
		l.stopBlank(t, b)
	}
	b = l.blank(t, "abandoned")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Start(ctx, l.Spec("abandoned")); !errors.Is(err, context.Canceled) {
		t.Errorf("Start() = %v for a caller that has gone", err)
	}
	l.nothingIsLeft(t, "abandoned")
	b = l.blank(t, "larger")
	larger := l.Spec("larger")
	larger.MemoryBytes += 1 << 20
	if _, err := b.Start(within(t, patience), larger); err == nil {
		t.Error("a machine becomes larger than it was prepared")
	}
	l.nothingIsLeft(t, "larger")
}

// lostBlank: a machine that was prepared and ends, or hangs, is not taken for one that is
// ready.
func lostBlank(t *testing.T, l *Lab) {
	if !l.Driver.Capabilities().Prepare {
		return
	}
	b := l.blank(t, "dead")
	l.Kill(t, b)
	for b.Alive() { // the test's deadline ends this
		if err := b.Check(within(t, impatience)); err == nil {
			t.Log("it answers still")
		}
	}
	if err := b.Check(within(t, patience)); err == nil {
		t.Error("a machine that has ended answers")
	}
	if _, err := b.Start(within(t, patience), l.Spec("dead")); err == nil {
		t.Error("a machine starts that has ended")
	}
	l.nothingIsLeft(t, "dead")
	b = l.blank(t, "mute")
	l.Hang(t, b)
	if err := b.Check(within(t, impatience)); err == nil {
		t.Error("a machine that hangs answers")
	}
	l.stopBlank(t, b)
	l.nothingIsLeft(t, "mute")
	// A later process removes those of an earlier one.
	l.blank(t, "orphan")
	l.Driver = l.Reopen(t)
	if found, err := l.Driver.Recover(within(t, patience)); err != nil || len(found) > 0 {
		t.Errorf("Recover() found %v, %v", found, err)
	}
	l.nothingIsLeft(t, "orphan")
}
