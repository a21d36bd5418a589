package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// Machine implements driver.Machine.
type Machine struct {
	d       *Driver
	id      string
	pid     int
	started uint64 // the kernel's start time of the process
	names   pipes.Names
	mounts  []string
	pidfd   *os.File
	done    chan struct{}
	// first is the host's end of the connection until the first Attach.
	first atomic.Pointer[pipes.Conn]

	mu     sync.Mutex
	reason string
	paused bool
}

var _ driver.Machine = (*Machine)(nil)

// open returns the machine of a process that runs.
func (d *Driver) open(id string, pid int, names pipes.Names) (*Machine, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	m := &Machine{d: d, id: id, pid: pid, names: names, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	m.started, err = startTime(pid)
	if err == nil && ended(fd) {
		// Its parent has not reaped it yet, so the kernel still has it.
		err = fmt.Errorf("process %d has ended", pid)
	}
	if err != nil {
		return nil, errors.Join(err, m.pidfd.Close())
	}
	go m.watch()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machines[id] = m
	return m, nil
}

// write writes what Recover needs.
func (m *Machine) write() error {
	b, err := json.Marshal(state{PID: m.pid, StartTime: m.started, Pipes: m.names, Mounts: m.mounts})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.dir(), stateFile), b, 0o600)
}

// ended reports whether a process has ended, or cannot be asked.
func ended(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// watch waits for the end of the machine's process, and ends what it left.
func (m *Machine) watch() {
	defer m.pidfd.Close()
	if conn, err := m.pidfd.SyscallConn(); err == nil {
		_ = conn.Read(func(fd uintptr) bool { return ended(int(fd)) })
	}
	m.mu.Lock()
	if m.reason == "" {
		m.reason = "the sandbox's process ended"
	}
	m.mu.Unlock()
	close(m.done)
	_ = killMarked(context.Background(), m.dir()) // release tries again
}

// dir is the machine's folder, which its processes are known by.
func (m *Machine) dir() string { return m.d.dir(m.id) }

// ID implements driver.Machine.
func (m *Machine) ID() string { return m.id }

// Done implements driver.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Reason implements driver.Machine.
func (m *Machine) Reason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason
}

// Signal sends a signal to the machine's own process: SIGKILL is the end of the
// sandbox's kernel, SIGSTOP has its agent hang by the time that Signal returns.
func (m *Machine) Signal(sig syscall.Signal) error {
	conn, err := m.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		return cerr
	}
	for err == nil && sig == unix.SIGSTOP && !standsStill(m.pid) {
		time.Sleep(time.Millisecond)
	}
	return err
}

// Root returns the folder with the sandbox's files.
func (m *Machine) Root() string { return filepath.Join(m.dir(), rootDir) }

// Attach implements driver.Machine.
func (m *Machine) Attach(ctx context.Context) (net.Conn, error) {
	if err := m.d.before("attach", m.id); err != nil {
		return nil, err
	}
	if conn := m.first.Swap(nil); conn != nil {
		return *conn, nil
	}
	conn, err := pipes.Take(ctx, m.pid, m.names)
	if err != nil {
		return nil, fmt.Errorf("attach to machine %s: %w", m.id, err)
	}
	return pipes.Conn{Duplex: conn}, nil
}

// Format implements driver.Machine.
func (m *Machine) Format(memory bool) driver.Format { return m.d.Format(memory) }

// Save implements driver.Machine.
func (m *Machine) Save(ctx context.Context, dir string, how driver.Saving) (err error) {
	if how.Memory {
		return errNoMemory
	}
	if err := m.d.before("save", m.id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return fmt.Errorf("save machine %s: it has ended", m.id)
	default:
	}
	if !m.paused {
		if err := send(m.dir(), stopSignal); err != nil {
			return fmt.Errorf("save machine %s: %w", m.id, err)
		}
		defer func() {
			if m.paused = how.Hold && err == nil; !m.paused {
				err = errors.Join(err, send(m.dir(), contSignal))
			}
		}()
	}
	args := []string{"-C", m.Root(), "--exclude=." + agentDir}
	for _, path := range m.mounts {
		args = append(args, "--exclude=."+path)
	}
	return tar(ctx, append(args, "-cf", filepath.Join(dir, filesName), ".")...)
}

// Fork implements driver.Machine.
func (m *Machine) Fork(context.Context, string, func()) (driver.Fork, error) {
	return nil, errNoMemory
}

// SaveSize implements driver.Machine.
func (m *Machine) SaveSize(bool) (size int64, err error) {
	err = filepath.WalkDir(m.Root(), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, ierr := e.Info(); ierr == nil {
				size += info.Size()
			}
		}
		return nil // it changes meanwhile
	})
	return size, err
}

// Pause implements driver.Machine.
func (m *Machine) Pause(context.Context) error { return m.pause("pause", true, stopSignal) }

// Resume implements driver.Machine.
func (m *Machine) Resume(context.Context) error { return m.pause("resume", false, contSignal) }

func (m *Machine) pause(op string, paused bool, sig syscall.Signal) error {
	if err := m.d.before(op, m.id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := send(m.dir(), sig); err != nil {
		return fmt.Errorf("%s machine %s: %w", op, m.id, err)
	}
	m.paused = paused
	return nil
}

// Activity implements driver.Machine.
func (m *Machine) Activity(context.Context) (driver.Activity, error) {
	if err := m.d.before("activity", m.id); err != nil {
		return driver.Activity{}, err
	}
	pids, err := marked(m.dir())
	if err != nil {
		return driver.Activity{}, fmt.Errorf("list the processes of machine %s: %w", m.id, err)
	}
	return driver.Activity{Processes: max(0, len(pids)-1)}, nil // one is the agent's
}

// Usage implements driver.Machine. It counts the time of the commands that
// have ended.
func (m *Machine) Usage() (driver.Usage, error) {
	fields, err := stat(m.pid)
	if err != nil {
		return driver.Usage{}, nil // the process has ended
	}
	const tick = 10 * time.Millisecond
	var u driver.Usage
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		u.CPU += time.Duration(f) * tick
	}
	return u, nil
}

// Memory implements driver.Machine.
func (m *Machine) Memory() (driver.Memory, error) { return driver.Memory{}, nil }

// PinnedMemory implements driver.Machine.
func (m *Machine) PinnedMemory(int64) (int64, error) { return 0, nil }

// Weigh implements driver.Machine.
func (m *Machine) Weigh(float64) error { return nil }

// Confine implements driver.Machine.
func (m *Machine) Confine(int64) error { return nil }

// Reclaim implements driver.Machine.
func (m *Machine) Reclaim(context.Context) (int64, error) { return 0, nil }

// Relieve implements driver.Machine.
func (m *Machine) Relieve(context.Context) (string, error) {
	return "", errors.New("the fake driver relieves no machine")
}

// End implements driver.Machine.
func (m *Machine) End(reason string) {
	m.mu.Lock()
	if m.reason == "" {
		m.reason = strings.TrimSpace(reason)
	}
	m.mu.Unlock()
	_ = m.Signal(unix.SIGKILL)
}

// Stop implements driver.Machine.
func (m *Machine) Stop(ctx context.Context) error {
	if err := m.d.before("stop", m.id); err != nil {
		return err
	}
	if err := m.release(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.id, err)
	}
	return nil
}

func (m *Machine) release(ctx context.Context) error {
	_ = m.Signal(unix.SIGKILL) // watch kills the rest
	select {
	case <-m.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := killMarked(ctx, m.dir()); err != nil {
		return err
	}
	if conn := m.first.Swap(nil); conn != nil {
		conn.Close()
	}
	if err := os.RemoveAll(m.dir()); err != nil {
		return err
	}
	m.d.forget(m)
	return nil
}
