package client

import (
	"context"
	"net/http"

	"github.com/skerry-dev/skerry"
)

// Pause has the current session stand still: from then on it uses no CPU,
// while its timeout goes on. Resume lets it go on, and so does every call that
// needs what is in it, such as running a command. Pausing a paused session is
// no error; one that has stopped is, see [IsStopped]. Our own addition to the
// public API.
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
