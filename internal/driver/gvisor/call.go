package gvisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"

	"github.com/skerry-dev/skerry/internal/driver"
)

// callWait bounds a call into a sentry that has little to do, and startWait a
// start, which may have to wait for the save of another machine.
const (
	callWait  = 30 * time.Second
	startWait = 15 * time.Minute
)

// callShortly makes a call that has little to do. A sentry that has not answered
// after callWait never will: its machine ends.
func (m *machine) callShortly(ctx context.Context, f func() error) error {
	var asked atomic.Bool
	wait, cancel := context.WithTimeout(ctx, m.d.callWait)
	defer cancel()
	err := m.call(wait, func() error {
		asked.Store(true)
		return f()
	})
	if err != nil && asked.Load() && wait.Err() != nil && ctx.Err() == nil {
		m.End(errUnanswered.Error())
	}
	return err
}

// killLate kills the sentry of a machine that is being started when ctx ends: what
// asks it for something cannot be interrupted otherwise. stop ends that.
func (d *Driver) killLate(ctx context.Context, id string) (stop func()) {
	started := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-started:
			return
		case <-ctx.Done():
		}
		// There may be none yet.
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if procs, err := running(d.cfg.Dir); err == nil && procs[id].sentry != 0 {
				if p, err := openProcess(procs[id].sentry); err == nil {
					_ = p.signal() // the next time, then
					p.close()
				}
			}
			select {
			case <-started:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(started)
		wg.Wait()
	}
}

// call makes a call into the sentry, one at a time. A sentry that was taken
// over by the code in it may never answer, so ctx ends the wait; the call goes
// on until the sentry ends, and no other is made before.
func (m *machine) call(ctx context.Context, f func() error) error {
	select {
	case m.calling <- struct{}{}:
	case <-ctx.Done():
		if began := m.called.Load(); began != nil && time.Since(*began) < busyWait && !m.silent.Load() {
			return busy(ctx)
		}
		return unanswered(ctx)
	}
	answer, began := make(chan error, 1), time.Now()
	m.called.Store(&began)
	m.silent.Store(false)
	go func() {
		err := f()
		<-m.calling
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		// Given up by its caller is not unanswered in time.
		m.silent.Store(errors.Is(ctx.Err(), context.DeadlineExceeded))
		return unanswered(ctx)
	}
}

// awaitCall returns when the call that was under way when the sentry ended has
// ended too.
func (m *machine) awaitCall() {
	m.calling <- struct{}{}
	<-m.calling
}

// busyWait is how long a sentry may take for a call, such as a save that nobody waits for
// any more, without being taken for one that does not answer.
const busyWait = 5 * time.Minute

// errBusy says that a sentry is at an earlier call.
var errBusy = errors.New("the sandbox's kernel is busy with an earlier call")

func busy(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", errBusy, ctx.Err())
}

// errUnanswered says that a sentry did not answer in time.
var errUnanswered = errors.New("the sandbox's kernel does not answer")

func unanswered(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", errUnanswered, ctx.Err())
}

// Errors of a save that are the host's: of writing, which a sentry tells of as
// text, and of all that comes before the sentry is asked.
var (
	writeFailures = []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS}
	hostFailures  = append([]unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.ENOTDIR}, writeFailures...)
)

// saveFailure tells whose fault it is that a machine could not be saved.
func saveFailure(err error) error {
	var unsavable *driver.UnsavableError
	if errors.As(err, &unsavable) || errors.Is(err, context.Canceled) || errors.Is(err, errBusy) {
		return err
	}
	var answer urpc.RemoteError
	if errors.As(err, &answer) {
		return refusal(answer)
	}
	for _, errno := range hostFailures {
		if errors.Is(err, errno) {
			return err
		}
	}
	return &driver.UnsavableError{Why: "its kernel does not answer", Err: err}
}

// refusal reads a sentry's answer. It may quote what a sandbox has named, but
// not at its end, where the cause is.
func refusal(answer urpc.RemoteError) error {
	said := answer.Message
	if strings.HasPrefix(said, "error serializing ") {
		// Stacks follow the cause. What comes before has no line breaks: an object is
		// quoted as Go source.
		said, _, _ = strings.Cut(said, ":\ngoroutine ")
	}
	for _, errno := range writeFailures {
		if strings.HasSuffix(said, ": "+errno.Error()) {
			return fmt.Errorf("%w: %w", errno, answer)
		}
	}
	if strings.Contains(answer.Message, unix.ENAMETOOLONG.Error()) {
		return &driver.UnsavableError{Why: "a path in it is longer than 8,192 bytes", Err: answer}
	}
	return &driver.UnsavableError{Why: "its kernel cannot write its state", Err: answer}
}
