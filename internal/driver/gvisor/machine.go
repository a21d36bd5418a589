package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/sandbox"

	specs "github.com/opencontainers/runtime-spec/specs-go"

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
	// disk is the writable layer, nil for an adopted machine. It is held so
	// that the sentry's end does not wait for the file's: what was written to
	// it may just be on its way to the disk.
	disk *os.File
	// oci is nil for an adopted machine.
	oci *specs.Spec
	// sentry is the version of gVisor that runs the machine, "" for one from
	// before they were written down; vcpus and memory are its limits.
	sentry string
	vcpus  int
	memory int64
	// pipes are those to the agent.
	pipes pipes.Names

	// pausing is held by Pause and Resume.
	pausing sync.Mutex
	paused  bool

	done chan struct{}
	// reason is written before done is closed.
	reason string

	// unloadable is set when the snapshot that it started from could not be
	// read, unserved when its gofer has ended.
	unloadable, unserved atomic.Bool
	// work counts the goroutines that Stop waits for.
	work sync.WaitGroup

	stop sync.Once
	err  error
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
}

func (m *machine) save() error {
	st := state{
		PID:       m.proc.pid,
		StartTime: m.proc.start,
		Network:   m.conf.Network == config.NetworkSandbox,
		Control:   m.box.ControlSocketPath,
		Sentry:    m.sentry, VCPUs: m.vcpus, MemoryBytes: m.memory, Pipes: m.pipes, Paused: m.paused,
	}
	if m.gofer != nil {
		st.GoferPID, st.GoferStartTime = m.gofer.pid, m.gofer.start
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	path := filepath.Join(m.d.machineDir(m.id), stateFile)
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("save the machine's state: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// adopt takes over a machine that an earlier process started, of which procs
// were found.
func (d *Driver) adopt(id string, procs found) (_ *machine, err error) {
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
	box := &sandbox.Sandbox{ID: id, UID: nobody, GID: nobody, ControlSocketPath: st.Control}
	box.Pid.Store(proc.pid)
	m := &machine{
		d: d, id: id, box: box, conf: conf, proc: proc, gofer: gofer, group: d.cfg.Cgroups.Open(id), done: make(chan struct{}),
		sentry: st.Sentry, vcpus: st.VCPUs, memory: st.MemoryBytes, pipes: st.Pipes,
	}
	m.paused = st.Paused
	if m.paused {
		if err := m.endPause(); err != nil {
			return nil, fmt.Errorf("it cannot be resumed: %w", err)
		}
	}
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
	if m.gofer != nil {
		m.work.Go(m.watchGofer)
	}
}

// nobody is the host user that sentries run as.
const nobody = 65534

func (m *machine) ID() string            { return m.id }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) Reason() string        { return m.reason }

// watch waits for the sentry's end and says why it came.
func (m *machine) watch() {
	ws, child, err := m.proc.wait()
	switch usage, uerr := m.group.Usage(); {
	case uerr == nil && usage.OOMKills > 0 && (!child || ws.Signaled()):
		m.reason = "the sandbox ran out of memory"
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
	if m.unloadable.Load() {
		m.reason = "the snapshot that the sandbox started from could not be read"
	}
	if words := lastWords(m.d.machineDir(m.id)); words != "" {
		m.reason = "the sandbox's kernel failed"
		m.d.cfg.Log.Error("a sentry failed", "machine", m.id, "panic", words)
	}
	close(m.done)
}

// Usage implements driver.Machine.
func (m *machine) Usage() (driver.Usage, error) {
	u, err := m.group.Usage()
	if err != nil {
		return driver.Usage{}, fmt.Errorf("meter machine %s: %w", m.id, err)
	}
	return driver.Usage{CPU: u.CPU, MemoryBytes: u.MemoryBytes}, nil
}

// Attach implements driver.Machine.
func (m *machine) Attach(ctx context.Context) (net.Conn, error) {
	if m.pipes == (pipes.Names{}) {
		return nil, fmt.Errorf("attach to machine %s: it was started by a version of this program that did not write down its pipes", m.id)
	}
	d, err := pipes.Take(ctx, m.proc.pid, m.pipes)
	if err != nil {
		return nil, fmt.Errorf("attach to machine %s: %w", m.id, err)
	}
	return connection{d}, nil
}

// Stop implements driver.Machine.
func (m *machine) Stop(ctx context.Context) error {
	m.stop.Do(func() { m.err = m.release(context.WithoutCancel(ctx)) })
	return m.err
}

func (m *machine) release(ctx context.Context) error {
	var errs []error
	// The sentry is the first process of its PID namespace: what else the
	// machine consists of dies with it.
	if err := m.proc.signal(); err != nil {
		errs = append(errs, fmt.Errorf("kill the sentry: %w", err))
	} else {
		<-m.done
	}
	if m.gofer != nil {
		errs = append(errs, m.gofer.signal())
	}
	m.work.Wait()
	m.proc.close()
	if m.gofer != nil {
		m.gofer.close()
	}
	if m.disk != nil {
		m.d.freeing.Go(func() { m.disk.Close() }) // it has no name and nobody's bytes any more
	}
	errs = append(errs, m.group.Remove(ctx), os.RemoveAll(m.d.machineDir(m.id)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.id, err)
	}
	return nil
}
