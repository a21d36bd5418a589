package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// live is a session that has not ended.
type live struct {
	id    string
	boxID string
	scope skerry.Scope

	// cancelStart ends a start in progress.
	cancelStart context.CancelFunc
	// started is closed when the start has come to an end, one way or the
	// other; startErr is what went wrong.
	started  chan struct{}
	startErr error
	// ended is closed when the session is over and the store says so.
	ended chan struct{}

	// pausing is held by what pauses or resumes the session, policing by what
	// changes what it may reach.
	pausing  sync.Mutex
	policing sync.Mutex

	mu  sync.Mutex
	run skerry.Session
	// ending is the attempt to end the session that is under way or has
	// succeeded.
	ending   *ending
	timer    *time.Timer
	commands map[string]*command
	// finished are the ids of the ended commands, the oldest first.
	finished []string
}

func newLive(run skerry.Session) *live {
	return &live{
		id:       run.ID,
		boxID:    run.SandboxID,
		scope:    run.Scope,
		started:  make(chan struct{}),
		ended:    make(chan struct{}),
		run:      run,
		commands: map[string]*command{},
	}
}

// session returns the session as it is now.
func (l *live) session() skerry.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.run
}

// usable returns nil if commands can run in the session.
func (l *live) usable() error {
	run := l.session()
	switch run.Status {
	case skerry.StatusRunning:
		return nil
	case skerry.StatusPending:
		return skerry.Errorf(skerry.CodeUnavailable, "session %s is still starting", l.id)
	case skerry.StatusStopping:
		return skerry.Errorf(skerry.CodeSandboxStopping, "session %s is stopping", l.id)
	case skerry.StatusSnapshotting:
		return skerry.Errorf(skerry.CodeSandboxSnapshotting, "session %s is being snapshotted", l.id)
	}
	return errEnded(&run)
}

// transition moves the session to a state, if that may follow the present
// one, and writes it with its sandbox. change, if not nil, sets what else
// changes with it.
func (c *Controller) transition(ctx context.Context, l *live, to skerry.SessionStatus, change func(*skerry.Session)) error {
	return c.editSession(ctx, l, func(run *skerry.Session) error {
		from := run.Status
		if !from.CanBecome(to) {
			return fmt.Errorf("session %s is %s and cannot become %s", l.id, from, to)
		}
		run.Status = to
		if change != nil {
			change(run)
		}
		c.cfg.Log.Info("session "+string(to), "session", l.id, "sandbox", l.boxID, "from", from, "reason", run.Reason)
		return nil
	}, c.cfg.Store.SaveSession)
}

// writer writes a session and its sandbox.
type writer func(context.Context, *skerry.Sandbox, *skerry.Session) error

// editSession changes a session, unless change returns an error, and writes
// it with what its sandbox shows of it. Edits follow one another, so that the
// store never ends with the older of two. A sandbox that was deleted meanwhile
// is no error.
func (c *Controller) editSession(ctx context.Context, l *live, change func(*skerry.Session) error, write writer) error {
	c.edits.Lock()
	defer c.edits.Unlock()
	now := skerry.At(time.Now())
	run := l.session()
	run.UpdatedAt = now
	if err := change(&run); err != nil {
		return err
	}
	l.mu.Lock()
	l.run = run
	l.mu.Unlock()
	box, err := c.cfg.Store.Sandbox(ctx, run.SandboxID)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if box.CurrentSessionID == run.ID {
		if box.Status != run.Status {
			box.StatusUpdatedAt = now
		}
		reflectSession(box, &run)
	}
	if run.Status.Ended() {
		box.TotalDuration += run.Duration
		box.TotalActiveCPU += run.ActiveCPU
		if run.Network != nil {
			box.TotalIngressBytes += run.Network.Ingress
			box.TotalEgressBytes += run.Network.Egress
		}
	}
	return write(ctx, box, &run)
}

// reflectSession makes a sandbox show the state of its current session.
func reflectSession(box *skerry.Sandbox, run *skerry.Session) {
	box.Status = run.Status
	box.ExpiresAt, box.PausedAt = skerry.Time{}, run.PausedAt
	if run.Status == skerry.StatusRunning {
		box.ExpiresAt = run.ExpiresAt()
	}
}

// arm sets the timer that stops the session when its time is up, but not
// before atLeast has passed.
func (c *Controller) arm(l *live, atLeast time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.run.Status.Ended() {
		return
	}
	left := max(time.Until(l.run.ExpiresAt().Time), atLeast)
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(left, func() {
		c.cfg.Log.Info("session timed out", "session", l.id, "sandbox", l.boxID)
		c.beginStop(l, l.usualSaving())
	})
}

func (l *live) disarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
}

// ExtendTimeout implements api.Service.
func (c *Controller) ExtendTimeout(ctx context.Context, scope skerry.Scope, id string, by skerry.Duration) (*skerry.Session, error) {
	if by <= 0 {
		return nil, skerry.Invalid("duration", "must be positive")
	}
	l, err := c.running(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	err = c.editSession(context.WithoutCancel(ctx), l, func(run *skerry.Session) error {
		if run.Status != skerry.StatusRunning {
			return l.usable()
		}
		// Compared so that a huge duration does not overflow.
		if by.Std() > c.cfg.MaxTimeout-run.Timeout.Std() {
			return &skerry.Error{Code: skerry.CodeTimeoutInvalid, Field: "duration",
				Message: fmt.Sprintf("would extend the timeout beyond the maximum of %s", c.cfg.MaxTimeout)}
		}
		run.Timeout += by
		return nil
	}, c.cfg.Store.SaveSession)
	if err != nil {
		return nil, err
	}
	c.arm(l, 0)
	run := l.session()
	return &run, nil
}
