package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/atomicfile"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// prefixWarm begins the ids of machines that are started before their sessions.
const prefixWarm = "warm_"

// warmHostname is the hostname of a machine that no session has claimed yet.
const warmHostname = "warm"

// warm is a machine of the pool. It is blank, or it is a warm one: its agent is set up, and
// the programs that sessions usually begin with have run once, so that their pages are in
// memory. Its network is closed. It has no data of any client.
type warm struct {
	id      string
	kind    kind
	lease   nodeapi.Lease
	machine driver.Machine
	guest   *guest.Client
	// blank is a blank machine. It has no machine and no guest yet.
	blank driver.Blank
	// bytes is the memory that it used when it became ready.
	bytes int64
	since time.Time
	// failures counts the failures to end it; notBefore is when the next attempt may be
	// made.
	failures  int
	notBefore time.Time
}

// warmRecord is what a later process needs to take over a warm machine. It is removed
// before a session gets the machine, so no machine is given out twice.
type warmRecord struct {
	Kind  kind   `json:"kind"`
	Lease string `json:"lease"`
	// Made is the fingerprint of everything else that the machine was started with.
	Made string `json:"made"`
}

// fingerprint identifies what machines are started with, except their kind.
func (n *Node) fingerprint() (string, error) {
	b, err := json.Marshal([]any{
		n.currentAgent(), n.cfg.Driver.Format(true), n.cfg.DiskBytes, n.cfg.Processes, n.cfg.HostProcesses, n.cfg.Authorities,
	})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), err
}

// recordPath returns the path of a machine's record.
func (p *warmPool) recordPath(id string) string { return filepath.Join(p.cfg.Dir, id+".json") }

// make starts a machine for sessions of a specification.
func (p *warmPool) make(ctx context.Context, spec nodeapi.SessionSpec) (_ *warm, err error) {
	n := p.node
	w := newPooled(kindFor(spec))
	defer func() {
		if err != nil {
			err = fmt.Errorf("make machine %s: %w", w.id, err)
			p.mu.Lock()
			p.trash = append(p.trash, w)
			p.mu.Unlock()
		}
	}()
	if w.kind.isBlank() {
		return w, p.makeBlank(ctx, w, spec)
	}
	rootfs, err := n.cfg.Images.Path(spec.ImageDigest)
	if err != nil {
		return nil, err
	}
	xattrs, err := n.cfg.Images.Xattrs(spec.ImageDigest)
	if err != nil {
		return nil, err
	}
	if w.lease, err = n.cfg.Networks.Acquire(ctx); err != nil {
		w.lease = nil // an interface that holds nil is not nil
		return nil, err
	}
	machine := n.machineSpec(spec, rootfs, w.lease)
	machine.ID, machine.Hostname, machine.Background = w.id, warmHostname, true
	if w.machine, err = n.cfg.Driver.Start(ctx, machine); err != nil {
		w.machine = nil
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.AgentWait)
	defer cancel()
	conn, err := w.machine.Attach(ctx)
	if err != nil {
		return nil, err
	}
	setup := n.setup(spec, warmHostname)
	setup.Xattrs = xattrs
	if w.guest, _, err = guest.Connect(ctx, conn, setup); err != nil {
		return nil, err
	}
	if err := w.exercise(ctx, spec); err != nil {
		return nil, err
	}
	if w.bytes, err = w.machine.PinnedMemory(0); err != nil {
		return nil, err
	}
	w.since = time.Now()
	made, err := n.fingerprint()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(warmRecord{Kind: w.kind, Lease: w.lease.ID(), Made: made})
	if err != nil {
		return nil, err
	}
	return w, atomicfile.Write(p.recordPath(w.id), b)
}

// exercises are programs that sessions usually begin with. They leave no trace in the
// files. Those with runtime are programs of the default image.
var exercises = []struct {
	runtime bool
	name    string
	args    []string
}{
	{false, "/bin/sh", []string{"-c", ":"}},
	{true, "/bin/bash", []string{"-c", ":"}},
	{true, "python3", []string{"-B", "-c", "pass"}},
	{true, "node", []string{"-e", "0"}},
}

const (
	// exerciseTimeout is the maximum time for one of them.
	exerciseTimeout = 20 * time.Second
	// exerciseGrace is how long what they have started may still run afterwards.
	exerciseGrace = 2 * time.Second
)

// exercise runs the programs that sessions usually begin with. An image may lack some of
// them, and they may fail. But nothing may keep running in a machine that is nobody's: no
// client's limits and no bill would count it.
func (w *warm) exercise(ctx context.Context, spec nodeapi.SessionSpec) error {
	for _, e := range exercises {
		if e.runtime && spec.Runtime == "" {
			continue
		}
		exit, _, err := errand(ctx, w.guest, guest.StartSpec{Name: e.name, Args: e.args, Cwd: "/", Env: spec.Env, Timeout: exerciseTimeout}, func(*guest.Process) {})
		if err != nil && skerry.CodeOf(err) != skerry.CodeExecutableNotFound {
			return err
		}
		if exit.TimedOut {
			return fmt.Errorf("%s of the image has not ended after %v", e.name, exerciseTimeout)
		}
	}
	return w.rest(ctx)
}

// rest returns when nothing runs in the machine.
func (w *warm) rest(ctx context.Context) error {
	for end := time.Now().Add(exerciseGrace); ; {
		a, err := w.machine.Activity(ctx)
		if err != nil || a.Processes == 0 {
			return err
		}
		if time.Now().After(end) {
			return errors.New("a program of the image goes on running in the background")
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alive reports whether the machine and its agent still run.
func (w *warm) alive() bool {
	if w.blank != nil {
		return w.blank.Alive()
	}
	select {
	case <-w.machine.Done():
		return false
	case <-w.guest.Done():
		return false
	default:
		return true
	}
}

// release ends the machine. If it fails, it can be called again.
func (p *warmPool) release(ctx context.Context, w *warm) error {
	if w.machine != nil {
		if err := w.machine.Stop(ctx); err != nil {
			return err
		}
	}
	if w.blank != nil {
		if err := w.blank.Stop(ctx); err != nil {
			return err
		}
	}
	if w.guest != nil {
		_ = w.guest.Close() // it has ended
	}
	// A later process removes the record of a machine that does not run.
	if err := os.Remove(p.recordPath(w.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if w.lease != nil {
		return w.lease.Release(ctx)
	}
	return nil
}

// adopt takes over a warm machine of an earlier process, and returns its lease. It ends a
// machine that cannot be taken over, or that this process would make differently.
func (p *warmPool) adopt(ctx context.Context, m driver.Machine) (lease string) {
	w := &warm{id: m.ID(), machine: m, since: time.Now()}
	err := p.takeOver(ctx, w)
	if err == nil {
		p.put(w)
		return w.lease.ID()
	}
	p.node.cfg.Log.Info("ending a warm machine of an earlier process", "machine", w.id, "why", err)
	if w.lease != nil {
		lease = w.lease.ID()
	}
	p.discard(w)
	return lease
}

// adoptTimeout is the maximum time for an agent's answer to a new process. It is short,
// because a machine without a session can be replaced.
const adoptTimeout = 2 * time.Second

func (p *warmPool) takeOver(ctx context.Context, w *warm) error {
	n := p.node
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	b, err := os.ReadFile(p.recordPath(w.id))
	if err != nil {
		return fmt.Errorf("it was not ready: %w", err)
	}
	var r warmRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("its record is damaged: %w", err)
	}
	if made, err := n.fingerprint(); err != nil || made != r.Made {
		return errors.Join(errors.New("another version or configuration made it"), err)
	}
	w.kind = r.Kind
	if w.lease, err = n.cfg.Networks.Adopt(ctx, r.Lease); err != nil {
		w.lease = nil
		return fmt.Errorf("its network is gone: %w", err)
	}
	conn, err := w.machine.Attach(ctx)
	if err != nil {
		return err
	}
	var running []*guest.Process
	if w.guest, running, err = guest.Reconnect(ctx, conn, nil); err != nil {
		w.guest = nil
		return err
	}
	if len(running) > 0 {
		return errors.New("something runs in it")
	}
	w.bytes, err = w.machine.PinnedMemory(0)
	return err
}
