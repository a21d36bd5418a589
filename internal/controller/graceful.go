package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// A session ends for certain. When its time is up it is saved first; a save that
// fails is repeated, for Config.SaveGrace if the host is why (its disk is full,
// the snapshots' storage does not answer), and for Config.StopGrace if the
// sandbox is: whoever is root inside can bring that about. Then the session
// ends without being saved, and its reason says so. A stop that a client asks
// for reports the failure, and the session continues until then, unless the
// client forces the stop.

// Defaults of Config.
const (
	DefaultStopGrace   = 30 * time.Second
	DefaultSaveGrace   = time.Hour
	DefaultSaveTimeout = 15 * time.Minute
)

// abandonAfter is how long a save that was cancelled may take to return. A
// machine whose kernel does not let go of it then is ended.
const abandonAfter = 10 * time.Second

// errSaveHangs is a save that did not return although it was cancelled.
var errSaveHangs = &skerry.Error{Code: skerry.CodeSandboxUnsavable, Message: "the sandbox's kernel did not answer while the sandbox was saved"}

// bySandbox reports whether the sandbox itself is why it could not be saved.
func bySandbox(err error) bool { return skerry.CodeOf(err) == skerry.CodeSandboxUnsavable }

// givesUp reports whether a session ends although it was not saved.
func (s *session) givesUp(e *ending, how saving, err error) bool {
	switch {
	case e.isForced(), errors.Is(err, errSaveHangs):
		return true
	case how.final && bySandbox(err):
		return true
	case how.overdue:
		over := false
		_ = s.ask(context.Background(), func() { over = s.graceLeft(s.graceFor(err)) <= 0 })
		return over
	}
	return false
}

func (c *sessions) graceFor(err error) time.Duration {
	if bySandbox(err) {
		return c.cfg.StopGrace
	}
	return c.cfg.SaveGrace
}

// unsaved is the reason of a session that ended without being saved; err, if not
// nil, is why it could not be. Without a save there is none.
func (s *session) unsaved(err error) string {
	run := s.state()
	if !run.Persistent {
		return ""
	}
	kept := "the next session starts from the image or source of the sandbox"
	_ = s.try(func(ctx context.Context) error {
		sandbox, err := s.store.Sandbox(ctx, s.sandboxID)
		if err == nil && sandbox.CurrentSnapshotID != "" {
			kept = "the next session starts from snapshot " + sandbox.CurrentSnapshotID
		}
		return err
	})
	if err == nil {
		return "the session was stopped by force and not saved; " + kept
	}
	return fmt.Sprintf("the files could not be saved (%s); %s", sentence(err), kept)
}

// sentence is what a client may read of an error.
func sentence(err error) string {
	if e, ok := errors.AsType[*skerry.Error](err); ok {
		return e.Message
	}
	return "internal error"
}

// goOn has a session that could not be saved run as before. It returns false if
// the session is to end instead. It is called in a step.
func (s *session) goOn(e *ending) bool {
	err := s.persevere("continue the session", func(ctx context.Context) error {
		if s.state().Status != skerry.StatusSnapshotting {
			return nil // it was never recorded as being saved
		}
		if err := s.node.Resume(ctx, s.id); err != nil && !isGone(err) {
			return err
		}
		return s.recordTransition(skerry.StatusRunning, func(run *skerry.Session) { run.RequestedStopAt = skerry.Time{} })
	}, e.stall, e.forced)
	return err == nil || s.ctx.Err() != nil
}

// isGone reports whether an error of the node means that the session's machine
// has ended.
func isGone(err error) bool {
	switch skerry.CodeOf(err) {
	case skerry.CodeSandboxStopped, skerry.CodeNotFound:
		return true
	}
	return false
}

// saved is what a save came to.
type saved struct {
	files nodeapi.SavedFiles
	err   error
}

// save saves a session that is to stop. It returns when the save does, or with
// errSaveHangs. If it fails the lease of the save ends. It is called in a step.
func (s *session) save(e *ending, how saving, lease string) (nodeapi.SavedFiles, error) {
	ctx, cancel := context.WithTimeout(s.onBehalf(context.WithoutCancel(s.ctx)), s.cfg.SaveTimeout)
	defer cancel()
	done := make(chan saved, 1)
	s.work.Go(func() { // the step is work itself
		files, err := s.node.Snapshot(ctx, s.id, nodeapi.Saving{Hold: true, Memory: how.memory, Lease: lease})
		done <- saved{files, err}
	})
	ended := func(r saved) (nodeapi.SavedFiles, error) {
		if r.err != nil {
			s.snapshots.saveFailed(lease, r.err)
		}
		return r.files, r.err
	}
	select {
	case r := <-done:
		return ended(r)
	case <-e.forced:
		cancel()
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return ended(r)
	case <-time.After(s.cfg.abandonAfter):
		s.work.Go(func() { s.snapshots.saveFailed(lease, (<-done).err) })
		return nodeapi.SavedFiles{}, errSaveHangs
	}
}
