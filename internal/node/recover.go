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

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/output"
)

// Recover implements controller.Node.
func (n *Node) Recover(ctx context.Context, keep map[string]controller.NetworkSpec) ([]string, error) {
	if err := n.cfg.Drives.Recover(ctx); err != nil {
		return nil, fmt.Errorf("recover drives: %w", err)
	}
	machines, err := n.cfg.Driver.Recover(ctx)
	if err != nil {
		return nil, fmt.Errorf("recover machines: %w", err)
	}
	// All at once: an agent that does not answer holds up its own session
	// alone, for AgentWait.
	sessions := make([]*session, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		network, wanted := keep[m.ID()]
		wg.Go(func() { sessions[i] = n.adoptOrEnd(ctx, m, wanted, network) })
	}
	wg.Wait()
	var adopted, leases []string
	for _, s := range sessions {
		if s != nil {
			adopted = append(adopted, s.id)
			leases = append(leases, s.lease.ID())
		}
	}
	if err := n.cfg.Networks.Recover(ctx, leases); err != nil {
		return adopted, fmt.Errorf("recover networks: %w", err)
	}
	return adopted, n.sweep(adopted)
}

// adoptOrEnd takes over the session of a machine that runs. One that is not
// wanted or cannot be taken over is ended, and nil returned.
func (n *Node) adoptOrEnd(ctx context.Context, m driver.Machine, wanted bool, network controller.NetworkSpec) *session {
	s := newSession(n, m.ID())
	s.machine = m
	err := errors.New("the session is not wanted")
	if wanted {
		err = s.adopt(ctx, network)
	}
	if err == nil {
		return s
	}
	n.cfg.Log.Info("ending a session of an earlier process", "session", s.id, "why", err)
	if err := s.release(ctx); err != nil {
		// What is left is found again by the next Recover; the other sessions
		// do not wait for that.
		n.cfg.Log.Error("cannot end a session of an earlier process", "session", s.id, "error", err)
	}
	return nil
}

// sweep removes from the folders of sessions that run no more what only a
// running one has. What their commands printed stays until Forget.
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
		err := os.Remove(filepath.Join(n.cfg.Dir, e.Name(), stateFile))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// adopt takes over a session whose machine runs.
func (s *session) adopt(ctx context.Context, network controller.NetworkSpec) error {
	b, err := os.ReadFile(filepath.Join(s.dir, stateFile))
	if err != nil {
		return fmt.Errorf("it has no state: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("its state is damaged: %w", err)
	}
	s.agent, s.drives = st.Agent, st.Drives
	s.trust.own = st.OwnTrust
	if s.lease, err = s.node.cfg.Networks.Adopt(ctx, st.Lease); err != nil {
		return fmt.Errorf("its network is gone: %w", err)
	}
	if err := s.setNetwork(ctx, network); err != nil {
		return err
	}
	logs, err := s.openLogs()
	if err != nil {
		return err
	}
	if err := s.reattach(ctx, logs); err != nil {
		for _, log := range logs {
			err = errors.Join(err, log.Close())
		}
		return err
	}
	if err := s.node.add(s); err != nil {
		return err
	}
	s.begin()
	return nil
}

// openLogs opens what the session's commands have printed so far.
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
			// It is cut off from here on, but the session goes on.
			s.node.cfg.Log.Error("cannot go on with a command's output", "session", s.id, "command", id, "error", err)
			continue
		}
		logs[id] = log
	}
	return logs, nil
}

// reattach connects to the agent and goes on with its processes. Logs of
// commands that the agent does not have any more are left on disk.
func (s *session) reattach(ctx context.Context, logs map[string]*output.Log) error {
	ctx, cancel := context.WithTimeout(ctx, s.node.cfg.AgentWait)
	defer cancel()
	conn, err := s.machine.Attach(ctx)
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
		if skerry.ValidID(prefixTerminal, proc.ID()) || skerry.ValidID(guest.PrefixDescribe, proc.ID()) {
			// The one who typed, or took a snapshot, has gone.
			_ = proc.Signal(syscall.SIGHUP)
			s.reap(proc)
			continue
		}
		// The agent says what these ids are, and files are named by them.
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
