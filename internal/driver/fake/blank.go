package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// Blank implements driver.Blank: a machine whose process waits to be told to run the
// agent.
type Blank struct {
	m    *Machine
	spec driver.Spec
	host pipes.Conn

	mu   sync.Mutex
	used bool
	// begin is closed to have the process run the agent, after a byte.
	begin *os.File
}

var _ driver.Blank = (*Blank)(nil)

// Prepare implements driver.Driver.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec) (driver.Blank, error) {
	b, err := d.blank(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("prepare machine %s: %w", spec.ID, err)
	}
	return b, nil
}

func (d *Driver) blank(ctx context.Context, spec driver.Spec) (_ *Blank, err error) {
	if err := d.before("prepare", spec.ID); err != nil {
		return nil, err
	}
	if len(spec.Volumes) > 0 {
		return nil, errors.New("a machine with volumes cannot be prepared")
	}
	return d.assemble(ctx, spec)
}

// ID implements driver.Blank.
func (b *Blank) ID() string { return b.m.id }

// Signal sends a signal to the process that waits.
func (b *Blank) Signal(sig syscall.Signal) error { return b.m.Signal(sig) }

// Alive implements driver.Blank.
func (b *Blank) Alive() bool {
	select {
	case <-b.m.done:
		return false
	default:
		return true
	}
}

// Check implements driver.Blank. A process that was stopped does not answer.
func (b *Blank) Check(ctx context.Context) error {
	if err := b.m.d.before("check", b.m.id); err != nil {
		return err
	}
	if !b.Alive() {
		return errors.New("the process has ended")
	}
	if standsStill(b.m.pid) {
		<-ctx.Done()
		return fmt.Errorf("the process does not answer: %w", ctx.Err())
	}
	return nil
}

// Start implements driver.Blank.
func (b *Blank) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := b.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", b.m.id, err)
	}
	return m, nil
}

func (b *Blank) start(ctx context.Context, spec driver.Spec) (_ *Machine, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil, errors.New("it was started or stopped before")
	}
	b.used = true
	defer func() {
		if err != nil {
			err = errors.Join(err, b.dismantle(context.WithoutCancel(ctx)))
		}
	}()
	was := &b.spec
	if spec.ID != was.ID || spec.VCPUs != was.VCPUs || spec.MemoryBytes != was.MemoryBytes || spec.DiskBytes != was.DiskBytes ||
		spec.Processes != was.Processes || !slices.Equal(spec.Interfaces, was.Interfaces) {
		return nil, errors.New("the machine was prepared for another specification")
	}
	if spec.Source.Runs() {
		return nil, errNoMemory
	}
	if err := b.m.d.before("start", spec.ID); err != nil {
		return nil, err
	}
	if err := b.m.d.prepare(ctx, spec); err != nil {
		return nil, err
	}
	for _, mount := range spec.Volumes {
		b.m.mounts = append(b.m.mounts, mount.Path)
	}
	if err := b.m.write(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := b.begin.Write([]byte{1}); err != nil {
		return nil, err
	}
	b.m.first.Store(&b.host)
	return b.m, b.begin.Close()
}

// dismantle removes what there is of the machine.
func (b *Blank) dismantle(ctx context.Context) error {
	_ = b.begin.Close()
	b.m.first.Store(&b.host) // release closes it
	return b.m.release(ctx)
}

// Stop implements driver.Blank.
func (b *Blank) Stop(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil
	}
	if err := b.m.d.before("stop", b.m.id); err != nil {
		return err
	}
	if err := b.dismantle(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", b.m.id, err)
	}
	b.used = true
	return nil
}

// assemble makes the folder and the process of a machine.
func (d *Driver) assemble(ctx context.Context, spec driver.Spec) (_ *Blank, err error) {
	if err := os.Mkdir(d.dir(spec.ID), 0o700); err != nil {
		return nil, err
	}
	b := &Blank{spec: spec}
	defer func() {
		if err == nil {
			return
		}
		if b.host != (pipes.Conn{}) {
			err = errors.Join(err, b.host.Close())
		}
		err = errors.Join(err, killMarked(context.WithoutCancel(ctx), d.dir(spec.ID)), os.RemoveAll(d.dir(spec.ID)))
	}()
	root := filepath.Join(d.dir(spec.ID), rootDir)
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	host, guest, err := pipes.New()
	if err != nil {
		return nil, err
	}
	b.host = pipes.Conn{Duplex: host}
	defer guest.Close()
	names, err := guest.Names()
	if err != nil {
		return nil, err
	}
	pid, begin, err := spawn(d.dir(spec.ID), root, guest)
	if err != nil {
		return nil, err
	}
	b.begin = begin
	if b.m, err = d.open(spec.ID, pid, names); err != nil {
		return nil, errors.Join(err, begin.Close())
	}
	return b, nil
}
