package client

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/skerry-dev/skerry"
)

// Domain returns the URL of a published port, as in the last response about the
// sandbox. The URL does not change as long as the port is published.
func (sb *Sandbox) Domain(port int) (string, error) {
	for _, r := range sb.Routes() {
		if r.Port == port {
			return r.URL, nil
		}
	}
	return "", fmt.Errorf("sandbox %s does not publish port %d", sb.name, port)
}

// RouteToken is a token for a private port. Its URL contains the token.
// Alternatively, send the token in the header X-Skerry-Token.
type RouteToken = skerry.RouteToken

// RouteToken creates a token for a private port. It is valid for life: 24 hours if
// life is 0, and at most a year. Our own addition to the public API.
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
