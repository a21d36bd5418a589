package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// webPort is the published port of all sandboxes.
const webPort = 3000

// sessionTimeout is longer than a sandbox lives: sessions end by stops and faults only.
const sessionTimeout = 2 * time.Hour

// create creates a sandbox: of the default size, of which there are warm ones, or another.
func create(w *worker, ctx context.Context, b *box) error {
	b.persistent = w.random.IntN(4) > 0
	opts := client.CreateOptions{
		Name: b.name, Persistent: &b.persistent, Timeout: sessionTimeout, Ports: []int{webPort}, Env: map[string]string{"SANDBOX": b.name},
	}
	kind := "create"
	if w.random.IntN(3) == 0 {
		kind, opts.VCPUs = "create, one vCPU", 1
	}
	err := w.call(kind, func() (err error) { b.sb, err = w.client.CreateSandbox(ctx, opts); return err })
	if err != nil {
		return err
	}
	b.vcpus = b.sb.Info().VCPUs
	b.began(b.sb.Session().ID)
	w.boxes = append(w.boxes, b)
	w.live.add(b)
	out, err := w.shell(ctx, b, "echo $SANDBOX; hostname; ls")
	if err != nil {
		return err
	}
	if want := b.name + "\n" + b.name + "\n"; out.stdout.String() != want {
		return wrongf("a new sandbox prints %q, not %q", out.stdout.String(), want)
	}
	return nil
}

// resume starts the next session of a stopped sandbox, which has the saved files. If the
// session runs by now, only the files are compared.
func resume(w *worker, ctx context.Context, b *box) error {
	if _, running := b.live(); !running {
		b.starting = true
		if err := w.call("resume", func() error { return b.sb.Resume(ctx) }); err != nil {
			return err
		}
		b.starting = false
		b.began(b.sb.Session().ID)
		b.policy = ownPolicy
	}
	have, err := w.listFiles(ctx, b)
	if err != nil {
		return err
	}
	return b.choose(have)
}

// choose decides which of the possible beginnings of a session it was.
func (b *box) choose(have tree) error {
	var chosen []saved
	var differences []error
	for _, s := range b.saved {
		if d := s.files.differs(have); d == "" {
			chosen = append(chosen, s)
		} else {
			differences = append(differences, errors.New(d))
		}
	}
	if len(chosen) == 0 {
		return wrong{fmt.Errorf("the files of the new session: %w", errors.Join(differences...))}
	}
	b.files, b.token = maps.Clone(chosen[0].files), chosen[0].token
	if len(chosen) > 1 && chosen[1].token != b.token {
		b.token = unsure // the same files with and without the memory
	}
	b.saved = chosen
	return nil
}

// stop stops the session. If the sandbox is persistent, its files are saved.
func stop(w *worker, ctx context.Context, b *box) error {
	b.ending = b.toSave(false)
	var stopped client.Stopped
	if err := w.call("stop", func() (err error) { stopped, err = b.sb.Stop(ctx); return err }); err != nil {
		return err
	}
	if stopped.Session.Status == skerry.StatusAborted {
		return &client.Error{Code: skerry.CodeSandboxStopped, Message: "the session had ended: " + stopped.Session.Reason}
	}
	if (stopped.Snapshot != nil) != b.persistent || stopped.Session.Status != skerry.StatusStopped {
		return wrongf("the stop returned snapshot %v of session %+v", stopped.Snapshot, stopped.Session)
	}
	b.ended(*b.ending)
	return nil
}

// snapshot saves the files and stops the session. Another sandbox starts from them.
func snapshot(w *worker, ctx context.Context, b *box) error { return w.take(ctx, b, false) }

// memorySnapshot does the same with the memory: the web server goes on in the other one.
func memorySnapshot(w *worker, ctx context.Context, b *box) error {
	if err := w.serveWeb(ctx, b); err != nil {
		return err
	}
	return w.take(ctx, b, true)
}

func (w *worker) take(ctx context.Context, b *box, memory bool) error {
	kind := "snapshot"
	if memory {
		kind = "snapshot with memory"
	}
	copied := &box{name: w.name(), files: maps.Clone(b.files)}
	if memory {
		copied.token = b.token
	}
	var snap *client.Snapshot
	b.ending = b.toSave(memory)
	err := w.call(kind, func() (err error) {
		snap, err = b.sb.Snapshot(ctx, client.TakeOptions{Memory: memory})
		return err
	})
	if err != nil {
		return err
	}
	b.ended(*b.ending)
	err = w.call("create from a "+kind, func() (err error) {
		copied.sb, err = w.client.CreateSandbox(ctx, client.CreateOptions{Name: copied.name, Source: snap.Source(), Timeout: sessionTimeout, Ports: []int{webPort}, VCPUs: b.vcpus})
		return err
	})
	return w.copied(ctx, b, copied, err)
}

// fork returns the operation that forks a sandbox in one of the ways.
func fork(opts client.ForkOptions) func(w *worker, ctx context.Context, b *box) error {
	return func(w *worker, ctx context.Context, b *box) error {
		copied, kind := &box{name: w.name(), files: maps.Clone(b.files)}, "fork, live"
		switch {
		case opts.Memory:
			if err := w.serveWeb(ctx, b); err != nil {
				return err
			}
			copied.token, kind = b.token, "fork with memory"
		case !opts.Live:
			// The source may have been saved more recently than the model can tell.
			if len(b.saved) > 1 {
				return nil
			}
			copied.files, kind = b.saved[0].files, "fork"
		}
		opts := opts
		opts.Name = copied.name
		err := w.call(kind, func() (err error) { copied.sb, err = b.sb.Fork(ctx, opts); return err })
		if opts.Live || opts.Memory {
			// Of a sandbox that does not run, the server forks what was saved last.
			if ended := w.ended(ctx, b); ended != nil {
				if err := w.undo(ctx, copied); err != nil {
					return err
				}
				return ended
			}
		}
		return w.copied(ctx, b, copied, err)
	}
}

// ended returns an error if the session has ended without the model knowing.
func (w *worker) ended(ctx context.Context, b *box) error {
	session, _ := b.live()
	sb, err := w.settled(ctx, b.name)
	if err != nil {
		return err
	}
	if run := sb.Session(); run.ID != session || run.Status.Ended() {
		return &client.Error{Code: skerry.CodeSandboxStopped, Message: fmt.Sprintf("session %s is %s: %s", run.ID, run.Status, run.Reason)}
	}
	return nil
}

// copied checks a copy of a sandbox, and deletes it. err is that of its creation.
func (w *worker) copied(ctx context.Context, b, copied *box, err error) error {
	b.note("  the copy is %s", copied.name)
	if err == nil {
		copied.began(copied.sb.Session().ID)
		err = w.same(ctx, copied)
	}
	if err == nil {
		return w.remove(ctx, copied.name)
	}
	if gone := w.undo(ctx, copied); gone != nil {
		return errors.Join(err, gone)
	}
	return err
}

// same compares a copy with what it is a copy of.
func (w *worker) same(ctx context.Context, copied *box) error {
	if err := w.look(ctx, copied); err != nil {
		return err
	}
	if copied.token != "" {
		return w.ask(ctx, copied)
	}
	return nil
}

// remove deletes the sandbox, which does not exist afterwards.
func remove(w *worker, ctx context.Context, b *box) error {
	if err := collectJobs(w, ctx, b); err != nil {
		return err
	}
	session, running := b.live()
	if running {
		look := (*worker).look
		if b.files == nil { // a fault came between its resume and the first look
			look = resume
		}
		if err := look(w, ctx, b); err != nil {
			return err
		}
	}
	from := time.Now()
	err := w.call("delete", func() error {
		return w.client.DeleteSandbox(ctx, b.name, client.DeleteOptions{OrphanSnapshots: true})
	})
	// The client repeats a call whose answer was lost, and then there is nothing to delete.
	lost := client.IsNotFound(err) && len(w.faults.during("", from, time.Now())) > 0
	if lost || err != nil && w.excuse(err, session, from) != nil {
		err = w.remove(ctx, b.name)
	}
	if err != nil {
		return err
	}
	w.forget(b)
	return w.persist(ctx, "", func(ctx context.Context) error {
		_, err := w.client.GetSandbox(ctx, b.name, client.GetOptions{})
		if client.IsNotFound(err) {
			return nil
		}
		if err == nil {
			return wrongf("the deleted sandbox exists")
		}
		return err
	})
}
