package api

import (
	"github.com/skerry-dev/skerry"
)

// The public clients ask these to find a team and a project when they were
// told none. A token has exactly one of each.

func (s *Server) getUser(c *call) error {
	team := c.identity.Team
	return c.reply(userResponse{User: user{
		ID: c.identity.TokenID, Username: team.Slug, DefaultTeamID: team.ID,
	}})
}

func (s *Server) listTeams(c *call) error {
	return c.reply(teamsResponse{
		Teams:      []teamView{viewTeam(c.identity.Team)},
		Pagination: teamPagination{Count: 1},
	})
}

func (s *Server) getTeam(c *call) error {
	if !c.ownTeam(c.path("team")) {
		return foreign("team")
	}
	return c.reply(viewTeam(c.identity.Team))
}

func (s *Server) getProject(c *call) error {
	if !c.ownProject(c.path("project")) {
		return skerry.Errorf(skerry.CodeNotFound, "the access token gives access to no such project")
	}
	return c.reply(c.identity.Project)
}

// createProject makes nothing: a client that found no project of its default
// name gets the token's own.
func (s *Server) createProject(c *call) error {
	var req projectRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if req.Name == "" {
		return skerry.Invalid("name", "must not be empty")
	}
	if !c.ownProject(req.Name) {
		return &skerry.Error{
			Code: skerry.CodeForbidden, Field: "name",
			Message: "an access token is bound to one project and cannot create others",
		}
	}
	return c.reply(c.identity.Project)
}

// viewTeam describes a team as one that may make sandboxes. The clients look
// for the plan by name before they use a team that is not the default.
func viewTeam(t skerry.Team) teamView {
	return teamView{Team: t, Membership: membership{Role: "OWNER"}, Billing: billing{Plan: "hobby"}}
}
