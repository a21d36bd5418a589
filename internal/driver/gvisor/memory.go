package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"

	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/sandbox"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/patches"
)

// A memory snapshot is the sentry's checkpoint: its own state, and the pages of
// the sandbox's memory and of its writable layer, uncompressed, so that they
// can be read while the sandbox runs already. Beside them is a file of ours:

// imageFile says what a memory snapshot can be loaded by.
const imageFile = "memory.json"

type memoryImage struct {
	// Sentry is the version of gVisor that wrote the snapshot, and the only one
	// that reads it.
	Sentry      string `json:"sentry"`
	VCPUs       int    `json:"vcpus"`
	MemoryBytes int64  `json:"memoryBytes"`
}

// sentryVersion is the version of gVisor that is linked in, with that of the
// patches it was built with. gVisor's own string is filled in by its own build
// alone.
var sentryVersion = sync.OnceValue(func() string {
	version := moduleVersion("gvisor.dev/gvisor")
	if Patched {
		version += "+" + patches.GVisorVersion()
	}
	return version
})

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == path {
				return dep.Version
			}
		}
	}
	return "unknown"
}

// saveMemory writes the machine with its memory. told, if not nil, gets a byte when all but
// the pages is written and the machine goes on.
func (m *machine) saveMemory(ctx context.Context, dir string, told *os.File) error {
	if err := m.checkpoint(ctx, dir, told); err != nil {
		return fmt.Errorf("save the memory of machine %s: %w", m.id, err)
	}
	return nil
}

func (m *machine) checkpoint(ctx context.Context, dir string, told *os.File) error {
	if m.sentry == "" {
		return skerry.Errorf(skerry.CodeConflict, "the sandbox was started by a version of Skerry without memory snapshots: restart it first")
	}
	b, err := json.Marshal(memoryImage{Sentry: m.sentry, VCPUs: m.vcpus, MemoryBytes: m.memory})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, imageFile), b, 0o600); err != nil {
		return err
	}
	end, err := m.saves.begin(dir)
	if err != nil {
		return err
	}
	defer end()
	how := sandbox.CheckpointOpts{
		Compression: statefile.CompressionLevelNone,
		// It goes on also where it is to stop: a stop that fails afterwards
		// must leave it as it was.
		Resume: true,
	}
	err = m.call(ctx, func() error {
		if told != nil {
			own, err := dup(told) // Checkpoint closes it
			if err != nil {
				return err
			}
			tellProgress(&how, own)
		}
		return m.box.Checkpoint(m.conf, m.id, dir, how)
	})
	if err != nil {
		return saveFailure(err)
	}
	return nil
}

// checkImage refuses a snapshot that cannot be loaded into the machine.
func checkImage(dir string, spec driver.Spec) error {
	b, err := os.ReadFile(filepath.Join(dir, imageFile))
	if err != nil {
		return err
	}
	var image memoryImage
	if err := json.Unmarshal(b, &image); err != nil {
		return fmt.Errorf("read the memory snapshot's description: %w", err)
	}
	switch {
	case image.Sentry != sentryVersion():
		return skerry.Errorf(skerry.CodeSnapshotIncompatible,
			"the memory snapshot was taken with gVisor %s and cannot be loaded by gVisor %s", image.Sentry, sentryVersion())
	case image.VCPUs != spec.VCPUs:
		return skerry.Invalid("resources.vcpus", "must be %d, because the sandbox had this size when its memory snapshot was taken", image.VCPUs)
	case image.MemoryBytes != spec.MemoryBytes:
		return skerry.Invalid("resources.memory", "must be %d, because the sandbox had this size when its memory snapshot was taken", image.MemoryBytes>>20)
	}
	return nil
}

// load has the sentry go on from a memory snapshot. The machine's limits are
// in force by now. It takes gate, which, if not nil, yields a byte when all pages are written.
func (m *machine) load(dir string, spec driver.Spec, gate *os.File) error {
	defer func() {
		if gate != nil {
			gate.Close()
		}
	}()
	netns, err := network(spec)
	if err != nil {
		return err
	}
	// Unlike at a start, the helper processes of the sandbox's code are made
	// only now, and some run before this returns. They get their rank and limit by
	// birth.
	unrank, err := m.proc.rankChildren(helperOOMScore)
	if err != nil {
		return err
	}
	unlimit, err := m.proc.limitChildren(spec.Processes - reserve(spec.Processes))
	if err != nil {
		return errors.Join(err, unrank())
	}
	// The rest of the pages is read in the background: see awaitMemory.
	const direct, background = false, true
	var fromNetNS *boot.CreateLinksAndRoutesArgs
	useNetNS(m.box, netns)
	awaitPages(m.box, gate) // the call closes it
	gate = nil
	err = m.box.Restore(m.conf, m.oci, m.id, dir, direct, background, fromNetNS)
	if err := errors.Join(err, unlimit(), unrank()); err != nil {
		return err
	}
	m.work.Go(m.awaitMemory)
	return nil
}

// awaitMemory ends the machine if its memory turns out to be unreadable.
func (m *machine) awaitMemory() {
	if err := m.box.WaitRestore(); err != nil {
		m.endUnloadable("memory", err)
	}
}

// rankChildren gives the processes that p starts from now on an OOM score, by
// giving it to p itself until the returned function is called.
func (p *process) rankChildren(score int) (undo func() error, err error) {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", p.pid)
	own, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("rank the machine's processes: %w", err)
	}
	set := func(value []byte) error {
		if err := os.WriteFile(path, value, 0); err != nil {
			return fmt.Errorf("rank the machine's processes: %w", err)
		}
		return nil
	}
	return func() error { return set(own) }, set([]byte(strconv.Itoa(score)))
}
