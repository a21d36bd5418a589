package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/checkpoint"
	"gvisor.dev/gvisor/runsc/sandbox"

	"github.com/skerry-dev/skerry/internal/driver"
)

// A snapshot is the sentry's filesystem checkpoint of the root's writable
// layer: four files, of which the "multi-tar" has the tree (regular files as
// references to pages), and the pages file the contents. It is the whole
// difference to the image, not to an earlier snapshot. The sentry alone writes
// it; with our patch it has all that Linux keeps of a file.

// Save implements driver.Machine. A sentry saves itself while its tasks are paused, but
// not while it is stopped.
func (m *machine) Save(ctx context.Context, dir string, how driver.Saving) (err error) {
	if how.GoesOn == nil {
		return m.saveTelling(ctx, dir, how, nil)
	}
	p, err := newProgress(how.GoesOn)
	if err != nil {
		return err
	}
	defer p.end()
	return m.saveTelling(ctx, dir, how, p.told)
}

// saveTelling is Save. told, if not nil, gets a byte when the machine goes on, if that is before
// all is written.
func (m *machine) saveTelling(ctx context.Context, dir string, how driver.Saving, told *os.File) (err error) {
	m.pausing.Lock()
	defer m.pausing.Unlock()
	paused := m.paused
	switch {
	case paused:
		if err := m.proc.send(unix.SIGCONT); err != nil {
			return saveFailure(err)
		}
	case how.Hold:
		// Paused before it is saved, and not after: what ran in between would be lost.
		if err := m.halt(ctx); err != nil {
			return saveFailure(err)
		}
	}
	if how.Memory {
		err = m.saveMemory(ctx, dir, told)
	} else {
		err = m.saveFiles(ctx, dir)
	}
	if paused || m.paused && err == nil {
		err = errors.Join(err, m.stand())
	}
	if err != nil && m.paused && !paused {
		err = errors.Join(err, m.goOn(ctx))
	}
	return err
}

// filesVersion is that of filesystem checkpoints. Those of other versions of the
// sentry can be read.
const filesVersion = "1"

// Format implements driver.Driver.
func (d *Driver) Format(memory bool) driver.Format { return format(memory, sentryVersion()) }

// Format implements driver.Machine.
func (m *machine) Format(memory bool) driver.Format { return format(memory, m.sentry) }

func format(memory bool, sentry string) driver.Format {
	f := driver.Format{Driver: name, Kind: "files", Version: filesVersion}
	if memory {
		f.Kind, f.Version = "memory", sentry
	}
	return f
}

// saveFiles writes the machine's files.
func (m *machine) saveFiles(ctx context.Context, dir string) error {
	end, err := m.saves.begin(dir)
	if err == nil {
		defer end()
		err = m.call(ctx, func() error {
			return m.box.FSSave(m.conf, m.id, dir, sandbox.FSSaveOpts{Paths: []checkpoint.ResourceID{{Path: "/"}}})
		})
	}
	if err != nil {
		return fmt.Errorf("save machine %s: %w", m.id, saveFailure(err))
	}
	return nil
}

// SaveSize implements driver.Machine.
func (m *machine) SaveSize(memory bool) (size int64, err error) {
	if m.disk != nil {
		if _, size, err = look(m.disk); err != nil {
			return 0, err
		}
	}
	if memory {
		held, err := m.PinnedMemory(0)
		if err != nil {
			return 0, err
		}
		swapped, err := m.swapped()
		if err != nil {
			return 0, err
		}
		size += held + swapped
	}
	return size, nil
}

// awaitFiles ends the machine if the files that it starts from turn out to be
// unreadable. They are read while it runs already: whoever reads one that is
// not there yet waits.
func (m *machine) awaitFiles() {
	if err := m.box.WaitFSRestore(m.id); err != nil {
		m.endUnloadable("files", err)
	}
}

// endGrace is how long it may take to be known that a sentry has ended.
const endGrace = 500 * time.Millisecond

// endUnloadable ends a machine that runs without all that it started from.
func (m *machine) endUnloadable(what string, err error) {
	select {
	case <-m.done: // it has ended anyway, and that is the error
	case <-time.After(endGrace):
		m.d.cfg.Log.Error("cannot load what a machine starts from", "machine", m.id, "what", what, "error", err)
		m.unloadable.Store(true)
		_ = m.proc.signal() // watch sees whether it ends
	}
}
