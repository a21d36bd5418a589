package controller

import (
	"context"
	"sync"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/share"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// sessionStore is what sessions need of the store.
type sessionStore interface {
	Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error)
	SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error)
	UpdateSession(ctx context.Context, id string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error)
	Session(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	SessionScope(ctx context.Context, teamID, id string) (skerry.Scope, error)
	LiveSessions(ctx context.Context) ([]skerry.Session, error)
	ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error)
	SessionIDs(ctx context.Context, sandboxID string) ([]string, error)
	PruneSessions(ctx context.Context, sandboxID string, keep int) ([]string, error)
	AddSnapshot(ctx context.Context, snap *skerry.Snapshot, saved nodeapi.SavedFiles, sessionID string, change func(*skerry.Sandbox, *skerry.Session) error) (*skerry.Sandbox, *skerry.Session, error)
	Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	ListCommands(ctx context.Context, sessionID string, page skerry.Page) ([]skerry.Command, string, error)
	DeleteCommands(ctx context.Context, ids []string) error
}

// sessions are those that have not ended.
type sessions struct {
	*background
	cfg   *Config
	store sessionStore
	node  nodeapi.Node
	saver *saver
	// expected is what the node will tell.
	expected  *expected
	snapshots *snapshots
	ports     *ports
	losses    losses
	// startSlots bounds how many sessions start at once, each for its team.
	startSlots *share.Turns[string]
	// starts limits how often teams and projects start sessions.
	starts share.Rates[string]

	// admitting is held, shared, from the admission of a session until it is
	// listed.
	admitting sync.RWMutex

	// registry guards what follows.
	registry sync.Mutex
	// stopping is set when all sessions are being stopped: none starts any more.
	stopping bool
	// taken is what the sessions take of the machine, takenBy what those of each team and of
	// each project do, by their ids.
	taken   room
	takenBy map[string]room
	// byID and bySandbox are the sessions by their ids, and by their sandboxes'.
	byID, bySandbox map[string]*session
}

// begin makes a session the current one of a sandbox and starts it: write puts it
// into the store, bringUp has the node start it. A write that failed may have been
// done: the session then ends as one whose start failed.
func (c *sessions) begin(ctx context.Context, room portion, write func() (skerry.Session, error), bringUp func(context.Context, *session) error) (*session, error) {
	c.admitting.RLock()
	defer c.admitting.RUnlock()
	if err := c.admit(ctx, room); err != nil {
		return nil, err
	}
	run, err := write()
	if err != nil && !mayBeWritten(err) {
		c.registry.Lock()
		defer c.registry.Unlock()
		c.leave(room)
		return nil, err
	}
	s := c.newSession(run)
	s.actFor(ctx)
	s.starting = tracing.Carry(s.starting, ctx)
	c.list(s)
	if closing := c.spawn(s.reconcile); closing != nil {
		// The next process finds the session.
		s.startErr = closing
		s.cancelStart()
		close(s.started)
		close(s.gone)
		return s, nil
	}
	s.tell(func() {
		s.start(func(ctx context.Context) error {
			if err != nil {
				return err
			}
			return bringUp(ctx, s)
		})
	})
	return s, nil
}

// mayBeWritten reports whether a write that failed with err may have been done
// all the same.
func mayBeWritten(err error) bool {
	switch skerry.CodeOf(err) {
	case skerry.CodeUnavailable, skerry.CodeInternal:
		return true
	}
	return false
}

// list makes a session known that has been admitted.
func (c *sessions) list(s *session) {
	c.registry.Lock()
	defer c.registry.Unlock()
	c.byID[s.id] = s
	c.bySandbox[s.sandboxID] = s
}

// delist forgets a session and gives its room back.
func (c *sessions) delist(s *session) {
	c.expected.forgetSession(s.id)
	c.registry.Lock()
	defer c.registry.Unlock()
	c.leave(s.room)
	delete(c.byID, s.id)
	if c.bySandbox[s.sandboxID] == s {
		delete(c.bySandbox, s.sandboxID)
	}
}

// session returns a session that has not ended, or nil.
func (c *sessions) session(id string) *session {
	c.registry.Lock()
	defer c.registry.Unlock()
	return c.byID[id]
}

// sessionOf returns the session of a sandbox that has not ended, or nil.
func (c *sessions) sessionOf(sandboxID string) *session {
	c.registry.Lock()
	defer c.registry.Unlock()
	return c.bySandbox[sandboxID]
}

// runningSession returns a session that commands can run in, or the error that
// says why it is not one.
func (c *sessions) runningSession(ctx context.Context, scope skerry.Scope, id string) (*session, error) {
	if s := c.session(id); s != nil && s.scope == scope {
		return s, s.usable()
	}
	run, err := c.store.Session(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	return nil, errEnded(run)
}

// CheckSession implements api.Service.
func (c *sessions) CheckSession(ctx context.Context, scope skerry.Scope, id string) error {
	_, err := c.runningSession(ctx, scope, id)
	return err
}

// ListSessions implements api.Service.
func (c *sessions) ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error) {
	if f.SandboxName != "" {
		// An unknown name is an error, not an empty list.
		if _, err := c.store.SandboxByName(ctx, scope, f.SandboxName); err != nil {
			return nil, "", err
		}
	}
	list, next, err := c.store.ListSessions(ctx, scope, f)
	for i := range list {
		if s := c.session(list[i].ID); s != nil {
			list[i].IdleState = s.idleState(&list[i])
		}
	}
	return list, next, err
}

// GetSession implements api.Service.
func (c *sessions) GetSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Run, error) {
	run, err := c.readSession(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	sandbox, err := c.store.Sandbox(ctx, run.SandboxID)
	if err != nil {
		return nil, err
	}
	return c.answer(sandbox, run, false), nil
}

// readSession returns a session, also one that has ended.
func (c *sessions) readSession(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error) {
	if s := c.session(id); s != nil && s.scope == scope {
		run := s.state()
		return &run, nil
	}
	return c.store.Session(ctx, scope, id)
}

// SessionScope implements api.Service.
func (c *sessions) SessionScope(ctx context.Context, teamID, id string) (skerry.Scope, error) {
	if s := c.session(id); s != nil && s.scope.TeamID == teamID {
		return s.scope, nil
	}
	return c.store.SessionScope(ctx, teamID, id)
}

// answer puts a sandbox and one of its sessions together. They were read one
// after the other; the session is the truth about the sandbox's state.
func (c *sessions) answer(sandbox *skerry.Sandbox, run *skerry.Session, resumed bool) *skerry.Run {
	if sandbox.CurrentSessionID == run.ID {
		reflectSession(sandbox, run)
	}
	sandbox.Routes = c.ports.routes(sandbox)
	return &skerry.Run{Sandbox: *sandbox, Session: *run, Routes: sandbox.Routes, Resumed: resumed}
}

// awaitStart waits for a start, and if it failed for the end of what was left
// of it.
func (c *sessions) awaitStart(ctx context.Context, s *session) error {
	select {
	case <-s.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.startErr != nil {
		_ = c.awaitEnd(ctx, s) // why it failed says more than what delays its end
	}
	return s.startErr
}
