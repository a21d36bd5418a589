package client

import (
	"context"
	"net/http"

	"github.com/skerry-dev/skerry"
)

// Pause pauses the current session: it uses no CPU, but its timeout keeps running.
// Resume continues it, and so does every call that needs the running sandbox, such
// as running a command. Pausing a paused session is not an error; pausing a stopped
// one is, see [IsStopped]. Our own addition to the public API.
func (sb *Sandbox) Pause(ctx context.Context) error {
	var answer struct {
		Session skerry.Session `json:"session"`
	}
	err := sb.c.call(ctx, request{
		method: http.MethodPost, path: sessionPath(sb.Session().ID) + "/pause", query: sb.c.scope(""), repeatable: true,
	}, &answer)
	if err != nil {
		return err
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.session = answer.Session
	sb.info.PausedAt = answer.Session.PausedAt
	return nil
}
