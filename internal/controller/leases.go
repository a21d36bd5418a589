package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// leaseTime is after which time a save counts as failed if nobody knows how it ended,
// because its node could not be reached. Other saves end their leases themselves, and
// a server that starts ends those of the server before it.
const leaseTime = 24 * time.Hour

// beginSave writes the lease of a save. It lasts until AddSnapshot names the files or
// endLease is called, and keeps a collection from removing what the save relies on.
func (s *snapshots) beginSave(ctx context.Context) (lease string, err error) {
	lease = rand.Text()
	err = s.store.AddLease(ctx, lease, skerry.At(time.Now().Add(leaseTime)))
	if err != nil && mayBeWritten(err) {
		s.endLease(lease)
	}
	return lease, err
}

// saveFailed ends the lease of a save that failed with err. If its node cannot be
// reached, nobody knows whether it goes on, and the lease expires.
func (s *snapshots) saveFailed(lease string, err error) {
	if !errors.Is(err, nodeapi.ErrUnreachable) {
		s.endLease(lease)
	}
}

// endLease ends the lease of a save whose files nothing names.
func (s *snapshots) endLease(lease string) {
	expires := skerry.At(time.Now().Add(leaseTime))
	s.untilDone("end a save that failed", func(ctx context.Context) error { return s.store.EndLease(ctx, lease, expires) })
	s.collectSoon()
}
