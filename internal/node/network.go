package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// SetNetwork implements nodeapi.Node. It needs the session's lease only: what a
// sandbox may reach also changes while its guest agent is silent or lost. The
// sandbox's trust in the proxy is set up afterwards.
func (n *Node) SetNetwork(ctx context.Context, id string, network nodeapi.NetworkSpec) (err error) {
	defer edge(ctx, &err)
	s, err := n.find(id)
	if err != nil {
		return err
	}
	if !s.begun() {
		return errStopped(id)
	}
	if err := s.setNetwork(ctx, network); err != nil {
		return err
	}
	s.trustLater()
	return nil
}

// NetworkEvents implements nodeapi.Node.
func (n *Node) NetworkEvents(ctx context.Context, id string, limit int) (_ []skerry.NetworkEvent, err error) {
	defer edge(ctx, &err)
	return n.cfg.Networks.Events(ctx, id, limit)
}

// setNetwork enforces the session's network policy.
func (s *session) setNetwork(ctx context.Context, network nodeapi.NetworkSpec) error {
	s.policing.Lock()
	defer s.policing.Unlock()
	return s.enforce(ctx, network)
}

// enforce is setNetwork for a caller that holds policing. A policy that is owed is
// not enforced after another one, nor once the network was to be closed.
func (s *session) enforce(ctx context.Context, network nodeapi.NetworkSpec) error {
	if network.Policy == nil { // nobody has said that anything is allowed
		network.Policy = denyAll
	}
	s.mu.Lock()
	s.owner = network.Owner
	s.mu.Unlock()
	s.trust.want(network.Policy)
	if network.Policy.Mode == skerry.NetworkDenyAll {
		s.owed = nil
	}
	if s.lease == nil || s.unleased {
		return errStopped(s.id)
	}
	if err := s.lease.SetNetwork(ctx, s.id, network); err != nil {
		return fmt.Errorf("enforce the network policy of session %s: %w", s.id, err)
	}
	s.owed = nil
	return nil
}

var denyAll = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}

// Waits between attempts to enforce a policy.
const (
	firstNetworkRetry = time.Second
	lastNetworkRetry  = 30 * time.Second
)

// takeNetwork enforces the policy of a session that is taken over. If it cannot be
// enforced, the session goes on with its network closed until it can: its files are
// worth more than its network. An error says that the network is not closed either.
func (s *session) takeNetwork(ctx context.Context, network nodeapi.NetworkSpec) error {
	s.policing.Lock()
	defer s.policing.Unlock()
	err := s.enforce(ctx, network)
	if err == nil {
		return nil
	}
	closed := network
	closed.Policy = denyAll
	if shut := s.enforce(ctx, closed); shut != nil {
		return errors.Join(err, shut)
	}
	s.node.cfg.Log.Error("a session's network is closed until its policy can be enforced", "session", s.id, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		owed := &network
		s.owed = owed
		s.work.Go(func() { s.payNetwork(owed) })
	}
	return nil
}

// payNetwork enforces a policy that is owed as soon as it can be.
func (s *session) payNetwork(owed *nodeapi.NetworkSpec) {
	for wait := s.node.networkRetry; ; wait = min(2*wait, lastNetworkRetry) {
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
		done, err := s.tryOwed(owed)
		if err != nil {
			s.node.cfg.Log.Error("cannot enforce a session's network policy, trying again", "session", s.id, "error", err)
		}
		if done {
			return
		}
	}
}

// tryOwed tries to enforce a policy that is owed, and reports whether it is not owed
// any more. A failed attempt leaves the network closed, as it was before.
func (s *session) tryOwed(owed *nodeapi.NetworkSpec) (done bool, err error) {
	s.policing.Lock()
	defer s.policing.Unlock()
	if s.owed != owed || s.unleased {
		return true, nil
	}
	if err := s.enforce(s.ctx, *owed); err != nil {
		return false, err
	}
	s.trustLater()
	return true, nil
}

// begun reports whether the session has started, and its machine may still run.
func (s *session) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live || s.agentLost || s.stopping || s.attaching()
}

// unlease releases the session's network. Its policy cannot be changed afterwards.
func (s *session) unlease(ctx context.Context) error {
	s.policing.Lock()
	defer s.policing.Unlock()
	if s.lease == nil || s.unleased {
		return nil
	}
	if err := s.lease.Release(ctx); err != nil {
		return err
	}
	s.unleased = true
	return nil
}
