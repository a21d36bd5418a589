package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// leaseTime is after which time a save counts as given up, if it is not known how it
// ended: its node could not be reached. All others end their leases themselves, and
// a server that starts ends those of the one before.
const leaseTime = 24 * time.Hour

// beginSave writes the lease of a save. The save has it until AddSnapshot names its
// files or end is called. Until then a collection spares what the save relies on.
func (s *snapshots) beginSave(ctx context.Context) (lease string, err error) {
	lease = rand.Text()
	now := time.Now()
	err = s.store.AddLease(ctx, lease, skerry.At(now), skerry.At(now.Add(leaseTime)))
	if err != nil && mayBeWritten(err) {
		s.endLease(lease)
	}
	return lease, err
}

// endSave ends the lease of a save that has returned err, and whose files nothing
// names or will. Nobody knows whether one goes on whose node cannot be reached.
func (s *snapshots) endSave(lease string, err error) {
	if !errors.Is(err, nodeapi.ErrUnreachable) {
		s.endLease(lease)
	}
}

func (s *snapshots) endLease(lease string) {
	s.untilDone("end a save that failed", func(ctx context.Context) error { return s.store.EndLease(ctx, lease) })
	s.collectSoon()
}
