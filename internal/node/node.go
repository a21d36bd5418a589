// Package node runs the sessions of one machine. For each it has a network, an
// isolated machine from the driver, the connection to the guest agent, and the
// output of commands. It knows nothing of tenants, names or HTTP.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
	"github.com/skerry-dev/skerry/internal/output"
	"github.com/skerry-dev/skerry/internal/room"
)

// Images finds an image's EROFS file, and the attributes that the file does not
// have.
type Images interface {
	Path(digest string) (string, error)
	// Xattrs returns the extended attributes that the guest sets, by path and name.
	Xattrs(digest string) (wire.Xattrs, error)
}

// Config configures a Node.
type Config struct {
	// Dir has a folder for each session, with its state and the output of its
	// commands. It must persist across reboots.
	Dir       string
	Driver    driver.Driver
	Networks  nodeapi.Networks
	Images    Images
	Snapshots Snapshots
	// SnapshotWork is a folder on the same filesystem as the storage of Snapshots.
	// Files are saved there first. New removes its content.
	SnapshotWork string
	Drives       Drives
	// Agent is the EROFS image with the guest agent.
	Agent string
	// DiskBytes limits the bytes that a session writes, and Processes its number of
	// processes.
	DiskBytes int64
	Processes int
	// Disk is that of Dir. If it is full no session starts, and none is saved that
	// may fill it. It is shared with Snapshots and Drives, which reserve what they
	// write by themselves.
	Disk *room.Disk
	// HostProcesses limits the processes and threads of one session on the host; 0
	// means no limit beyond what Processes implies.
	HostProcesses int
	// Authorities are certificate authorities that all sandboxes trust. Env is the
	// default environment of their commands; variables of a sandbox take
	// precedence.
	Authorities []guest.Authority
	Env         map[string]string
	// Output configures how much output of one command is kept. OutputTotal limits
	// the output that is kept of all commands of a session; 0 is
	// DefaultOutputTotal.
	Output      output.Config
	OutputTotal int64
	// MaxCommands is the maximum number of running commands in a session; 0 is
	// DefaultMaxCommands.
	MaxCommands int
	// ReachLoopback lets Dial reach programs that listen only on the loopback
	// interface.
	ReachLoopback bool
	// IdlePause is after how long a session that nobody uses is paused; 0 is never.
	// Idle is the mode of sessions that have none of their own; "" is the default one.
	IdlePause time.Duration
	Idle      skerry.IdleMode
	// IdleHibernate is after how long a session that is paused for that is saved and taken
	// off the machine; 0 is only when memory is short.
	IdleHibernate time.Duration
	// AgentWait is the maximum time for the guest agent's first answer; 0 is
	// DefaultAgentWait. It is also the interval at which the agent is asked for a
	// sign of life.
	AgentWait time.Duration
	// RecoverWait is the maximum time that Recover waits for the agents of the
	// sessions that it takes over; 0 is DefaultRecoverWait. Sessions of later
	// agents are taken over in the background.
	RecoverWait time.Duration
	// Tokens signs workload tokens. Without it, no session can have one.
	Tokens Tokens
	// Warm are the machines that are ready before a session needs one.
	Warm WarmConfig
	Log  *slog.Logger

	// loopbackWait bounds how long it takes to have a connection to the loopback
	// interface.
	loopbackWait time.Duration
}

// DefaultAgentWait is generous: an agent answers after some 20 ms, but the machine
// may be starting a hundred of them at the same time.
const DefaultAgentWait = 30 * time.Second

// DefaultIdlePause is the time that the server's IdlePause has by default. It is longer
// than the pauses between the requests of a person or an agent at work.
const DefaultIdlePause = 30 * time.Second

// DefaultRecoverWait limits how long a silent agent can delay the start of the
// server. Hundreds of honest agents answer within a second or two.
const DefaultRecoverWait = 5 * time.Second

// Node implements nodeapi.Node.
type Node struct {
	cfg       Config
	stdinWait time.Duration // the constant, but in tests
	beat      time.Duration // AgentWait, but in tests; see heartbeat
	tokenLook time.Duration // the constant, but in tests
	teams     teams
	// networkRetry is firstNetworkRetry, but in tests.
	networkRetry time.Duration

	// ctx ends with the node, and work counts the goroutines that end with it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	pool *warmPool

	// recovering is held by Recover.
	recovering gate
	// events is what happens to sessions and commands, for nodeapi.Events.
	events *eventlog.Log
	// hibernating is held by the session that is being saved for its hibernation.
	// returning has a token for each one that a new process has return.
	hibernating gate
	returning   chan struct{}
	// reclaiming is held while a session's pages are given back; reclaimed counts their
	// bytes. freeSwap is the function, but in tests. complain bounds what is logged of it.
	reclaiming gate
	reclaimed  atomic.Int64
	freeSwap   func() (int64, error)
	complain   rate.Sometimes
	// sums are the totals of all sessions.
	sums sums
	// connections are those of idle sessions.
	connections openConnections

	mu       sync.Mutex
	sessions map[string]*session
	// captures are those that no session has started from yet.
	captures map[string]*capture
	closed   bool
	// recovered is true once Recover has taken over the sessions of earlier
	// processes.
	recovered bool
}

var _ nodeapi.Node = (*Node)(nil)

// New returns a node without sessions. Recover finds the sessions of an earlier
// process.
func New(cfg Config) (*Node, error) {
	if cfg.OutputTotal == 0 {
		cfg.OutputTotal = DefaultOutputTotal
	}
	if cfg.MaxCommands == 0 {
		cfg.MaxCommands = DefaultMaxCommands
	}
	if cfg.AgentWait == 0 {
		cfg.AgentWait = DefaultAgentWait
	}
	if cfg.RecoverWait == 0 {
		cfg.RecoverWait = DefaultRecoverWait
	}
	if cfg.loopbackWait == 0 {
		cfg.loopbackWait = loopbackWait
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the sessions' folder: %w", err)
	}
	// Snapshots that an earlier process did not finish.
	if err := errors.Join(os.RemoveAll(cfg.SnapshotWork), os.MkdirAll(cfg.SnapshotWork, 0o700)); err != nil {
		return nil, fmt.Errorf("clear the folder for snapshots: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{cfg: cfg, stdinWait: stdinWait, beat: cfg.AgentWait, tokenLook: tokenLook, networkRetry: firstNetworkRetry, ctx: ctx, cancel: cancel, sessions: map[string]*session{}, captures: map[string]*capture{}, recovering: newGate(), hibernating: newGate(), returning: make(chan struct{}, returnsAtOnce)}
	n.reclaiming, n.freeSwap, n.complain = newGate(), freeSwap, rate.Sometimes{First: 1, Interval: time.Hour}
	n.pool = newWarmPool(n, cfg.Warm)
	n.events = eventlog.New(eventlog.Size, n.listEvents)
	return n, nil
}

// Close detaches from the sessions, which keep running, and waits for the node's
// goroutines. A later process adopts the sessions with Recover.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.events.Close() // that the sessions are let go of is not their end
	n.cancel()
	n.work.Wait()
	n.pool.close()
	n.mu.Lock()
	sessions, captures := n.sessions, n.captures
	n.sessions, n.captures = map[string]*session{}, map[string]*capture{}
	n.mu.Unlock()
	var errs []error
	for _, c := range captures {
		errs = append(errs, c.giveUp())
	}
	for _, s := range sessions {
		errs = append(errs, s.detach())
	}
	return errors.Join(errs...)
}

// dir is a session's folder.
func (n *Node) dir(id string) string { return filepath.Join(n.cfg.Dir, id) }

// currentAgent returns the name of this version's agent.
func (n *Node) currentAgent() string { return filepath.Base(n.cfg.Agent) }

// add registers a session under its id.
func (n *Node) add(s *session) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return skerry.Errorf(skerry.CodeUnavailable, "the server is shutting down")
	}
	if n.sessions[s.id] != nil {
		return skerry.Errorf(skerry.CodeConflict, "session %s has been started already", s.id)
	}
	n.sessions[s.id] = s
	return nil
}

func (n *Node) remove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sessions, id)
}

// find returns a known session, running or not.
func (n *Node) find(id string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[id]; s != nil {
		return s, nil
	}
	if !n.recovered {
		return nil, errUnrecovered()
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "session %s is not on this machine", id)
}

// running returns a session whose machine runs.
func (n *Node) running(id string) (*session, error) {
	s, err := n.find(id)
	if err != nil {
		return nil, err
	}
	if s.attaching() {
		return nil, skerry.Errorf(skerry.CodeUnavailable, "session %s is being taken over by a new server process; try again shortly", id)
	}
	if !s.isRunning() {
		return nil, errStopped(id)
	}
	return s, nil
}

// errUnrecovered is the error of calls before Recover.
func errUnrecovered() error {
	return skerry.Errorf(skerry.CodeUnavailable, "the machine that runs the sandbox is starting; try again shortly")
}

func errStarting(id string) error {
	return skerry.Errorf(skerry.CodeUnavailable, "session %s is starting; try again shortly", id)
}

func errStopped(id string) error {
	return skerry.Errorf(skerry.CodeSandboxStopped, "session %s has stopped", id)
}
