package controller

import (
	"context"
	"errors"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// networkSpec is what the node is told of a session's network.
func networkSpec(run *skerry.Session) nodeapi.NetworkSpec {
	return nodeapi.NetworkSpec{Policy: run.Policy, Owner: nodeapi.Owner{
		TeamID: run.Scope.TeamID, ProjectID: run.Scope.ProjectID, SandboxID: run.SandboxID, SandboxName: run.SandboxName,
	}}
}

// SetNetworkPolicy implements api.Service.
func (c *sessions) SetNetworkPolicy(ctx context.Context, scope skerry.Scope, id string, p *skerry.NetworkPolicy) (*skerry.Session, error) {
	if err := p.Validate(""); err != nil {
		return nil, err
	}
	s, err := c.runningSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	// It is enforced and recorded even if the client has gone.
	err = s.network.do(ctx, func() error {
		err := s.setPolicy(p)
		if nodeapi.OutcomeUnknown(err) { // the stored policy holds
			_, owing := s.enforceLater(s.state().Policy)
			err = errors.Join(err, owing)
		}
		return err
	})
	if err != nil {
		return nil, c.failure(ctx, s, err)
	}
	run := s.state()
	return &run, nil
}

// setPolicy enforces what a session may reach, and then records it: a policy that
// is recorded first and not enforced would be believed. It is called in a step of
// the network.
func (s *session) setPolicy(p *skerry.NetworkPolicy) error {
	before := s.state()
	if before.Status != skerry.StatusRunning && before.Status != skerry.StatusSnapshotting {
		return s.usable()
	}
	after := before
	after.SetPolicy(p)
	if err := s.setNetwork(&after); err != nil {
		return err
	}
	err := s.record(func(run *skerry.Session) error {
		run.SetPolicy(p)
		return nil
	})
	if err != nil {
		if back := s.setNetwork(&before); back != nil {
			_, owing := s.enforceLater(before.Policy)
			err = errors.Join(err, back, owing)
		}
		return err
	}
	s.unenforced.Store(nil)
	s.log.Info("network policy set", "session", s.id, "sandbox", s.sandboxID, "mode", p.Mode)
	return nil
}

// setNetwork has the node enforce the policy of a session.
func (s *session) setNetwork(run *skerry.Session) error {
	return s.try(func(ctx context.Context) error { return s.node.SetNetwork(ctx, s.id, networkSpec(run)) })
}

// applyPolicy makes a sandbox's new policy that of its current session, after
// waiting for one that starts. One that is about to end needs none.
func (c *sessions) applyPolicy(ctx context.Context, sandbox *skerry.Sandbox, p *skerry.NetworkPolicy) error {
	s := c.sessionOf(sandbox.ID)
	if s == nil {
		return nil
	}
	select {
	case <-s.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := s.network.do(ctx, func() error { return s.applyStored(p) })
	if stopped(err) {
		return nil
	}
	return err
}

// stopped reports whether an error says that the session has stopped, or is about
// to.
func stopped(err error) bool {
	switch skerry.CodeOf(err) {
	case skerry.CodeSandboxStopped, skerry.CodeSandboxStopping:
		return true
	}
	return false
}

// applyStored enforces a policy that is stored. If it cannot be, the session
// reaches nothing until it can. It is a step of the network.
func (s *session) applyStored(p *skerry.NetworkPolicy) error {
	err := s.setPolicy(p)
	if err == nil || skerry.CodeOf(err) == skerry.CodeBadRequest || stopped(err) {
		return err
	}
	s.log.Error("a stored network policy could not be enforced", "session", s.id, "sandbox", s.sandboxID, "error", err)
	closed, err := s.enforceLater(p)
	switch {
	case err != nil:
		return err
	case !closed:
		return skerry.Errorf(skerry.CodeUnavailable, "the network policy is stored, but could not be enforced, nor the sandbox's network be closed: it still has its previous policy; the server keeps trying")
	}
	return skerry.Errorf(skerry.CodeUnavailable, "the network policy is stored, but could not be enforced yet; the sandbox's network is closed until it can be")
}

// unenforced is a policy that is stored and to be enforced.
type unenforced struct{ policy *skerry.NetworkPolicy }

// enforceLater has a policy that is stored enforced as soon as it can be. Until
// then the session reaches nothing, if its network could be closed. It is called
// in a step of the network.
func (s *session) enforceLater(p *skerry.NetworkPolicy) (closed bool, err error) {
	u := &unenforced{policy: p}
	s.unenforced.Store(u)
	closed = s.closeNetwork()
	return closed, s.spawn(func() {
		_ = s.persevere("enforce the network policy", func(ctx context.Context) error {
			err := s.network.do(ctx, func() error { return s.enforce(u) })
			if stopped(err) {
				return nil
			}
			return err
		}, func(error) {}, s.ended)
	})
}

// enforce enforces a policy, unless there is a newer one. It is a step of the
// network.
func (s *session) enforce(u *unenforced) error {
	if s.unenforced.Load() != u {
		return nil
	}
	err := s.setPolicy(u.policy)
	if err != nil && s.unenforced.Load() == u && !stopped(err) {
		s.closeNetwork()
	}
	return err
}

// closeNetwork has a session reach nothing, whatever its policy is. It reports whether
// that is so: the network of a session that has stopped is closed.
func (s *session) closeNetwork() bool {
	closed := s.state()
	closed.Policy = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}
	err := s.setNetwork(&closed)
	if err != nil && skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		s.log.Error("a session's network could not be closed", "session", s.id, "sandbox", s.sandboxID, "error", err)
		return false
	}
	return true
}

// NetworkEvents implements api.Service.
func (c *sessions) NetworkEvents(ctx context.Context, scope skerry.Scope, id string, limit int) ([]skerry.NetworkEvent, error) {
	if _, err := c.readSession(ctx, scope, id); err != nil {
		return nil, err
	}
	return c.node.NetworkEvents(ctx, id, limit)
}
