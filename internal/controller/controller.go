// Package controller owns the lives of sandboxes, sessions and commands: it
// decides what may follow what, keeps the time, and is the only writer of the
// store.
//
// A session that has not ended is held in memory as a live, which is the truth
// about it; the store follows, and is what a restart begins with. Everything
// that takes long (a start, a stop) goes on when the client that asked for it
// has gone.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
)

// Store is where sandboxes, sessions and commands are kept; package store
// says what each method does.
type Store interface {
	CreateSandbox(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error
	SaveSandbox(ctx context.Context, box *skerry.Sandbox) error
	DeleteSandbox(ctx context.Context, id string) error
	SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error)
	Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error)
	ListSandboxes(ctx context.Context, scope skerry.Scope, f skerry.SandboxFilter) ([]skerry.Sandbox, string, error)

	CreateSession(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error
	SaveSession(ctx context.Context, box *skerry.Sandbox, run *skerry.Session) error
	Session(ctx context.Context, scope skerry.Scope, id string) (*skerry.Session, error)
	LiveSessions(ctx context.Context) ([]skerry.Session, error)
	ListSessions(ctx context.Context, scope skerry.Scope, f skerry.SessionFilter) ([]skerry.Session, string, error)
	PublishedSandboxes(ctx context.Context) ([]skerry.Sandbox, error)
	SessionIDs(ctx context.Context, sandboxID string) ([]string, error)
	PruneSessions(ctx context.Context, sandboxID string, keep int) ([]string, error)

	// CreateSnapshot writes a snapshot together with the sandbox and the
	// session that it changes, if they are not nil, and returns when that
	// survives a loss of power.
	CreateSnapshot(ctx context.Context, snap *skerry.Snapshot, box *skerry.Sandbox, run *skerry.Session) error
	SaveSnapshot(ctx context.Context, snap *skerry.Snapshot) error
	Snapshot(ctx context.Context, scope skerry.Scope, id string) (*skerry.Snapshot, error)
	ListSnapshots(ctx context.Context, scope skerry.Scope, f skerry.SnapshotFilter) ([]skerry.Snapshot, string, error)
	SnapshotsOf(ctx context.Context, sandboxID string) ([]skerry.Snapshot, error)
	SnapshotUsed(ctx context.Context, id string) (bool, error)
	SnapshotChildren(ctx context.Context, scope skerry.Scope, parentID string, limit int) (_ []skerry.Snapshot, count int, err error)
	TouchSnapshot(ctx context.Context, id string, now skerry.Time) error
	ExpiredSnapshots(ctx context.Context, now skerry.Time) ([]skerry.Snapshot, error)
	ForgetSnapshots(ctx context.Context, before skerry.Time) error
	Manifests(ctx context.Context) ([]string, error)

	// CreateDrive and DeleteDrive return when what they did survives a loss of
	// power. A session has its DriveIDs from CreateSession, or CreateSandbox, to
	// its end.
	CreateDrive(ctx context.Context, d *skerry.Drive) error
	DeleteDrive(ctx context.Context, id string) error
	Drive(ctx context.Context, scope skerry.Scope, name string) (*skerry.Drive, error)
	ListDrives(ctx context.Context, scope skerry.Scope, f skerry.DriveFilter) ([]skerry.Drive, string, error)
	DriveIDs(ctx context.Context) ([]string, error)

	SaveCommands(ctx context.Context, cmds []skerry.Command) error
	Command(ctx context.Context, sessionID, id string) (*skerry.Command, error)
	Commands(ctx context.Context, sessionID string) ([]skerry.Command, error)
	DeleteCommands(ctx context.Context, ids []string) error
}

// Config configures a Controller. Zero fields mean the defaults.
type Config struct {
	Store  Store
	Node   Node
	Images Images
	// Ingress is what published ports are reached through; without one, none
	// can be published.
	Ingress Ingress
	Log     *slog.Logger

	// MaxTimeout is the longest a session may live.
	MaxTimeout time.Duration
	// MaxVCPUs is the most virtual CPUs that a sandbox may have.
	MaxVCPUs int
	// MaxSessions is how many sessions may live at once.
	MaxSessions int
	// ConcurrentStarts is how many sessions start at once; more wait, since
	// starting is work for the CPU and they would only slow each other down.
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
}

// Defaults of Config.
const (
	DefaultMaxVCPUs      = 32
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

// stopTimeout bounds a session's stop.
const stopTimeout = 2 * time.Minute

// Controller implements api.Service.
type Controller struct {
	cfg    Config
	starts chan struct{}
	saver  *saver
	// boxes holds a lock per sandbox: lifecycle operations on one sandbox
	// follow one another.
	boxes keyed

	// ctx ends when the controller closes; work counts what must end by then.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	// garbage asks for a collection of saved files; unnamed is held for reading
	// while some are saved but not yet in the store.
	garbage chan struct{}
	unnamed sync.RWMutex

	// edits is held while a sandbox is read from the store, changed and
	// written back.
	edits sync.Mutex

	mu     sync.Mutex
	closed bool
	// lives is every session that has not ended, by id; current is the same
	// by the sandbox's id.
	lives   map[string]*live
	current map[string]*live
	// keeping is the snapshots that are being made of what runs already.
	keeping map[string]chan struct{}
}

// New returns a controller. Recover must be called before it is used.
func New(cfg Config) *Controller {
	if cfg.MaxTimeout == 0 {
		cfg.MaxTimeout = skerry.MaxTimeout
	}
	if cfg.MaxVCPUs == 0 {
		cfg.MaxVCPUs = DefaultMaxVCPUs
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
	ctx, cancel := context.WithCancel(context.Background())
	return &Controller{
		cfg:     cfg,
		starts:  make(chan struct{}, cfg.ConcurrentStarts),
		saver:   newSaver(cfg.Store, cfg.Log),
		ctx:     ctx,
		cancel:  cancel,
		lives:   map[string]*live{},
		current: map[string]*live{},
		keeping: map[string]chan struct{}{},
		garbage: make(chan struct{}, 1),
	}
}

// StopAll stops every session and returns when they have ended.
func (c *Controller) StopAll(ctx context.Context) error {
	c.mu.Lock()
	lives := make([]*live, 0, len(c.lives))
	for _, l := range c.lives {
		lives = append(lives, l)
	}
	c.mu.Unlock()
	var stops sync.WaitGroup
	errs := make([]error, len(lives))
	for i, l := range lives {
		stops.Go(func() {
			e, _ := c.beginStop(l, l.usualSaving())
			if err := e.wait(ctx); err != nil {
				errs[i] = fmt.Errorf("session %s has not stopped: %w", l.id, err)
			}
		})
	}
	stops.Wait()
	return errors.Join(errs...)
}

// Close refuses new work and waits for what goes on. Running sessions are let
// go of, not ended.
func (c *Controller) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, l := range c.lives {
		l.disarm()
	}
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return c.saver.close()
}

// spawn runs f as work of the controller, unless it is closing.
func (c *Controller) spawn(f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return skerry.Errorf(skerry.CodeUnavailable, "the service is shutting down")
	}
	c.work.Go(f)
	return nil
}

// enlist makes a live known, if there is room for one more.
func (c *Controller) enlist(l *live) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return skerry.Errorf(skerry.CodeUnavailable, "the service is shutting down")
	}
	if len(c.lives) >= c.cfg.MaxSessions {
		return skerry.Errorf(skerry.CodeRateLimited, "%d sandboxes run, which is as many as this installation allows", len(c.lives))
	}
	c.lives[l.id] = l
	c.current[l.boxID] = l
	return nil
}

func (c *Controller) delist(l *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.lives, l.id)
	if c.current[l.boxID] == l {
		delete(c.current, l.boxID)
	}
}

func (c *Controller) liveSession(id string) *live {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lives[id]
}

func (c *Controller) liveOf(boxID string) *live {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current[boxID]
}

// running returns a session that commands can run in, or the error that says
// why it is not one.
func (c *Controller) running(ctx context.Context, scope skerry.Scope, id string) (*live, error) {
	if l := c.liveSession(id); l != nil && l.scope == scope {
		return l, l.usable()
	}
	run, err := c.cfg.Store.Session(ctx, scope, id)
	if err != nil {
		return nil, err
	}
	return nil, errEnded(run)
}

func errEnded(run *skerry.Session) error {
	if run.Reason != "" {
		return skerry.Errorf(skerry.CodeSandboxStopped, "session %s is %s: %s", run.ID, run.Status, run.Reason)
	}
	return skerry.Errorf(skerry.CodeSandboxStopped, "session %s is %s", run.ID, run.Status)
}

// CheckSession implements api.Service.
func (c *Controller) CheckSession(ctx context.Context, scope skerry.Scope, id string) error {
	_, err := c.running(ctx, scope, id)
	return err
}
