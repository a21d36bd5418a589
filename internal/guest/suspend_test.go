package guest_test

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
)

// TestSuspendContinuesToTheByte: a client that is suspended in the middle of output goes
// on with the same processes, and loses and repeats nothing.
func TestSuspendContinuesToTheByte(t *testing.T) {
	const n = 300_000 // some 2 MB a stream
	s, c := start(t)
	ctx := testContext(t)
	spec := numbers(n)
	spec.ID = "long"
	p := mustStart(t, c, spec)
	kept := newStore()
	for round := 0; ; round++ {
		var err error
		for limit := 7 + round*13; limit > 0 && err == nil; limit-- {
			var chunk guest.Chunk
			if chunk, err = p.Next(ctx); err == nil {
				err = errors.Join(kept.add(chunk), p.Ack(chunk.Stream, chunk.End()))
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Suspend(); err != nil {
			t.Fatal(err)
		}
		// What has arrived can be read, and acknowledged, at any time.
		soon, cancel := context.WithTimeout(ctx, time.Millisecond)
		chunk, err := p.Next(soon)
		cancel()
		if err == nil {
			err = errors.Join(kept.add(chunk), p.Ack(chunk.Stream, chunk.End()))
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if err := c.Ping(ctx); skerry.CodeOf(err) != skerry.CodeUnavailable {
			t.Errorf("a request to a suspended client: %v", err)
		}
		if err := c.Resume(ctx, s.attach()); err != nil {
			t.Fatal(err)
		}
	}
	exit, err := p.Wait(ctx)
	if err != nil || exit.Code != 3 {
		t.Fatalf("%+v, %v", exit, err)
	}
	kept.check(t, n)
}

// TestSuspendWithEndedProcesses: what has ended before, during and after a suspension is
// told once, and forgotten for good.
func TestSuspendWithEndedProcesses(t *testing.T) {
	s, c := start(t)
	ctx := testContext(t)
	ended := mustStart(t, c, guest.StartSpec{ID: "ended", Name: "sh", Args: []string{"-c", "echo before; exit 4"}})
	forgotten := mustStart(t, c, guest.StartSpec{ID: "forgotten", Name: "true"})
	during := mustStart(t, c, guest.StartSpec{ID: "during", Name: "sh", Args: []string{"-c", "sleep 0.3; echo then; exit 5"}})
	after := mustStart(t, c, guest.StartSpec{ID: "after", Name: "sleep", Args: []string{"1000"}})
	for _, p := range []*guest.Process{ended, forgotten} {
		if _, err := p.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Suspend(); err != nil {
		t.Fatal(err)
	}
	if err := forgotten.Forget(); err != nil {
		t.Fatal(err)
	}
	if err := c.Suspend(); err == nil {
		t.Error("a suspended client was suspended")
	}
	<-time.After(500 * time.Millisecond) // if it ends later after all, the result is the same
	if err := c.Resume(ctx, s.attach()); err != nil {
		t.Fatal(err)
	}
	if got, err := finish(ctx, ended); err != nil || got.stdout != "before\n" || got.Code != 4 {
		t.Errorf("what had ended before: %+v, %v", got, err)
	}
	if err := after.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit, err := after.Wait(ctx); err != nil || exit.Signal != syscall.SIGTERM {
		t.Errorf("what ended after it: %+v, %v", exit, err)
	}
	if got, err := finish(ctx, during); err != nil || got.stdout != "then\n" || got.Code != 5 {
		t.Errorf("what ended meanwhile: %+v, %v", got, err)
	}
	if left, err := c.Processes(ctx); err != nil || len(left) != 1 || left[0].Key != "after" {
		t.Errorf("the agent still has %+v, %v", left, err)
	}
}

// TestSuspendRefuses: the agent ends the standard input of a process with its connection,
// so a client with one is not suspended.
func TestSuspendRefuses(t *testing.T) {
	s, c := start(t)
	ctx := testContext(t)
	p := mustStart(t, c, guest.StartSpec{ID: "reads", Name: "cat", Stdin: true})
	if err := c.Suspend(); skerry.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("suspend with a standard input: %v", err)
	}
	if err := p.Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Suspend(); err != nil {
		t.Fatal(err)
	}
	// Closing a suspended client ends it, and what waits for its processes.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	default:
		t.Error("a closed client has not ended")
	}
	if err := c.Resume(ctx, s.attach()); err == nil {
		t.Error("a closed client was resumed")
	}
}

// TestSuspendKeepsWhatIsNotAcknowledged: the host may die after a resumption, so the agent
// still has the output that was received, but not acknowledged.
func TestSuspendKeepsWhatIsNotAcknowledged(t *testing.T) {
	s, c := start(t)
	ctx := testContext(t)
	p := mustStart(t, c, guest.StartSpec{ID: "kept", Name: "sh", Args: []string{"-c", "echo received; read x <>/tmp/fifo"}})
	kept := newStore()
	chunk, err := p.Next(ctx)
	if err == nil {
		err = kept.add(chunk)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Suspend(); err != nil {
			t.Fatal(err)
		}
		if err := c.Resume(ctx, s.attach()); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	_, procs := s.reattach(guest.ResumePoint{Key: "kept"})
	if chunk, err = procs["kept"].Next(ctx); err != nil || chunk.Offset != 0 || string(chunk.Data) != "received\n" {
		t.Errorf("the agent still has %q at %d, %v", chunk.Data, chunk.Offset, err)
	}
}
