package gvisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
)

// blank is a machine whose sentry has started, is under its limits and in its
// namespaces, and has loaded nothing. No code of a sandbox runs in it before Start, so
// it has no state on disk: a later process removes it like any machine that was never
// whole.
type blank struct {
	m    *machine
	spec driver.Spec
	host pipes.Conn

	// gate is held by Start and Stop.
	gate chan struct{}
	used bool
	// ending starts what Stop needs, once.
	ending sync.Once
}

var _ driver.Blank = (*blank)(nil)

var errUnpatched = errors.New("gVisor without patches cannot prepare machines")

// Prepare implements driver.Driver.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec) (driver.Blank, error) {
	b, err := d.prepare(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("prepare machine %s: %w", spec.ID, err)
	}
	return b, nil
}

func (d *Driver) prepare(ctx context.Context, spec driver.Spec) (*blank, error) {
	if !Patched {
		return nil, errUnpatched
	}
	if _, err := network(spec); err != nil {
		return nil, err
	}
	if len(spec.Volumes) > 0 {
		return nil, errors.New("a machine with volumes cannot be prepared")
	}
	// The sentry is started with as many files as it has mounts; Start replaces them.
	spec.RootFS = spec.Agent
	spec.Source = driver.Source{}
	host, guest, err := pipes.New()
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	m, err := d.assemble(ctx, spec, guest)
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return &blank{m: m, spec: spec, host: pipes.Conn{Duplex: host}, gate: make(chan struct{}, 1)}, nil
}

// ID implements driver.Blank.
func (b *blank) ID() string { return b.m.id }

// Alive implements driver.Blank.
func (b *blank) Alive() bool { return !b.m.proc.ended() }

// Check implements driver.Blank.
func (b *blank) Check(ctx context.Context) error {
	err := b.m.call(ctx, func() error {
		_, err := b.m.timers()
		return err
	})
	if err != nil {
		return fmt.Errorf("ask machine %s: %w", b.m.id, err)
	}
	return nil
}

// enter waits for the gate.
func (b *blank) enter(ctx context.Context) error {
	select {
	case b.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Start implements driver.Blank.
func (b *blank) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := b.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", b.m.id, err)
	}
	return m, nil
}

func (b *blank) start(ctx context.Context, spec driver.Spec) (_ *machine, err error) {
	if err := b.enter(ctx); err != nil {
		return nil, errors.Join(err, b.Stop(context.WithoutCancel(ctx)))
	}
	defer func() { <-b.gate }()
	if b.used {
		return nil, errors.New("it was started or stopped before")
	}
	b.used = true
	// Until the machine begins to become something, it is this function's.
	given := false
	defer func() {
		if !given {
			err = b.m.d.dismantle(ctx, b.m, nil, err)
		}
	}()
	if err := b.fits(spec); err != nil {
		return nil, errors.Join(err, b.host.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	return b.m.d.become(ctx, spec, b.host, func(begin func(*machine) error) (*machine, error) {
		given = true
		b.m.oci = ociSpec(spec, b.m.d.machineDir(spec.ID))
		err := b.m.animate(ctx, spec, func(m *machine) error {
			if !spec.Background {
				if err := m.Weigh(1); err != nil {
					return err
				}
			}
			if err := m.setSource(spec); err != nil {
				return err
			}
			return begin(m)
		})
		return b.m, err
	})
}

// fits refuses a specification that needs another machine.
func (b *blank) fits(spec driver.Spec) error {
	was := &b.spec
	if spec.ID != was.ID || spec.VCPUs != was.VCPUs || spec.MemoryBytes != was.MemoryBytes || spec.DiskBytes != was.DiskBytes ||
		spec.Processes != was.Processes || len(spec.Volumes) > 0 {
		return errors.New("the machine was prepared for another specification")
	}
	// What goes on gets its interface when it is loaded, from any namespace.
	if !slices.Equal(spec.Interfaces, was.Interfaces) && (!spec.Source.Runs() || len(spec.Interfaces) != len(was.Interfaces)) {
		return errors.New("the machine was prepared for another specification")
	}
	return nil
}

// Stop implements driver.Blank.
func (b *blank) Stop(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return fmt.Errorf("stop machine %s: %w", b.m.id, err)
	}
	defer func() { <-b.gate }()
	if !b.used {
		b.ending.Do(func() {
			b.m.first.Store(&b.host) // Stop closes it
			go b.m.watch()
		})
		if err := b.m.Stop(ctx); err != nil {
			return err
		}
		b.used = true
	}
	return nil
}

// ended reports whether the process has ended.
func (p *process) ended() bool {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	err = conn.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		gone = n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	return gone || err != nil
}
