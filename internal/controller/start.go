package controller

import (
	"context"
	"maps"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// start brings the session up. Only the reconciler calls it.
func (s *session) start(bringUp func(context.Context) error) {
	var err error
	s.step(func() { err = bringUp(s.starting) }, func() { s.hasStarted(err) })
}

// hasStarted records how the start went. Only the reconciler calls it.
func (s *session) hasStarted(err error) {
	s.cancelStart()
	if err == nil {
		err = s.transition(skerry.StatusRunning, func(run *skerry.Session) { run.StartedAt = run.UpdatedAt })
	}
	if err == nil {
		s.arm(0)
		close(s.started)
		s.expected.confirmSession(s.id)
		return
	}
	s.startErr = err
	e, _ := s.claimEnding()
	close(s.started)
	s.endBy(e, func() error { return s.fail(e, err) })
}

// fail ends a session that did not come up: as failed, or as stopped if that
// is what was asked for meanwhile. It is called in a step.
func (s *session) fail(e *ending, cause error) error {
	err := s.persevere("release the resources of the session", func(ctx context.Context) error {
		return s.node.Forget(ctx, s.id)
	}, s.holdUp(e), nil)
	if err != nil {
		return err
	}
	reason := "it could not be started"
	if code := skerry.CodeOf(cause); code != skerry.CodeInternal {
		reason = cause.Error()
	}
	to := skerry.StatusFailed
	if s.state().Status == skerry.StatusStopping {
		to, reason = skerry.StatusStopped, ""
	}
	return s.recordEnd(e, to, func(run *skerry.Session) { endedAt(run, to, reason) })
}

// bringUp has the node start a session, and fetches its source.
func (c *sessions) bringUp(ctx context.Context, s *session, from basis) error {
	sandbox, err := c.store.Sandbox(ctx, s.sandboxID)
	if err != nil {
		return err
	}
	select {
	case c.startSlots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.expectLoss()
	err = func() error {
		defer func() { <-c.startSlots }()
		ctx, cancel := context.WithTimeout(ctx, c.cfg.StartTimeout)
		defer cancel()
		spec := sessionSpec(sandbox, s.state(), from)
		if from.snapshot == nil && sandbox.Source != nil {
			spec.TimeLeft += c.cfg.SourceTimeout // its time begins afterwards
		}
		return c.node.Start(ctx, spec)
	}()
	if err != nil {
		return err
	}
	if from.snapshot != nil {
		c.snapshots.touch(from.snapshot)
		return nil
	}
	if sandbox.Source != nil {
		return c.fetchSource(ctx, s.id, sandbox.Source)
	}
	return nil
}

// sessionSpec is what the node is told of a session. The environment's layers
// are, from below: the image's own, PATH for the runtime, the sandbox's.
func sessionSpec(sandbox *skerry.Sandbox, run skerry.Session, from basis) nodeapi.SessionSpec {
	image, snapshot, memory, capture := from.image, "", false, ""
	if from.forkOf != "" {
		capture = from.snapshot.ID
	} else if from.snapshot != nil {
		snapshot, memory = from.snapshot.Manifest, from.snapshot.Memory
	}
	env := maps.Clone(image.Env)
	if env == nil {
		env = map[string]string{}
	}
	if len(image.Runtimes) > 0 {
		env["PATH"] = runtimePath(sandbox.Runtime, image.Runtimes)
	}
	maps.Copy(env, sandbox.Env)
	return nodeapi.SessionSpec{
		ID:          run.ID,
		Hostname:    hostname(sandbox.Name),
		ImageDigest: image.Digest,
		Snapshot:    snapshot,
		Memory:      memory,
		ForkOf:      from.forkOf,
		Capture:     capture,
		Runtime:     sandbox.Runtime,
		VCPUs:       sandbox.VCPUs,
		MemoryMB:    sandbox.MemoryMB,
		Env:         env,
		Mounts:      from.mounts,
		TimeLeft:    run.Timeout.Std(),
		Network:     networkSpec(&run),
	}
}
