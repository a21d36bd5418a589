package node

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry/internal/nodeapi"
)

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
	return s.alone(ctx, func() error { return s.freeze(ctx) })
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
	return s.alone(ctx, func() error { return s.thaw(ctx) })
}

// freeze pauses the machine. The caller holds standing.
func (s *session) freeze(ctx context.Context) error {
	if s.endSleep() {
		return nil // it is paused already
	}
	// Set before the machine is paused, so that heartbeat does not take it for
	// dead.
	s.setFrozen(true)
	if err := s.machine().Pause(ctx); err != nil {
		s.setFrozen(false)
		return err
	}
	s.meterAll()
	return nil
}

func (s *session) setFrozen(frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
}

// thaw resumes the machine. The caller holds standing.
func (s *session) thaw(ctx context.Context) error {
	began, hibernated := time.Now(), s.isHibernated()
	s.stopReclaim() // it would take the pages that are used from now on
	if err := s.comeBack(ctx); err != nil {
		return err
	}
	if err := s.machine().Resume(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	s.meterMemory()
	s.mu.Lock()
	slept := s.idle.asleep
	s.frozen, s.overdue, s.idle.asleep, s.idle.quiet = false, false, false, nil
	s.thaws++
	s.mu.Unlock()
	select {
	case s.pressed <- struct{}{}: // its memory is guarded again
	default:
	}
	s.tokenAfterPause(ctx)
	if slept {
		s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionAwake, SessionID: s.id, Hibernated: hibernated, Took: time.Since(began)})
	}
	return nil
}

// standstills returns how often the machine was paused before, and whether it is
// paused now.
func (s *session) standstills() (past int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thaws, s.frozen
}
