package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// A session that has slept for Config.IdleHibernate, or sleeps while memory is short,
// hibernates: its machine is saved with its memory, and ended. The next use starts another
// machine from what was saved. The session keeps its network, its deadline, the output of
// its commands, and the guest agent's client, which is suspended.
//
// It has a machine that is absent meanwhile. What was saved is in its folder, and its
// state says so before the machine ends. If this process ends in between, the machine that
// still runs counts.

const (
	// hibernateLeast is the shortest time until a timer for which a session hibernates.
	hibernateLeast = time.Minute
	// hibernateTimeout is the maximum time for saving a session.
	hibernateTimeout = 5 * time.Minute
	// hibernateAgain is how long after a failure it is tried again.
	hibernateAgain = 10 * time.Minute
	// returnTries is how often it is tried to start a machine from what was saved, and
	// returnAgain the time in between.
	returnTries = 3
	returnAgain = time.Second
	// returnTimeout is the maximum time for one of them.
	returnTimeout = time.Minute
	// returnsAtOnce is the number of sessions that a new process has return at a time.
	returnsAtOnce = 4
)

// prefixReturned is the prefix of the ids of machines that hibernated sessions return to.
const prefixReturned = "back_"

// lostHibernating is the reason of a session that could not return.
const lostHibernating = "the server had saved the sandbox to disk, because nobody used it, and could not load it again"

// size is what a session's machine is made of, beside what all have in common.
type size struct {
	Image    string `json:"image"`
	VCPUs    int    `json:"vcpus"`
	MemoryMB int    `json:"memory"`
}

// memoryDir is the folder with the machine of a session that hibernates.
func (s *session) memoryDir() string { return filepath.Join(s.dir, "memory") }

func (s *session) isHibernated() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle.hibernated
}

// mayHibernate reports whether a session that is asleep may be saved and ended now. urgent
// says that memory is short. mu is held.
func (s *session) mayHibernate(now time.Time, urgent bool) bool {
	i, cfg := &s.idle, &s.node.cfg
	switch {
	case !i.asleep || i.hibernated || i.users > 0 || now.Before(i.stays):
		return false
	case s.size == (size{}) || len(s.drives) > 0 || len(s.mounts) > 0 || !cfg.Driver.Capabilities().Memory || !s.loadable():
		return false
	case s.idleMode() == skerry.IdlePause || !i.until.IsZero() && i.until.Sub(now) < hibernateLeast:
		return false
	}
	return urgent || cfg.IdleHibernate > 0 && now.Sub(i.since) >= cfg.IdleHibernate
}

// tryHibernate saves and ends the session's machine. If it cannot, the session stays
// asleep, and it is tried again later.
func (s *session) tryHibernate() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), hibernateTimeout)
	defer cancel()
	err := s.node.hibernating.enter(ctx) // one after the other: others are to notice little
	if err == nil {
		err = s.hibernate(ctx)
		s.node.hibernating.leave()
	}
	if err == nil {
		return
	}
	s.mu.Lock()
	s.idle.stays = time.Now().Add(hibernateAgain)
	s.mu.Unlock()
	if s.ctx.Err() == nil && !s.machineEnded() {
		s.node.cfg.Log.Warn("an idle session stays in memory", "session", s.id, "error", err)
	}
}

// hibernateOne has the session that has slept for longest hibernate, because memory is
// short, unless one does so already. A save of a session whose pages are in swap brings
// them back, so such a session hibernates only if swap is short too.
func (n *Node) hibernateOne() {
	if len(n.hibernating) > 0 {
		return
	}
	now, spared := time.Now(), n.canSwap()
	var first *session
	var since time.Time
	for _, s := range n.all() {
		s.mu.Lock()
		if !s.stopping && !s.idle.looking && s.mayHibernate(now, true) && !(spared && s.idle.swapped) && (first == nil || s.idle.since.Before(since)) {
			first, since = s, s.idle.since
		}
		s.mu.Unlock()
	}
	if first == nil {
		return
	}
	first.mu.Lock()
	free := !first.idle.looking
	first.idle.looking = true
	first.mu.Unlock()
	if free {
		first.lookInBackground(first.tryHibernate)
	}
}

func (s *session) hibernate(ctx context.Context) error {
	how := nodeapi.Saving{Memory: true, Hold: true}
	// Unlike the save of a snapshot it does not use what is to stay free.
	save, err := s.beginSave(ctx, how, s.node.cfg.Disk.Reserve)
	if err != nil {
		return err
	}
	defer save.end()
	defer os.RemoveAll(save.dir) // unless it was moved
	return s.alone(ctx, func() error {
		if !s.sleepsUnused() {
			return nil
		}
		began := time.Now()
		if err := s.machine().Save(ctx, save.dir, driver.Saving{Memory: true, Hold: true}); err != nil {
			return err
		}
		if !s.sleepsUnused() {
			return nil // who uses it waits for this, and need not wait for more
		}
		if err := s.leave(ctx, save.dir); err != nil {
			return err
		}
		s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionAsleep, SessionID: s.id, Hibernated: true, Took: time.Since(began)})
		return nil
	})
}

// sleepsUnused reports whether the session is asleep and nobody waits for it.
func (s *session) sleepsUnused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live && !s.stopping && s.idle.asleep && !s.idle.hibernated && s.idle.users == 0
}

// leave ends the machine, which dir has what was saved of. The caller holds standing.
func (s *session) leave(ctx context.Context, dir string) error {
	used, err := s.activeCPU()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(s.memoryDir()); err != nil {
		return err
	}
	if err := os.Rename(dir, s.memoryDir()); err != nil {
		return err
	}
	if err := s.guest.Suspend(); err != nil {
		return errors.Join(err, os.RemoveAll(s.memoryDir()))
	}
	// From here on the session can only go on from what was saved: its agent has lost its
	// connection, and cannot be given another one while it is paused.
	former := s.machine()
	s.enter(newAbsent(former), -used)
	if err := s.saveState(); err != nil {
		// A later process would find the machine paused, if it is still there.
		s.node.cfg.Log.Error("cannot write down that a session hibernates", "session", s.id, "error", err)
		return nil
	}
	s.meterAll()
	if err := s.away().end(ctx); err != nil {
		s.node.cfg.Log.Error("cannot end the machine of a session that hibernates", "session", s.id, "error", err)
	}
	return nil
}

// enter gives the session another machine, which had used so much CPU time before.
func (s *session) enter(m driver.Machine, before time.Duration) {
	_, hibernated := m.(*absent)
	s.meterMemory() // of the one that it leaves
	defer s.beginResident(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setMachine(m)
	s.before, s.oomKills, s.weight, s.idle.hibernated = before, 0, 0, hibernated
	s.confined.Store(0)
}

// activeCPU returns the CPU time that the session has used.
func (s *session) activeCPU() (time.Duration, error) {
	s.mu.Lock()
	m, before := s.machine(), s.before
	s.mu.Unlock()
	used, err := m.Usage()
	return max(0, used.CPU-before), err
}

// away returns the machine of a session that hibernates, nil of another one.
func (s *session) away() *absent {
	a, _ := s.machine().(*absent)
	return a
}

// comeBack gives a session that hibernates a machine again, which runs then. If it cannot,
// the session is lost, unless the disk is full: then it still hibernates, and the next use
// tries again. The caller holds standing.
func (s *session) comeBack(ctx context.Context) error {
	if s.isHibernated() {
		// A machine that loads its files writes. One that cannot write ends in some way or
		// other, and the session with it.
		release, err := s.node.cfg.Disk.ReserveSave(0)
		if err != nil {
			return err
		}
		defer release()
	}
	return s.returnWith(ctx, func(ctx context.Context, m driver.Machine) error {
		conn, err := m.Attach(ctx)
		if err != nil {
			return err
		}
		return s.guest.Resume(ctx, conn)
	})
}

// returnWith is comeBack with a function that connects to the machine's guest agent.
func (s *session) returnWith(ctx context.Context, connect func(context.Context, driver.Machine) error) error {
	a := s.away()
	if a == nil {
		return nil
	}
	// The caller's ctx may end: its use does, but not the session's return.
	ctx, done, err := a.begin(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer done()
	var m driver.Machine
	for try := 1; ; try++ {
		if m, err = s.startAgain(ctx, a); err == nil || try == returnTries || skerry.CodeOf(err) == skerry.CodeSnapshotIncompatible {
			break
		}
		s.node.cfg.Log.Warn("a session that hibernates cannot return; trying again", "session", s.id, "error", err)
		select {
		case <-time.After(returnAgain):
		case <-ctx.Done():
			return ctx.Err() // the session is stopped
		}
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
		defer cancel()
		err = connect(ctx, m)
	}
	if err != nil && s.isStopping() {
		// The machine is the next process's, or is about to be stopped.
		a.End("")
		return err
	}
	if err != nil && s.isHibernated() && skerry.CodeOf(err) == skerry.CodeSnapshotIncompatible {
		// Nothing is lost: the version that saved it can load it.
		return errors.Join(errStranded(), err)
	}
	if err != nil && s.isHibernated() && errors.Is(err, syscall.ENOSPC) {
		return &skerry.Error{Code: skerry.CodeDiskFull, Message: "the server's disk has no room to load the sandbox again; free some and try again", Err: err}
	}
	if err != nil {
		s.node.cfg.Log.Error("a session that hibernates cannot return", "session", s.id, "error", err)
		s.machine().End(lostHibernating)
		a.End("")
		return err
	}
	a.End("") // watch goes on with the new machine
	// The machine holds the files open that it still reads.
	if err := os.RemoveAll(s.memoryDir()); err != nil {
		s.node.cfg.Log.Error("cannot remove the memory of a session that has come back", "session", s.id, "error", err)
	}
	return nil
}

// startAgain starts a machine from what was saved, and makes it the session's.
func (s *session) startAgain(ctx context.Context, a *absent) (_ driver.Machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, returnTimeout)
	defer cancel()
	if err := a.endFormer(ctx); err != nil {
		return nil, err
	}
	n := s.node
	rootfs, err := n.cfg.Images.Path(s.size.Image)
	if err != nil {
		return nil, err
	}
	if err := s.lease.Renew(ctx); err != nil {
		return nil, err
	}
	size := s.saved()
	spec := n.machineSpec(size, rootfs, s.lease)
	spec.ID, spec.Source.Memory = skerry.NewID(prefixReturned), s.memoryDir()
	if spec.Agent, err = n.agentImage(s.agent); err != nil {
		return nil, err
	}
	start := n.cfg.Driver.Start
	n.pool.expect(size)
	if w := s.takeBlank(ctx, size); w != nil {
		// It uses the session's network, and not the one that it was prepared with.
		defer n.pool.dispose(w)
		spec.ID, start = w.id, w.blank.Start
	}
	m, err := start(ctx, spec)
	if err != nil {
		return nil, err
	}
	s.enter(m, s.cpuBefore())
	if err := s.saveState(); err != nil {
		s.enter(a, s.cpuBefore())
		return nil, errors.Join(err, m.Stop(context.WithoutCancel(ctx)))
	}
	return m, nil
}

// saved describes the session as one that starts from what was saved.
func (s *session) saved() nodeapi.SessionSpec {
	return nodeapi.SessionSpec{Snapshot: s.id, VCPUs: s.size.VCPUs, MemoryMB: s.size.MemoryMB}
}

func (s *session) cpuBefore() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before
}

// have has the machine of a session that hibernates back to save it, in the state in which
// the session is. The caller holds standing.
func (s *session) have(ctx context.Context) error {
	if err := s.awaitReturn(ctx); err != nil || !s.isHibernated() {
		return err
	}
	if s.isAsleep() {
		return s.thaw(ctx)
	}
	if err := s.comeBack(ctx); err != nil {
		return err
	}
	return s.machine().Pause(ctx)
}

// adoptHibernated takes over a session that hibernates. It returns in the background, as
// nobody knows otherwise which of its commands run.
func (s *session) adoptHibernated(ctx context.Context, network nodeapi.NetworkSpec) error {
	s.setFrozen(true)
	s.returns = true
	logs, err := s.takeOver(ctx, network)
	if err != nil {
		return err
	}
	return s.beginAttach(logs, s.returnAfterRestart)
}

// stay corrects what an earlier process has left that ended while the session was about to
// hibernate: the machine still runs, so what was saved of it is outdated from now on.
func (s *session) stay(st state) error {
	if st.Hibernated {
		used, err := s.machine().Usage()
		if err != nil {
			return err
		}
		// The machine has stood still since its CPU time was written down as that of an
		// earlier one.
		s.before = used.CPU + st.Before
		if err := s.saveState(); err != nil {
			return err
		}
	}
	return os.RemoveAll(s.memoryDir())
}

// returnAfterRestart is comeBack of a session whose earlier process had its guest's client.
func (s *session) returnAfterRestart(ctx context.Context, logs map[string]*output.Log) error {
	select {
	case s.node.returning <- struct{}{}:
		defer func() { <-s.node.returning }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := s.returnWith(ctx, func(ctx context.Context, _ driver.Machine) error { return s.reattach(ctx, logs) })
	if err == nil {
		s.setFrozen(false)
	}
	if skerry.CodeOf(err) == skerry.CodeSnapshotIncompatible && s.isHibernated() {
		s.node.cfg.Log.Error("a session that hibernates cannot return; start the version of the server again that saved it", "session", s.id, "error", err)
		close(s.stranded)
		<-ctx.Done() // it is stopped, or the next process's
	}
	return err
}

func errStranded() error {
	return skerry.Errorf(skerry.CodeSnapshotIncompatible,
		"the sandbox was saved with its memory, while it was idle, by another version of the server, and only that version can load it again")
}

// awaitReturn waits until a session that hibernated when this process took it over has come
// back. Unlike a silent agent, it does so for certain, or is lost.
func (s *session) awaitReturn(ctx context.Context) error {
	if !s.returns {
		return nil
	}
	select {
	case <-s.attached:
		return nil
	case <-s.stranded:
		return errStranded()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hibernatedSessions returns the sessions that hibernate and that no machine belongs to.
func (n *Node) hibernatedSessions(owners map[string]string) (ids []string, err error) {
	have := map[string]bool{}
	for _, id := range owners {
		have[id] = true
	}
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	for _, e := range entries {
		if st, err := readState(n.dir(e.Name())); err == nil && st.Hibernated && !have[e.Name()] {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
