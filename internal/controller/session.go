package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/tracing"
)

// session is a session that has not ended. One goroutine, its reconciler, owns
// it: nothing else changes its state, writes it to the store, or decides what is
// done next. Calls put what they want into its mailbox.
//
// The reconciler itself never waits for the node. What takes long is a step: a
// goroutine that works on the node and has the reconciler write what came of it.
// Steps of one lane follow one another; the lanes are the start and the stop
// (ending), pauses, and the network. So a policy change does not wait for a
// save, and commands and files, which only read the state, wait for nothing.
//
// A change is written to the store first, then believed (state), then published
// to those who wait (started, ended, held, ending.done).
type session struct {
	*sessions
	id        string
	sandboxID string
	scope     skerry.Scope
	room      portion

	mailbox chan func()
	// gone is closed when the reconciler has ended.
	gone chan struct{}

	// believed is the session as it was last written, and attempt the last
	// attempt to end it. Only the reconciler sets them.
	believed atomic.Pointer[skerry.Session]
	attempt  atomic.Pointer[ending]
	// behalf is the context of the call that requested the current start or end, nil if
	// there is none. The work for it is recorded in that call's trace.
	behalf atomic.Pointer[context.Context]

	// starting ends with the start; cancelStart ends a start in progress.
	starting    context.Context
	cancelStart context.CancelFunc
	// started is closed when the start has succeeded or failed; startErr says how.
	started  chan struct{}
	startErr error
	// ended is closed when the session has ended and the store says so. held is
	// closed when it has ended and that cannot be recorded at once.
	ended    chan struct{}
	held     chan struct{}
	heldOnce sync.Once

	commands commandSet
	// pauses and network are the lanes of pauses and of the network.
	pauses, network lane
	// unenforced is a policy that is stored and not enforced yet. It belongs to
	// the network lane.
	unenforced atomic.Pointer[unenforced]
	// deadlineNews and idleNews are that the deadline has changed, and the idle mode.
	deadlineNews, idleNews news
	// idle is what the node reports to have done to it because nobody uses it.
	idle atomic.Pointer[skerry.IdleState]

	// What follows belongs to the reconciler.

	// ending is the attempt to end the session that is under way or has succeeded.
	ending *ending
	// loss is one that happened during an attempt to end the session.
	loss *nodeapi.Loss
	// steps counts the steps under way.
	steps int
	// deadline fires when the session's time is up, or is to be looked at.
	deadline *time.Timer
	// began is when the session started, by the processor's counter; see left.
	began time.Time
	// overdue is when the session's time was up, zero before; retries are the
	// waits between attempts to stop it.
	overdue time.Time
	retries backoff
	// unwritten is set when a write has failed, so the store may have something
	// else than believed. fixes are changes that the next write makes first.
	unwritten bool
	fixes     []func(*skerry.Session)
	rewrite   *time.Timer
	rewrites  backoff
}

// mailboxSize is how many messages wait before their senders do.
const mailboxSize = 64

func (c *sessions) newSession(run skerry.Session) *session {
	s := &session{
		sessions:  c,
		id:        run.ID,
		sandboxID: run.SandboxID,
		scope:     run.Scope,
		room:      roomOf(&run),
		mailbox:   make(chan func(), mailboxSize),
		gone:      make(chan struct{}),
		started:   make(chan struct{}),
		ended:     make(chan struct{}),
		held:      make(chan struct{}),
		commands:  commandSet{running: map[string]*command{}},
		deadline:  stoppedTimer(),
		rewrite:   stoppedTimer(),
		retries:   c.stopRetries(),
		rewrites:  c.backoff(),
	}
	s.pauses.session, s.network.session = s, s
	s.believed.Store(&run)
	s.starting, s.cancelStart = context.WithCancel(c.ctx)
	return s
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// state returns the session as it is now.
func (s *session) state() skerry.Session {
	run := *s.believed.Load()
	run.IdleState = s.idleState(&run)
	return run
}

// reconcile is the session's goroutine. It ends when the session has, or the
// controller closes, and no step is under way.
func (s *session) reconcile() {
	defer close(s.gone)
	defer s.cancelStart()
	defer s.deadline.Stop()
	defer s.rewrite.Stop()
	closing := s.ctx.Done()
	timeUp := func() {
		if closing != nil {
			s.timeUp()
		}
	}
	for {
		if s.steps == 0 && (closing == nil || s.state().Status.Ended()) {
			return
		}
		// Time that is up comes before what waits in the mailbox: while the store is
		// slow, each message may take as long as a write does.
		select {
		case <-s.deadline.C:
			timeUp()
			continue
		default:
		}
		select {
		case f := <-s.mailbox:
			f()
		case <-s.deadline.C:
			timeUp()
		case <-s.rewrite.C:
			s.writeAgain()
		case <-closing:
			closing = nil
		}
	}
}

// actFor makes the session record its next work in the trace of a call.
func (s *session) actFor(ctx context.Context) { s.behalf.Store(&ctx) }

// try is background.try in the trace of the call that requested the work.
func (s *session) try(f func(context.Context) error) error {
	return s.sessions.try(func(ctx context.Context) error { return f(s.onBehalf(ctx)) })
}

// onBehalf returns ctx with the trace of the call that requested the current work.
func (s *session) onBehalf(ctx context.Context) context.Context {
	if call := s.behalf.Load(); call != nil {
		return tracing.Carry(ctx, *call)
	}
	return ctx
}

// tell puts f into the mailbox, for the reconciler to call. It returns false if
// the reconciler has ended.
func (s *session) tell(f func()) bool {
	select {
	case s.mailbox <- f:
		return true
	case <-s.gone:
		return false
	}
}

// ask has the reconciler call f and returns when it has.
func (s *session) ask(ctx context.Context, f func()) error {
	called := make(chan struct{})
	select {
	case s.mailbox <- func() { f(); close(called) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.gone:
		return s.errGone()
	}
	select {
	case <-called:
		return nil
	case <-s.gone:
	}
	select {
	case <-called: // by the last look into the mailbox
		return nil
	default:
		return s.errGone()
	}
}

// errGone is what is told to whoever asks something of a session that has ended,
// or whose controller has closed.
func (s *session) errGone() error {
	if run := s.state(); run.Status.Ended() {
		return errEnded(&run)
	}
	return errClosing()
}

// step runs work in a goroutine and then has the reconciler call then. Only the
// reconciler calls it.
func (s *session) step(work, then func()) {
	s.steps++
	finish := func() {
		s.steps--
		then()
	}
	// The reconciler is work itself, and does not end before its steps.
	s.work.Go(func() {
		work()
		s.mailbox <- finish
	})
}

// lane runs steps of a session one after the other.
type lane struct {
	session *session
	// busy and waiting belong to the reconciler; idle is closed when the lane is
	// not busy any more.
	busy    bool
	idle    chan struct{}
	waiting []func()
}

// maxWaiting is how many steps wait in a lane before further ones are refused.
const maxWaiting = 64

// do runs f as a step of the lane and returns its error. It waits no longer than
// ctx lasts, but f is run nevertheless.
func (l *lane) do(ctx context.Context, f func() error) error {
	s := l.session
	result := make(chan error, 1)
	err := s.ask(ctx, func() {
		if len(l.waiting) >= maxWaiting {
			result <- skerry.Errorf(skerry.CodeRateLimited, "too many requests wait for session %s; try again later", s.id)
			return
		}
		l.waiting = append(l.waiting, func() { result <- f() })
		l.next()
	})
	if err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.gone:
	}
	select {
	case err := <-result:
		return err
	default:
		return s.errGone()
	}
}

// next starts the step that has waited longest. Only the reconciler calls it.
func (l *lane) next() {
	if l.busy || len(l.waiting) == 0 {
		return
	}
	work := l.waiting[0]
	l.waiting = l.waiting[1:]
	l.busy, l.idle = true, make(chan struct{})
	l.session.step(work, func() {
		l.busy = false
		close(l.idle)
		l.next()
	})
}

// write changes the session and writes it with what its sandbox shows of it. If
// change returns an error, nothing is changed. What is not written is not
// believed: if the write fails, the session is as before, and that is written
// until it succeeds, for a write that failed may have been done. A session that
// has ended does not change any more. A sandbox that was deleted is no error.
// Only the reconciler calls it.
func (s *session) write(change func(*skerry.Session) error) error {
	next, err := s.changed(change)
	if err != nil {
		return err
	}
	err = s.try(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		_, _, err := s.store.UpdateSession(ctx, s.id, func(sandbox *skerry.Sandbox, stored *skerry.Session) error {
			return replace(sandbox, stored, next)
		})
		return err
	})
	return s.believe(next, err)
}

// writeTimeout bounds a write, for which all that the session is told waits. It is
// longer than the store's own bound for a transaction.
const writeTimeout = 40 * time.Second

// changed returns the session with the changes that the next write makes.
func (s *session) changed(change func(*skerry.Session) error) (*skerry.Session, error) {
	next := s.state()
	if next.Status.Ended() {
		return nil, errEnded(&next)
	}
	for _, fix := range s.fixes {
		fix(&next)
	}
	next.UpdatedAt = skerry.At(time.Now())
	if err := change(&next); err != nil {
		return nil, err
	}
	return &next, nil
}

// errEndWritten says that the store has the session's end already.
var errEndWritten = skerry.Errorf(skerry.CodeSandboxStopping, "the session has ended, and the server is about to record it")

// replace writes next over a stored session and has its sandbox show it.
func replace(sandbox *skerry.Sandbox, stored, next *skerry.Session) error {
	if stored.Status.Ended() {
		return errEndWritten // by a write that failed; its usage counts once
	}
	driveIDs := stored.DriveIDs
	*stored = *next
	stored.DriveIDs = driveIDs
	if sandbox.CurrentSessionID == next.ID {
		if sandbox.Status != next.Status {
			sandbox.StatusUpdatedAt = next.UpdatedAt
		}
		reflectSession(sandbox, next)
	}
	if next.Status.Ended() {
		sandbox.TotalDuration += next.Duration
		sandbox.TotalActiveCPU += next.ActiveCPU
		sandbox.TotalResidentMBSeconds += next.ResidentMBSeconds
		if next.Network != nil {
			sandbox.TotalIngressBytes += next.Network.Ingress
			sandbox.TotalEgressBytes += next.Network.Egress
		}
	}
	return nil
}

// reflectSession makes a sandbox show the state of its current session.
func reflectSession(sandbox *skerry.Sandbox, run *skerry.Session) {
	sandbox.Status = run.Status
	sandbox.ExpiresAt, sandbox.PausedAt, sandbox.IdleState = skerry.Time{}, run.PausedAt, run.IdleState
	if run.Status == skerry.StatusRunning {
		sandbox.ExpiresAt = run.ExpiresAt()
	}
}

// believe takes over what was written, or has a write that failed corrected.
func (s *session) believe(next *skerry.Session, err error) error {
	switch {
	case err == nil, skerry.CodeOf(err) == skerry.CodeNotFound, errors.Is(err, errEndWritten) && next.Status.Ended():
		s.believed.Store(next)
		s.unwritten, s.fixes = false, nil
		s.rewrite.Stop()
		s.rewrites = s.backoff()
		return nil
	}
	s.rewriteLater()
	return err
}

// fixLater has the next write make a change that could not be written.
func (s *session) fixLater(fix func(*skerry.Session)) {
	s.fixes = append(s.fixes, fix)
	s.rewriteLater()
}

func (s *session) rewriteLater() {
	if !s.unwritten {
		s.unwritten = true
		s.rewrite.Reset(s.rewrites.wait())
	}
}

// writeAgain writes what is believed after a write that failed.
func (s *session) writeAgain() {
	if !s.unwritten || s.state().Status.Ended() {
		return
	}
	s.unwritten = false
	if err := s.write(func(*skerry.Session) error { return nil }); err != nil {
		s.log.Error("cannot write the session, trying again", "session", s.id, "sandbox", s.sandboxID, "error", err)
	}
}

// transition moves the session to a state, if that may follow the present one.
// change, if not nil, sets what else changes with it. Only the reconciler calls
// it.
func (s *session) transition(to skerry.SessionStatus, change func(*skerry.Session)) error {
	from := s.state().Status
	err := s.write(func(run *skerry.Session) error {
		if !from.CanBecome(to) {
			return fmt.Errorf("session %s is %s and cannot become %s", s.id, from, to)
		}
		run.Status = to
		if change != nil {
			change(run)
		}
		return nil
	})
	if err == nil {
		s.log.Info("session "+string(to), "session", s.id, "sandbox", s.sandboxID, "from", from, "reason", s.state().Reason)
	}
	return err
}

// record has the reconciler write a change of a step's.
func (s *session) record(change func(*skerry.Session) error) (err error) {
	if asked := s.ask(context.Background(), func() { err = s.write(change) }); asked != nil {
		return asked
	}
	return err
}

// recordTransition has the reconciler make a transition of a step's.
func (s *session) recordTransition(to skerry.SessionStatus, change func(*skerry.Session)) (err error) {
	if asked := s.ask(context.Background(), func() { err = s.transition(to, change) }); asked != nil {
		return asked
	}
	return err
}

// usable returns nil if commands can run in the session.
func (s *session) usable() error {
	run := s.state()
	switch run.Status {
	case skerry.StatusRunning:
		return nil
	case skerry.StatusPending:
		return skerry.Errorf(skerry.CodeUnavailable, "session %s is still starting; try again shortly", s.id)
	case skerry.StatusStopping:
		return skerry.Errorf(skerry.CodeSandboxStopping, "session %s is stopping", s.id)
	case skerry.StatusSnapshotting:
		return skerry.Errorf(skerry.CodeSandboxSnapshotting, "session %s is being snapshotted", s.id)
	}
	return errEnded(&run)
}

func errEnded(run *skerry.Session) error {
	if run.Reason != "" {
		return skerry.Errorf(skerry.CodeSandboxStopped, "session %s is %s: %s", run.ID, run.Status, run.Reason)
	}
	return skerry.Errorf(skerry.CodeSandboxStopped, "session %s is %s", run.ID, run.Status)
}
