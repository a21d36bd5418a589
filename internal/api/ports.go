package api

import (
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// portFields are about published ports.
type portFields struct {
	Ports        []int `json:"ports,omitempty" doc:"Ports to publish, 1 to 65535, each once. In an update they replace all that were published; those that stay keep their routes. In a fork they replace the source's, and have routes of its own either way."`
	PrivatePorts []int `json:"privatePorts,omitempty" doc:"Those of the published ports that only who has a token reaches; all others are public. In an update, what was private stays so if this is absent. A port that becomes private is not opened by tokens from an earlier time. An addition to the public API."`
}

type routeTokenRequest struct {
	scopeFields
	Expiration *skerry.Duration `json:"expiration,omitempty" min:"1000" doc:"How long the token is good, in ms; 24 hours by default, a year at the most."`
}

func (s *Server) portRoutes() []route {
	return []route{{
		method: http.MethodPost, path: sandboxPath + "/routes/{port}/token", id: "createRouteToken",
		summary: "Make a token for a private port", request: routeTokenRequest{}, response: skerry.RouteToken{}, handle: s.createRouteToken,
		errors: []skerry.Code{skerry.CodeNotFound, skerry.CodeConflict},
		detail: "An addition to the public API. The token is good in the query of a request to the route (?token=…; a page is then loaded again " +
			"without it, and a cookie takes its place) or in the header X-Skerry-Token. It never reaches the sandbox. " +
			"It cannot be taken back one by one: making the port public and private again ends all of them. For a public port this is 409 conflict.",
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
