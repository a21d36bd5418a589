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
	if err := s.setNetwork(ctx, network); err != nil {
		return err
	}
	if _, frozen := s.standstills(); !frozen {
		s.trusting(ctx, nil) // for what runs already
	}
	return nil
}

// NetworkEvents implements controller.Node.
func (n *Node) NetworkEvents(ctx context.Context, id string, limit int) ([]skerry.NetworkEvent, error) {
	return n.cfg.Networks.Events(ctx, id, limit)
}

// setNetwork enforces what the session may reach.
func (s *session) setNetwork(ctx context.Context, network controller.NetworkSpec) error {
	if network.Policy == nil { // nobody has said that anything is allowed
		network.Policy = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	}
	s.trust.want(network.Policy)
	s.policing.Lock()
	defer s.policing.Unlock()
	if err := s.lease.SetNetwork(ctx, s.id, network); err != nil {
		return fmt.Errorf("enforce the network policy of session %s: %w", s.id, err)
	}
	return nil
}
