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

	stop sync.Once

	mu       sync.Mutex
	run      skerry.Session
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
	now := skerry.At(time.Now())
	l.mu.Lock()
	from := l.run.Status
	if !from.CanBecome(to) {
		l.mu.Unlock()
		return fmt.Errorf("session %s is %s and cannot become %s", l.id, from, to)
	}
	l.run.Status = to
	l.run.UpdatedAt = now
	if change != nil {
		change(&l.run)
	}
	run := l.run
	l.mu.Unlock()
	c.cfg.Log.Info("session "+string(to), "session", l.id, "sandbox", l.boxID, "from", from, "reason", run.Reason)
	return c.saveSession(ctx, &run, now)
}

// saveSession writes a session and what its sandbox shows of it. A sandbox
// that was deleted meanwhile is no error.
func (c *Controller) saveSession(ctx context.Context, run *skerry.Session, now skerry.Time) error {
	c.edits.Lock()
	defer c.edits.Unlock()
	box, err := c.cfg.Store.Sandbox(ctx, run.SandboxID)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if box.CurrentSessionID == run.ID {
		if box.Status != run.Status {
			box.Status, box.StatusUpdatedAt = run.Status, now
		}
		box.ExpiresAt = skerry.Time{}
		if run.Status == skerry.StatusRunning {
			box.ExpiresAt = run.ExpiresAt()
		}
	}
	if run.Status.Ended() {
		box.TotalDuration += run.Duration
		box.TotalActiveCPU += run.ActiveCPU
		if run.Network != nil {
			box.TotalIngressBytes += run.Network.Ingress
			box.TotalEgressBytes += run.Network.Egress
		}
	}
	return c.cfg.Store.SaveSession(ctx, box, run)
}

// arm sets the timer that stops the session when its time is up.
func (c *Controller) arm(l *live) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := time.Until(l.run.ExpiresAt().Time)
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(left, func() {
		c.cfg.Log.Info("session timed out", "session", l.id, "sandbox", l.boxID)
		c.beginStop(l)
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
	now := skerry.At(time.Now())
	l.mu.Lock()
	// Compared so that a huge duration does not overflow.
	if by.Std() > c.cfg.MaxTimeout-l.run.Timeout.Std() {
		l.mu.Unlock()
		return nil, &skerry.Error{Code: skerry.CodeTimeoutInvalid, Field: "duration",
			Message: fmt.Sprintf("would extend the timeout beyond the maximum of %s", c.cfg.MaxTimeout)}
	}
	l.run.Timeout += by
	l.run.UpdatedAt = now
	run := l.run
	l.mu.Unlock()
	c.arm(l)
	return &run, c.saveSession(context.WithoutCancel(ctx), &run, now)
}
