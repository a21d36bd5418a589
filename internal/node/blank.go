package node

import (
	"context"
	"errors"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// A blank machine has a network, which is closed, and a kernel, which waits to be told
// what it starts from. A session that starts from a snapshot or from another session uses
// one. The driver removes those of an earlier process, so they need no record.

// prefixBlank begins the ids of blank machines.
const prefixBlank = "blk_"

const (
	// blankCount is the minimum number of blank machines of the usual size.
	blankCount = 1
	// blankMemory is the estimated memory of a blank machine.
	blankMemory = 32 << 20
)

// isBlank reports whether machines of the kind are blank ones.
func (k kind) isBlank() bool { return k.Image == "" }

// blank is the kind of blank machines of the same size.
func (k kind) blank() kind {
	k.Image = ""
	return k
}

// makeBlank prepares a machine.
func (p *warmPool) makeBlank(ctx context.Context, w *warm, spec nodeapi.SessionSpec) (err error) {
	n := p.node
	if w.lease, err = n.cfg.Networks.Acquire(ctx); err != nil {
		w.lease = nil // an interface that holds nil is not nil
		return err
	}
	machine := n.machineSpec(spec, "", w.lease)
	machine.ID, machine.Background = w.id, true
	if w.blank, err = n.cfg.Driver.Prepare(ctx, machine); err != nil {
		w.blank = nil
		return err
	}
	w.bytes, w.since = blankMemory, time.Now()
	return nil
}

// fillBlank gives the session a blank machine, with its network, if its specification can
// use one that is ready and answers.
func (s *session) fillBlank(ctx context.Context, spec nodeapi.SessionSpec) {
	if !kindFor(spec).isBlank() {
		return
	}
	if w := s.takeBlank(ctx, spec); w != nil {
		s.blank, s.lease = w.blank, w.lease
	}
}

// takeBlank takes a blank machine that answers from the pool. It returns nil if there is
// none.
func (s *session) takeBlank(ctx context.Context, spec nodeapi.SessionSpec) *warm {
	for range maxClaims {
		w := s.node.pool.take(spec)
		if w == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
		err := w.blank.Check(ctx)
		cancel()
		if err == nil {
			return w
		}
		s.node.pool.discard(w)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		s.node.cfg.Log.Warn("a blank machine cannot be used", "machine", w.id, "session", s.id, "error", err)
	}
	return nil
}

// machineID returns the id of the machine that the session has, or will have.
func (s *session) machineID() string {
	switch m := s.machine(); {
	case m != nil:
		return m.ID()
	case s.blank != nil:
		return s.blank.ID()
	default:
		return s.id
	}
}

// startMachine starts the session's machine.
func (s *session) startMachine(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if s.blank != nil {
		return s.blank.Start(ctx, spec)
	}
	return s.node.cfg.Driver.Start(ctx, spec)
}

// endBlanks ends the blank machines of the pool, which a later process could not use.
func (p *warmPool) endBlanks() error {
	p.mu.Lock()
	var blanks []*warm
	for k, list := range p.ready {
		if k.isBlank() {
			blanks = append(blanks, list...)
			delete(p.ready, k)
		}
	}
	for _, w := range p.trash {
		if w.blank != nil {
			blanks = append(blanks, w)
		}
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	var errs []error
	for _, w := range blanks {
		errs = append(errs, p.release(ctx, w))
	}
	return errors.Join(errs...)
}

// newPooled returns a machine of the pool that is to be made.
func newPooled(k kind) *warm {
	if k.isBlank() {
		return &warm{id: skerry.NewID(prefixBlank), kind: k}
	}
	return &warm{id: skerry.NewID(prefixWarm), kind: k}
}
