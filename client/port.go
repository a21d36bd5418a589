package client

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/skerry-dev/skerry"
)

// Domain returns the URL at which a published port is reached, as of the last
// answer about the sandbox. It stays the same for as long as the port is
// published.
func (sb *Sandbox) Domain(port int) (string, error) {
	for _, r := range sb.Routes() {
		if r.Port == port {
			return r.URL, nil
		}
	}
	return "", fmt.Errorf("sandbox %s does not publish port %d", sb.name, port)
}

// RouteToken is what opens a private port: its URL has the token, which also
// counts in the header X-Skerry-Token.
type RouteToken = skerry.RouteToken

// RouteToken makes a token for a private port that is good for that long, 24
// hours if life is 0, a year at the most. It is our own addition to the public
// API.
func (sb *Sandbox) RouteToken(ctx context.Context, port int, life time.Duration) (*RouteToken, error) {
	path, err := sandboxPath(sb.name)
	if err != nil {
		return nil, err
	}
	body := struct {
		ProjectID  string          `json:"projectId,omitempty"`
		Expiration skerry.Duration `json:"expiration,omitempty"`
	}{sb.c.project, skerry.Duration(life)}
	var token RouteToken
	r := request{method: http.MethodPost, path: path + "/routes/" + strconv.Itoa(port) + "/token", query: sb.c.scope(""), json: body, repeatable: true}
	if err := sb.c.call(ctx, r, &token); err != nil {
		return nil, err
	}
	return &token, nil
}
