package client

import (
	"context"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// SetNetworkPolicy changes what the current session may reach, and returns once
// that is enforced: connections that the policy forbids are cut, the others go
// on. Later sessions start with the sandbox's own policy, see [Sandbox.Update].
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

// NetworkEvents returns the newest decisions of the proxy about a session of
// this sandbox, limit (1 to 1000) at the most, the oldest first. A session that
// has ended keeps them as long as what its commands printed.
func (sb *Sandbox) NetworkEvents(ctx context.Context, sessionID string, limit int) ([]skerry.NetworkEvent, error) {
	q := sb.c.scope("")
	q.Set("limit", strconv.Itoa(limit))
	var answer struct {
		Events []skerry.NetworkEvent `json:"events"`
	}
	err := sb.c.call(ctx, request{method: http.MethodGet, path: sessionPath(sessionID) + "/network-events", query: q}, &answer)
	return answer.Events, err
}
