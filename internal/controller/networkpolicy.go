package controller

import (
	"context"
	"errors"

	"github.com/skerry-dev/skerry"
)

// networkSpec is what the node is told of a session's network. The claims'
// names are those that the public proxy library reads.
func networkSpec(run *skerry.Session) NetworkSpec {
	return NetworkSpec{Policy: run.Policy, SandboxID: run.SandboxID, Claims: map[string]string{
		"team_id": run.Scope.TeamID, "project_id": run.Scope.ProjectID,
		"sandbox_id": run.ID, "sandbox_name": run.SandboxName,
	}}
}

// SetNetworkPolicy implements api.Service.
func (c *Controller) SetNetworkPolicy(ctx context.Context, scope skerry.Scope, id string, p *skerry.NetworkPolicy) (*skerry.Session, error) {
	if err := p.Check(""); err != nil {
		return nil, err
	}
	l, err := c.running(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	// A client that goes away must not leave a policy that nobody knows of.
	if err := c.setPolicy(context.WithoutCancel(ctx), l, p); err != nil {
		return nil, err
	}
	run := l.session()
	return &run, nil
}

// setPolicy enforces what a session may reach, and then records it: what is
// recorded first and not enforced would be believed.
func (c *Controller) setPolicy(ctx context.Context, l *live, p *skerry.NetworkPolicy) error {
	l.policing.Lock()
	defer l.policing.Unlock()
	before := l.session()
	if before.Status != skerry.StatusRunning && before.Status != skerry.StatusSnapshotting {
		return l.usable()
	}
	after := before
	after.SetPolicy(p)
	if err := c.cfg.Node.SetNetwork(ctx, l.id, networkSpec(&after)); err != nil {
		return c.failure(ctx, l, err)
	}
	err := c.editSession(ctx, l, func(run *skerry.Session) error {
		run.SetPolicy(p)
		return nil
	}, c.cfg.Store.SaveSession)
	if err != nil {
		return errors.Join(err, c.cfg.Node.SetNetwork(ctx, l.id, networkSpec(&before)))
	}
	c.cfg.Log.Info("network policy set", "session", l.id, "sandbox", l.boxID, "mode", p.Mode)
	return nil
}

// applyPolicy makes a sandbox's new policy that of its current session, after
// waiting for one that starts. One that is about to end needs none.
func (c *Controller) applyPolicy(ctx context.Context, box *skerry.Sandbox, p *skerry.NetworkPolicy) error {
	l := c.liveOf(box.ID)
	if l == nil {
		return nil
	}
	select {
	case <-l.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := c.setPolicy(context.WithoutCancel(ctx), l, p)
	switch skerry.CodeOf(err) {
	case skerry.CodeSandboxStopped, skerry.CodeSandboxStopping:
		return nil
	}
	return err
}

// NetworkEvents implements api.Service.
func (c *Controller) NetworkEvents(ctx context.Context, scope skerry.Scope, id string, limit int) ([]skerry.NetworkEvent, error) {
	if _, err := c.sessionOf(ctx, scope, id); err != nil {
		return nil, err
	}
	return c.cfg.Node.NetworkEvents(ctx, id, limit)
}
