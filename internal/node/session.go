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
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
)

// session owns everything that one run of a sandbox holds on this machine.
type session struct {
	node *Node
	id   string
	dir  string

	// Set by start or adopt, before the session is seen by anyone else.
	// agent is the name of the agent's image, "" if that is not known.
	agent   string
	lease   Lease
	machine driver.Machine
	guest   *guest.Client
	// drives are those that the session has for writing; mounts are all that
	// this process acquired for it.
	drives []string
	mounts []*drive.Mount

	// ctx ends when this process lets go of the session; work counts the
	// goroutines that end with it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	// ended is closed when the session runs no longer; by then reason says
	// why, "" for a stop that was asked for.
	ended  chan struct{}
	reason string

	// saving is held while a snapshot is taken: one after the other; policing
	// while what the session may reach is changed.
	saving   sync.Mutex
	policing sync.Mutex
	trust    trust

	mu       sync.Mutex
	stopping bool
	live     bool
	// frozen says that the machine stands still; thaws counts when it did.
	frozen   bool
	thaws    int
	usage    controller.Usage
	commands map[string]*command
	// running counts the commands that have not ended, outputBytes what the
	// others have on disk, at the most.
	running     int
	outputBytes int64
	// settled are the ended commands whose exit the agent still keeps, the
	// oldest first; see settle.
	settled []*command

	// conns are the open connections to the session's ports; see dial.go.
	conns connections

	stopOnce sync.Once
	stopErr  error
}

func newSession(n *Node, id string) *session {
	ctx, cancel := context.WithCancel(context.Background())
	return &session{
		node:     n,
		ctx:      ctx,
		cancel:   cancel,
		id:       id,
		dir:      n.dir(id),
		ended:    make(chan struct{}),
		commands: map[string]*command{},
	}
}

// stateFile is what a later process needs to take the session over.
const stateFile = "session.json"

type state struct {
	Lease string `json:"lease"`
	Agent string `json:"agent,omitempty"`
	// Drives are those that the session has for writing.
	Drives []string `json:"drives,omitempty"`
	// OwnTrust are the variables of trust that the sandbox sets itself.
	OwnTrust []string `json:"ownTrust,omitempty"`
}

func (s *session) saveState() error {
	b, err := json.Marshal(state{Lease: s.lease.ID(), Agent: s.agent, Drives: s.drives, OwnTrust: s.trust.own})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, stateFile), b, 0o600); err != nil {
		return fmt.Errorf("save the session's state: %w", err)
	}
	return nil
}

// begin lets calls in and watches for the session's end.
func (s *session) begin() {
	s.mu.Lock()
	s.live = true
	s.mu.Unlock()
	s.work.Go(s.watch)
	s.work.Go(s.heartbeat)
}

// heartbeat ends the session of an agent that has stopped answering, which
// root in a sandbox can bring about by one signal: calls would wait for ever.
// It is patient, as a sandbox may have thousands of busy processes.
func (s *session) heartbeat() {
	every := s.node.cfg.AgentWait
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ended:
			return
		case <-s.ctx.Done():
			return
		}
		before, frozen := s.standstills()
		if frozen {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, heartbeatPatience*every)
		err := s.guest.Ping(ctx)
		cancel()
		if after, frozen := s.standstills(); frozen || after != before {
			continue // it could not answer
		}
		if errors.Is(err, context.DeadlineExceeded) {
			s.node.cfg.Log.Warn("a guest agent does not answer", "session", s.id)
			_ = s.guest.Close() // watch sees it and ends the session
			return
		}
	}
}

// heartbeatPatience is how many times AgentWait an agent may take to answer.
const heartbeatPatience = 4

// watch ends the session when its machine or its agent does. An agent that
// breaks the protocol is as good as dead: nothing can be run any more.
func (s *session) watch() {
	reason := "the connection to the sandbox's guest agent was lost"
	select {
	case <-s.machine.Done():
		reason = s.machine.Reason()
	case <-s.guest.Done():
		if s.isStopping() {
			break
		}
		select {
		case <-s.machine.Done():
			reason = s.machine.Reason()
		case <-time.After(agentGrace):
		}
	}
	s.mu.Lock()
	asked := s.stopping
	s.live = false
	s.mu.Unlock()
	s.conns.close() // nobody would ever answer in them
	if !asked {
		s.reason = reason
	}
	close(s.ended)
}

// agentGrace is how long a machine whose agent's connection ended is given to
// end itself, which makes for a better reason.
const agentGrace = time.Second

func (s *session) isRunning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live && !s.stopping
}

func (s *session) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// Stop implements controller.Node.
func (n *Node) Stop(ctx context.Context, id string) (controller.Usage, error) {
	s, err := n.find(id)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return controller.Usage{}, nil
	}
	s.stopOnce.Do(func() {
		s.mu.Lock()
		s.stopping = true
		s.mu.Unlock()
		s.stopErr = s.release(context.WithoutCancel(ctx))
	})
	if s.stopErr != nil {
		return s.usage, fmt.Errorf("stop session %s: %w", id, s.stopErr)
	}
	return s.usage, nil
}

// release gives back what the session holds on the machine, bottom up, in
// whatever state of its life it is. What its commands printed stays.
func (s *session) release(ctx context.Context) error {
	s.measure()
	var errs []error
	if s.machine != nil {
		errs = append(errs, s.machine.Stop(ctx))
	}
	if s.guest != nil {
		errs = append(errs, s.guest.Close())
	}
	s.conns.close()
	s.cancel()
	s.work.Wait()
	errs = append(errs, s.closeLogs(), s.unmount(ctx))
	if s.lease != nil {
		errs = append(errs, s.lease.Release(ctx))
	}
	if err := os.Remove(filepath.Join(s.dir, stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// measure reads the meters, which are gone with what they measure.
func (s *session) measure() {
	var u controller.Usage
	if s.machine != nil {
		used, err := s.machine.Usage()
		if err != nil {
			s.node.cfg.Log.Warn("cannot meter a session", "session", s.id, "error", err)
		}
		u.ActiveCPU = used.CPU
	}
	if s.lease != nil {
		in, out, err := s.lease.Counters()
		if err != nil {
			s.node.cfg.Log.Warn("cannot meter a session's network", "session", s.id, "error", err)
		}
		u.IngressBytes, u.EgressBytes = in, out
	}
	s.mu.Lock()
	s.usage = u
	s.mu.Unlock()
}

// detach lets go of a running session without ending it.
func (s *session) detach() error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	var err error
	if s.guest != nil {
		err = s.guest.Close()
	}
	s.conns.close()
	s.cancel()
	s.work.Wait()
	return errors.Join(err, s.closeLogs())
}

// Watch implements controller.Node.
func (n *Node) Watch(ctx context.Context, id string) (string, error) {
	s, err := n.find(id)
	if err != nil {
		return "", err
	}
	select {
	case <-s.ended:
		return s.reason, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Forget implements controller.Node.
func (n *Node) Forget(ctx context.Context, id string) error {
	if !skerry.ValidID(skerry.PrefixSession, id) {
		return fmt.Errorf("forget session: %q is not a session's id", id)
	}
	if _, err := n.Stop(ctx, id); err != nil {
		return err
	}
	n.remove(id)
	if err := os.RemoveAll(n.dir(id)); err != nil {
		return fmt.Errorf("forget session %s: %w", id, err)
	}
	return nil
}

// Retain implements controller.Node.
func (n *Node) Retain(ctx context.Context, ids []string) error {
	entries, err := os.ReadDir(n.cfg.Dir)
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if skerry.ValidID(skerry.PrefixSession, e.Name()) && !slices.Contains(ids, e.Name()) {
			errs = append(errs, n.Forget(ctx, e.Name()))
		}
	}
	return errors.Join(errs...)
}
