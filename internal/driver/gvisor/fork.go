package gvisor

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/driver"
)

// progress hears from a sentry that saves itself: it writes a byte before it goes on, and
// another one when it has written all but the pages.
type progress struct {
	// told is the sentry's end of a pipe.
	told, heard *os.File
	pipe        syscall.RawConn
	// begun is closed when the sentry has told all, or when it will not any more. Then early
	// says whether it was the former.
	begun chan struct{}
	early bool

	mu sync.Mutex
	// moved is set when the sentry has told that it goes on, or when it will not any more.
	moved bool
}

// newProgress calls goesOn when the sentry goes on, at the end at the latest.
func newProgress(goesOn func()) (*progress, error) {
	heard, told, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &progress{told: told, heard: heard, begun: make(chan struct{})}
	if p.pipe, err = heard.SyscallConn(); err != nil {
		return nil, errors.Join(err, told.Close(), heard.Close())
	}
	go func() {
		defer close(p.begun)
		if p.hear() { // that it goes on
			p.early = p.hear()
		}
		goesOn()
	}()
	return p, nil
}

// hear waits for a byte. It reports false if none comes any more.
func (p *progress) hear() (heard bool) {
	err := p.pipe.Read(func(fd uintptr) (done bool) {
		// standing looks at the pipe either before the byte is taken out, or when moved
		// says so.
		p.mu.Lock()
		defer p.mu.Unlock()
		n, err := unix.Read(int(fd), make([]byte, 1))
		if err == unix.EAGAIN || err == unix.EINTR {
			return false
		}
		p.moved, heard = true, n == 1
		return true
	})
	if err != nil {
		p.mu.Lock()
		p.moved = true
		p.mu.Unlock()
	}
	return heard
}

// standing reports whether the sentry has not told yet that it goes on. It looks itself: a
// program's output may be with a client before hear has run.
func (p *progress) standing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved {
		return false
	}
	waiting := -1
	err := p.pipe.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			waiting = n
		}
	})
	return err == nil && waiting == 0
}

// end ends it when the save has ended. The sentry may keep its end of the pipe.
func (p *progress) end() {
	_, _ = p.told.Close(), p.heard.Close()
	<-p.begun
}

// forking is the save of a machine that other ones start from. They load the state of its
// kernel while the pages of its memory are still being written. It implements driver.Fork.
type forking struct {
	*progress
	dir string
	// tells says whether the sentry tells before it goes on: others do not have the patch,
	// or an earlier version of it.
	tells bool
	// done is closed when the save has ended. Then err is its error.
	done chan struct{}
	err  error
}

// Fork implements driver.Machine.
func (m *machine) Fork(ctx context.Context, dir string, goesOn func()) (driver.Fork, error) {
	p, err := newProgress(goesOn)
	if err != nil {
		return nil, err
	}
	f := &forking{progress: p, dir: dir, tells: Patched && m.sentry == sentryVersion(), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.err = m.saveTelling(ctx, dir, driver.Saving{Memory: true}, p.told)
		p.end()
	}()
	return f, nil
}

// Standing implements driver.Fork.
func (f *forking) Standing() bool { return f.tells && f.standing() }

// Done implements driver.Fork.
func (f *forking) Done() <-chan struct{} { return f.done }

// Err implements driver.Fork.
func (f *forking) Err() error { return f.err }

// load has another machine load what is saved.
func (f *forking) load(ctx context.Context, m *machine, spec driver.Spec) error {
	select {
	case <-f.begun:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !f.early {
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
	err := checkImage(f.dir, spec)
	if err == nil {
		err = f.loadEarly(ctx, m, spec)
	}
	// Without all of its pages it is none.
	if err := f.wait(ctx); err != nil {
		return err
	}
	return err
}

// loadEarly has another machine load what is saved, while pages may still be written.
func (f *forking) loadEarly(ctx context.Context, m *machine, spec driver.Spec) error {
	// The machine reads pages when it gets a byte, and gives up when it gets none.
	gate, pass, err := os.Pipe()
	if err != nil {
		return err
	}
	var opened sync.WaitGroup
	opened.Go(func() {
		defer pass.Close()
		if f.wait(ctx) == nil {
			_, _ = pass.Write([]byte{1}) // if nobody reads, load says why
		}
	})
	defer opened.Wait()
	return m.load(f.dir, spec, gate)
}

// wait returns when the save has ended, with its error.
func (f *forking) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
