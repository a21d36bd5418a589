// Package controller manages sandboxes, sessions and commands: it
// decides what may follow what, keeps the time, and is the only writer of what the
// store has about them.
//
// The truth is in the store: a change is written there first, then believed in
// memory, then published to those who wait for it. A write that fails is not
// believed, and its caller gets an error. It may have been done all the same, so
// what is believed is then written until that succeeds or the process ends; so is
// the end of a session. A session that has not ended is owned by one goroutine,
// its reconciler (session.go). What takes long (a start, a stop) continues when
// the client that asked for it has gone.
package controller

import (
	"cmp"
	"context"
	"log/slog"
	"runtime"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/share"
)

// Store is where sandboxes, sessions and commands are kept; package store
// says what each method does.
type Store interface {
	sandboxStore
	sessionStore
	commandStore
	snapshotStore
	driveStore
	portStore
}

// Config configures a Controller. Zero fields mean the defaults.
type Config struct {
	Store Store
	Node  nodeapi.Node
	// Collector removes the saved files of deleted snapshots.
	Collector nodeapi.Collector
	Images    nodeapi.Images
	// Ingress is what published ports are reached through; without one, none
	// can be published.
	Ingress Ingress
	Log     *slog.Logger
	// Ended, if set, is told of each session whose end is recorded, before those who wait
	// for the end. timeUp says that its time was up. It must return soon.
	Ended func(run skerry.Session, timeUp bool)

	// MaxTimeout is the longest that a session may run.
	MaxTimeout time.Duration
	// MaxVCPUs is the most virtual CPUs that a sandbox may have.
	MaxVCPUs int
	// TotalVCPUs and TotalMemoryMB are what all sessions together may have, 0
	// for no bound; MaxMemoryMB is the most that one may have, 0 for none beside
	// what comes with its virtual CPUs.
	TotalVCPUs, TotalMemoryMB, MaxMemoryMB int
	// MaxSessions is how many sessions may run at once.
	MaxSessions int
	// Quotas, if set, returns the quotas of a project and its team.
	Quotas func(context.Context, skerry.Scope) (skerry.Quotas, error)
	// ConcurrentStarts is how many sessions start at once; more wait, since
	// starting is work for the CPU and they would only slow each other down. Teams take
	// turns.
	ConcurrentStarts int
	// StartTimeout bounds a session's start without its source.
	StartTimeout time.Duration
	// SourceTimeout bounds the fetching of a source.
	SourceTimeout time.Duration
	// DriveSize is the size of a drive whose creator does not say, MaxDriveSize
	// the largest; in bytes.
	DriveSize, MaxDriveSize int64
	// MaxPorts is how many ports a sandbox may publish.
	MaxPorts int

	// StopGrace and SaveGrace are for how long after its time is up a session
	// that cannot be saved is tried again, before it ends without: StopGrace if
	// the sandbox is why, SaveGrace if the host is. SaveTimeout bounds one
	// attempt.
	StopGrace, SaveGrace, SaveTimeout time.Duration

	// firstRetry, abandonAfter, execTimeout, forkSnapshotDelay and forkSlot are constants, but for
	// tests.
	firstRetry, abandonAfter, execTimeout, forkSnapshotDelay, forkSlot time.Duration
}

// Defaults of Config.
const (
	DefaultMaxSessions   = 1000
	DefaultStartTimeout  = time.Minute
	DefaultSourceTimeout = 5 * time.Minute
)

// What is kept of the past.
const (
	// keepSessions is how many ended sessions a sandbox keeps, with what
	// their commands printed.
	keepSessions = 20
	// keepCommands is how many ended commands a session keeps.
	keepCommands = 1000
)

// Controller implements api.Service: a type for each noun does, and the
// controller wires them together.
type Controller struct {
	cfg Config
	*background
	*sandboxes
	*sessions
	*commands
	*snapshots
	*drives
	*ports
}

// New returns a controller. Recover must be called before it is used.
func New(cfg Config) *Controller {
	if cfg.MaxTimeout == 0 {
		cfg.MaxTimeout = skerry.MaxTimeout
	}
	if cfg.MaxVCPUs == 0 {
		cfg.MaxVCPUs = skerry.DefaultMaxVCPUs
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = DefaultMaxSessions
	}
	if cfg.ConcurrentStarts == 0 {
		cfg.ConcurrentStarts = max(2, runtime.NumCPU())
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = DefaultStartTimeout
	}
	if cfg.SourceTimeout == 0 {
		cfg.SourceTimeout = DefaultSourceTimeout
	}
	if cfg.MaxDriveSize == 0 {
		cfg.MaxDriveSize = skerry.MaxDriveSize
	}
	if cfg.DriveSize == 0 {
		cfg.DriveSize = min(skerry.DefaultDriveSize, cfg.MaxDriveSize)
	}
	if cfg.MaxPorts == 0 {
		cfg.MaxPorts = skerry.DefaultMaxPorts
	}
	cfg.StopGrace = cmp.Or(cfg.StopGrace, DefaultStopGrace)
	cfg.SaveGrace = cmp.Or(cfg.SaveGrace, DefaultSaveGrace)
	cfg.SaveTimeout = cmp.Or(cfg.SaveTimeout, DefaultSaveTimeout)
	cfg.firstRetry = cmp.Or(cfg.firstRetry, firstRetry)
	cfg.abandonAfter = cmp.Or(cfg.abandonAfter, abandonAfter)
	cfg.execTimeout = cmp.Or(cfg.execTimeout, execTimeout)
	cfg.forkSnapshotDelay = cmp.Or(cfg.forkSnapshotDelay, forkSnapshotDelay)
	cfg.forkSlot = cmp.Or(cfg.forkSlot, forkSlot)
	limits := skerry.Limits{
		MaxTimeout: cfg.MaxTimeout, MaxVCPUs: cfg.MaxVCPUs, MaxPorts: cfg.MaxPorts,
		MaxDriveSize: cfg.MaxDriveSize, MaxMemoryMB: cfg.MaxMemoryMB,
	}
	c := &Controller{cfg: cfg, background: newBackground(cfg.Log, cfg.firstRetry)}
	c.ports = &ports{background: c.background, store: cfg.Store, ingress: cfg.Ingress, limits: limits}
	c.drives = &drives{background: c.background, store: cfg.Store, node: cfg.Node, limits: limits, defaultSize: cfg.DriveSize}
	c.snapshots = &snapshots{
		background: c.background, store: cfg.Store, images: cfg.Images, collector: cfg.Collector,
		garbage: make(chan struct{}, 1), announced: map[string]*announcement{},
	}
	c.sessions = &sessions{
		background: c.background, cfg: &c.cfg, store: cfg.Store, node: cfg.Node, snapshots: c.snapshots, ports: c.ports,
		expected:   newExpected(),
		saver:      newSaver(cfg.Store, cfg.Log, cfg.firstRetry),
		startSlots: share.NewTurns[string](cfg.ConcurrentStarts),
		takenBy:    map[string]room{},
		byID:       map[string]*session{}, bySandbox: map[string]*session{},
	}
	c.commands = &commands{sessions: c.sessions, store: cfg.Store}
	c.sandboxes = &sandboxes{
		sessions: c.sessions, store: cfg.Store, images: cfg.Images, drives: c.drives, limits: limits, undoing: map[string]bool{},
		forkKeeps: make(chan struct{}, forkKeepsAtOnce),
	}
	return c
}

// Close refuses new work and waits for what there is. Sessions continue to run; the
// next process finds them.
func (c *Controller) Close() error {
	c.end()
	return c.saver.close()
}
