package node

import "context"

// Pause implements nodeapi.Node.
func (n *Node) Pause(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	s, err := n.running(id)
	if err != nil {
		return err
	}
	if !n.cfg.Driver.Capabilities().Pause {
		return n.cannot("pause sandboxes")
	}
	// Not during a save, which pauses and resumes the machine itself.
	if err := s.saving.enter(ctx); err != nil {
		return err
	}
	defer s.saving.leave()
	return s.freeze(ctx)
}

// Resume implements nodeapi.Node.
func (n *Node) Resume(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	s, err := n.running(id)
	if err != nil {
		return err
	}
	if err := s.saving.enter(ctx); err != nil {
		return err
	}
	defer s.saving.leave()
	return s.thaw()
}

// freeze pauses the machine.
func (s *session) freeze(ctx context.Context) error {
	// Set before the machine is paused, so that heartbeat does not take it for
	// dead.
	s.setFrozen(true)
	if err := s.machine.Pause(ctx); err != nil {
		s.setFrozen(false)
		return err
	}
	return nil
}

func (s *session) setFrozen(frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
}

// thaw resumes the machine.
func (s *session) thaw() error {
	if err := s.machine.Resume(context.Background()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen, s.overdue = false, false
	s.thaws++
	return nil
}

// standstills returns how often the machine was paused before, and whether it is
// paused now.
func (s *session) standstills() (past int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thaws, s.frozen
}
