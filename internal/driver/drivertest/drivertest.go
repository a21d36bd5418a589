// Package drivertest is the suite that every driver passes. It runs the real
// guest agent in the driver's machines.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
)

// Lab is a driver under test, and what the suite cannot do to it by itself.
type Lab struct {
	Driver driver.Driver
	// Reopen returns a driver as a later process would have it; the present one is
	// not used any more. Its machines run on.
	Reopen func(t *testing.T) driver.Driver
	// Spec returns what a machine is started with. Tool is the program of package
	// tool in it, which BuildTool makes.
	Spec func(id string) driver.Spec
	Tool string
	// Broken returns specs whose starts fail, each at another step.
	Broken func(t *testing.T, id string) map[string]driver.Spec
	// Kill kills a machine's kernel, and Hang stops it from doing anything.
	Kill, Hang func(t *testing.T, m Running)
	// Left returns what the host still has of a machine.
	Left func(t *testing.T, id string) []string
}

// Running is a driver.Machine or a driver.Blank.
type Running interface{ ID() string }

// BuildTool builds the program that the suite runs in machines.
func BuildTool(path string) error {
	cmd := exec.Command("go", "build", "-o", path, "github.com/skerry-dev/skerry/internal/driver/drivertest/tool")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tool: %w: %s", err, out)
	}
	return nil
}

// Run runs the suite. Each test has a lab of its own.
func Run(t *testing.T, open func(t *testing.T) *Lab) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Lab)
	}{
		{"Commands", commands},
		{"Files", files},
		{"Hold", hold},
		{"Memory", memory},
		{"Fork", fork},
		{"ForkShared", forkShared},
		{"Pause", pause},
		{"Activity", activity},
		{"Killed", killed},
		{"End", end},
		{"HungAgent", hungAgent},
		{"HungKernel", hungKernel},
		{"FailedStart", failedStart},
		{"AbandonedStart", abandonedStart},
		{"Attach", attach},
		{"Recover", recovers},
		{"Stop", stop},
		{"Prepare", prepare},
		{"Unprepared", unprepared},
		{"LostBlank", lostBlank},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// patience bounds what must happen; impatience is how long the tests wait for what
// must not.
const (
	patience   = time.Minute
	impatience = 300 * time.Millisecond
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// box is a machine with a connection to its agent.
type box struct {
	driver.Machine
	t     *testing.T
	l     *Lab
	agent *guest.Client
}

// start starts a machine, and stops it at the end of the test.
func (l *Lab) start(t *testing.T, id string, from driver.Source) *box {
	t.Helper()
	spec := l.Spec(id)
	spec.Source = from
	m, err := l.Driver.Start(within(t, patience), spec)
	if err != nil {
		t.Fatal(err)
	}
	return l.greet(t, m, from)
}

// greet connects to the agent of a machine, which is stopped at the end of the test.
func (l *Lab) greet(t *testing.T, m driver.Machine, from driver.Source) *box {
	t.Helper()
	b := &box{Machine: m, t: t, l: l}
	d := l.Driver
	t.Cleanup(func() {
		if l.Driver == d { // otherwise it is a later one's
			b.stop(t)
		}
	})
	greet := guest.Connect
	if from.Runs() {
		greet = guest.Renew
	}
	conn, err := m.Attach(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	if b.agent, _, err = greet(within(t, patience), conn, guest.Setup{Hostname: "box"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.agent.Close() })
	return b
}

// stop stops the machine; nothing of it is left.
func (b *box) stop(t *testing.T) {
	t.Helper()
	if err := b.Stop(within(t, patience)); err != nil {
		t.Error(err)
	}
	if left := b.l.Left(t, b.ID()); len(left) > 0 {
		t.Errorf("machine %s has left %v", b.ID(), left)
	}
}

var commandIDs atomic.Int64

func (b *box) command(args ...string) *guest.Process {
	b.t.Helper()
	return b.start(guest.StartSpec{Args: args})
}

// start starts the tool.
func (b *box) start(spec guest.StartSpec) *guest.Process {
	b.t.Helper()
	spec.ID, spec.Name, spec.Root = fmt.Sprint("cmd_", commandIDs.Add(1)), b.l.Tool, true
	p, err := b.agent.Start(within(b.t, patience), spec)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// run returns what the tool prints, and how it ends.
func (b *box) run(args ...string) (string, int) {
	b.t.Helper()
	p := b.command(args...)
	var said strings.Builder
	for {
		chunk, err := p.Next(within(b.t, patience))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			b.t.Fatal(err)
		}
		said.Write(chunk.Data)
		if err := p.Ack(chunk.Stream, chunk.End()); err != nil {
			b.t.Fatal(err)
		}
	}
	exit, err := p.Wait(within(b.t, patience))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := p.Forget(); err != nil {
		b.t.Fatal(err)
	}
	return said.String(), exit.Code
}

// says fails unless the tool prints this.
func (b *box) says(want string, args ...string) {
	b.t.Helper()
	if got, code := b.run(args...); got != want || code != 0 {
		b.t.Errorf("%s of machine %s: %q, code %d, not %q", args, b.ID(), got, code, want)
	}
}

// goesOn fails unless a count in the machine goes on, and returns it.
func (b *box) goesOn(file string, from int) int {
	b.t.Helper()
	got, _ := b.run("beyond", file, strconv.Itoa(from))
	n, err := strconv.Atoi(got)
	if err != nil || n <= from {
		b.t.Fatalf("the count in machine %s is %q, after %d", b.ID(), got, from)
	}
	return n
}

// stands fails unless the machine's agent says nothing any more. A signal may
// reach it a little later.
func (b *box) stands() {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		err := b.agent.Ping(within(b.t, impatience))
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil || time.Now().After(deadline) {
			b.t.Fatalf("the agent of machine %s, which stands still: %v", b.ID(), err)
		}
	}
}

func (b *box) answers() {
	b.t.Helper()
	if err := b.agent.Ping(within(b.t, patience)); err != nil {
		b.t.Errorf("the agent of machine %s: %v", b.ID(), err)
	}
}

func (b *box) save(how driver.Saving) string {
	b.t.Helper()
	dir := b.t.TempDir()
	if err := b.Save(within(b.t, patience), dir, how); err != nil {
		b.t.Fatal(err)
	}
	return dir
}

func commands(t *testing.T, l *Lab) {
	b := l.start(t, "one", driver.Source{})
	if _, code := b.run("exit", "42"); code != 42 {
		t.Errorf("exit 42 is %d", code)
	}
	b.says("", "write", "file", "hello")
	b.says("hello", "read", "file")
	if used, err := b.Usage(); err != nil || used.CPU < 0 {
		t.Errorf("Usage() = %+v, %v", used, err)
	}
	if _, err := b.Memory(); err != nil {
		t.Error(err)
	}
	if _, err := l.Driver.Memory(); err != nil {
		t.Error(err)
	}
	other := l.start(t, "two", driver.Source{})
	if got, code := other.run("read", "file"); code == 0 {
		t.Errorf("the other machine has the file: %q", got)
	}
}

// files: what was saved is of one moment, and the machine goes on.
func files(t *testing.T, l *Lab) {
	b := l.start(t, "saved", driver.Source{})
	b.says("", "write", "file", "before")
	if size, err := b.SaveSize(false); err != nil || size < 0 {
		t.Errorf("SaveSize() = %d, %v", size, err)
	}
	if got, want := b.Format(false), l.Driver.Format(false); got != want {
		t.Errorf("the machine's format is %s, the driver's %s", got, want)
	}
	dir := b.save(driver.Saving{})
	b.answers()
	b.says("", "write", "file", "after")
	for _, id := range []string{"first", "second"} {
		l.start(t, id, driver.Source{Files: dir}).says("before", "read", "file")
	}
	b.says("after", "read", "file")
	if err := b.Save(within(t, patience), filepath.Join(dir, "nowhere"), driver.Saving{}); err == nil {
		t.Error("a save into no folder succeeds")
	}
	b.answers()
}

// hold: a machine stands still from the moment that was saved, and one that is
// paused can be saved.
func hold(t *testing.T, l *Lab) {
	b := l.start(t, "held", driver.Source{})
	if !l.Driver.Capabilities().Pause {
		if err := b.Save(within(t, patience), t.TempDir(), driver.Saving{Hold: true}); err == nil {
			t.Error("the driver can hold a machine that it has saved, but says otherwise")
		}
		b.answers()
		return
	}
	b.says("", "write", "file", "kept")
	b.save(driver.Saving{Hold: true})
	b.stands()
	dir := b.save(driver.Saving{})
	b.stands()
	if err := b.Resume(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	b.answers()
	l.start(t, "copy", driver.Source{Files: dir}).says("kept", "read", "file")
}

func memory(t *testing.T, l *Lab) {
	b := l.start(t, "awake", driver.Source{})
	if !l.Driver.Capabilities().Memory {
		if err := b.Save(within(t, patience), t.TempDir(), driver.Saving{Memory: true}); err == nil {
			t.Error("the driver can save memory, but says otherwise")
		}
		b.answers()
		spec := l.Spec("asleep")
		spec.Source.Memory = t.TempDir()
		if _, err := l.Driver.Start(within(t, patience), spec); err == nil {
			t.Error("the driver starts from memory, but says otherwise")
		}
		return
	}
	b.command("count", "n")
	n := b.goesOn("n", 0)
	if got, want := b.Format(true), l.Driver.Format(true); got != want || got == l.Driver.Format(false) {
		t.Errorf("the machine's format is %s, the driver's %s", got, want)
	}
	went := 0
	dir := b.save(driver.Saving{Memory: true, GoesOn: func() { went++ }})
	if went != 1 {
		t.Errorf("GoesOn was called %d times", went)
	}
	b.answers()
	most := b.goesOn("n", n)
	copied := l.start(t, "woken", driver.Source{Memory: dir})
	copied.goesOn("n", n)
	b.goesOn("n", most)
}

func pause(t *testing.T, l *Lab) {
	b := l.start(t, "paused", driver.Source{})
	if !l.Driver.Capabilities().Pause {
		if err := b.Pause(within(t, patience)); err == nil {
			t.Error("the driver pauses, but says otherwise")
		}
		return
	}
	b.command("count", "n")
	for range 3 {
		n := b.goesOn("n", 0)
		for range 2 {
			if err := b.Pause(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			b.stands()
		}
		// Whether or not the machine has swap, the count goes on as it was.
		if freed, err := b.Reclaim(within(t, patience)); err != nil || freed < 0 {
			t.Errorf("Reclaim() = %d, %v", freed, err)
		}
		for range 2 {
			if err := b.Resume(within(t, patience)); err != nil {
				t.Fatal(err)
			}
		}
		b.goesOn("n", n)
	}
	// A machine that is paused can be stopped: the test's end does.
	if err := b.Pause(within(t, patience)); err != nil {
		t.Fatal(err)
	}
}

// activity counts the processes beside the agent, also those that nobody waits for, and
// in a machine that was paused.
func activity(t *testing.T, l *Lab) {
	b := l.start(t, "active", driver.Source{})
	b.runs(0)
	p := b.command("count", "n")
	b.goesOn("n", 0)
	b.runs(1)
	if l.Driver.Capabilities().Pause {
		if err := errors.Join(b.Pause(within(t, patience)), b.Resume(within(t, patience))); err != nil {
			t.Fatal(err)
		}
		b.runs(1)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.runs(0)
}

// runs fails unless that many processes run in the machine soon.
func (b *box) runs(processes int) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		a, err := b.Activity(within(b.t, patience))
		if err != nil {
			b.t.Fatal(err)
		}
		if a.Processes == processes {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("machine %s has %d processes beside the agent, not %d", b.ID(), a.Processes, processes)
		}
	}
}

func killed(t *testing.T, l *Lab) {
	b := l.start(t, "killed", driver.Source{})
	other := l.start(t, "other", driver.Source{})
	b.command("count", "n")
	l.Kill(t, b.Machine)
	b.ends()
	select {
	case <-b.agent.Done():
	case <-time.After(patience):
		t.Error("the connection of a machine that was killed goes on")
	}
	b.afterwards()
	other.answers()
}

// ends fails unless the machine ends by itself, with a reason.
func (b *box) ends() {
	b.t.Helper()
	select {
	case <-b.Done():
	case <-time.After(patience):
		b.t.Fatalf("machine %s does not end", b.ID())
	}
	if b.Reason() == "" {
		b.t.Errorf("machine %s has ended for no reason", b.ID())
	}
}

// afterwards makes every call of a machine that has ended: none hangs.
func (b *box) afterwards() {
	b.t.Helper()
	b.all(patience)
}

// all makes every call of a machine, each with a deadline, and fails if one does
// not return then.
func (b *box) all(deadline time.Duration) {
	b.t.Helper()
	can := b.l.Driver.Capabilities()
	for name, call := range map[string]func(ctx context.Context) error{
		"Attach": func(ctx context.Context) error {
			conn, err := b.Attach(ctx)
			if err == nil {
				conn.Close()
			}
			return err
		},
		"Save":         func(ctx context.Context) error { return b.Save(ctx, b.t.TempDir(), driver.Saving{}) },
		"Save memory":  func(ctx context.Context) error { return b.Save(ctx, b.t.TempDir(), driver.Saving{Memory: can.Memory}) },
		"Save hold":    func(ctx context.Context) error { return b.Save(ctx, b.t.TempDir(), driver.Saving{Hold: can.Pause}) },
		"SaveSize":     func(context.Context) error { _, err := b.SaveSize(can.Memory); return err },
		"Usage":        func(context.Context) error { _, err := b.Usage(); return err },
		"Memory":       func(context.Context) error { _, err := b.Memory(); return err },
		"PinnedMemory": func(context.Context) error { _, err := b.PinnedMemory(0); return err },
		"Confine":      func(context.Context) error { return b.Confine(0) },
		"Reclaim":      func(ctx context.Context) error { _, err := b.Reclaim(ctx); return err },
		"Relieve":      func(ctx context.Context) error { _, err := b.Relieve(ctx); return err },
		"Pause":        b.Pause,
	} {
		returned := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		go func() { returned <- call(ctx) }()
		select {
		case err := <-returned:
			b.t.Logf("%s of machine %s: %v", name, b.ID(), err)
		case <-time.After(deadline + patience):
			b.t.Errorf("%s of machine %s does not return", name, b.ID())
		}
		cancel()
	}
}

func end(t *testing.T, l *Lab) {
	b := l.start(t, "ended", driver.Source{})
	b.End("enough")
	b.ends()
	if b.Reason() != "enough" {
		t.Errorf("Reason() = %q", b.Reason())
	}
}

// hungAgent: an agent that hangs blocks nobody else, and its machine is saved and
// stopped all the same.
func hungAgent(t *testing.T, l *Lab) {
	b := l.start(t, "hung", driver.Source{})
	b.says("", "write", "file", "kept")
	// The agent would not say that the tool runs if that stopped it at once.
	if err := b.start(guest.StartSpec{Args: []string{"stop-agent"}, Stdin: true}).Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	b.stands()
	// A second connection gets no answer either.
	b.agent.Close()
	if _, err := b.Attach(within(t, impatience)); err == nil {
		t.Error("an agent that hangs is attached to")
	}
	dir := b.save(driver.Saving{})
	b.all(time.Second)
	l.start(t, "successor", driver.Source{Files: dir}).says("kept", "read", "file")
}

// hungKernel: no call waits longer than its caller, and the machine is stopped.
func hungKernel(t *testing.T, l *Lab) {
	b := l.start(t, "stuck", driver.Source{})
	l.Hang(t, b.Machine)
	b.stands()
	b.all(time.Second)
}

// failedStart leaves nothing, and the next start of that name succeeds.
func failedStart(t *testing.T, l *Lab) {
	for name, spec := range l.Broken(t, "broken") {
		if m, err := l.Driver.Start(within(t, patience), spec); err == nil {
			t.Errorf("%s: it has started", name)
			m.Stop(within(t, patience))
		} else {
			t.Logf("%s: %v", name, err)
		}
		if left := l.Left(t, "broken"); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
	b := l.start(t, "broken", driver.Source{})
	if m, err := l.Driver.Start(within(t, patience), l.Spec("broken")); err == nil {
		t.Error("two machines of one name run")
		m.Stop(within(t, patience))
	}
	b.answers()
}

// abandonedStart has the caller of a start leave at any moment of it.
func abandonedStart(t *testing.T, l *Lab) {
	begun := time.Now()
	l.start(t, "whole", driver.Source{})
	whole := time.Since(begun)
	const moments = 8
	for i := range moments {
		id := fmt.Sprint("abandoned", i)
		ctx, cancel := context.WithTimeout(context.Background(), whole*time.Duration(i)/moments)
		m, err := l.Driver.Start(ctx, l.Spec(id))
		cancel()
		if err == nil { // it came in time
			err = m.Stop(within(t, patience))
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("abandoned after %v: %v", whole*time.Duration(i)/moments, err)
		}
		if left := l.Left(t, id); len(left) > 0 {
			t.Errorf("abandoned after %v: %v is left", whole*time.Duration(i)/moments, left)
		}
	}
}

// attach: a new connection takes the commands over.
func attach(t *testing.T, l *Lab) {
	b := l.start(t, "attached", driver.Source{})
	b.command("count", "n")
	n := b.goesOn("n", 0)
	for range 3 {
		b.again(1)
		n = b.goesOn("n", n)
	}
}

// again connects to the agent once more, which is to have so many processes.
func (b *box) again(procs int) {
	b.t.Helper()
	if b.agent != nil {
		b.agent.Close()
	}
	conn, err := b.Attach(within(b.t, patience))
	if err != nil {
		b.t.Fatal(err)
	}
	agent, all, err := guest.Reconnect(within(b.t, patience), conn, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.agent = agent
	b.t.Cleanup(func() { agent.Close() })
	if len(all) != procs {
		b.t.Errorf("machine %s has %d processes, not %d", b.ID(), len(all), procs)
	}
}

// recovers: a later process finds the machines that run, also paused ones, and
// removes what is left of others.
func recovers(t *testing.T, l *Lab) {
	b := l.start(t, "survivor", driver.Source{})
	b.command("count", "n")
	n := b.goesOn("n", 0)
	standing := l.start(t, "standing", driver.Source{})
	dead := l.start(t, "dead", driver.Source{})
	for _, x := range []*box{b, standing, dead} {
		x.agent.Close()
	}
	if l.Driver.Capabilities().Pause {
		if err := standing.Pause(within(t, patience)); err != nil {
			t.Fatal(err)
		}
	}
	l.Kill(t, dead.Machine)
	<-dead.Done()
	l.Driver = l.Reopen(t)
	found, err := l.Driver.Recover(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range found {
		ids = append(ids, m.ID())
		x := &box{Machine: m, t: t, l: l}
		t.Cleanup(func() { x.stop(t) })
		switch m.ID() {
		case "survivor":
			x.again(1)
			x.goesOn("n", n)
			x.save(driver.Saving{})
		case "standing":
			x.again(0)
			x.says("", "write", "file", "text")
		}
	}
	if slices.Sort(ids); !slices.Equal(ids, []string{"standing", "survivor"}) {
		t.Errorf("Recover() found %v", ids)
	}
	if left := l.Left(t, "dead"); len(left) > 0 {
		t.Errorf("the dead machine has left %v", left)
	}
}

// stop: many may stop a machine at once, and again.
func stop(t *testing.T, l *Lab) {
	b := l.start(t, "stopped", driver.Source{})
	b.command("count", "n")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := b.Stop(within(t, patience)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.stop(t)
	b.ends()
	// One that nobody has attached to leaves nothing, either.
	m, err := l.Driver.Start(within(t, patience), l.Spec("alone"))
	if err != nil {
		t.Fatal(err)
	}
	(&box{Machine: m, t: t, l: l}).stop(t)
}
