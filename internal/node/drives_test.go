package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// busyDrives are in use for ever.
type busyDrives struct{ Drives }

func (busyDrives) Settle(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestEndWaitsForDrives: a session's end waits for a slow disk, and not for ever.
func TestEndWaitsForDrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{node: &Node{cfg: Config{Drives: busyDrives{}}}, drives: []string{"drv_1", "drv_2"}}
		start := time.Now()
		if err := s.unmount(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != settleTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
