package gvisor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
)

// TestBusySentry: a sentry that is at a call that nobody waits for any more is busy, which
// is not the sandbox's fault, until it has been so for long.
func TestBusySentry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{d: &Driver{callWait: time.Second}, calling: make(chan struct{}, 1), stopping: make(chan struct{}, 1)}
		gone, cancel := context.WithCancel(t.Context())
		end := make(chan struct{})
		time.AfterFunc(time.Second, cancel)
		if err := m.call(gone, func() error { <-end; return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a call that is given up: %v", err)
		}
		var unsavable *driver.UnsavableError
		halt := func() error { return saveFailure(m.callShortly(t.Context(), func() error { return nil })) }
		if err := halt(); !errors.Is(err, errBusy) || errors.As(err, &unsavable) {
			t.Errorf("a save meanwhile: %v", err)
		}
		time.Sleep(busyWait)
		if err := halt(); !errors.Is(err, errUnanswered) || !errors.As(err, &unsavable) {
			t.Errorf("a save much later: %v", err)
		}
		close(end)
		synctest.Wait()
		if err := m.callShortly(t.Context(), func() error { return nil }); err != nil {
			t.Errorf("a save after the call: %v", err)
		}
	})
}
