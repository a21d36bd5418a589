package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
)

// CreateSandbox implements api.Service.
func (c *Controller) CreateSandbox(ctx context.Context, scope skerry.Scope, p skerry.CreateParams) (*skerry.Run, error) {
	vcpus, memory := given(p.VCPUs), given(p.MemoryMB)
	if err := c.validateCreate(&p); err != nil {
		return nil, err
	}
	from, err := c.basisOf(ctx, scope, p.Image, "", p.Source)
	if skerry.CodeOf(err) == skerry.CodeSnapshotNotFound {
		err = about(err, "source.snapshotId")
	}
	if err != nil {
		return nil, err
	}
	if err := from.fit(&p, vcpus, memory); err != nil {
		return nil, err
	}
	if from.snapshot != nil && p.Runtime == "" {
		p.Runtime = from.snapshot.Base.Runtime
	}
	if err := chooseRuntime(&p, from.image); err != nil {
		return nil, err
	}
	return c.create(ctx, scope, p, from)
}

// basis is what a session's files start from.
type basis struct {
	image Image
	// snapshot is nil for the image alone.
	snapshot *skerry.Snapshot
	// forkOf, if not "", is the session that the snapshot is still to be taken
	// of, with its memory.
	forkOf string
	mounts []DriveMount
}

// basisOf finds what a sandbox's next session starts from: its current
// snapshot, the one that it was created from, or its image.
func (c *Controller) basisOf(ctx context.Context, scope skerry.Scope, image, current string, source *skerry.Source) (from basis, err error) {
	if current == "" && source != nil && source.Type == "snapshot" {
		current = source.SnapshotID
	}
	if current == "" {
		from.image, err = c.cfg.Images.Resolve(ctx, image)
		return from, err
	}
	from.snapshot, from.image, err = c.usableSnapshot(ctx, scope, current)
	return from, err
}

// fit gives a sandbox the size that a memory snapshot must have, and refuses
// another that was asked for.
func (b basis) fit(p *skerry.CreateParams, vcpus, memory *int) error {
	if b.snapshot == nil || !b.snapshot.Memory {
		return nil
	}
	base := b.snapshot.Base
	if vcpus != nil && *vcpus != base.VCPUs {
		return skerry.Invalid("resources.vcpus", "must be %d, as when the memory snapshot was taken, is %d", base.VCPUs, *vcpus)
	}
	if memory != nil && *memory != base.MemoryMB {
		return skerry.Invalid("resources.memory", "must be %d, as when the memory snapshot was taken, is %d", base.MemoryMB, *memory)
	}
	p.VCPUs, p.MemoryMB = base.VCPUs, base.MemoryMB
	return nil
}

// given is nil for a number that was not.
func given(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}

// create makes a sandbox of parameters that were checked.
func (c *Controller) create(ctx context.Context, scope skerry.Scope, p skerry.CreateParams, from basis) (_ *skerry.Run, err error) {
	if from.mounts, err = c.findDrives(ctx, scope, p.Mounts); err != nil {
		return nil, err
	}
	now := skerry.At(time.Now())
	box := &skerry.Sandbox{
		ID:                 skerry.NewID(skerry.PrefixSandbox),
		Scope:              scope,
		Name:               p.Name,
		Persistent:         p.Persistent == nil || *p.Persistent,
		Region:             skerry.Region,
		VCPUs:              p.VCPUs,
		MemoryMB:           p.MemoryMB,
		Runtime:            p.Runtime,
		Image:              from.image.Name,
		Timeout:            p.Timeout,
		Env:                p.Env,
		Tags:               p.Tags,
		Source:             p.Source,
		SnapshotExpiration: p.SnapshotExpiration,
		Retention:          p.Retention,
		Mounts:             p.Mounts,
		Status:             skerry.StatusPending,
		StatusUpdatedAt:    now,
		Cwd:                skerry.WorkDir,
		CreatedAt:          now,
		UpdatedAt:          now,
	}
	if p.Policy == nil {
		p.Policy = skerry.AllowAll()
	}
	box.SetPolicy(p.Policy)
	unlock, err := c.boxes.lock(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	box.Ports = published(nil, p.Ports, p.PrivatePorts)
	if err := c.publish(box); err != nil {
		return nil, err
	}
	l, err := c.newSession(ctx, box, from, now, c.cfg.Store.CreateSandbox)
	if err != nil {
		c.withdraw(box.ID)
		return nil, err
	}
	if err := c.startAndWait(ctx, l, from, true); err != nil {
		// A failed creation leaves nothing: its name can be used again at once.
		return nil, errors.Join(err, c.erase(context.WithoutCancel(ctx), box.ID))
	}
	return c.runOf(ctx, box.ID, true)
}

// chooseRuntime settles what is first on PATH: an image of the client's own
// has no runtimes to choose from.
func chooseRuntime(p *skerry.CreateParams, image Image) error {
	if p.Runtime == "" {
		if len(image.Runtimes) > 0 {
			p.Runtime = image.Runtimes[0]
		}
		return nil
	}
	if !slices.Contains(image.Runtimes, p.Runtime) {
		return skerry.Invalid("runtime", "is %q, want one of %v", p.Runtime, image.Runtimes)
	}
	return nil
}

// newSession makes a session the current one of a sandbox, in memory and in
// the store.
func (c *Controller) newSession(ctx context.Context, box *skerry.Sandbox, from basis, now skerry.Time, write writer) (*live, error) {
	run := skerry.Session{
		ID:          skerry.NewID(skerry.PrefixSession),
		SandboxID:   box.ID,
		Scope:       box.Scope,
		SandboxName: box.Name,
		VCPUs:       box.VCPUs,
		MemoryMB:    box.MemoryMB,
		Region:      box.Region,
		Runtime:     box.Runtime,
		Image:       box.Image,
		Timeout:     box.Timeout,
		Cwd:         box.Cwd,
		Persistent:  box.Persistent,
		ImageDigest: from.image.Digest,
		Status:      skerry.StatusPending,
		RequestedAt: now,
		CreatedAt:   now,
		UpdatedAt:   now,
	}
	run.SetPolicy(box.Policy)
	if from.snapshot != nil {
		run.SourceSnapshotID = from.snapshot.ID
	}
	for _, m := range from.mounts {
		if !m.Frozen {
			run.DriveIDs = append(run.DriveIDs, m.DriveID)
		}
	}
	box.CurrentSessionID = run.ID
	box.Status, box.StatusUpdatedAt = run.Status, now
	l := newLive(run)
	if err := c.enlist(l); err != nil {
		return nil, err
	}
	if err := write(ctx, box, &run); err != nil {
		c.delist(l)
		return nil, err
	}
	return l, nil
}

// startAndWait starts a session and waits for it. With abandon, a caller that
// goes away takes the start with it; otherwise it goes on.
func (c *Controller) startAndWait(ctx context.Context, l *live, from basis, abandon bool) error {
	startCtx, cancel := context.WithCancel(c.ctx)
	l.cancelStart = cancel
	if err := c.spawn(func() { c.start(startCtx, l, from) }); err != nil {
		cancel()
		l.startErr = err
		close(l.started)
		return errors.Join(err, c.fail(l, err))
	}
	select {
	case <-l.started:
	case <-ctx.Done():
		if !abandon {
			return ctx.Err()
		}
		cancel()
		<-l.started
		if l.startErr == nil { // it was ready just then
			err := c.discard(context.WithoutCancel(ctx), l)
			return errors.Join(ctx.Err(), err)
		}
		return ctx.Err()
	}
	return l.startErr
}

// start brings a session up and says so.
func (c *Controller) start(ctx context.Context, l *live, from basis) {
	defer l.cancelStart()
	err := c.bringUp(ctx, l, from)
	if err != nil {
		if ferr := c.fail(l, err); ferr != nil {
			c.cfg.Log.Error("cannot record a failed start", "session", l.id, "error", ferr)
		}
		l.startErr = err
	}
	close(l.started)
}

func (c *Controller) bringUp(ctx context.Context, l *live, from basis) error {
	box, err := c.cfg.Store.Sandbox(ctx, l.boxID)
	if err != nil {
		return err
	}
	select {
	case c.starts <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	err = func() error {
		defer func() { <-c.starts }()
		ctx, cancel := context.WithTimeout(ctx, c.cfg.StartTimeout)
		defer cancel()
		return c.cfg.Node.Start(ctx, sessionSpec(box, l, from))
	}()
	if err != nil {
		return err
	}
	if from.snapshot != nil {
		c.touch(ctx, from.snapshot)
	} else if box.Source != nil {
		if err := c.fetchSource(ctx, l.id, box.Source); err != nil {
			return err
		}
	}
	err = c.transition(ctx, l, skerry.StatusRunning, func(run *skerry.Session) {
		run.StartedAt = run.UpdatedAt
	})
	if err != nil {
		return err
	}
	c.arm(l, 0)
	// An error means that the controller closes: the next one takes over.
	_ = c.spawn(func() { c.watch(l) })
	return nil
}

// sessionSpec is what the node is told of a session. The environment's layers
// are, from below: the image's own, PATH for the runtime, the sandbox's.
func sessionSpec(box *skerry.Sandbox, l *live, from basis) SessionSpec {
	run := l.session()
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
		env["PATH"] = runtimePath(box.Runtime, image.Runtimes)
	}
	maps.Copy(env, box.Env)
	return SessionSpec{
		ID:          l.id,
		Hostname:    hostname(box.Name),
		ImageDigest: image.Digest,
		Snapshot:    snapshot,
		Memory:      memory,
		ForkOf:      from.forkOf,
		Capture:     capture,
		Runtime:     box.Runtime,
		VCPUs:       box.VCPUs,
		MemoryMB:    box.MemoryMB,
		Env:         env,
		Mounts:      from.mounts,
		Network:     networkSpec(&run),
	}
}

// touch records that a session started from a snapshot. Nothing depends on it.
func (c *Controller) touch(ctx context.Context, snap *skerry.Snapshot) {
	if err := c.cfg.Store.TouchSnapshot(ctx, snap.ID, skerry.At(time.Now())); err != nil {
		c.cfg.Log.Warn("cannot record the use of a snapshot", "snapshot", snap.ID, "error", err)
	}
}

// fail ends a session that did not come up: as failed, or as stopped if that
// is what was asked for meanwhile.
func (c *Controller) fail(l *live, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), stopTimeout)
	defer cancel()
	err := c.cfg.Node.Forget(ctx, l.id)
	reason := "it could not be started"
	if code := skerry.CodeOf(cause); code != skerry.CodeInternal {
		reason = cause.Error()
	}
	now := skerry.At(time.Now())
	terr := c.transition(ctx, l, skerry.StatusFailed, func(run *skerry.Session) {
		run.Reason, run.StoppedAt = reason, now
	})
	if terr != nil && l.session().Status == skerry.StatusStopping {
		terr = c.transition(ctx, l, skerry.StatusStopped, func(run *skerry.Session) { run.StoppedAt = now })
	}
	err = errors.Join(err, terr)
	c.end(l)
	return err
}

// GetSandbox implements api.Service.
func (c *Controller) GetSandbox(ctx context.Context, scope skerry.Scope, name string, resume bool) (*skerry.Run, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	resumed := false
	if resume {
		if resumed, err = c.resume(ctx, box.ID); err != nil {
			return nil, err
		}
	}
	return c.runOf(ctx, box.ID, resumed)
}

// resume sees to it that a sandbox has a running session. It waits for a stop
// in progress; callers that come together share one new session.
func (c *Controller) resume(ctx context.Context, boxID string) (resumed bool, err error) {
	for {
		l, mine, err := c.currentOrNew(ctx, boxID)
		if err != nil {
			return false, err
		}
		if !mine {
			switch l.session().Status {
			case skerry.StatusRunning:
				if err := c.wake(context.WithoutCancel(ctx), l); err == nil || l.session().Status == skerry.StatusRunning {
					return resumed, err
				}
			case skerry.StatusPending:
				resumed = true
				select {
				case <-l.started:
				case <-ctx.Done():
					return false, ctx.Err()
				}
				if l.startErr != nil {
					return false, l.startErr
				}
			default:
				select {
				case <-l.ended:
				case <-ctx.Done():
					return false, ctx.Err()
				}
			}
			continue
		}
		return true, l.startErr
	}
}

// currentOrNew returns the session of a sandbox that has not ended, or starts
// one (mine) and waits for it.
func (c *Controller) currentOrNew(ctx context.Context, boxID string) (_ *live, mine bool, err error) {
	if l := c.liveOf(boxID); l != nil {
		return l, false, nil
	}
	unlock, err := c.boxes.lock(ctx, boxID)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	if l := c.liveOf(boxID); l != nil {
		return l, false, nil
	}
	box, err := c.cfg.Store.Sandbox(ctx, boxID)
	if err != nil {
		return nil, false, err
	}
	current := box.CurrentSnapshotID
	if !box.Persistent {
		current = "" // kept for when it is persistent again
	}
	from, err := c.basisOf(ctx, box.Scope, box.Image, current, box.Source)
	if err != nil {
		return nil, false, err
	}
	if from.mounts, err = c.findDrives(ctx, box.Scope, box.Mounts); err != nil {
		return nil, false, err
	}
	l, err := c.nextSession(ctx, boxID, from)
	if err != nil {
		return nil, false, err
	}
	return l, true, c.startAndWait(ctx, l, from, false)
}

// nextSession gives a sandbox that has none a new session.
func (c *Controller) nextSession(ctx context.Context, boxID string, from basis) (*live, error) {
	c.edits.Lock()
	defer c.edits.Unlock()
	box, err := c.cfg.Store.Sandbox(ctx, boxID)
	if err != nil {
		return nil, err
	}
	return c.newSession(ctx, box, from, skerry.At(time.Now()), c.cfg.Store.CreateSession)
}

// runOf returns a sandbox with its current session.
func (c *Controller) runOf(ctx context.Context, boxID string, resumed bool) (*skerry.Run, error) {
	box, err := c.cfg.Store.Sandbox(ctx, boxID)
	if err != nil {
		return nil, err
	}
	run, err := c.sessionOf(ctx, box.Scope, box.CurrentSessionID)
	if err != nil {
		return nil, err
	}
	return c.answer(box, run, resumed), nil
}

// answer puts a sandbox and one of its sessions together. They were read one
// after the other; the session is the truth about the sandbox's state.
func (c *Controller) answer(box *skerry.Sandbox, run *skerry.Session, resumed bool) *skerry.Run {
	if box.CurrentSessionID == run.ID {
		reflectSession(box, run)
	}
	box.Routes = c.routes(box)
	return &skerry.Run{Sandbox: *box, Session: *run, Routes: box.Routes, Resumed: resumed}
}

// sessionOf returns a session, live or past.
func (c *Controller) sessionOf(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	if l := c.liveSession(id); l != nil && l.scope == scope {
		run := l.session()
		return &run, nil
	}
	return c.cfg.Store.Session(ctx, scope, id)
}
