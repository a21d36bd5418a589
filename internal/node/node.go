// Package node runs sessions on one machine: for each a network, an isolated
// machine from the driver, the guest agent's connection and the output of its
// commands. It knows nothing of tenants, names or HTTP.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/output"
)

// Images tells where an image's EROFS file is, and what is not in it.
type Images interface {
	Path(digest string) (string, error)
	// Xattrs are the extended attributes that the guest sets, by path and name.
	Xattrs(digest string) (map[string]map[string][]byte, error)
}

// Networks gives each session a network of its own.
type Networks interface {
	Acquire(ctx context.Context) (Lease, error)
	// Adopt returns the lease that an earlier process acquired.
	Adopt(ctx context.Context, id string) (Lease, error)
	// Recover removes every lease that is not in use.
	Recover(ctx context.Context, inUse []string) error
	// Resolvers are the DNS servers that sandboxes are told of.
	Resolvers() []string
	// Authority is the certificate, in PEM, that sandboxes must trust whose TLS
	// is ended on its way.
	Authority() []byte
	// Events are the newest decisions about a session, the oldest first; also
	// after its end.
	Events(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error)
}

// Lease is a network that a session has for its life.
type Lease interface {
	ID() string
	// NetNSPath is the network namespace that holds the session's interface.
	NetNSPath() string
	// Counters returns the bytes that went in and out, seen from the sandbox.
	Counters() (ingress, egress int64, err error)
	// Dial connects to a TCP port of the session.
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	// SetNetwork enforces what may be reached, of which nothing is before the
	// first. Connections that it forbids are cut. If it fails, what was before
	// stays.
	SetNetwork(ctx context.Context, sessionID string, network controller.NetworkSpec) error
	Release(ctx context.Context) error
}

// Config configures a Node.
type Config struct {
	// Dir holds a folder for each session: its state and the output of its
	// commands. It outlives reboots.
	Dir       string
	Driver    driver.Driver
	Networks  Networks
	Images    Images
	Snapshots Snapshots
	// SnapshotWork is a folder on the same filesystem as what Snapshots keeps,
	// where files are saved first. What is in it at New is removed.
	SnapshotWork string
	Drives       Drives
	// Agent is the EROFS image with the guest agent.
	Agent string
	// DiskBytes bounds what a session writes, Processes how many processes
	// it has.
	DiskBytes int64
	Processes int
	// HostProcesses bounds the processes and threads that the host has for one
	// session; 0 is no bound besides what Processes can come to.
	HostProcesses int
	// Output says how much of what a command prints is kept, OutputTotal how
	// much of what all commands of a session print; 0 is DefaultOutputTotal.
	Output      output.Config
	OutputTotal int64
	// AgentWait bounds how long the guest agent may take to answer at the
	// start; 0 is DefaultAgentWait. It is asked for a sign of life as often.
	AgentWait time.Duration
	Log       *slog.Logger
}

// DefaultAgentWait is generous: an agent answers after some 20 ms, but a
// machine may be busy starting a hundred of them.
const DefaultAgentWait = 30 * time.Second

// Node implements controller.Node.
type Node struct {
	cfg Config

	mu       sync.Mutex
	sessions map[string]*session
	closed   bool
}

var _ controller.Node = (*Node)(nil)

// New returns a node without sessions; Recover finds those of an earlier
// process.
func New(cfg Config) (*Node, error) {
	if cfg.OutputTotal == 0 {
		cfg.OutputTotal = DefaultOutputTotal
	}
	if cfg.AgentWait == 0 {
		cfg.AgentWait = DefaultAgentWait
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the sessions' folder: %w", err)
	}
	// Snapshots that an earlier process did not finish.
	if err := errors.Join(os.RemoveAll(cfg.SnapshotWork), os.MkdirAll(cfg.SnapshotWork, 0o700)); err != nil {
		return nil, fmt.Errorf("clear the folder for snapshots: %w", err)
	}
	return &Node{cfg: cfg, sessions: map[string]*session{}}, nil
}

// Close lets go of the sessions, which run on, and waits for this node's
// goroutines. A later process adopts them with Recover.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	sessions := n.sessions
	n.sessions = map[string]*session{}
	n.mu.Unlock()
	var errs []error
	for _, s := range sessions {
		errs = append(errs, s.detach())
	}
	return errors.Join(errs...)
}

// dir is a session's folder.
func (n *Node) dir(id string) string { return filepath.Join(n.cfg.Dir, id) }

// add registers a session under its id.
func (n *Node) add(s *session) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return skerry.Errorf(skerry.CodeUnavailable, "the service is shutting down")
	}
	if n.sessions[s.id] != nil {
		return fmt.Errorf("session %s is there already", s.id)
	}
	n.sessions[s.id] = s
	return nil
}

func (n *Node) remove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sessions, id)
}

// find returns a session that is known here, running or not.
func (n *Node) find(id string) (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sessions[id]; s != nil {
		return s, nil
	}
	return nil, skerry.Errorf(skerry.CodeNotFound, "session %s is not on this machine", id)
}

// running returns a session whose machine runs.
func (n *Node) running(id string) (*session, error) {
	s, err := n.find(id)
	if err != nil {
		return nil, err
	}
	if !s.isRunning() {
		return nil, errStopped(id)
	}
	return s, nil
}

func errStopped(id string) error {
	return skerry.Errorf(skerry.CodeSandboxStopped, "session %s has stopped", id)
}
