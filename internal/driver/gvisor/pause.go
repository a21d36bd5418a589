package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A machine is paused by its own kernel, which stops all tasks; the sentry
// itself sleeps then. It is not frozen from outside as well: that interrupts the
// sentry in what it does with its helper processes, such as making one, and a
// sentry that is interrupted there panics once it goes on.
//
// The kernel counts how often it was stopped, and panics when it is let go once
// too often, so a process that takes a machine over must know whether it was
// stopped. pausingFile is there from before the kernel is asked until it has
// been let go, and has something in it once it is known to have stopped.

const pausingFile = "pausing"

// Pause implements driver.Machine. Pausing a machine that is paused has no
// effect.
func (m *machine) Pause(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if m.paused {
		return nil
	}
	if err := m.markPausing(""); err != nil {
		return err
	}
	if err := m.box.Pause(m.id); err != nil {
		return err
	}
	m.paused = true
	if err := m.markPausing("paused"); err != nil {
		return errors.Join(err, m.resume())
	}
	return nil
}

func (m *machine) markPausing(how string) error {
	if err := os.WriteFile(m.pausingPath(), []byte(how), 0o600); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.id, err)
	}
	return nil
}

// Resume implements driver.Machine. Resuming a machine that is not paused has
// no effect.
func (m *machine) Resume(context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if !m.paused {
		return nil
	}
	return m.resume()
}

// resume undoes Pause; m.pausing is held.
func (m *machine) resume() error {
	if err := m.box.Resume(m.id); err != nil {
		return err
	}
	m.paused = false
	return os.Remove(m.pausingPath())
}

func (m *machine) pausingPath() string { return filepath.Join(m.d.machineDir(m.id), pausingFile) }

// probeWait is how long a machine that runs may take to answer.
const probeWait = 10 * time.Second

// unpause lets a machine go that an earlier process has paused, or perhaps
// just has not.
func (m *machine) unpause() error {
	mark, err := os.ReadFile(m.pausingPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(mark) == 0 && m.answers() {
		return os.Remove(m.pausingPath()) // the kernel was not asked yet
	}
	return m.resume()
}

// answers says whether the machine's tasks run: the agent refuses a connection
// without its secret, but at once.
func (m *machine) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeWait)
	defer cancel()
	conn, err := m.attach(ctx, "")
	if err == nil {
		conn.Close()
	}
	return ctx.Err() == nil
}
