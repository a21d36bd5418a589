package node

import (
	"context"
	"errors"
	"math"
	"net"

	"github.com/skerry-dev/skerry/internal/driver"
)

// absent stands for the machine of a session that hibernates.
type absent struct {
	// former is the machine that was saved, nil once it has ended. id is its id.
	former driver.Machine
	id     string
	// changing is held by who ends former or starts another machine. stopped is true
	// after Stop.
	changing gate
	stopped  bool
	// ctx ends with stop, so that Stop need not wait for a start.
	ctx  context.Context
	stop context.CancelFunc
	// done is closed when the session has a machine again, or never will. reason is set
	// before.
	done   chan struct{}
	reason string
}

var _ driver.Machine = (*absent)(nil)

func newAbsent(former driver.Machine) *absent {
	a := &absent{former: former, changing: newGate(), done: make(chan struct{})}
	a.ctx, a.stop = context.WithCancel(context.Background())
	if former != nil {
		a.id = former.ID()
	}
	return a
}

var errAbsent = errors.New("the sandbox hibernates")

// begin begins a start of another machine. Its context ends with Stop.
func (a *absent) begin(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	unstop := context.AfterFunc(a.ctx, cancel)
	if err := a.changing.enter(ctx); err != nil {
		cancel()
		return nil, nil, err
	}
	done = func() { a.changing.leave(); unstop(); cancel() }
	if a.stopped {
		done()
		return nil, nil, errAbsent
	}
	return ctx, done, nil
}

// endFormer ends the machine that was saved. changing is held.
func (a *absent) endFormer(ctx context.Context) error {
	if a.former == nil {
		return nil
	}
	if err := a.former.Stop(ctx); err != nil {
		return err
	}
	a.former = nil
	return nil
}

func (a *absent) end(ctx context.Context) error {
	if err := a.changing.enter(ctx); err != nil {
		return err
	}
	defer a.changing.leave()
	return a.endFormer(ctx)
}

// Stop implements driver.Machine.
func (a *absent) Stop(ctx context.Context) error {
	a.stop()
	if err := a.changing.enter(ctx); err != nil {
		return err
	}
	defer a.changing.leave()
	a.stopped = true
	return a.endFormer(ctx)
}

// End implements driver.Machine. The caller holds standing.
func (a *absent) End(reason string) {
	select {
	case <-a.done:
	default:
		a.reason = reason
		close(a.done)
	}
}

// ID implements driver.Machine.
func (a *absent) ID() string { return a.id }

// Done implements driver.Machine.
func (a *absent) Done() <-chan struct{} { return a.done }

// Reason implements driver.Machine.
func (a *absent) Reason() string { return a.reason }

// Usage implements driver.Machine.
func (a *absent) Usage() (driver.Usage, error) { return driver.Usage{}, nil }

// Memory implements driver.Machine. It never runs out.
func (a *absent) Memory() (driver.Memory, error) { return driver.Memory{Limit: math.MaxInt64}, nil }

// PinnedMemory implements driver.Machine.
func (a *absent) PinnedMemory(int64) (int64, error) { return 0, nil }

// Confine implements driver.Machine.
func (a *absent) Confine(int64) error { return nil }

// Reclaim implements driver.Machine.
func (a *absent) Reclaim(context.Context) (int64, error) { return 0, nil }

// Weigh implements driver.Machine.
func (a *absent) Weigh(float64) error { return nil }

// Pause implements driver.Machine. Nothing runs already.
func (a *absent) Pause(context.Context) error { return nil }

// What needs a machine fails: the session must come back first.

// Resume implements driver.Machine.
func (a *absent) Resume(context.Context) error { return errAbsent }

// Attach implements driver.Machine.
func (a *absent) Attach(context.Context) (net.Conn, error) { return nil, errAbsent }

// Save implements driver.Machine.
func (a *absent) Save(context.Context, string, driver.Saving) error { return errAbsent }

// Fork implements driver.Machine.
func (a *absent) Fork(context.Context, string, func()) (driver.Fork, error) { return nil, errAbsent }

// SaveSize implements driver.Machine.
func (a *absent) SaveSize(bool) (int64, error) { return 0, errAbsent }

// Format implements driver.Machine.
func (a *absent) Format(bool) driver.Format { return driver.Format{} }

// Activity implements driver.Machine.
func (a *absent) Activity(context.Context) (driver.Activity, error) {
	return driver.Activity{}, errAbsent
}

// Relieve implements driver.Machine.
func (a *absent) Relieve(context.Context) (string, error) { return "", errAbsent }
