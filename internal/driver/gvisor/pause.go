package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
)

// A paused machine is one whose sentry has stopped its tasks and was then
// stopped itself, by a signal. The cgroup's freezer would do both at once, but
// the processes that sandboxed code runs in do not survive being frozen twice:
// what their threads wait in is interrupted, and restarting that is a call
// that their filter takes for one of the sandboxed code.
//
// Sentries count pauses and do not tell whether they are paused, so it is
// written down before and after.

// Pause implements driver.Machine.
func (m *machine) Pause(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if m.paused {
		return nil
	}
	if err := m.halt(ctx); err != nil {
		return err
	}
	if err := m.stand(); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.id, errors.Join(err, m.goOn(ctx)))
	}
	return nil
}

// halt has the sentry stop its tasks; m.pausing is held.
func (m *machine) halt(ctx context.Context) error {
	m.paused = true
	if err := m.save(); err != nil {
		m.paused = false
		return fmt.Errorf("pause machine %s: %w", m.id, err)
	}
	if err := m.callShortly(ctx, func() error { return m.box.Pause(m.id) }); err != nil {
		m.paused = false
		return fmt.Errorf("pause machine %s: %w", m.id, errors.Join(err, m.save()))
	}
	return nil
}

// stopWait is how long the threads of a sentry may take to stop. One that the
// kernel is at work for stops later.
const stopWait = time.Second

// stand stops the sentry and returns when it has stopped.
func (m *machine) stand() error {
	if err := m.proc.send(unix.SIGSTOP); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(stopWait)
	for {
		if stopped, err := m.proc.isStopped(); stopped || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-late:
			return nil
		case <-m.done:
			return nil
		}
	}
}

// Resume implements driver.Machine.
func (m *machine) Resume(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if !m.paused {
		return nil
	}
	if err := m.goOn(ctx); err != nil {
		return fmt.Errorf("resume machine %s: %w", m.id, err)
	}
	return nil
}

// goOn ends a pause; m.pausing is held.
func (m *machine) goOn(ctx context.Context) error {
	if err := m.proc.send(unix.SIGCONT); err != nil {
		return err
	}
	if err := m.callShortly(context.WithoutCancel(ctx), func() error { return m.box.Resume(m.id) }); err != nil {
		return err
	}
	m.paused = false
	if err := m.save(); err != nil {
		// What is written down holds: it may be paused. A later process finds out.
		m.d.cfg.Log.Warn("cannot write down that a machine goes on", "machine", m.id, "error", err)
	}
	return nil
}

// probeWait is how long a program that does nothing may take.
const probeWait = 3 * time.Second

// endPause lets an adopted machine go on that was written down as paused. The
// earlier process may have ended while it paused or resumed it: then a program
// that is to end at once shows whether anything runs.
func (m *machine) endPause(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	stopped, err := m.proc.isStopped()
	if err != nil || stopped {
		return errors.Join(err, m.goOn(ctx))
	}
	var pid int32
	err = m.callShortly(ctx, func() (err error) {
		pid, err = m.box.Execute(m.conf, &control.ExecArgs{
			Filename: agentPath, Argv: []string{agentPath, "nothing"}, WorkingDirectory: "/", ContainerID: m.id,
			FilePayload: control.NewFilePayload(map[int]*os.File{0: m.d.null, 1: m.d.null, 2: m.d.null}, nil),
		})
		return err
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := m.box.WaitPID(m.id, pid)
		ended <- err
	}()
	select {
	case err := <-ended:
		m.paused = false
		return errors.Join(err, m.save())
	case <-time.After(probeWait):
		return m.goOn(ctx)
	}
}

// send sends a signal; it is no error that the process has ended.
func (p *process) send(sig unix.Signal) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	err = conn.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(kerr, unix.ESRCH) {
		kerr = nil
	}
	return errors.Join(err, kerr)
}

// isStopped says whether a signal has stopped all of the process's threads.
func (p *process) isStopped() (bool, error) {
	dirs, err := threads(p.pid)
	if err != nil || len(dirs) == 0 {
		return false, err
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "stat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		// The state follows the name, which may hold anything.
		if state := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:]); len(state) == 0 || state[0] != 'T' {
			return false, nil
		}
	}
	return true, nil
}
