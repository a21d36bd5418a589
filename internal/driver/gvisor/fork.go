package gvisor

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/skerry-dev/skerry/internal/driver"
)

// progress hears from a sentry that it has written all but the pages of a save, and goes on.
type progress struct {
	// told is the sentry's end of a pipe.
	told, heard *os.File
	// begun is closed when the sentry has told, or when it will not any more. Then early
	// says whether it was the former.
	begun chan struct{}
	early bool
}

// newProgress calls goesOn when the sentry goes on, at the end at the latest.
func newProgress(goesOn func()) (*progress, error) {
	heard, told, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &progress{told: told, heard: heard, begun: make(chan struct{})}
	go func() {
		defer close(p.begun)
		_, err := io.ReadFull(heard, make([]byte, 1))
		p.early = err == nil
		goesOn()
	}()
	return p, nil
}

// end ends it when the save has ended. The sentry may keep its end of the pipe.
func (p *progress) end() {
	_, _ = p.told.Close(), p.heard.Close()
	<-p.begun
}

// forking is the save of a machine that another one starts from. The other one loads the
// state of the kernel while the pages of the memory are still being written.
type forking struct {
	*progress
	// done is closed when the save has ended. Then err is its error.
	done chan struct{}
	err  error
	// gate lets the other machine read the pages. It gets a byte if all have been written.
	gate, pass *os.File
}

// fork begins to save the machine for another one.
func (m *machine) fork(ctx context.Context, fork *driver.Fork) (*forking, error) {
	gate, pass, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p, err := newProgress(fork.GoesOn)
	if err != nil {
		return nil, errors.Join(err, gate.Close(), pass.Close())
	}
	f := &forking{progress: p, done: make(chan struct{}), gate: gate, pass: pass}
	go func() {
		defer close(f.done)
		defer f.pass.Close()
		f.err = m.saveTelling(ctx, fork.Dir, driver.Saving{Memory: true}, p.told)
		p.end()
		fork.Saved(f.err)
		if f.err == nil {
			_, _ = f.pass.Write([]byte{1}) // if nobody reads, load says why
		}
	}()
	return f, nil
}

// load has another machine load what is saved.
func (f *forking) load(m *machine, spec driver.Spec) error {
	<-f.begun
	if !f.early {
		if <-f.done; f.err != nil {
			return f.err
		}
	}
	dir := spec.Source.Fork.Dir
	err := checkImage(dir, spec)
	if err == nil {
		// The machine takes the gate.
		gate := f.gate
		f.gate = nil
		err = m.load(dir, spec, gate)
	}
	// Without all of its pages it is none.
	if <-f.done; f.err != nil {
		return f.err
	}
	return err
}

// wait returns when the save has ended.
func (f *forking) wait() {
	<-f.done
	if f.gate != nil {
		f.gate.Close()
	}
}
