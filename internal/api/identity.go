package api

import (
	"github.com/skerry-dev/skerry"
)

// The public clients use these calls to find a team and a project if none is
// configured. A token has exactly one of each.

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
		return skerry.Errorf(skerry.CodeNotFound, "there is no such project, or the access token does not belong to it")
	}
	return c.reply(c.identity.Project)
}

// createProject creates nothing. A client that found no project with its default name
// gets the token's own project.
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
			Message: "an access token belongs to one project and cannot create others",
		}
	}
	return c.reply(c.identity.Project)
}

// viewTeam describes a team as one that may create sandboxes. Before the clients use a
// team that is not the default, they check the name of its plan.
func viewTeam(t skerry.Team) teamView {
	return teamView{Team: t, Membership: membership{Role: "OWNER"}, Billing: billing{Plan: "hobby"}}
}
