package node

import "context"

// Pause implements controller.Node.
func (n *Node) Pause(ctx context.Context, id string) error {
	s, err := n.running(id)
	if err != nil {
		return err
	}
	// Not in the middle of a snapshot, which thaws and freezes by itself.
	s.saving.Lock()
	defer s.saving.Unlock()
	return s.freeze(ctx)
}

// Resume implements controller.Node.
func (n *Node) Resume(_ context.Context, id string) error {
	s, err := n.running(id)
	if err != nil {
		return err
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	return s.thaw()
}

// freeze brings the machine to a standstill.
func (s *session) freeze(ctx context.Context) error {
	// It counts as frozen before it is: heartbeat must not take it for dead.
	s.mu.Lock()
	s.frozen = true
	s.mu.Unlock()
	if err := s.machine.Pause(ctx); err != nil {
		s.mu.Lock()
		s.frozen = false
		s.mu.Unlock()
		return err
	}
	return nil
}

// thaw lets the machine go on.
func (s *session) thaw() error {
	if err := s.machine.Resume(context.Background()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = false
	s.thaws++
	return nil
}

// standstills returns how many the machine has had, and whether it has one
// now.
func (s *session) standstills() (past int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thaws, s.frozen
}
