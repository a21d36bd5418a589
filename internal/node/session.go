package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/share"
)

// session owns all resources of one run of a sandbox on this machine.
type session struct {
	node *Node
	id   string
	dir  string

	// Set by start or adopt, before other goroutines see the session. agent is the
	// name of the agent's image, or "" if it is not known.
	agent string
	size  size
	lease nodeapi.Lease
	// blank is the blank machine that the session starts in; see fillBlank.
	blank driver.Blank
	guest *guest.Client
	// unwritten is true if the agent had no room for a file of the sandbox that it sets up.
	unwritten bool
	// body is the session's machine. One that hibernates has another one afterwards.
	body atomic.Pointer[driver.Machine]
	// drives are the drives that the session can write to. mounts are all mounts
	// that this process acquired for it.
	drives []string
	mounts []*drive.Mount

	// attached is closed when the agent of an adopted session has answered, or is
	// given up; it is nil for other sessions. guest and commands must not be used
	// before.
	attached chan struct{}
	// returns is true if an adopted session hibernated, and comes back before attached is
	// closed.
	returns bool

	// stranded is closed if it cannot, as another version has saved it.
	stranded chan struct{}

	// ctx ends when this process detaches from the session; work counts the
	// goroutines that end with it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	// ended is closed when the session is not running any more. By then reason is
	// set: why it ended, or "" for a requested stop.
	ended  chan struct{}
	reason string

	// saving is held while a snapshot is taken, so snapshots are taken one after
	// the other. forks share theirs. standing is held while the machine is paused, resumed or saved.
	// policing is held while the network policy changes.
	saving   gate
	forks    forks
	standing gate
	policing sync.Mutex
	// unleased is true once the lease is released. owed is the policy that is to be
	// enforced as soon as it can be, nil if there is none; until then the network is
	// closed. Both are guarded by policing.
	unleased bool
	owed     *nodeapi.NetworkSpec
	trust    trust

	mu       sync.Mutex
	stopping bool
	live     bool
	// agentLost is true if the machine was still running when the connection to the
	// guest agent ended: no call can use the session any more, but its files can be
	// saved.
	agentLost bool
	// frozen is true while the machine is paused; thaws counts how often it was
	// resumed.
	frozen bool
	// deadline is when the session's time is up, zero if that is not known. overdue
	// is true if the node has paused the session for it; see deadline.go.
	deadline time.Time
	overdue  bool
	thaws    int
	idle     idle
	// confined is the memory that the machine is held to for the sake of others, 0 for
	// its own limit.
	confined atomic.Int64
	// pressed has a token when confined has changed, or the machine was resumed.
	pressed chan struct{}
	// resident sums up the memory that the session holds.
	resident resident
	// workload is the session's workload token.
	workload workload
	// owner is whose session it is. weight is the factor of its CPU weight, 0 for the usual
	// one; see teams.go.
	owner  nodeapi.Owner
	weight float64
	// yielding counts who is about to kill a process in the sandbox for the sake of
	// others; yielded are those that were killed.
	yielding int
	yielded  map[int]bool
	// oomKills is the number of OOM kills that commands were told about.
	oomKills int64
	usage    nodeapi.Usage
	// before is the CPU time that the machine had used before the session claimed it, less
	// what the session used in earlier machines.
	before   time.Duration
	commands map[string]*command
	// running is the number of commands that have not ended, outputBytes the
	// maximum size of the output of the others on disk.
	running     int
	outputBytes int64
	// beginning is the number of commands that are being started.
	beginning int
	// ends is how commands ended, until Drop or the session's stop; see events.go.
	ends map[string]nodeapi.Exit
	// settled are the ended commands whose exit the agent still keeps, oldest
	// first; see settle.
	settled []*command

	// reliefs limits the log lines about the session's memory.
	reliefs *rate.Limiter

	// conns are the open connections to the session's ports; see dial.go. loopbacks
	// has a token for each connection to the loopback interface; see loopback.go.
	conns     connections
	loopbacks *share.Slots[netip.Addr]

	// ending is held while the session is being released, which happens once.
	ending gate
	// released is guarded by mu too.
	released bool
}

func newSession(n *Node, id string) *session {
	ctx, cancel := context.WithCancel(context.Background())
	return &session{
		node:      n,
		ctx:       ctx,
		cancel:    cancel,
		id:        id,
		dir:       n.dir(id),
		saving:    newGate(),
		stranded:  make(chan struct{}),
		forks:     forks{gate: newGate()},
		standing:  newGate(),
		ending:    newGate(),
		trust:     trust{trying: newGate()},
		reliefs:   rate.NewLimiter(rate.Every(time.Minute), 5),
		ended:     make(chan struct{}),
		loopbacks: share.New[netip.Addr](maxLoopback, maxLoopback),
		commands:  map[string]*command{},
		ends:      map[string]nodeapi.Exit{},
		yielded:   map[int]bool{},
		pressed:   make(chan struct{}, 1),
		workload:  workload{renewing: newGate()},
	}
}

// stateFile has the data that a later process needs to take over the session.
const stateFile = "session.json"

type state struct {
	Lease string `json:"lease"`
	// Machine is the machine's id if it is not the session's, Before the CPU time that it
	// had used before the session claimed it, less what the session used in earlier ones.
	Machine string        `json:"machine,omitempty"`
	Before  time.Duration `json:"before,omitempty"`
	// Size is what the machine is made of. It is missing in states of earlier versions.
	Size size `json:"size,omitzero"`
	// Hibernated says that the session's memory is in its folder, and that it has no
	// machine, unless Machine still runs.
	Hibernated bool   `json:"hibernated,omitempty"`
	Agent      string `json:"agent,omitempty"`
	// Drives are the drives that the session can write to.
	Drives []string `json:"drives,omitempty"`
	// OwnTrust are the trust variables that the sandbox sets itself.
	OwnTrust []string `json:"ownTrust,omitempty"`
	// Deadline is when the session's time is up, in milliseconds since 1970.
	Deadline int64 `json:"deadline,omitempty"`
	// Idle is the session's own idle mode, "" for the node's.
	Idle skerry.IdleMode `json:"idle,omitempty"`
	// Audience is whom the session's workload token is for, "" without one; Owner is what the
	// token says.
	Audience string        `json:"audience,omitempty"`
	Owner    nodeapi.Owner `json:"owner,omitzero"`
}

func (s *session) saveState() error {
	st := state{Agent: s.agent, Drives: s.drives, OwnTrust: s.trust.own, Size: s.size, Audience: s.workload.audience, Owner: s.workload.owner}
	if s.lease != nil {
		st.Lease = s.lease.ID()
	}
	s.mu.Lock()
	if id := s.machineID(); id != s.id {
		st.Machine = id
	}
	st.Before, st.Hibernated = s.before, s.idle.hibernated
	if !s.deadline.IsZero() {
		st.Deadline = s.deadline.UnixMilli()
	}
	st.Idle = s.idle.mode
	s.mu.Unlock()
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(s.dir, stateFile), b); err != nil {
		return fmt.Errorf("save the session's state: %w", err)
	}
	return nil
}

// spawn runs f, which must return when the session's context ends. It reports
// false, and does not run f, if the session is stopping.
func (s *session) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.work.Go(f)
	return true
}

// begin admits calls and watches for the session's end.
func (s *session) begin() {
	s.mu.Lock()
	s.live = true
	s.mu.Unlock()
	s.weigh(s.node.teams.factor(s.team()))
	s.meterMemory()
	s.work.Go(s.watch)
	s.work.Go(s.heartbeat)
	s.work.Go(s.guardMemory)
	if s.workload.audience != "" {
		s.work.Go(s.keepToken)
	}
}

// heartbeat ends the session if its agent has stopped answering, because calls
// would wait for ever. Root in a sandbox can cause this with one signal. heartbeat
// is patient, because a sandbox may have thousands of busy processes.
func (s *session) heartbeat() {
	every := s.node.beat
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
		if frozen || s.isSaving() {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, heartbeatPatience*every)
		err := s.guest.Ping(ctx)
		cancel()
		if after, frozen := s.standstills(); frozen || after != before || s.isSaving() {
			continue // it could not answer
		}
		if errors.Is(err, context.DeadlineExceeded) {
			s.node.cfg.Log.Warn("a guest agent does not answer", "session", s.id)
			_ = s.guest.Close() // watch sees it and ends the session
			return
		}
	}
}

// heartbeatPatience is the maximum time for the agent's answer, in units of
// AgentWait.
const heartbeatPatience = 4

// watch ends the session when its machine or its agent ends. An agent that violates
// the protocol counts as ended: no call can use it any more.
func (s *session) watch() {
	reason := s.awaitEnd()
	s.mu.Lock()
	asked := s.stopping
	s.live, s.agentLost = false, !s.machineEnded()
	s.mu.Unlock()
	s.conns.close() // nobody would ever answer in them
	if !asked {
		s.reason = reason
	}
	close(s.ended)
	if !asked {
		s.tellLoss()
	}
}

// awaitEnd waits for the end of the machine or of its agent, and returns the reason.
func (s *session) awaitEnd() (reason string) {
	for {
		m := s.machine()
		select {
		case <-m.Done():
			if s.machine() == m {
				return m.Reason()
			}
			continue // the session hibernates, or has come back
		case <-s.guest.Done():
		}
		reason = "the connection to the sandbox's guest agent was lost"
		if s.isStopping() {
			return reason
		}
		m = s.machine()
		select {
		case <-m.Done():
			return m.Reason()
		case <-time.After(s.grace()):
			return reason
		}
	}
}

// agentGrace is the time that a machine gets to end by itself after its agent's
// connection has ended; its own end gives a better reason.
const agentGrace = time.Second

// oomGrace is the same for a machine that ran out of memory, which takes long to
// free its memory.
const oomGrace = 15 * time.Second

func (s *session) grace() time.Duration {
	if used, err := s.machine().Usage(); err == nil && used.OOMKills > 0 {
		return oomGrace
	}
	return agentGrace
}

// machine returns the session's machine, nil if it has none yet.
func (s *session) machine() driver.Machine {
	if m := s.body.Load(); m != nil {
		return *m
	}
	return nil
}

// setMachine makes the session's machine known, which runs already.
func (s *session) setMachine(m driver.Machine) { s.body.Store(&m) }

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

// Stop implements nodeapi.Node. It can be repeated until it succeeds.
func (n *Node) Stop(ctx context.Context, id string) (_ nodeapi.Usage, err error) {
	defer edge(ctx, &err)
	s, err := n.find(id)
	if skerry.CodeOf(err) == skerry.CodeNotFound {
		return nodeapi.Usage{}, nil
	}
	if err != nil { // it may be there once the node has recovered
		return nodeapi.Usage{}, err
	}
	err = s.end(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return s.usage, fmt.Errorf("stop session %s: %w", id, err)
	}
	return s.usage, nil
}

// end releases the session, unless that is done already.
func (s *session) end(ctx context.Context) error {
	if err := s.ending.enter(ctx); err != nil {
		return err
	}
	defer s.ending.leave()
	if s.released {
		return nil
	}
	s.mu.Lock()
	first := !s.stopping
	s.stopping = true
	s.idle.endReclaim() // the machine's group cannot be removed meanwhile
	s.mu.Unlock()
	if first {
		s.measure(ctx)
	}
	if err := s.release(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.released = true
	clear(s.ends)
	s.mu.Unlock()
	s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionStopped, SessionID: s.id})
	return nil
}

// release releases the session's resources on the machine, bottom-up, in any state
// of the session. The output of its commands stays. A resource is not released
// while one above still uses it. If that one cannot be ended, release fails and can
// be repeated.
func (s *session) release(ctx context.Context) error {
	if err := s.stopMachine(ctx); err != nil {
		return err
	}
	s.endAttach()
	var err error
	if s.guest != nil {
		err = s.guest.Close()
	}
	s.conns.close()
	s.cancel()
	s.work.Wait()
	err = errors.Join(err, s.closeLogs())
	if err != nil {
		// Output that is not on disk by now cannot be saved.
		s.node.cfg.Log.Error("cannot close all of a session", "session", s.id, "error", err)
	}
	if err := s.unmount(ctx); err != nil {
		return err
	}
	if err := s.unlease(ctx); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.memoryDir()), s.endResident()); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir, stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// stopMachine stops the session's machine. If the session comes back from hibernation
// meanwhile, that is the new one.
func (s *session) stopMachine(ctx context.Context) error {
	for {
		m := s.machine()
		if m == nil {
			if s.blank != nil {
				return s.blank.Stop(ctx)
			}
			return nil
		}
		if err := m.Stop(ctx); err != nil {
			return err
		}
		if s.machine() == m {
			return nil
		}
	}
}

// measure reads the meters, which disappear with the resources.
func (s *session) measure(ctx context.Context) {
	var u nodeapi.Usage
	if s.machine() != nil {
		var err error
		if u.ActiveCPU, err = s.activeCPU(); err != nil {
			s.node.cfg.Log.Warn("cannot meter a session", "session", s.id, "error", err)
		}
		s.meterMemory()
		s.countCPU()
		u.ResidentMBSeconds = s.resident.mbSeconds()
	}
	if s.lease != nil {
		in, out, err := s.lease.Counters(ctx)
		if err != nil {
			s.node.cfg.Log.Warn("cannot meter a session's network", "session", s.id, "error", err)
		}
		u.IngressBytes, u.EgressBytes = in, out
	}
	s.mu.Lock()
	s.usage = u
	s.mu.Unlock()
}

// detach leaves a running session without ending it.
func (s *session) detach() error {
	s.meterAll()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.endAttach()
	var err error
	if s.guest != nil {
		err = s.guest.Close()
	}
	s.conns.close()
	s.cancel()
	s.work.Wait()
	return errors.Join(err, s.closeLogs())
}

// Forget implements nodeapi.Node.
func (n *Node) Forget(ctx context.Context, id string) (err error) {
	defer edge(ctx, &err)
	if !skerry.ValidID(skerry.PrefixSession, id) {
		return fmt.Errorf("forget session: %q is not a session's id", id)
	}
	if _, err := n.Stop(ctx, id); err != nil {
		return err
	}
	n.remove(id)
	unfinished, err := filepath.Glob(filepath.Join(n.cfg.SnapshotWork, id+"-*"))
	for _, dir := range append(unfinished, n.dir(id)) {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return fmt.Errorf("forget session %s: %w", id, err)
	}
	return nil
}

// Retain implements nodeapi.Node.
func (n *Node) Retain(ctx context.Context, ids []string) (err error) {
	defer edge(ctx, &err)
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
