package api

import (
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// portFields are the fields for published ports.
type portFields struct {
	Ports        []int `json:"ports,omitempty" doc:"Ports to publish, from 1 to 65535, each once. In an update they replace all published ports; ports that stay keep their routes. In a fork they replace the source's ports; a fork always has its own routes."`
	PrivatePorts []int `json:"privatePorts,omitempty" doc:"Published ports that can be reached only with a token; all others are public. If this is absent in an update, private ports stay private. If a port becomes private again, tokens from before do not open it. An addition to the public API."`
}

type routeTokenRequest struct {
	scopeFields
	Expiration *skerry.Duration `json:"expiration,omitempty" min:"1" doc:"How long the token is valid, in ms; 24 hours by default, at most a year."`
}

func (s *Server) portRoutes() []route {
	return []route{{
		method: http.MethodPost, path: sandboxPath + "/routes/{port}/token", id: "createRouteToken",
		summary: "Create a token for a private port", request: routeTokenRequest{}, response: skerry.RouteToken{}, handle: s.createRouteToken,
		errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeConflict},
		detail: "An addition to the public API. A request to the route passes the token in the query (?token=…) or in the header X-Skerry-Token. " +
			"A browser that passes it in the query is redirected to the same page without it, and gets a cookie instead. The token never reaches the sandbox. " +
			"A single token cannot be revoked: make the port public and then private again to revoke all of them. For a public port the call fails with 409 conflict.",
	}}
}

func (s *Server) createRouteToken(c *call) error {
	var req routeTokenRequest
	if err := c.body(&req); err != nil {
		return err
	}
	port, err := strconv.Atoi(c.path("port"))
	if err != nil {
		return skerry.Invalid("port", "must be a number")
	}
	var life skerry.Duration
	if req.Expiration != nil {
		life = *req.Expiration
	}
	token, err := s.service.RouteToken(c.r.Context(), c.scope, c.path("name"), port, life)
	if err != nil {
		return err
	}
	return c.reply(token)
}
