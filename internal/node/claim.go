package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// maxClaims is the maximum number of warm machines that a start tries.
const maxClaims = 3

// claim gives the session a warm machine, and reports whether it has one. It discards
// machines that cannot be used; without one, the session starts a machine of its own.
func (s *session) claim(ctx context.Context, spec nodeapi.SessionSpec) bool {
	if kindFor(spec).isBlank() {
		return false
	}
	for range maxClaims {
		w := s.node.pool.take(spec)
		if w == nil {
			return false
		}
		err := s.become(ctx, w, spec)
		if err == nil {
			return true
		}
		s.lease, s.guest, s.agent, s.before = nil, nil, "", 0
		s.body.Store(nil)
		s.node.pool.discard(w)
		if ctx.Err() != nil {
			return false
		}
		s.node.cfg.Log.Warn("a warm machine cannot be used", "machine", w.id, "session", s.id, "error", err)
	}
	return false
}

// become gives the machine the session's identity and network. Nothing of the session
// runs in it before all of that is done.
func (s *session) become(ctx context.Context, w *warm, spec nodeapi.SessionSpec) (err error) {
	ctx, span := tracing.Start(ctx, tracing.StartClaim)
	defer span.Done(&err)
	factor := s.node.teams.factor(spec.Network.Owner.TeamID)
	if err := w.machine.Weigh(factor); err != nil {
		return err
	}
	s.lease, s.agent = w.lease, s.node.currentAgent()
	s.setMachine(w.machine)
	s.mu.Lock()
	s.weight = factor
	s.mu.Unlock()
	used, err := w.machine.Usage()
	if err != nil {
		return err
	}
	s.before = used.CPU
	told := make(chan error, 1)
	go func() { told <- s.identify(ctx, w, spec) }()
	err = s.setFirstNetwork(ctx, spec.Network)
	if err == nil {
		err = s.saveState()
	}
	if err = errors.Join(err, <-told); err != nil {
		return err
	}
	s.guest = w.guest
	return nil
}

// identify gives the machine's agent the identity of the session.
func (s *session) identify(ctx context.Context, w *warm, spec nodeapi.SessionSpec) (err error) {
	ctx, span := tracing.Start(ctx, tracing.StartAgent)
	defer span.Done(&err)
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	began := time.Now()
	info, err := w.guest.Identify(ctx, guest.Identity{
		Hostname: spec.Hostname,
		Env:      s.node.cfg.environment(spec.Env),
		Resolv:   resolvConf(s.node.cfg.Networks.Resolvers()),
		Token:    s.workload.first,
	})
	if err != nil {
		return fmt.Errorf("after %v: %w", time.Since(began).Round(time.Millisecond), err)
	}
	s.takeWarnings(info)
	return nil
}
