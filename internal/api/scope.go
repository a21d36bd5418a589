package api

import (
	"context"
	"fmt"
	"net/url"

	"github.com/skerry-dev/skerry"
)

// caller is who makes a call, and where.
type caller struct {
	identity *skerry.Identity
	// grant is what the identity may do in the call's team.
	grant *skerry.Grant
	// scope is the call's team and project. The project is "" in calls about accounts, and
	// before the body that names it is read.
	scope skerry.Scope
	role  skerry.Role
	// accounts is that of the route.
	accounts bool
}

// access is what an open call needs as long as it is open.
func (c *caller) access() skerry.Access {
	a := skerry.Access{TokenID: c.identity.TokenID, Scope: c.scope, Role: c.role, Rule: c.identity.Rule, Key: c.identity.Key}
	if end := c.identity.ExpiresAt; !end.IsZero() {
		a.ExpiresAt = end.Millis()
	}
	return a
}

// defaultProject is the name of the project that clients look for, and create, if no
// project is configured. With a token for one project it stands for that.
const defaultProject = "vercel-sandbox-default-project"

// enter decides in which team and project a call is, and whether the caller may make it.
// The query names them, or the body (see enterBody), or the token is for one project, or
// the session or snapshot in the path has one. So every handler has a scope that the
// caller may use, and the scope is all that it looks in.
func (c *call) enter(rt *route, q url.Values) error {
	c.accounts = rt.accounts
	if err := c.enterTeam(q, rt.teamless); err != nil {
		return err
	}
	if err := c.take(rt.needs()); err != nil {
		return err
	}
	if own := c.grant.Project; own != nil {
		c.scope.ProjectID = own.ID
	}
	for _, name := range []string{"projectId", "project"} {
		for _, v := range q[name] {
			if err := c.enterProject(name, v); err != nil {
				return err
			}
		}
	}
	if c.accounts {
		return nil
	}
	if c.scope.ProjectID == "" {
		if err := c.enterByID(q); err != nil {
			return err
		}
	}
	if c.scope.ProjectID == "" && rt.request == nil {
		return errNoProject()
	}
	c.span.Project(c.scope.ProjectID)
	return nil
}

func errNoProject() error {
	return skerry.Invalid("projectId", "is required: the access token is for more than one project")
}

// enterTeam chooses the team that the query or the path names, or the caller's only one.
func (c *call) enterTeam(q url.Values, teamless bool) error {
	if c.identity.Admin && !c.accounts {
		return skerry.Errorf(skerry.CodeForbidden, "the access token is for managing teams, and not for what is in them")
	}
	ref, field := "", ""
	for _, name := range []string{"teamId", "slug"} {
		for _, v := range q[name] {
			if v == "" {
				continue
			}
			if grant := c.identity.Grant(v); !c.identity.Admin && (grant == nil || ref != "" && grant != c.identity.Grant(ref)) {
				return c.foreign(name)
			}
			if c.identity.Admin && ref != "" && ref != v {
				return skerry.Invalid(name, "names another team than %s", field)
			}
			ref, field = v, name
		}
	}
	if ref == "" {
		ref = c.path("team")
	}
	if !c.identity.Admin {
		if ref == "" && !teamless && len(c.identity.Grants) > 1 {
			return skerry.Invalid("teamId", "is required: you are a member of %d teams", len(c.identity.Grants))
		}
		c.grant = c.identity.Grant(ref)
		if c.grant == nil && ref != "" && len(c.identity.Grants) > 0 {
			return c.foreign("team")
		}
		if c.grant == nil {
			return skerry.Errorf(skerry.CodeForbidden, "the user of the access token is not a member of any team")
		}
		c.scope.TeamID = c.grant.Team.ID
		return nil
	}
	c.grant = &skerry.Grant{Role: skerry.RoleAdmin}
	if ref == "" {
		return nil
	}
	team, err := c.srv.accounts.Team(c.r.Context(), ref)
	if err != nil {
		return err
	}
	c.grant.Team, c.scope.TeamID = *team, team.ID
	return nil
}

// enterProject notes the project that a request names. All that it names must be the same.
func (c *call) enterProject(field, ref string) error {
	switch {
	case ref == "":
		return nil
	case c.own(ref):
		return nil
	case c.grant.Project != nil:
		return c.foreign(field)
	}
	p, err := c.srv.accounts.Project(c.r.Context(), c.scope.TeamID, ref)
	if err != nil {
		return err
	}
	if c.scope.ProjectID != "" && c.scope.ProjectID != p.ID {
		return skerry.Invalid(field, "names another project than the rest of the request")
	}
	c.scope.ProjectID = p.ID
	return nil
}

// own reports whether a name is that of the one project that the token is for.
func (c *call) own(project string) bool {
	return c.grant.For(project) || c.grant.Project != nil && project == defaultProject
}

// enterByID finds the project of the session or the snapshot that a call is about.
func (c *call) enterByID(q url.Values) error {
	find, id := c.srv.service.SnapshotScope, c.path("snapshot")
	if session := c.path("session"); session != "" {
		find, id = c.srv.service.SessionScope, session
	}
	if id == "" {
		id = q.Get("snapshotId")
	}
	if id == "" {
		return nil
	}
	scope, err := find(c.r.Context(), c.scope.TeamID, id)
	if err != nil {
		return err
	}
	c.scope = scope
	return nil
}

// enterBody does for a body what enter does for a query. It leaves values of a wrong type
// to bindBody.
func (c *call) enterBody(tree any) error {
	if o, ok := tree.(*jsonObject); ok {
		if v, ok := o.members["teamId"].(string); ok && v != "" && !c.grant.In(v) {
			return c.foreign("teamId")
		}
		if v, ok := o.members["projectId"].(string); ok {
			if err := c.enterProject("projectId", v); err != nil {
				return err
			}
		}
	}
	if c.scope.ProjectID == "" && !c.accounts {
		return errNoProject()
	}
	return nil
}

// has says who has the role of the grant.
func (c *call) has() string {
	if c.identity.User != nil {
		return "you have in team " + c.grant.Team.Slug
	}
	return "the access token has"
}

// take refuses a call that takes a role which the caller does not have.
func (c *call) take(role skerry.Role) error {
	c.role = role
	if c.grant.Role.Includes(role) {
		return nil
	}
	return &skerry.Error{
		Code:    skerry.CodeForbidden,
		Message: fmt.Sprintf("this takes the role %s, and %s the role %s", role, c.has(), c.grant.Role),
	}
}

// foreign is the error of a call that names another team or project than those of the caller.
func (c *call) foreign(field string) error {
	message := "you are not a member of this team"
	if len(c.identity.Grants) == 1 && c.identity.User == nil {
		g := c.identity.Grants[0]
		project := "*"
		if g.Project != nil {
			project = g.Project.Name
		}
		message = fmt.Sprintf("the access token belongs to a different team or project: it is for %s/%s", g.Team.Slug, project)
	}
	return &skerry.Error{Code: skerry.CodeForbidden, Field: field, Message: message}
}

// ended reports whether an access is not allowed any more.
func (s *Server) ended(ctx context.Context, a skerry.Access) (bool, error) {
	ended, err := s.accounts.Ended(ctx, []skerry.Access{a})
	return len(ended) > 0, err
}
