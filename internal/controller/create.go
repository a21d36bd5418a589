package controller

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// CreateSandbox implements api.Service.
func (c *sandboxes) CreateSandbox(ctx context.Context, scope skerry.Scope, p skerry.CreateParams) (*skerry.Run, error) {
	vcpus, memory := given(p.VCPUs), given(p.MemoryMB)
	c.fillDefaults(&p)
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
	return c.createOrJoin(ctx, scope, p, from)
}

// fillDefaults sets what a client left to the service.
func (c *sandboxes) fillDefaults(p *skerry.CreateParams) {
	if p.Name == "" {
		p.Name = generateName()
	}
	if p.Timeout == 0 {
		p.Timeout = min(skerry.Duration(skerry.DefaultTimeout), skerry.Duration(c.cfg.MaxTimeout))
	}
	if p.VCPUs == 0 {
		p.VCPUs = skerry.DefaultVCPUs
	}
	if p.MemoryMB == 0 {
		p.MemoryMB = p.VCPUs * skerry.MemoryPerVCPU
	}
}

func (c *sandboxes) validateCreate(p *skerry.CreateParams) error {
	if err := c.ports.canPublish(p.Ports); err != nil {
		return err
	}
	return p.Validate(c.limits)
}

// createOrJoin makes a sandbox of parameters that were checked, or returns the one
// that another call makes at the same time; see absences.
func (c *sandboxes) createOrJoin(ctx context.Context, scope skerry.Scope, p skerry.CreateParams, from basis) (*skerry.Run, error) {
	for mayJoin := false; ; {
		run, err := c.create(ctx, scope, p, from)
		if !nameTaken(err) && !mayJoin {
			c.absences.redeem(scope, p.Name, time.Now(), time.Now()) // it may have asked before too
		}
		if !nameTaken(err) {
			return run, err
		}
		sandbox, berr := c.store.SandboxByName(ctx, scope, p.Name)
		if berr == nil {
			// CreatedAt is cut to a millisecond.
			mayJoin = mayJoin || c.absences.redeem(scope, p.Name, sandbox.CreatedAt.Add(time.Millisecond), time.Now())
			if !mayJoin {
				return nil, err
			}
			run, berr = c.joinCreation(ctx, sandbox)
		}
		if skerry.CodeOf(berr) != skerry.CodeNotFound {
			return run, berr
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// nameTaken reports whether a creation failed as there is a sandbox of that name.
func nameTaken(err error) bool {
	e, ok := errors.AsType[*skerry.Error](err)
	return ok && e.Code == skerry.CodeConflict && e.Field == "name"
}

// basis is what a session's files start from.
type basis struct {
	image nodeapi.Image
	// snapshot is nil for the image alone.
	snapshot *skerry.Snapshot
	// forkOf, if not "", is the session that the snapshot is still to be taken
	// of, with its memory.
	forkOf string
	mounts []nodeapi.DriveMount
}

// basisOf finds what a sandbox's next session starts from: its current
// snapshot, the one that it was created from, or its image.
func (c *sandboxes) basisOf(ctx context.Context, scope skerry.Scope, image, current string, source *skerry.Source) (from basis, err error) {
	if current == "" && source != nil && source.Type == "snapshot" {
		current = source.SnapshotID
	}
	if current == "" {
		from.image, err = c.images.Resolve(ctx, image)
		return from, err
	}
	from.snapshot, from.image, err = c.snapshots.usableSnapshot(ctx, scope, current)
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
		return skerry.Invalid("resources.vcpus", "must be %d, because its memory is continued, which is of a sandbox of this size; is %d", base.VCPUs, *vcpus)
	}
	if memory != nil && *memory != base.MemoryMB {
		return skerry.Invalid("resources.memory", "must be %d, because its memory is continued, which is of a sandbox of this size; is %d", base.MemoryMB, *memory)
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
func (c *sandboxes) create(ctx context.Context, scope skerry.Scope, p skerry.CreateParams, from basis) (_ *skerry.Run, err error) {
	if from.mounts, err = c.drives.find(ctx, scope, p.Mounts); err != nil {
		return nil, err
	}
	now := skerry.At(time.Now())
	sandbox := &skerry.Sandbox{
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
		OIDCAudience:       p.OIDCAudience,
		Status:             skerry.StatusPending,
		StatusUpdatedAt:    now,
		Cwd:                skerry.WorkDir,
		CreatedAt:          now,
		UpdatedAt:          now,
	}
	if p.Idle != nil {
		sandbox.Idle = *p.Idle
	}
	if p.Policy == nil {
		p.Policy = skerry.AllowAll()
	}
	sandbox.SetPolicy(p.Policy)
	unlock, err := c.lifecycles.lock(ctx, sandbox.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	sandbox.Ports = published(nil, p.Ports, p.PrivatePorts)
	if err := c.ports.publish(sandbox); err != nil {
		return nil, err
	}
	run := newRun(sandbox, skerry.NewID(skerry.PrefixSession), from, now)
	s, err := c.begin(ctx, roomOf(&run), func() (skerry.Session, error) {
		return run, c.store.CreateSandbox(ctx, sandbox, &run)
	}, func(ctx context.Context, s *session) error { return c.bringUp(ctx, s, from) })
	if err != nil {
		c.ports.withdraw(sandbox.ID)
		return nil, err
	}
	if err := c.awaitOrAbandon(ctx, s); err != nil {
		// A failed creation leaves nothing: its name can be used again at once.
		c.undoCreate(s)
		return nil, err
	}
	// Not read back from the store: from here on nothing may fail.
	run = s.state()
	sandbox.StatusUpdatedAt = run.UpdatedAt
	return c.answer(sandbox, &run, true), nil
}

// chooseRuntime settles what is first on PATH: an image of the client's own
// has no runtimes to choose from.
func chooseRuntime(p *skerry.CreateParams, image nodeapi.Image) error {
	if p.Runtime == "" {
		if len(image.Runtimes) > 0 {
			p.Runtime = image.Runtimes[0]
		}
		return nil
	}
	if !slices.Contains(image.Runtimes, p.Runtime) {
		return skerry.Invalid("runtime", "must be one of %v, is %q", image.Runtimes, p.Runtime)
	}
	return nil
}

// newRun is a new session of a sandbox, which becomes its current one.
func newRun(sandbox *skerry.Sandbox, id string, from basis, now skerry.Time) skerry.Session {
	run := skerry.Session{
		ID:          id,
		SandboxID:   sandbox.ID,
		Scope:       sandbox.Scope,
		SandboxName: sandbox.Name,
		VCPUs:       sandbox.VCPUs,
		MemoryMB:    sandbox.MemoryMB,
		Region:      sandbox.Region,
		Runtime:     sandbox.Runtime,
		Image:       sandbox.Image,
		Timeout:     sandbox.Timeout,
		Cwd:         sandbox.Cwd,
		Persistent:  sandbox.Persistent,
		ImageDigest: from.image.Digest,
		Status:      skerry.StatusPending,
		RequestedAt: now,
		CreatedAt:   now,
		UpdatedAt:   now,
	}
	run.SetPolicy(sandbox.Policy)
	if from.snapshot != nil {
		run.SourceSnapshotID = from.snapshot.ID
	}
	for _, m := range from.mounts {
		if !m.Frozen {
			run.DriveIDs = append(run.DriveIDs, m.DriveID)
		}
	}
	sandbox.CurrentSessionID = run.ID
	sandbox.Status, sandbox.StatusUpdatedAt = run.Status, now
	return run
}

// undoCreate removes the sandbox of a creation that failed, now if it can be. Until
// then it is not resumed.
func (c *sandboxes) undoCreate(s *session) {
	undo := func(ctx context.Context) error {
		if err := c.awaitEnd(ctx, s); err != nil {
			return err
		}
		return c.erase(ctx, s.sandboxID)
	}
	c.setUndoing(s.sandboxID, true)
	done := func() { c.setUndoing(s.sandboxID, false) }
	if err := c.try(undo); err != nil {
		c.keepTrying("undo a failed creation", err, undo, done)
		return
	}
	done()
}

func (c *sandboxes) setUndoing(sandboxID string, undoing bool) {
	c.undo.Lock()
	defer c.undo.Unlock()
	if undoing {
		c.undoing[sandboxID] = true
	} else {
		delete(c.undoing, sandboxID)
	}
}

// mayStart refuses a sandbox whose creation failed and is not undone yet.
func (c *sandboxes) mayStart(sandboxID string) error {
	c.undo.Lock()
	defer c.undo.Unlock()
	if c.undoing[sandboxID] {
		return skerry.Errorf(skerry.CodeUnavailable, "the creation of the sandbox has failed, and the server cannot undo it at the moment; it keeps trying")
	}
	return nil
}

// awaitOrAbandon waits for a start that its caller takes with it when it goes
// away.
func (c *sandboxes) awaitOrAbandon(ctx context.Context, s *session) error {
	err := c.awaitStart(ctx, s)
	if ctx.Err() == nil {
		return err
	}
	s.cancelStart()
	<-s.started
	if s.startErr == nil { // it was ready just then
		err := c.discard(context.WithoutCancel(ctx), s)
		return errors.Join(ctx.Err(), err)
	}
	return ctx.Err()
}
