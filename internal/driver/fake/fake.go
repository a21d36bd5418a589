// Package fake is a driver that isolates nothing, for tests of what is above a
// driver. Each machine is a child process that runs the real guest agent over
// the real pipes, with the sandbox's files in a folder and its commands as
// processes of the present user. It needs no privileges, no image and no
// network namespace, and works under the race detector.
//
// A machine is this program, started again: importing this package is enough,
// see init. Machines end with the process that started them. Programs of a
// sandbox are those of the host, and can do what the present user can: a test
// must not run, nor have the node run, what changes the host. A command that
// removes the variable skerry_fake_machine from its environment is not found
// again.
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// Config configures a Driver.
type Config struct {
	// Dir has a folder for each machine.
	Dir string
	// Before, if set, is called before each operation of a machine: "prepare", "check",
	// "start", "attach", "save", "pause", "resume", "stop". The operation fails with its
	// error.
	Before func(op, id string) error
}

// Driver implements driver.Driver.
type Driver struct {
	cfg Config

	mu       sync.Mutex
	machines map[string]*Machine
}

var _ driver.Driver = (*Driver)(nil)

// New returns a driver. Recover finds the machines of an earlier one.
func New(cfg Config) (*Driver, error) {
	dir, err := filepath.Abs(cfg.Dir) // its machines are known by their folders
	if err != nil {
		return nil, fmt.Errorf("find driver folder: %w", err)
	}
	cfg.Dir = dir
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create driver folder: %w", err)
	}
	return &Driver{cfg: cfg, machines: map[string]*Machine{}}, nil
}

// Machine returns a machine that was started or recovered and not stopped, nil
// if there is none of that id.
func (d *Driver) Machine(id string) *Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.machines[id]
}

func (d *Driver) forget(m *Machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.machines[m.id] == m {
		delete(d.machines, m.id)
	}
}

func (d *Driver) before(op, id string) error {
	if d.cfg.Before == nil {
		return nil
	}
	return d.cfg.Before(op, id)
}

// In a machine's folder:
const (
	rootDir   = "root"         // the sandbox's files
	stateFile = "machine.json" // what Recover needs
)

// filesName is the file of a snapshot.
const filesName = "files.tar"

type state struct {
	PID       int         `json:"pid"`
	StartTime uint64      `json:"startTime"`
	Pipes     pipes.Names `json:"pipes"`
	Mounts    []string    `json:"mounts,omitempty"`
}

// Name implements driver.Driver.
func (d *Driver) Name() string { return "fake" }

// Capabilities implements driver.Driver.
func (d *Driver) Capabilities() driver.Capabilities {
	return driver.Capabilities{Pause: true, Prepare: true, Volumes: []driver.VolumeKind{driver.Tree}}
}

// Format implements driver.Driver.
func (d *Driver) Format(memory bool) driver.Format {
	if memory {
		return driver.Format{Driver: d.Name(), Kind: "memory"}
	}
	return driver.Format{Driver: d.Name(), Kind: "files", Version: "1"}
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := d.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, nil
}

// Memory implements driver.Driver.
func (d *Driver) Memory() (driver.Memory, error) { return driver.Memory{}, nil }

func (d *Driver) dir(id string) string { return filepath.Join(d.cfg.Dir, id) }

// prepare fills a machine's folder.
func (d *Driver) prepare(ctx context.Context, spec driver.Spec) error {
	root := filepath.Join(d.dir(spec.ID), rootDir)
	if spec.Source.Files != "" {
		if err := tar(ctx, "-xpf", filepath.Join(spec.Source.Files, filesName), "-C", root); err != nil {
			return err
		}
	}
	for _, m := range spec.Volumes {
		if err := show(root, m); err != nil {
			return &driver.VolumeError{Path: m.Path, Err: err}
		}
	}
	// Where the node looks for the agent's program.
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, ".skerry"), 0o755); err != nil {
		return err
	}
	return os.Symlink(self, filepath.Join(root, agentProgram))
}

// show makes a volume visible, which must be a folder of the host here.
func show(root string, m driver.Volume) error {
	tree, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", m.Source.Fd()))
	if err != nil {
		return err
	}
	name := filepath.Join(root, m.Path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.Symlink(tree, name)
}

func tar(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "tar", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %.300s", err, out)
	}
	return nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec) (*Machine, error) {
	if spec.Source.Runs() {
		return nil, errNoMemory
	}
	b, err := d.assemble(ctx, spec)
	if err != nil {
		return nil, err
	}
	return b.start(ctx, spec)
}

// Recover implements driver.Driver.
func (d *Driver) Recover(ctx context.Context) ([]driver.Machine, error) {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var machines []driver.Machine
	var errs []error
	for _, e := range entries {
		m, err := d.adopt(e.Name())
		if err == nil {
			machines = append(machines, m)
			continue
		}
		errs = append(errs, killMarked(ctx, d.dir(e.Name())), os.RemoveAll(d.dir(e.Name())))
	}
	return machines, errors.Join(errs...)
}

// adopt takes over a machine that another Driver started.
func (d *Driver) adopt(id string) (*Machine, error) {
	b, err := os.ReadFile(filepath.Join(d.dir(id), stateFile))
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, err
	}
	m, err := d.open(id, st.PID, st.Pipes)
	if err == nil && m.started != st.StartTime {
		err = fmt.Errorf("process id %d belongs to another process now", st.PID)
	}
	if err != nil {
		return nil, err
	}
	m.mounts = st.Mounts
	return m, send(m.dir(), contSignal) // it may be paused
}
