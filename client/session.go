package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/skerry-dev/skerry"
)

func sessionPath(id string) string { return "/v2/sandboxes/sessions/" + url.PathEscape(id) }

// withSession calls fn with the id of the current session. If that session has
// ended or is about to, it waits for a new one and calls fn once more.
func (sb *Sandbox) withSession(ctx context.Context, fn func(sessionID string) error) error {
	id := sb.Session().ID
	err := fn(id)
	if err == nil || sb.c.noResume || !IsStopped(err) {
		return err
	}
	run, resumeErr := sb.c.getSandbox(ctx, sb.name, true)
	if resumeErr != nil {
		return resumeErr
	}
	sb.set(run)
	return fn(run.Session.ID)
}

// Resume starts a new session if none is running, and waits until commands can run.
func (sb *Sandbox) Resume(ctx context.Context) error {
	run, err := sb.c.getSandbox(ctx, sb.name, true)
	if err == nil {
		sb.set(run)
	}
	return err
}

// Stopped is the result of a stop.
type Stopped struct {
	Session skerry.Session
	// Snapshot is the snapshot that the stop took. It is nil if the sandbox is not
	// persistent, or if the session had ended before.
	Snapshot *Snapshot
}

// Stop ends the current session and returns when it has stopped. The files of a
// persistent sandbox are saved first. If that fails, the session keeps running.
// Stopping an ended session is not an error.
func (sb *Sandbox) Stop(ctx context.Context) (Stopped, error) {
	return sb.StopWith(ctx, StopOptions{})
}

// StopOptions are options of StopWith.
type StopOptions struct {
	// Force ends the session without saving it. The sandbox keeps its last
	// snapshot.
	Force bool
}

// StopWith is Stop with options.
func (sb *Sandbox) StopWith(ctx context.Context, opts StopOptions) (Stopped, error) {
	var answer struct {
		Session  skerry.Session   `json:"session"`
		Sandbox  *skerry.Sandbox  `json:"sandbox"`
		Snapshot *skerry.Snapshot `json:"snapshot"`
	}
	r := request{
		method: http.MethodPost, path: sessionPath(sb.Session().ID) + "/stop",
		query: sb.c.scope(""), repeatable: true,
	}
	if opts.Force {
		r.query.Set("force", "true")
	}
	if err := sb.c.call(ctx, r, &answer); err != nil {
		return Stopped{}, err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.session = answer.Session
	if answer.Sandbox != nil {
		sb.info = *answer.Sandbox
	}
	stopped := Stopped{Session: answer.Session}
	if answer.Snapshot != nil {
		stopped.Snapshot = newSnapshot(sb.c, *answer.Snapshot)
	}
	return stopped, nil
}

// ExtendTimeout extends the timeout of the current session by d.
func (sb *Sandbox) ExtendTimeout(ctx context.Context, d time.Duration) error {
	return sb.withSession(ctx, func(id string) error {
		var answer struct {
			Session skerry.Session `json:"session"`
		}
		err := sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/extend-timeout", query: sb.c.scope(""),
			json: map[string]skerry.Duration{"duration": skerry.Duration(d)},
		}, &answer)
		if err != nil {
			return err
		}
		sb.mu.Lock()
		defer sb.mu.Unlock()
		sb.session = answer.Session
		return nil
	})
}
