package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/sandbox"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// machine is one sandbox.
type machine struct {
	d    *Driver
	id   string
	box  *sandbox.Sandbox
	conf *config.Config
	proc *process
	// gofer serves the mounts; nil for a machine without.
	gofer *process
	group *cgroup.Group
	// disk is the writable layer, nil if an adopted machine's was not found. It
	// is held so that the sentry's end does not wait for the file's: what was
	// written to it may just be on its way to the disk.
	disk *os.File
	// diskLimit bounds the writable layer, 0 if that was not written down.
	diskLimit int64
	saves     saves
	// words are what the sentry says when it dies.
	words *words
	// oci is nil for an adopted machine.
	oci *specs.Spec
	// sentry is the version of gVisor that runs the machine, "" for one from
	// before they were written down; vcpus and memory are its limits.
	sentry string
	vcpus  int
	memory int64
	// user is the host's user of the sentry; see users.
	user int
	// pipes are those to the agent.
	pipes pipes.Names
	// first is the host's end of the connection until the first Attach.
	first atomic.Pointer[pipes.Conn]

	// pausing is held by Pause and Resume.
	pausing sync.Mutex
	paused  bool

	done chan struct{}
	// reason is written before done is closed.
	reason string

	// unloadable is set when the snapshot that it started from could not be
	// read, unserved when its gofer has ended, overran when its sentry wrote
	// more than it may.
	unloadable, unserved, overran atomic.Bool
	// told is the reason of End.
	told atomic.Pointer[string]
	// calling is held by the one call into the sentry, which began at called; see call.
	calling chan struct{}
	called  atomic.Pointer[time.Time]
	// silent is set while a call is under way that was not answered in time.
	silent atomic.Bool
	// swaps is set while the machine may have pages in swap.
	swaps atomic.Bool
	// work counts the goroutines that Stop waits for.
	work sync.WaitGroup

	// stopping holds a token while somebody stops the machine; reaped says that
	// its processes have ended, stopped that all has been given back.
	stopping        chan struct{}
	reaped, stopped bool
}

var _ driver.Machine = (*machine)(nil)

// stateFile holds what is needed to find a running machine again.
const stateFile = "machine.json"

type state struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"`
	Network   bool   `json:"network"`
	Control   string `json:"control"`
	// These are of the machine as it was started, by another version of this
	// program maybe.
	Sentry      string `json:"sentry,omitempty"`
	VCPUs       int    `json:"vcpus,omitempty"`
	MemoryBytes int64  `json:"memoryBytes,omitempty"`
	// Pipes are those to the agent, whose ends the sentry holds.
	Pipes pipes.Names `json:"pipes"`
	// Paused says that the machine is, or may be, paused.
	Paused bool `json:"paused,omitempty"`
	// GoferPID is 0 for a machine without mounts.
	GoferPID       int    `json:"goferPid,omitempty"`
	GoferStartTime uint64 `json:"goferStartTime,omitempty"`
	User           int    `json:"user,omitempty"`
	// Disk is the writable layer.
	Disk      fileID `json:"disk,omitzero"`
	DiskLimit int64  `json:"diskLimit,omitempty"`
}

func (m *machine) save() error {
	st := state{
		PID:       m.proc.pid,
		StartTime: m.proc.start,
		Network:   m.conf.Network == config.NetworkSandbox,
		Control:   m.box.ControlSocketPath,
		Sentry:    m.sentry, VCPUs: m.vcpus, MemoryBytes: m.memory, Pipes: m.pipes, Paused: m.paused, User: m.user,
	}
	if m.gofer != nil {
		st.GoferPID, st.GoferStartTime = m.gofer.pid, m.gofer.start
	}
	if m.disk != nil {
		var err error
		if st.Disk, _, err = look(m.disk); err != nil {
			return fmt.Errorf("save the machine's state: %w", err)
		}
		st.DiskLimit = m.diskLimit
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(m.d.machineDir(m.id), stateFile), b); err != nil {
		return fmt.Errorf("save the machine's state: %w", err)
	}
	return nil
}

// adopt takes over a machine that an earlier process started, of which procs
// were found.
func (d *Driver) adopt(ctx context.Context, id string, procs found) (_ *machine, err error) {
	if procs.sentry == 0 {
		return nil, errors.New("it has no sentry")
	}
	b, err := os.ReadFile(filepath.Join(d.machineDir(id), stateFile))
	if err != nil {
		return nil, fmt.Errorf("it was never whole: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("its state is damaged: %w", err)
	}
	proc, err := adoptProcess(procs.sentry, st.PID, st.StartTime)
	if err != nil {
		return nil, fmt.Errorf("its sentry: %w", err)
	}
	var gofer *process
	defer func() {
		if err != nil {
			proc.close()
			if gofer != nil {
				gofer.close()
			}
		}
	}()
	if st.GoferPID != 0 {
		if gofer, err = adoptProcess(procs.gofer, st.GoferPID, st.GoferStartTime); err != nil {
			return nil, fmt.Errorf("its gofer: %w", err)
		}
	}
	conf, err := d.runscConfig(id, st.Network)
	if err != nil {
		return nil, err
	}
	box := &sandbox.Sandbox{ID: id, UID: hostUser(st.User), GID: hostUser(st.User), ControlSocketPath: st.Control}
	box.Pid.Store(proc.pid)
	m := &machine{
		d: d, id: id, box: box, conf: conf, proc: proc, gofer: gofer, group: d.cfg.Cgroups.Open(id),
		done: make(chan struct{}), calling: make(chan struct{}, 1), stopping: make(chan struct{}, 1),
		sentry: st.Sentry, vcpus: st.VCPUs, memory: st.MemoryBytes, pipes: st.Pipes, user: st.User, diskLimit: st.DiskLimit,
	}
	m.saves.open = true // maybe: the earlier process may have ended in a save
	if m.words, err = hearWords(d.machineDir(id), false); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.words.close()
		}
	}()
	if m.disk, err = openDisk(proc.pid, st.Disk); err != nil {
		return nil, fmt.Errorf("its writable layer: %w", err)
	}
	defer func() {
		if err != nil && m.disk != nil {
			m.disk.Close()
		}
	}()
	m.paused = st.Paused
	if m.paused {
		if err := m.endPause(ctx); err != nil {
			return nil, fmt.Errorf("it cannot be resumed: %w", err)
		}
	}
	if err := m.Confine(0); err != nil { // the earlier process may have confined it
		d.cfg.Log.Warn("a machine may have less memory than its limit", "machine", id, "error", err)
	}
	if err := m.group.AllowSwap(0); err != nil { // or had begun to reclaim its memory
		d.cfg.Log.Warn("a machine may swap", "machine", id, "error", err)
	}
	swapped, err := m.group.Swapped()
	m.swaps.Store(err != nil || swapped > 0)
	d.users.keep(m.user)
	m.begin()
	return m, nil
}

// adoptProcess opens the process that was found to run if it is the one that
// was started.
func adoptProcess(running, pid int, start uint64) (*process, error) {
	if running == 0 {
		return nil, errors.New("it does not run")
	}
	p, err := openProcess(running)
	if err != nil {
		return nil, err
	}
	if p.pid != pid || p.start != start {
		p.close()
		return nil, fmt.Errorf("process %d is not the one that was started", running)
	}
	return p, nil
}

// begin watches the machine's processes.
func (m *machine) begin() {
	go m.watch()
	m.work.Go(m.watchFiles)
	if m.gofer != nil {
		m.work.Go(m.watchGofer)
	}
}

func (m *machine) ID() string            { return m.id }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) Reason() string        { return m.reason }

// watch waits for the sentry's end and says why it came.
func (m *machine) watch() {
	ws, child, err := m.proc.wait()
	switch usage, uerr := m.group.Usage(); {
	case uerr == nil && usage.OOMKills > 0 && (!child || ws.Signaled()):
		m.reason = m.outOfMemory(usage)
	case err != nil:
		m.reason = "the sandbox was lost"
		m.d.cfg.Log.Error("cannot wait for a sentry", "machine", m.id, "error", err)
	case child && ws.Signaled():
		m.reason = fmt.Sprintf("the sandbox was killed by signal %d", ws.Signal())
	default:
		m.reason = "the sandbox's guest agent ended"
	}
	if m.unserved.Load() {
		m.reason = "the process that serves the sandbox's drives ended"
	}
	if m.overran.Load() {
		m.reason = "the sandbox's kernel wrote more than the sandbox's disk holds"
	}
	if m.unloadable.Load() {
		m.reason = "the snapshot that the sandbox started from could not be read"
	}
	if told := m.told.Load(); told != nil {
		m.reason = *told
	}
	if said := m.words.last(); said != "" {
		m.reason = "the sandbox's kernel failed"
		m.d.cfg.Log.Error("a sentry failed", "machine", m.id, "panic", said)
	}
	close(m.done)
}

// Usage implements driver.Machine.
func (m *machine) Usage() (driver.Usage, error) {
	u, err := m.group.Usage()
	if err != nil {
		return driver.Usage{}, fmt.Errorf("meter machine %s: %w", m.id, err)
	}
	return driver.Usage{CPU: u.CPU, MemoryBytes: u.MemoryBytes, OOMKills: u.OOMKills}, nil
}

// Weigh implements driver.Machine.
func (m *machine) Weigh(factor float64) error {
	weight := min(max(int(math.Round(factor*float64(usualWeight(m.vcpus)))), 1), maxWeight)
	if err := m.group.Weigh(weight); err != nil {
		return fmt.Errorf("weigh machine %s: %w", m.id, err)
	}
	return nil
}

// Attach implements driver.Machine.
func (m *machine) Attach(ctx context.Context) (net.Conn, error) {
	if conn := m.first.Swap(nil); conn != nil {
		return *conn, nil
	}
	if m.pipes == (pipes.Names{}) {
		return nil, fmt.Errorf("attach to machine %s: it was started by a version of this program that did not write down its pipes", m.id)
	}
	d, err := pipes.Take(ctx, m.proc.pid, m.pipes)
	if err != nil {
		return nil, fmt.Errorf("attach to machine %s: %w", m.id, err)
	}
	return pipes.Conn{Duplex: d}, nil
}

// Stop implements driver.Machine. It can be repeated until it succeeds.
func (m *machine) Stop(ctx context.Context) error {
	select {
	case m.stopping <- struct{}{}:
		defer func() { <-m.stopping }()
	case <-ctx.Done():
		return fmt.Errorf("stop machine %s: %w", m.id, ctx.Err())
	}
	if m.stopped {
		return nil
	}
	if err := m.release(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.id, err)
	}
	m.stopped = true
	return nil
}

func (m *machine) release(ctx context.Context) error {
	if err := m.reap(ctx); err != nil {
		return err
	}
	if conn := m.first.Swap(nil); conn != nil {
		conn.Close()
	}
	if m.disk != nil {
		m.d.freeing.Go(func() { m.disk.Close() }) // unlinked, and no longer charged to any cgroup
	}
	if err := errors.Join(m.group.Remove(ctx), os.RemoveAll(m.d.machineDir(m.id))); err != nil {
		return err
	}
	m.d.users.giveBack(m.user)
	return nil
}

// reap ends the machine's processes.
func (m *machine) reap(ctx context.Context) error {
	if m.reaped {
		return nil
	}
	// The sentry is the first process of its PID namespace: what else the
	// machine consists of dies with it.
	if err := m.proc.signal(); err != nil {
		return fmt.Errorf("kill the sentry: %w", err)
	}
	err := within(ctx, func() {
		<-m.done
		m.awaitCall()
	})
	if err != nil {
		return fmt.Errorf("wait for the sentry, process %d, that was killed: %w", m.proc.pid, err)
	}
	if m.gofer != nil {
		if err := m.gofer.signal(); err != nil {
			return fmt.Errorf("kill the gofer: %w", err)
		}
	}
	if err := within(ctx, m.work.Wait); err != nil {
		return fmt.Errorf("wait for what served the sentry: %w", err)
	}
	m.words.close()
	m.proc.close()
	if m.gofer != nil {
		m.gofer.close()
	}
	m.reaped = true
	return nil
}

// within waits for f, which cannot be interrupted, until ctx ends.
func within(ctx context.Context, f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
