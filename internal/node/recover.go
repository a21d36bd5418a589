package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/output"
)

// Recover implements nodeapi.Node.
func (n *Node) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) (_ []string, err error) {
	defer edge(ctx, &err)
	if err := n.recovering.enter(ctx); err != nil {
		return nil, err
	}
	defer n.recovering.leave()
	// What is taken over from here on is not ended because the caller has gone: it
	// calls again.
	patient := ctx
	ctx = context.WithoutCancel(ctx)
	if n.hasRecovered() { // it is only the controller that is new
		return n.keepOnly(ctx, keep), nil
	}
	// An error here affects only the sessions that need the drives.
	if err := n.cfg.Drives.Recover(ctx); err != nil {
		n.cfg.Log.Error("cannot recover drives", "error", err)
	}
	machines, err := n.cfg.Driver.Recover(patient)
	if err != nil {
		return nil, fmt.Errorf("recover machines: %w", err)
	}
	owners, ready, err := n.owners(machines)
	if err != nil {
		return nil, err
	}
	n.work.Go(n.guardTogether)
	n.work.Go(n.guardDeadlines)
	n.work.Go(n.guardIdle)
	n.work.Go(n.meterSessions)
	n.work.Go(n.shareCPU)
	hibernated, err := n.hibernatedSessions(owners)
	if err != nil {
		return nil, err
	}
	// The sessions are taken over concurrently. A session whose agent has not
	// answered by the deadline is taken over in the background: a silent agent
	// delays only its own session.
	patience, cancel := context.WithTimeout(patient, n.cfg.RecoverWait)
	defer cancel()
	sessions, pooled := make([]*session, len(machines)+len(hibernated)), make([]string, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		if ready[m.ID()] {
			wg.Go(func() { pooled[i] = n.pool.adopt(patience, m) })
			continue
		}
		id := owners[m.ID()]
		network, wanted := keep[id]
		wg.Go(func() {
			sessions[i] = n.adoptOrEnd(ctx, id, m, wanted, func(s *session) error { return s.adopt(ctx, network, patience.Done()) })
		})
	}
	for i, id := range hibernated {
		network, wanted := keep[id]
		wg.Go(func() {
			sessions[len(machines)+i] = n.adoptOrEnd(ctx, id, newAbsent(nil), wanted, func(s *session) error { return s.adoptHibernated(ctx, network) })
		})
	}
	wg.Wait()
	var adopted []string
	leases := slices.DeleteFunc(pooled, func(id string) bool { return id == "" })
	for _, s := range sessions {
		if s != nil {
			adopted = append(adopted, s.id)
			if s.lease != nil {
				leases = append(leases, s.lease.ID())
			}
		}
	}
	if err := n.cfg.Networks.Recover(ctx, leases); err != nil {
		n.cfg.Log.Error("cannot recover networks", "error", err)
	}
	if err := n.sweep(adopted); err != nil {
		n.cfg.Log.Error("cannot clear the folders of sessions that have ended", "error", err)
	}
	n.pool.begin()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.recovered = true
	return adopted, nil
}

// owners returns the session that each machine belongs to, and the machines that belong
// to none: they were ready for one, or about to be.
func (n *Node) owners(machines []driver.Machine) (owners map[string]string, ready map[string]bool, err error) {
	running := map[string]bool{}
	for _, m := range machines {
		running[m.ID()] = true
	}
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list sessions: %w", err)
	}
	owners = map[string]string{}
	for _, e := range entries {
		// A state that cannot be read is found again when its session is taken over.
		if st, err := readState(n.dir(e.Name())); err == nil && running[st.Machine] {
			owners[st.Machine] = e.Name()
		}
	}
	if ready, err = n.pool.records(running); err != nil {
		return nil, nil, fmt.Errorf("list the machines that are ready: %w", err)
	}
	for id := range running {
		switch {
		case owners[id] != "":
			delete(ready, id)
		case skerry.ValidID(prefixWarm, id):
			ready[id] = true
		default:
			owners[id] = id
		}
	}
	return owners, ready, nil
}

// readState reads the state of the session in a folder.
func readState(dir string) (st state, err error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return st, fmt.Errorf("it has no state: %w", err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("its state is damaged: %w", err)
	}
	return st, nil
}

func (n *Node) hasRecovered() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.recovered
}

// starting reports whether the session is still being started.
func (s *session) starting() bool {
	select {
	case <-s.ended:
		return false
	default:
		return !s.begun()
	}
}

// gone reports whether the session has been stopped.
func (s *session) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released
}

// keepOnly ends the sessions of an earlier controller that a new one does not want,
// and returns the others.
func (n *Node) keepOnly(ctx context.Context, keep map[string]nodeapi.NetworkSpec) (kept []string) {
	for _, s := range n.all() {
		if s.starting() || s.gone() {
			continue // a start fails with its caller
		}
		err := errors.New("the session is not wanted")
		if network, wanted := keep[s.id]; wanted {
			err = s.takeNetwork(ctx, network)
		}
		if err == nil {
			kept = append(kept, s.id)
			continue
		}
		n.cfg.Log.Info("ending a session of an earlier controller", "session", s.id, "why", err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		if err := s.end(ctx); err != nil {
			n.cfg.Log.Error("cannot end a session of an earlier controller", "session", s.id, "error", err)
		}
		cancel()
	}
	return kept
}

// adoptOrEnd takes over the session of a machine. If the session is not wanted or cannot
// be taken over, it ends the session and returns nil.
func (n *Node) adoptOrEnd(ctx context.Context, id string, m driver.Machine, wanted bool, adopt func(*session) error) *session {
	s := newSession(n, id)
	s.enter(m, 0)
	err := errors.New("the session is not wanted")
	if wanted {
		err = adopt(s)
	}
	if err == nil {
		return s
	}
	n.cfg.Log.Info("ending a session of an earlier process", "session", s.id, "why", err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := s.end(ctx); err != nil {
		// Stop and Forget try again; the other sessions do not wait for that.
		n.cfg.Log.Error("cannot end a session of an earlier process", "session", s.id, "error", errors.Join(err, n.add(s)))
	}
	return nil
}

// sweep removes the files that only a running session needs from the folders of
// ended sessions. The output of their commands stays until Forget.
func (n *Node) sweep(adopted []string) error {
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if slices.Contains(adopted, e.Name()) {
			continue
		}
		for _, file := range []string{stateFile, residentFile} {
			err := os.Remove(filepath.Join(n.cfg.Dir, e.Name(), file))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// adopt takes over a session whose machine runs. It returns when the agent has
// answered, or when late is closed. Without an agent, its state or its network the
// session is lost, but not before its files can be saved.
func (s *session) adopt(ctx context.Context, network nodeapi.NetworkSpec, late <-chan struct{}) error {
	logs, err := s.takeOver(ctx, network)
	if err != nil {
		return s.adoptToSave(ctx, err)
	}
	if err := s.beginAttach(logs, s.reattach); err != nil {
		return err
	}
	select {
	case <-s.attached:
	case <-late:
		s.node.cfg.Log.Warn("a guest agent is late to answer a new server", "session", s.id)
	}
	return nil
}

// adoptToSave takes over a session that cannot go on because of an error. It is
// paused: its network may not be governed any more.
func (s *session) adoptToSave(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(ctx, pauseTimeout)
	defer cancel()
	if err := s.freeze(ctx); err != nil {
		return errors.Join(why, err)
	}
	s.node.cfg.Log.Error("cannot go on with a session of an earlier process", "session", s.id, "error", why)
	s.mu.Lock()
	s.reason, s.agentLost = "the new server process could not take over the sandbox", true
	s.mu.Unlock()
	close(s.ended)
	return s.node.add(s)
}

// takeOver takes over what the session holds besides its machine, and opens the output
// of its commands.
func (s *session) takeOver(ctx context.Context, network nodeapi.NetworkSpec) (map[string]*output.Log, error) {
	st, err := readState(s.dir)
	if err != nil {
		return nil, err
	}
	s.before = st.Before
	s.agent, s.size, s.drives = st.Agent, st.Size, st.Drives
	s.trust.own, s.idle.mode = st.OwnTrust, st.Idle
	s.workload.audience, s.workload.owner = st.Audience, st.Owner
	s.weight = unknownWeight
	if st.Deadline != 0 {
		s.deadline = time.Now().Add(time.Until(time.UnixMilli(st.Deadline)))
	}
	lease, err := s.node.cfg.Networks.Adopt(ctx, st.Lease)
	if err != nil && s.away() != nil {
		// No kernel kept its namespace alive. Another address is as good: what was saved
		// had no connections.
		lease, err = s.node.cfg.Networks.Acquire(ctx)
	}
	if err != nil { // an interface that holds nil is not nil
		return nil, fmt.Errorf("its network is gone: %w", err)
	}
	s.lease = lease
	if err := s.takeNetwork(ctx, network); err != nil {
		return nil, err
	}
	if s.away() == nil {
		if err := s.stay(st); err != nil {
			return nil, err
		}
	}
	// An error here affects only what the session has used.
	if err := s.loadResident(); err != nil {
		s.node.cfg.Log.Error("cannot find out what a session has used of memory", "session", s.id, "error", err)
	}
	if s.resident.cpu, err = s.activeCPU(); err != nil {
		return nil, err
	}
	return s.openLogs()
}

// reattacher connects to the agent of an adopted session, and continues with its processes.
type reattacher func(context.Context, map[string]*output.Log) error

// beginAttach makes the session known, and has it attach in the background.
func (s *session) beginAttach(logs map[string]*output.Log, how reattacher) error {
	s.loadEnds()
	s.attached = make(chan struct{})
	if err := s.node.add(s); err != nil {
		for _, log := range logs {
			err = errors.Join(err, log.Close())
		}
		return err
	}
	s.work.Go(func() { s.attach(logs, how) })
	return nil
}

// attach connects to the agent of an adopted session by reattach. The session then begins,
// or is lost.
func (s *session) attach(logs map[string]*output.Log, reattach reattacher) {
	defer s.node.events.Expire() // its commands are known now
	defer close(s.attached)
	err := reattach(s.ctx, logs)
	if err == nil {
		s.begin()
		return
	}
	if s.guest != nil {
		_ = s.guest.Close() // of no use any more, whatever it says
	}
	for _, log := range logs {
		err = errors.Join(err, log.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.node.cfg.Log.Error("cannot go on with a session's guest agent", "session", s.id, "error", err)
		s.reason, s.agentLost = "the sandbox's guest agent did not answer the new server process", !s.machineEnded()
	}
	close(s.ended)
}

// attaching reports whether the server still waits for the agent's first answer.
func (s *session) attaching() bool {
	select {
	case <-s.attached:
		return false
	default:
		return s.attached != nil
	}
}

// endAttach gives up waiting for the session's agent, and returns when that is
// done.
func (s *session) endAttach() {
	if s.attaching() {
		s.cancel()
		<-s.attached
	}
}

// openLogs opens the existing output of the session's commands.
func (s *session) openLogs() (map[string]*output.Log, error) {
	kept, err := output.List(s.outputDir())
	if err != nil {
		return nil, err
	}
	logs := map[string]*output.Log{}
	for _, k := range kept {
		id := k.ID
		s.outputBytes += k.Bytes
		log, err := output.Open(s.outputDir(), id, s.node.cfg.Output)
		if err != nil {
			// The output ends here, but the session continues.
			s.node.cfg.Log.Error("cannot go on with a command's output", "session", s.id, "command", id, "error", err)
			continue
		}
		logs[id] = log
	}
	return logs, nil
}

// reattach connects to the agent and continues with its processes. Logs of commands
// that the agent does not have any more stay on disk.
func (s *session) reattach(ctx context.Context, logs map[string]*output.Log) error {
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
	defer cancel()
	conn, err := s.machine().Attach(ctx)
	if err != nil {
		return err
	}
	var points []guest.ResumePoint
	for id, log := range logs {
		stdout, stderr := log.Offsets()
		points = append(points, guest.ResumePoint{Key: id, Stdout: stdout, Stderr: stderr})
	}
	client, procs, err := guest.Reconnect(ctx, conn, points)
	if err != nil {
		return err
	}
	s.guest = client
	for _, proc := range procs {
		if skerry.ValidID(prefixTerminal, proc.ID()) || skerry.ValidID(prefixErrand, proc.ID()) {
			// The client that waited for it has gone.
			_ = proc.Signal(syscall.SIGHUP)
			s.reap(proc)
			continue
		}
		// The agent supplies these ids, and files are named after them.
		if !skerry.ValidID(skerry.PrefixCommand, proc.ID()) {
			return fmt.Errorf("the agent has a process with the id %.40q", proc.ID())
		}
		log := logs[proc.ID()]
		delete(logs, proc.ID())
		if log == nil {
			log = output.New(s.outputDir(), proc.ID(), s.outputConfig())
		}
		if err := s.keep(newCommand(proc.ID(), proc, log)); err != nil {
			return err
		}
	}
	for _, log := range logs {
		if err := log.Close(); err != nil {
			return err
		}
	}
	return nil
}
