package api

import (
	"net/http"
	"strings"

	"github.com/skerry-dev/skerry"
)

// The public clients use some of these calls to find a team and a project if none is
// configured. The others are for owners and administrators.

func (s *Server) accountRoutes() []route {
	const (
		teams, projects, members, tokens = "/v2/teams", "/v2/projects", "/v2/members", "/v2/tokens"
		ours                             = "An addition to the public API."
	)
	notFound := []skerry.Code{skerry.CodeNotFound}
	both := []skerry.Code{skerry.CodeNotFound, skerry.CodeConflict}
	all := []route{
		{method: http.MethodGet, path: "/v2/user", id: "getUser", summary: "Get who the caller is", teamless: true, response: userResponse{}, handle: s.getUser},
		{
			method: http.MethodGet, path: teams, id: "listTeams", summary: "List the caller's teams", teamless: true,
			detail:   "A token for a team or a project has one, a token of a user those that the user is a member of, and an administrator's token all.",
			response: teamsResponse{}, handle: s.listTeams,
		},
		{
			method: http.MethodPost, path: teams, id: "createTeam", summary: "Create a team", role: skerry.RoleAdmin, detail: ours + " It takes an administrator's token.",
			request: teamRequest{}, response: teamView{}, status: http.StatusCreated, handle: s.createTeam, errors: both,
		},
		{method: http.MethodGet, path: teams + "/{team}", id: "getTeam", summary: "Get a team by id or slug", response: teamView{}, handle: s.getTeam, errors: notFound},
		{
			method: http.MethodPatch, path: teams + "/{team}", id: "updateTeam", summary: "Change the slug and the name of a team", role: skerry.RoleOwner, detail: ours + " The slug takes an administrator's token.",
			request: teamRequest{}, response: teamView{}, handle: s.updateTeam, errors: both,
		},
		{
			method: http.MethodDelete, path: teams + "/{team}", id: "deleteTeam", summary: "Delete a team with its members and tokens", role: skerry.RoleAdmin,
			detail:   ours + " It takes an administrator's token. If a project of the team has sandboxes, snapshots or drives, the call fails with 409 conflict.",
			response: teamView{}, handle: s.deleteTeam, errors: both,
		},

		{
			method: http.MethodGet, path: projects, id: "listProjects", summary: "List the projects of a team, by name", detail: ours,
			query: listQuery{}, response: projectsResponse{}, handle: s.listProjects,
		},
		{
			method: http.MethodGet, path: projects + "/{project}", id: "getProject", summary: "Get a project by id or name",
			response: skerry.Project{}, handle: s.getProject, errors: notFound,
		},
		{
			method: http.MethodPost, path: "/v11/projects", id: "createProject", summary: "Create a project", role: skerry.RoleDeveloper,
			detail: "It takes the role owner, except for the project vercel-sandbox-default-project, which clients create if no project is configured and which is returned if it exists. " +
				"With a token for one project that name stands for the project, and nothing is created.",
			request: projectRequest{}, response: skerry.Project{}, handle: s.createProject, errors: both,
		},
		{
			method: http.MethodPatch, path: projects + "/{project}", id: "updateProject", summary: "Change the name of a project", role: skerry.RoleOwner, detail: ours,
			request: projectRequest{}, response: skerry.Project{}, handle: s.updateProject, errors: both,
		},
		{
			method: http.MethodDelete, path: projects + "/{project}", id: "deleteProject", summary: "Delete a project with its tokens", role: skerry.RoleOwner,
			detail:   ours + " If it has sandboxes, snapshots or drives, the call fails with 409 conflict.",
			response: skerry.Project{}, handle: s.deleteProject, errors: both,
		},

		{
			method: http.MethodPost, path: "/v1/projects/{project}/token", id: "createDevelopmentToken", summary: "Create a development token for a project",
			detail: "A JWT that this server signs, good for 12 hours or as long as the access token that it is made with. It allows what that allows in the project, but not more than the role developer, and ends when that is revoked. " +
				"Clients take it as VERCEL_OIDC_TOKEN. With such a token no other can be created.",
			response: developmentTokenResponse{}, handle: s.createDevelopmentToken, errors: notFound,
		},

		{
			method: http.MethodGet, path: members, id: "listMembers", summary: "List the members of a team, by name", detail: ours,
			query: listQuery{}, response: membersResponse{}, handle: s.listMembers, errors: notFound,
		},
		{
			method: http.MethodPost, path: members, id: "addMember", summary: "Make a user a member of a team", role: skerry.RoleOwner,
			detail: ours + " A user who does not exist is created, and exists as long as they are a member of a team.", request: memberRequest{},
			response: memberResponse{}, status: http.StatusCreated, handle: s.addMember, errors: both,
		},
		{
			method: http.MethodPatch, path: members + "/{user}", id: "updateMember", summary: "Change the role of a member", role: skerry.RoleOwner, detail: ours,
			request: roleRequest{}, response: memberResponse{}, handle: s.updateMember, errors: notFound,
		},
		{
			method: http.MethodDelete, path: members + "/{user}", id: "removeMember", summary: "Remove a member from a team", role: skerry.RoleOwner, detail: ours,
			response: memberResponse{}, handle: s.removeMember, errors: notFound,
		},

		{
			method: http.MethodGet, path: tokens, id: "listTokens", summary: "List the access tokens of a team, the newest first", role: skerry.RoleOwner,
			detail: ours + " With a token for one project, those of the project. The tokens of users are not among them.",
			query:  listTokensQuery{}, response: tokensResponse{}, handle: s.listTokens, errors: notFound,
		},
		{
			method: http.MethodPost, path: tokens, id: "createToken", summary: "Create an access token for a team or for a project", role: skerry.RoleOwner,
			detail:  ours + " The response is the only one that has the token itself.",
			request: tokenRequest{}, response: createTokenResponse{}, status: http.StatusCreated, handle: s.createToken, errors: both,
		},
		{
			method: http.MethodDelete, path: tokens + "/{token}", id: "revokeToken", summary: "Revoke an access token", role: skerry.RoleOwner,
			detail:   ours + " It takes effect within a second, also for streams and terminals that are open.",
			response: tokenResponse{}, handle: s.revokeToken, errors: notFound,
		},
	}
	for i := range all {
		all[i].accounts = true
	}
	return all
}

type userResponse struct {
	User currentUser `json:"user"`
}

// currentUser is the caller, as the public clients read it.
type currentUser struct {
	ID            string  `json:"id"`
	Username      string  `json:"username"`
	DefaultTeamID *string `json:"defaultTeamId"`
}

// teamView is a team in a response. The clients check the role and the plan before they
// use a team.
type teamView struct {
	skerry.Team
	Membership membership `json:"membership"`
	Billing    billing    `json:"billing"`
}

type membership struct {
	Role string `json:"role" enum:"OWNER|DEVELOPER|VIEWER"`
}

type billing struct {
	Plan string `json:"plan"`
}

type teamsResponse struct {
	Teams      []teamView     `json:"teams"`
	Pagination teamPagination `json:"pagination"`
}

type teamPagination struct {
	Count int          `json:"count"`
	Next  *skerry.Time `json:"next" doc:"Always null: all teams are on one page."`
}

type teamRequest struct {
	Slug string `json:"slug,omitempty"`
	Name string `json:"name,omitempty" doc:"Display name; the slug by default."`
}

type projectsResponse struct {
	Projects   []skerry.Project `json:"projects"`
	Pagination pagination       `json:"pagination"`
}

type memberRequest struct {
	User string      `json:"user" required:"true" doc:"Name of the user: a login name or an e-mail address."`
	Role skerry.Role `json:"role" required:"true" enum:"viewer|developer|owner" doc:"viewer: sees what there is, and the output of commands. developer: does everything with sandboxes, snapshots and drives. owner: also manages projects, members and tokens."`
}

type roleRequest struct {
	Role skerry.Role `json:"role" required:"true" enum:"viewer|developer|owner" doc:"The new role."`
}

type memberResponse struct {
	Member skerry.Member `json:"member"`
}

type membersResponse struct {
	Members    []skerry.Member `json:"members"`
	Pagination pagination      `json:"pagination"`
}

type tokenRequest struct {
	scopeFields
	Name      string      `json:"name" required:"true" doc:"Name of the token, for people."`
	Role      skerry.Role `json:"role,omitempty" enum:"viewer|developer|owner" doc:"What may be done with it; developer by default."`
	ExpiresAt int64       `json:"expiresAt,omitempty" min:"1" doc:"Time at which it expires, in ms since the Unix epoch; by default, and at the latest, when the token of the caller does."`
}

type tokenResponse struct {
	Token skerry.AccessToken `json:"token"`
}

type createTokenResponse struct {
	Token       skerry.AccessToken `json:"token"`
	BearerToken string             `json:"bearerToken" doc:"The token itself, skerry_…. It cannot be had again."`
}

type tokensResponse struct {
	Tokens     []skerry.AccessToken `json:"tokens"`
	Pagination pagination           `json:"pagination"`
}

// listQuery is the query of listings in order of names.
type listQuery struct {
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"Value of next from the previous page."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"asc by default."`
}

func (q *listQuery) page() skerry.Page {
	return skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder != "desc"}
}

type listTokensQuery struct {
	Limit     int    `json:"limit" min:"1" max:"100" doc:"Size of a page, 50 by default."`
	Cursor    string `json:"cursor" doc:"Value of next from the previous page."`
	SortOrder string `json:"sortOrder" enum:"asc|desc" doc:"desc by default."`
}

func (s *Server) getUser(c *call) error {
	who := currentUser{ID: c.identity.TokenID, Username: c.identity.TokenName}
	if u := c.identity.User; u != nil {
		who.ID, who.Username = u.ID, u.Name
	}
	// Of several teams none is the default: an owner of any of them may have made the caller a
	// member.
	if len(c.identity.Grants) == 1 {
		who.DefaultTeamID = &c.identity.Grants[0].Team.ID
	}
	if c.identity.User == nil && len(c.identity.Grants) > 0 {
		// Clients look for a team that is named like the user.
		who.Username = c.identity.Grants[0].Team.Slug
	}
	return c.reply(userResponse{User: who})
}

func (s *Server) listTeams(c *call) error {
	list := []teamView{}
	if c.identity.Admin {
		all, err := s.accounts.Teams(c.r.Context())
		if err != nil {
			return err
		}
		for _, t := range all {
			list = append(list, viewTeam(t, skerry.RoleOwner))
		}
	}
	for _, g := range c.identity.Grants {
		list = append(list, viewTeam(g.Team, g.Role))
	}
	return c.reply(teamsResponse{Teams: list, Pagination: teamPagination{Count: len(list)}})
}

// pathTeam returns what the caller may do in the team in the path.
func (c *call) pathTeam() (*skerry.Grant, error) {
	if c.identity.Admin {
		team, err := c.srv.accounts.Team(c.r.Context(), c.path("team"))
		if err != nil {
			return nil, err
		}
		return &skerry.Grant{Team: *team, Role: skerry.RoleOwner}, nil
	}
	g := c.identity.Grant(c.path("team"))
	if g == nil {
		return nil, c.foreign("team")
	}
	return g, nil
}

func (s *Server) createTeam(c *call) error {
	var req teamRequest
	if err := c.body(&req); err != nil {
		return err
	}
	team, err := s.accounts.CreateTeam(c.r.Context(), req.Slug, req.Name)
	if err != nil {
		return err
	}
	return c.replyCreated(viewTeam(*team, skerry.RoleOwner))
}

func (s *Server) getTeam(c *call) error {
	g, err := c.pathTeam()
	if err != nil {
		return err
	}
	return c.reply(viewTeam(g.Team, g.Role))
}

func (s *Server) updateTeam(c *call) error {
	g, err := c.pathTeam()
	if err != nil {
		return err
	}
	if !g.Role.Includes(skerry.RoleOwner) { // the one in the path may be another than the query's
		return c.foreign("team")
	}
	if err := wholeTeam(g); err != nil {
		return err
	}
	var req teamRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if req.Slug != "" && !c.identity.Admin {
		return &skerry.Error{Code: skerry.CodeForbidden, Field: "slug", Message: "can be changed by an administrator only: others may know the team by it"}
	}
	team, err := s.accounts.UpdateTeam(c.r.Context(), g.Team.ID, req.Slug, req.Name)
	if err != nil {
		return err
	}
	return c.reply(viewTeam(*team, g.Role))
}

func (s *Server) deleteTeam(c *call) error {
	team, err := s.accounts.DeleteTeam(c.r.Context(), c.path("team"))
	if err != nil {
		return err
	}
	return c.reply(viewTeam(*team, skerry.RoleOwner))
}

// wholeTeam refuses a token for one project.
func wholeTeam(g *skerry.Grant) error {
	if g.Project == nil {
		return nil
	}
	return skerry.Errorf(skerry.CodeForbidden, "the access token is for one project; this takes one for the team")
}

// team returns the team that a call about accounts is in.
func (c *call) team() (id string, err error) {
	if c.scope.TeamID == "" {
		return "", skerry.Invalid("teamId", "is required with an administrator's token")
	}
	return c.scope.TeamID, nil
}

func (s *Server) listProjects(c *call) error {
	var q listQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if own := c.grant.Project; own != nil {
		return c.reply(projectsResponse{Projects: []skerry.Project{*own}, Pagination: pageOf(1, "")})
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	page, next, err := s.accounts.Projects(c.r.Context(), team, q.page())
	if err != nil {
		return err
	}
	return c.reply(projectsResponse{Projects: page, Pagination: pageOf(len(page), next)})
}

func (s *Server) getProject(c *call) error {
	name := c.path("project")
	if own := c.grant.Project; own != nil {
		if c.own(name) {
			return c.reply(own)
		}
		return skerry.Errorf(skerry.CodeNotFound, "there is no such project, or the access token does not belong to it").About(skerry.ResourceProject)
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	p, err := s.accounts.Project(c.r.Context(), team, name)
	if err != nil {
		return err
	}
	return c.reply(p)
}

func (s *Server) createProject(c *call) error {
	var req projectRequest
	if err := c.body(&req); err != nil {
		return err
	}
	if own := c.grant.Project; own != nil {
		if c.own(req.Name) {
			return c.reply(own)
		}
		return &skerry.Error{Code: skerry.CodeForbidden, Field: "name", Message: "an access token for one project cannot create others"}
	}
	if req.Name != defaultProject {
		if err := c.take(skerry.RoleOwner); err != nil {
			return err
		}
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	p, err := s.accounts.CreateProject(c.r.Context(), team, req.Name)
	if skerry.CodeOf(err) == skerry.CodeConflict && req.Name == defaultProject {
		p, err = s.accounts.Project(c.r.Context(), team, req.Name)
	}
	if err != nil {
		return err
	}
	return c.reply(p)
}

type developmentTokenResponse struct {
	Token     string      `json:"token" doc:"The token."`
	ExpiresAt skerry.Time `json:"expiresAt" doc:"Time at which it expires. An addition to the public API."`
}

func (s *Server) createDevelopmentToken(c *call) error {
	team, err := c.team()
	if err != nil {
		return err
	}
	name := c.path("project")
	if own := c.grant.Project; own != nil {
		if !c.own(name) {
			return c.foreign("project")
		}
		name = own.ID
	}
	token, expires, err := s.accounts.DevelopmentToken(c.r.Context(), c.identity, team, name)
	if err != nil {
		return err
	}
	return c.reply(developmentTokenResponse{token, skerry.At(expires)})
}

func (s *Server) updateProject(c *call) error {
	var req projectRequest
	if err := c.body(&req); err != nil {
		return err
	}
	return s.manageProject(c, func(team string) (*skerry.Project, error) {
		return s.accounts.RenameProject(c.r.Context(), team, c.path("project"), req.Name)
	})
}

func (s *Server) deleteProject(c *call) error {
	return s.manageProject(c, func(team string) (*skerry.Project, error) {
		return s.accounts.DeleteProject(c.r.Context(), team, c.path("project"))
	})
}

func (s *Server) manageProject(c *call, do func(team string) (*skerry.Project, error)) error {
	if err := wholeTeam(c.grant); err != nil {
		return err
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	p, err := do(team)
	if err != nil {
		return err
	}
	return c.reply(p)
}

func (s *Server) listMembers(c *call) error {
	var q listQuery
	if err := c.query(&q); err != nil {
		return err
	}
	if err := wholeTeam(c.grant); err != nil {
		return err
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	page, next, err := s.accounts.Members(c.r.Context(), team, q.page())
	if err != nil {
		return err
	}
	return c.reply(membersResponse{Members: page, Pagination: pageOf(len(page), next)})
}

func (s *Server) addMember(c *call) error {
	var req memberRequest
	if err := c.body(&req); err != nil {
		return err
	}
	return s.manageMember(c, http.StatusCreated, func(team string) (*skerry.Member, error) {
		return s.accounts.AddMember(c.r.Context(), team, req.User, req.Role)
	})
}

func (s *Server) updateMember(c *call) error {
	var req roleRequest
	if err := c.body(&req); err != nil {
		return err
	}
	return s.manageMember(c, http.StatusOK, func(team string) (*skerry.Member, error) {
		return s.accounts.SetRole(c.r.Context(), team, c.path("user"), req.Role)
	})
}

func (s *Server) removeMember(c *call) error {
	return s.manageMember(c, http.StatusOK, func(team string) (*skerry.Member, error) {
		return s.accounts.RemoveMember(c.r.Context(), team, c.path("user"))
	})
}

func (s *Server) manageMember(c *call, status int, do func(team string) (*skerry.Member, error)) error {
	if err := wholeTeam(c.grant); err != nil {
		return err
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	m, err := do(team)
	if err != nil {
		return err
	}
	if status == http.StatusCreated {
		return c.replyCreated(memberResponse{Member: *m})
	}
	return c.reply(memberResponse{Member: *m})
}

func (s *Server) listTokens(c *call) error {
	var q listTokensQuery
	if err := c.query(&q); err != nil {
		return err
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	page, next, err := s.accounts.Tokens(c.r.Context(), team, c.scope.ProjectID,
		skerry.Page{Limit: q.Limit, Cursor: q.Cursor, Ascending: q.SortOrder == "asc"})
	if err != nil {
		return err
	}
	return c.reply(tokensResponse{Tokens: page, Pagination: pageOf(len(page), next)})
}

func (s *Server) createToken(c *call) error {
	var req tokenRequest
	if err := c.body(&req); err != nil {
		return err
	}
	team, err := c.team()
	if err != nil {
		return err
	}
	if req.Role == "" {
		req.Role = skerry.RoleDeveloper
	}
	if c.identity.Rule != "" {
		return skerry.Errorf(skerry.CodeForbidden, "a token of another issuer cannot create access tokens, which would outlive it")
	}
	var expires skerry.Time
	if req.ExpiresAt != 0 {
		expires = skerry.FromMillis(req.ExpiresAt)
	}
	if own := c.identity.ExpiresAt; !own.IsZero() && (expires.IsZero() || expires.After(own.Time)) {
		expires = own // it does not outlive the one that it was made with
	}
	secret, token, err := s.accounts.CreateToken(c.r.Context(), skerry.TokenParams{
		Name: req.Name, TeamID: team, ProjectID: c.scope.ProjectID, Role: req.Role, ExpiresAt: expires,
	})
	if err != nil {
		return err
	}
	return c.replyCreated(createTokenResponse{Token: *token, BearerToken: secret})
}

func (s *Server) revokeToken(c *call) error {
	team, err := c.team()
	if err != nil {
		return err
	}
	id := c.path("token")
	token, err := s.accounts.Token(c.r.Context(), id)
	if err != nil {
		return err
	}
	if token.TeamID != team || c.scope.ProjectID != "" && token.ProjectID != c.scope.ProjectID {
		return skerry.Errorf(skerry.CodeNotFound, "there is no token %q", id).About(skerry.ResourceToken)
	}
	if token, err = s.accounts.RevokeToken(c.r.Context(), id); err != nil {
		return err
	}
	return c.reply(tokenResponse{Token: *token})
}

// viewTeam describes a team as one that may create sandboxes. Before the clients use a
// team that is not the default, they check the name of its plan.
func viewTeam(t skerry.Team, role skerry.Role) teamView {
	return teamView{Team: t, Membership: membership{Role: strings.ToUpper(string(role))}, Billing: billing{Plan: "hobby"}}
}
