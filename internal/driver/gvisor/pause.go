package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A machine is paused in two steps: its kernel stops all tasks, and then the
// sentry and its helpers are frozen from outside. The first alone would leave
// the sentry's own threads to use the CPU. The second alone would interrupt the
// sentry in what it does with its helpers, such as making one for a process
// that starts, and a sentry that is interrupted there panics.
//
// The kernel counts how often it was stopped and panics when it is let go once
// too often, so a process that takes a machine over must know whether it was
// stopped. pausingFile is there from before the first step until the machine
// runs again; a frozen group says that the first step was done.

const pausingFile = "pausing"

// Pause implements driver.Machine. Pausing a machine that is paused has no
// effect.
func (m *machine) Pause(ctx context.Context) error {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	if m.paused {
		return nil
	}
	if err := os.WriteFile(m.pausingPath(), nil, 0o600); err != nil {
		return fmt.Errorf("pause machine %s: %w", m.id, err)
	}
	if err := m.box.Pause(m.id); err != nil {
		return err
	}
	m.paused = true
	if err := m.group.Freeze(ctx); err != nil {
		return errors.Join(err, m.resume())
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
	if err := m.group.Thaw(); err != nil {
		return err
	}
	if err := m.box.Resume(m.id); err != nil {
		return err
	}
	m.paused = false
	return os.Remove(m.pausingPath())
}

func (m *machine) pausingPath() string { return filepath.Join(m.d.machineDir(m.id), pausingFile) }

// probeWait is how long a machine that runs may take to answer.
const probeWait = 5 * time.Second

// unpause lets a machine go that an earlier process has paused, perhaps only
// half.
func (m *machine) unpause() error {
	if _, err := os.Stat(m.pausingPath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	frozen, err := m.group.Frozen()
	if err != nil {
		return err
	}
	if err := m.group.Thaw(); err != nil {
		return err
	}
	if !frozen && m.answers() {
		return os.Remove(m.pausingPath()) // the first step was not done
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
