package gvisor

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"gvisor.dev/gvisor/pkg/sentry/control"

	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
)

// outOfMemory says how a machine ended that the host's kernel killed for want
// of memory.
func (m *machine) outOfMemory(usage cgroup.Usage) string {
	used := max(usage.PeakBytes, usage.MemoryBytes)
	if m.memory == 0 { // started by an earlier version
		return fmt.Sprintf("out of memory: the sandbox used %d MiB", used>>20)
	}
	return fmt.Sprintf("out of memory: the sandbox used %d MiB, its limit is %d MiB and %d MiB for its kernel",
		used>>20, m.memory>>20, sentryMemory>>20)
}

// Memory implements driver.Machine.
func (m *machine) Memory() (driver.Memory, error) {
	if m.memory == 0 {
		return driver.Memory{}, nil
	}
	limit := m.memory + sentryMemory
	swapped, err := m.swapped()
	if err != nil {
		return driver.Memory{}, err
	}
	used, err := m.group.PinnedMemory(limit/2 - swapped)
	if err != nil {
		return driver.Memory{}, fmt.Errorf("meter the memory of machine %s: %w", m.id, err)
	}
	used += swapped // or it could have its memory again and again
	return driver.Memory{Used: used, Limit: limit, Size: m.memory}, nil
}

// PinnedMemory implements driver.Machine.
func (m *machine) PinnedMemory(enough int64) (int64, error) {
	held, err := m.group.PinnedMemory(enough)
	if err != nil {
		return 0, fmt.Errorf("meter the memory of machine %s: %w", m.id, err)
	}
	return held, nil
}

// Confine implements driver.Machine.
func (m *machine) Confine(bytes int64) error {
	if m.memory == 0 {
		return nil // started by an earlier version
	}
	limit := m.memory + sentryMemory
	if bytes > 0 {
		limit = min(limit, bytes)
	}
	if err := m.group.LimitMemory(limit); err != nil {
		return fmt.Errorf("limit the memory of machine %s: %w", m.id, err)
	}
	return nil
}

// swapped returns how many bytes of the machine are in swap.
func (m *machine) swapped() (int64, error) {
	if !m.swaps.Load() {
		return 0, nil // it was never reclaimed, and could not swap on its own
	}
	bytes, err := m.group.Swapped()
	if err != nil {
		return 0, fmt.Errorf("meter the memory of machine %s: %w", m.id, err)
	}
	return bytes, nil
}

// Reclaim implements driver.Machine.
func (m *machine) Reclaim(ctx context.Context) (int64, error) {
	m.swaps.Store(true)
	freed, err := m.group.Reclaim(ctx)
	if err != nil {
		return freed, fmt.Errorf("reclaim the memory of machine %s: %w", m.id, err)
	}
	return freed, nil
}

// Memory implements driver.Driver.
func (d *Driver) Memory() (driver.Memory, error) {
	limit, err := d.cfg.Cgroups.MemoryLimit()
	if err != nil || limit == 0 {
		return driver.Memory{}, err
	}
	used, err := d.cfg.Cgroups.PinnedMemory(limit / 2)
	if err != nil {
		return driver.Memory{}, fmt.Errorf("meter the memory of all machines: %w", err)
	}
	return driver.Memory{Used: used, Limit: limit}, nil
}

// End implements driver.Machine.
func (m *machine) End(reason string) {
	m.told.Store(&reason)
	_ = m.proc.signal() // watch sees whether it ends
}

// maxRelief bounds what is taken of what a machine says about a process.
const maxRelief = 1 << 10

// Relieve implements driver.Machine. The sentry runs the agent's program once
// more: its file is the host's, and it needs nothing of the agent that runs.
func (m *machine) Relieve(ctx context.Context) (string, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer out.Close()
	err = m.call(ctx, func() error {
		defer in.Close()
		_, err := m.box.Execute(m.conf, &control.ExecArgs{
			Filename: agentPath, Argv: []string{agentPath, "relieve"}, WorkingDirectory: "/", ContainerID: m.id,
			FilePayload: control.NewFilePayload(map[int]*os.File{0: m.d.null, 1: in, 2: in}, nil),
		})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("relieve machine %s: %w", m.id, err)
	}
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(out, maxRelief))
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("relieve machine %s: %w", m.id, err)
	}
	return strings.TrimSpace(string(said)), nil
}
