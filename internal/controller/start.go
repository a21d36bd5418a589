package controller

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// start brings the session up. Only the reconciler calls it.
func (s *session) start(bringUp func(context.Context) error) {
	var err error
	s.step(func() {
		ctx, span := tracing.Start(s.starting, "session.start")
		span.Session(s.id)
		err = bringUp(ctx)
		span.End(err)
	}, func() { s.hasStarted(err) })
}

// hasStarted records how the start went. Only the reconciler calls it.
func (s *session) hasStarted(err error) {
	s.cancelStart()
	if err == nil {
		err = s.transition(skerry.StatusRunning, func(run *skerry.Session) { run.StartedAt = run.UpdatedAt })
	}
	if err == nil {
		s.arm(0)
		s.behalf.Store(nil)
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
	if from.forkOf != "" {
		// It is saved as it is now, and not when its turn comes; forks at once share that.
		ctx, cancel := context.WithTimeout(ctx, c.cfg.StartTimeout)
		err := c.node.Capture(ctx, from.forkOf, from.snapshot.ID)
		cancel()
		if err != nil {
			return err
		}
	}
	if err := c.awaitSlot(ctx, sandbox.Scope.TeamID); err != nil {
		return err
	}
	s.expectLoss()
	release := sync.OnceFunc(func() { c.startSlots.Give(sandbox.Scope.TeamID) })
	err = func() error {
		defer release()
		if from.forkOf != "" {
			defer time.AfterFunc(c.cfg.forkSlot, release).Stop()
		}
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
		ctx, span := tracing.Start(ctx, tracing.StartFetch)
		err := c.fetchSource(ctx, s.id, sandbox.Source)
		span.End(err)
		return err
	}
	return nil
}

// forkSlot is the maximum time for which a memory fork holds a start slot. Afterwards it waits for
// the pages of its source, which takes no CPU time of its own and up to a minute for a large one.
const forkSlot = time.Second

// UsualSpec is the specification of a session of a sandbox that was created without any
// options, without the parts that differ from session to session.
func UsualSpec(ctx context.Context, images nodeapi.Images) (nodeapi.SessionSpec, error) {
	image, err := images.Resolve(ctx, "")
	if err != nil {
		return nodeapi.SessionSpec{}, err
	}
	sandbox := &skerry.Sandbox{VCPUs: skerry.DefaultVCPUs, MemoryMB: skerry.DefaultVCPUs * skerry.MemoryPerVCPU}
	if len(image.Runtimes) > 0 {
		sandbox.Runtime = image.Runtimes[0]
	}
	return sessionSpec(sandbox, skerry.Session{}, basis{image: image}), nil
}

// awaitSlot waits until it is the team's turn to have one of the startSlots, and takes it.
func (c *sessions) awaitSlot(ctx context.Context, team string) (err error) {
	_, span := tracing.Start(ctx, tracing.StartQueue)
	defer span.Done(&err)
	return c.startSlots.Wait(ctx, team)
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
		Idle:        sandbox.Idle,
		Audience:    sandbox.OIDCAudience,
	}
}
