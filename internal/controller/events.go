package controller

import (
	"context"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// One goroutine reads the events of the node and tells whoever expects them. What the
// node may tell is expected before the call that makes it possible: the end of a
// command can be told before Exec has returned. It is confirmed when that call has
// succeeded. Only then the absence from a list means that the node has lost it.

// expected is the sessions and commands of which the node will tell the end.
type expected struct {
	mu       sync.Mutex
	sessions map[string]*expectedSession
	commands map[string]*expectedCommand
}

type expectedSession struct {
	// lost is called once, if the session is lost.
	lost func(nodeapi.Loss)
	// overdue is called when the node has paused the session.
	overdue func()
	// idle is called when the node has paused the session because nobody uses it, and
	// when it has resumed it.
	idle func(skerry.IdleState)
	// early is a loss that was told before the session was confirmed.
	early           *nodeapi.Loss
	confirmed, told bool
	// missing is set during a list that has not had the session so far.
	missing bool
	// over is closed when the ends of all its commands have been told.
	over chan struct{}
}

type expectedCommand struct {
	sessionID string
	// ended is called once, with nil if it is not known how the command ended.
	ended func(*nodeapi.Exit)
	// early is set, and exit, if the end was told before the command was confirmed.
	early              bool
	exit               *nodeapi.Exit
	confirmed, missing bool
}

func newExpected() *expected {
	return &expected{sessions: map[string]*expectedSession{}, commands: map[string]*expectedCommand{}}
}

// session expects the loss of a session that is about to start, until forgetSession.
func (x *expected) session(id string, lost func(nodeapi.Loss), overdue func(), idle func(skerry.IdleState)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sessions[id] = &expectedSession{lost: lost, overdue: overdue, idle: idle, over: make(chan struct{})}
}

// confirmSession says that a session has started.
func (x *expected) confirmSession(id string) {
	x.mu.Lock()
	s := x.sessions[id]
	var early *nodeapi.Loss
	if s != nil {
		s.confirmed = true
		early, s.early = s.early, nil
		s.told = s.told || early != nil
	}
	x.mu.Unlock()
	if early != nil {
		s.lost(*early)
	}
}

// forgetSession forgets a session, and those of its commands whose ends were not told:
// they have ended with it.
func (x *expected) forgetSession(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.sessions, id)
	for cmd, e := range x.commands {
		if e.sessionID == id {
			delete(x.commands, cmd)
		}
	}
}

// command expects the end of a command that is about to start.
func (x *expected) command(sessionID, id string, ended func(*nodeapi.Exit)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.commands[id] = &expectedCommand{sessionID: sessionID, ended: ended}
}

// confirmCommand says that a command has started.
func (x *expected) confirmCommand(id string) {
	x.mu.Lock()
	cmd := x.commands[id]
	early := cmd != nil && cmd.early
	if cmd != nil {
		cmd.confirmed = true
	}
	if early {
		delete(x.commands, id)
	}
	x.mu.Unlock()
	if early {
		cmd.ended(cmd.exit)
	}
}

func (x *expected) forgetCommand(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.commands, id)
}

// tell takes an event.
func (x *expected) tell(e nodeapi.Event) {
	if call := x.take(e); call != nil {
		call()
	}
}

// take records an event, and returns what is to be called for it, which may be nil.
func (x *expected) take(e nodeapi.Event) (call func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.CommandID != "" {
		cmd := x.commands[e.CommandID]
		if cmd == nil || cmd.sessionID != e.SessionID {
			return nil
		}
		cmd.missing = false
		switch {
		case e.Kind != nodeapi.CommandEnded:
		case cmd.confirmed:
			delete(x.commands, e.CommandID)
			return func() { cmd.ended(e.Exit) }
		default:
			cmd.early, cmd.exit = true, e.Exit
		}
		return nil
	}
	s := x.sessions[e.SessionID]
	if s == nil {
		return nil
	}
	s.missing = false
	switch e.Kind {
	case nodeapi.SessionAttaching:
		for _, cmd := range x.commands {
			if cmd.sessionID == e.SessionID {
				cmd.missing = false
			}
		}
	case nodeapi.SessionLost:
		if s.told {
			return nil
		}
		if !s.confirmed {
			s.early = &e.Loss
			return nil
		}
		s.told = true
		return func() { s.lost(e.Loss) }
	case nodeapi.SessionOverdue:
		if s.confirmed {
			return s.overdue
		}
	case nodeapi.SessionAsleep:
		if e.Hibernated {
			return func() { s.idle(skerry.IdleHibernated) }
		}
		return func() { s.idle(skerry.IdlePaused) }
	case nodeapi.SessionAwake, nodeapi.SessionRuns: // a list has one that is asleep afterwards
		return func() { s.idle("") }
	case nodeapi.SessionStopped:
		s.end()
	}
	return nil
}

func (s *expectedSession) end() {
	select {
	case <-s.over:
	default:
		close(s.over)
	}
}

// beginList marks what the list that is about to begin must have.
func (x *expected) beginList() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.sessions {
		s.missing = s.confirmed
	}
	for _, cmd := range x.commands {
		cmd.missing = cmd.confirmed
	}
}

// endList ends what the list did not have: the node does not know it any more.
func (x *expected) endList() (lost int) {
	var calls []func()
	x.mu.Lock()
	for id, cmd := range x.commands {
		if cmd.missing {
			delete(x.commands, id)
			calls = append(calls, func() { cmd.ended(nil) })
		}
	}
	for _, s := range x.sessions {
		if !s.missing {
			continue
		}
		s.missing = false
		s.end()
		if !s.told {
			s.told = true
			calls = append(calls, func() { s.lost(nodeapi.Loss{Reason: "it was lost"}) })
		}
	}
	x.mu.Unlock()
	for _, call := range calls {
		call()
	}
	return len(calls)
}

// endsWait is the maximum time that the end of a session waits for the ends of its
// commands to be told. Then they count as ended with the session.
const endsWait = 10 * time.Second

// awaitEnds waits until the ends of a stopped session's commands have been told.
func (s *session) awaitEnds() {
	s.expected.mu.Lock()
	x := s.expected.sessions[s.id]
	started := x != nil && x.confirmed
	s.expected.mu.Unlock()
	if !started || len(s.commands.all()) == 0 {
		return
	}
	select {
	case <-x.over:
	case <-time.After(endsWait):
	case <-s.ctx.Done():
	}
}

// follow reads the events of the node until the controller closes. While the node
// does not answer, nothing is known of sessions and commands, and nothing is told.
func (c *sessions) follow() {
	var at nodeapi.Cursor
	waits := c.backoff()
	for c.ctx.Err() == nil {
		next, err := c.readEvents(at)
		if err == nil {
			at, waits = next, c.backoff()
			continue
		}
		if c.ctx.Err() != nil {
			return
		}
		wait := waits.wait()
		c.log.Error("cannot read the events of the node, trying again", "in", wait, "error", err)
		c.sleep(wait)
	}
}

// readEvents reads a batch of events, and returns where the next one begins.
func (c *sessions) readEvents(at nodeapi.Cursor) (nodeapi.Cursor, error) {
	if at == "" {
		c.expected.beginList()
	}
	ctx, cancel := context.WithTimeout(c.ctx, 2*nodeapi.EventsWait)
	defer cancel()
	batch, err := c.node.Events(ctx, at)
	if err != nil {
		return at, err
	}
	if batch.Unrecovered {
		return "", c.recoverRestarted()
	}
	for _, e := range batch.Events {
		c.expected.tell(e)
	}
	if batch.Listed {
		if lost := c.expected.endList(); lost > 0 {
			c.log.Error("the node does not know sessions or commands that it should have", "count", lost)
		}
	}
	return batch.Next, nil
}

// recoverRestarted has a node that was restarted take over the sessions that run.
func (c *sessions) recoverRestarted() error {
	c.log.Info("the node was restarted")
	_, err := c.recoverNode(c.ctx, c.wanted)
	return err
}

// wanted returns the sessions that the node is to keep. One that starts is among
// them: the node may have recovered by a call whose answer was lost, and have
// started it since then.
func (c *sessions) wanted() map[string]nodeapi.NetworkSpec {
	c.registry.Lock()
	defer c.registry.Unlock()
	keep := map[string]nodeapi.NetworkSpec{}
	for id, s := range c.byID {
		switch run := s.state(); run.Status {
		case skerry.StatusPending, skerry.StatusRunning, skerry.StatusSnapshotting:
			keep[id] = networkSpec(&run)
		}
	}
	return keep
}
