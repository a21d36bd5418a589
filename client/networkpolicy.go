package client

import (
	"context"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// SetNetworkPolicy changes the network policy of the current session, and returns
// when it is enforced: connections that it forbids are closed, and others continue.
// Later sessions start with the sandbox's own policy, see [Sandbox.Update].
func (sb *Sandbox) SetNetworkPolicy(ctx context.Context, p NetworkPolicy) error {
	return sb.withSession(ctx, func(id string) error {
		var answer struct {
			Session skerry.Session `json:"session"`
		}
		err := sb.c.call(ctx, request{
			method: http.MethodPost, path: sessionPath(id) + "/network-policy", query: sb.c.scope(""), json: p, repeatable: true,
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

// NetworkEvents returns the newest decisions about a session of this sandbox, at
// most limit (1 to 1000), oldest first. After the session has ended they are kept
// as long as the output of its commands.
func (sb *Sandbox) NetworkEvents(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error) {
	q := sb.c.scope("")
	q.Set("limit", strconv.Itoa(limit))
	var answer struct {
		Events []skerry.NetworkEvent `json:"events"`
	}
	err := sb.c.call(ctx, request{method: http.MethodGet, path: sessionPath(sessionID) + "/network-events", query: q}, &answer)
	return answer.Events, err
}
