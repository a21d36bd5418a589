package node

import (
	"context"
	"fmt"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
)

// SetNetwork implements controller.Node.
func (n *Node) SetNetwork(ctx context.Context, id string, network controller.NetworkSpec) error {
	s, err := n.running(id)
	if err != nil {
		return err
	}
	return s.setNetwork(ctx, network)
}

// setNetwork enforces what the session may reach.
func (s *session) setNetwork(ctx context.Context, network controller.NetworkSpec) error {
	policy := network.Policy
	if policy == nil { // from a test; nobody has said that anything is allowed
		policy = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	}
	s.policing.Lock()
	defer s.policing.Unlock()
	if err := s.lease.SetPolicy(ctx, policy); err != nil {
		return fmt.Errorf("enforce the network policy of session %s: %w", s.id, err)
	}
	return nil
}
