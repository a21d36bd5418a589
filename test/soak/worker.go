package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// worker is one client with its own sandboxes. It does one operation after the other and
// compares each answer with the model.
type worker struct {
	*soak
	id     int
	random *rand.Rand
	client *client.Client
	// slow is the same user on a connection from which it reads one byte at a time.
	slow  *client.Client
	boxes []*box
	// deck has the operations that are still to be done before it is dealt anew.
	deck   []*operation
	serial int
}

// operation is a kind of step of a worker.
type operation struct {
	name string
	// weight is how often it is in the deck.
	weight int
	// anew is set for operations that create a sandbox, and need none.
	anew bool
	do   func(w *worker, ctx context.Context, b *box) error
}

const (
	// maxBoxes is the number of sandboxes of a worker.
	maxBoxes = 3
	// patience is the maximum time of an operation. None takes nearly as long, even on a
	// machine with much else to do.
	patience = 3 * time.Minute
)

// next deals an operation. Each is dealt as often as its weight before the deck is
// shuffled again, so that a short soak has all of them.
func (w *worker) next() *operation {
	if len(w.deck) == 0 {
		for _, op := range operations {
			for range op.weight {
				w.deck = append(w.deck, op)
			}
		}
		w.random.Shuffle(len(w.deck), func(i, j int) { w.deck[i], w.deck[j] = w.deck[j], w.deck[i] })
	}
	op := w.deck[0]
	w.deck = w.deck[1:]
	return op
}

// step does the next operation.
func (w *worker) step(ctx context.Context) {
	op := w.next()
	pick := w.random.IntN(maxBoxes)
	switch {
	case len(w.boxes) == 0 || op == createOperation && len(w.boxes) < maxBoxes:
		w.perform(ctx, createOperation, nil)
	case op == createOperation: // there are enough
	case op.anew:
		w.perform(ctx, op, nil)
	default:
		w.on(ctx, op, pick)
	}
}

// on does an operation on one of the sandboxes, which is resumed if need be.
func (w *worker) on(ctx context.Context, op *operation, pick int) {
	if len(w.boxes) == 0 {
		return
	}
	b := w.boxes[pick%len(w.boxes)]
	if _, running := b.live(); (!running || b.files == nil) && op != deleteOperation && !w.perform(ctx, resumeOperation, b) {
		return
	}
	w.perform(ctx, op, b)
}

// deleteAll looks at all sandboxes a last time and deletes them.
func (w *worker) deleteAll(ctx context.Context) {
	for len(w.boxes) > 0 && ctx.Err() == nil {
		b := w.boxes[0]
		if _, running := b.live(); (!running || b.files == nil) && !w.perform(ctx, resumeOperation, b) {
			continue
		}
		w.perform(ctx, deleteOperation, b)
	}
}

// perform does one operation and judges its end. It reports whether it succeeded.
func (w *worker) perform(parent context.Context, op *operation, b *box) bool {
	ctx, cancel := context.WithTimeout(parent, patience)
	defer cancel()
	if b == nil {
		b = &box{name: w.name(), files: tree{}, saved: []saved{{files: tree{}}}, policy: ownPolicy}
	}
	before, _ := b.live()
	from := time.Now()
	b.note("%s…", op.name)
	err := op.do(w, ctx, b)
	if parent.Err() != nil && err != nil {
		return false // the soak ends
	}
	w.recorder.done(op.name, err == nil)
	if err == nil {
		b.note("  %s: done in %v", op.name, time.Since(from).Round(time.Millisecond))
		return true
	}
	b.note("  %s: %v, after %v", op.name, err, time.Since(from).Round(time.Millisecond))
	after, _ := b.live() // a new session, if the operation has started one
	excuse := cmp.Or(w.excuse(err, after, from), w.excuse(err, before, from))
	if excuse == nil {
		w.fail(b, op.name, err)
		w.abandon(parent, b)
		return false
	}
	b.note("  explained by %s", excuse)
	w.recorder.excused(op.name)
	_ = pause(parent, 100*time.Millisecond) // or creates would fill the time of a full disk
	if op.anew {
		err = w.undo(parent, b)
	} else {
		err = w.reconcile(parent, b)
	}
	if err != nil && parent.Err() == nil {
		w.fail(b, "after "+excuse.kind, err)
		w.abandon(parent, b)
	}
	return false
}

// excuse returns a fault that explains an error of an operation.
func (w *worker) excuse(err error, session string, from time.Time) *fault {
	for _, f := range w.faults.during(session, from, time.Now()) {
		if f.excuses(err) {
			return &f
		}
	}
	if !client.IsStopped(err) {
		return nil
	}
	// It may have ended since the last operation. Whether one of these can be the reason,
	// over decides.
	for _, f := range w.faults.of(session) {
		if f.excuses(err) {
			return &f
		}
	}
	return nil
}

// persist repeats a call as long as a fault excuses that it fails.
func (w *worker) persist(parent context.Context, session string, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, patience)
	defer cancel()
	for {
		from := time.Now()
		err := call(ctx)
		if err == nil || ctx.Err() != nil || w.excuse(err, session, from) == nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// settled returns the sandbox when its session runs or has ended.
func (w *worker) settled(ctx context.Context, name string) (sb *client.Sandbox, err error) {
	for {
		err = w.persist(ctx, "", func(ctx context.Context) (err error) {
			sb, err = w.client.GetSandbox(ctx, name, client.GetOptions{})
			return err
		})
		if err != nil {
			return nil, err
		}
		if status := sb.Session().Status; status == skerry.StatusRunning || status.Ended() {
			return sb, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("session %s is still %s: %w", sb.Session().ID, sb.Session().Status, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// reconcile finds out what became of a sandbox whose operation failed for a reason that
// is known, and checks that it is one of the things that may become of it.
func (w *worker) reconcile(parent context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(parent, patience)
	defer cancel()
	known, wasRunning := b.live()
	ending, starting := b.ending, b.starting
	b.ending, b.starting = nil, false
	sb, err := w.settled(ctx, b.name)
	if err != nil {
		return fmt.Errorf("the sandbox after the fault: %w", err)
	}
	// The session that was killed may take a moment to end.
	if wasRunning && sb.Session().ID == known && w.doomed(known) {
		for sb.Session().Status == skerry.StatusRunning {
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return fmt.Errorf("session %s runs although it was killed: %w", known, err)
			}
			if sb, err = w.settled(ctx, b.name); err != nil {
				return err
			}
		}
	}
	b.sb = sb
	run := sb.Session()
	b.note("  session %s is %s %s", run.ID, run.Status, run.Reason)
	switch {
	case run.ID == known && run.Status == skerry.StatusRunning:
		if !wasRunning {
			return wrongf("session %s runs, and had ended", known)
		}
		return nil
	case run.ID == known && !wasRunning: // the resume was not begun
		return nil
	case run.ID != known && !wasRunning && starting:
		return w.restarted(b, run)
	case run.ID != known && b.requested:
		past, err := w.session(ctx, b.name, known)
		if err == nil {
			err = w.over(b, past, ending)
		}
		if err != nil {
			return err
		}
		return w.restarted(b, run)
	case run.ID != known:
		return wrongf("session %s runs instead of %s", run.ID, known)
	}
	return w.over(b, run, ending)
}

// session returns one of the last sessions of a sandbox.
func (w *worker) session(ctx context.Context, name, id string) (run skerry.Session, err error) {
	var page client.Page[skerry.Session]
	err = w.persist(ctx, "", func(ctx context.Context) (err error) {
		page, err = w.client.ListSessionsPage(ctx, name, client.SessionOptions{})
		return err
	})
	if err != nil {
		return run, err
	}
	at := slices.IndexFunc(page.Items, func(s skerry.Session) bool { return s.ID == id })
	if at < 0 {
		return run, wrongf("session %s is not listed", id)
	}
	return page.Items[at], nil
}

// restarted is about a session whose start was not answered, or not asked for.
func (w *worker) restarted(b *box, run skerry.Session) error {
	b.began(run.ID)
	b.policy = ownPolicy
	if run.Status != skerry.StatusRunning {
		b.ended(b.saved...) // the next one begins in the same way
	}
	return nil
}

// over is about a session that ended in an operation: as it was asked to, or by a fault.
func (w *worker) over(b *box, run skerry.Session, ending *saved) error {
	if run.Status == skerry.StatusStopped && ending != nil && run.Reason == "" {
		b.ended(*ending)
		return nil
	}
	for _, f := range w.faults.of(run.ID) {
		if run.Status != skerry.StatusAborted || !slices.ContainsFunc(reasons[f.kind], func(r string) bool { return strings.Contains(run.Reason, r) }) {
			continue
		}
		next := b.saved
		switch {
		case b.persistent && b.files != nil && strings.HasSuffix(run.Reason, "; the files were saved"):
			next = []saved{*b.toSave(false)}
		case b.persistent && strings.HasSuffix(run.Reason, "; the files were saved"):
			// It ended before it was looked at: the files are those that it started from, and the
			// memory is gone.
			next = slices.Clone(b.saved)
			for i := range next {
				next[i].token = ""
			}
		case ending != nil: // the save may have been done
			next = append(slices.Clone(b.saved), *ending)
		}
		b.ended(next...)
		return nil
	}
	return wrongf("session %s ended as %s (%q), and no fault of %v explains that", run.ID, run.Status, run.Reason, w.faults.of(run.ID))
}

// doomed reports whether a fault ends the session for certain.
func (w *worker) doomed(session string) bool {
	return slices.ContainsFunc(w.faults.of(session), func(f fault) bool { return f.session != "" && f.kind != memoryExhausted && f.to.IsZero() })
}

// undo removes a sandbox whose creation was not answered. It exists as a whole or not at
// all.
func (w *worker) undo(parent context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(parent, patience)
	defer cancel()
	w.forget(b)
	_, err := w.settled(ctx, b.name)
	if client.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the sandbox after the fault: %w", err)
	}
	return w.remove(ctx, b.name)
}

// remove deletes a sandbox with its snapshots, whatever the faults.
func (w *worker) remove(ctx context.Context, name string) error {
	return w.persist(ctx, "", func(ctx context.Context) error {
		err := w.client.DeleteSandbox(ctx, name, client.DeleteOptions{OrphanSnapshots: true})
		if client.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// forget removes a sandbox from the model.
func (w *worker) forget(b *box) {
	w.boxes = slices.DeleteFunc(w.boxes, func(o *box) bool { return o == b })
	w.live.remove(b)
}

// abandon deletes a sandbox of which the model knows nothing any more.
func (w *worker) abandon(ctx context.Context, b *box) {
	w.forget(b)
	if err := w.remove(ctx, b.name); err != nil && ctx.Err() == nil {
		w.fail(b, "delete after a failure", err)
	}
}

// call measures one call of the API.
func (w *worker) call(kind string, f func() error) error {
	start := time.Now()
	err := f()
	if err == nil {
		w.recorder.took(kind, time.Since(start))
	}
	return err
}

// name returns a name that was never used.
func (w *worker) name() string {
	w.serial++
	return fmt.Sprintf("soak-%d-%d", w.id, w.serial)
}

// output is what a command printed.
type output struct{ stdout, stderr strings.Builder }

// run runs a command that must end with a certain exit code.
func (w *worker) run(kind string, b *box, cmd *client.Cmd, want int) (*output, error) {
	out := &output{}
	cmd.Stdout, cmd.Stderr = &out.stdout, &out.stderr
	err := w.call(kind, func() error {
		err := cmd.Run()
		if exit, ok := errors.AsType[*client.ExitError](err); ok && exit.Code == want {
			return nil
		} else if ok {
			return &exitError{code: exit.Code, want: want, stderr: out.stderr.String()}
		}
		if err == nil && want != 0 {
			return &exitError{code: 0, want: want}
		}
		if client.IsNotFound(err) && cmd.ID() != "" {
			return unwritten{err}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if session, _ := b.live(); cmd.Info().SessionID != session {
		return nil, wrongf("the command ran in session %s, not %s", cmd.Info().SessionID, session)
	}
	return out, nil
}

// shell runs a script that must succeed.
func (w *worker) shell(ctx context.Context, b *box, script string, args ...string) (*output, error) {
	return w.run("exec", b, b.sb.Command(ctx, "sh", append([]string{"-c", script, "sh"}, args...)...), 0)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
