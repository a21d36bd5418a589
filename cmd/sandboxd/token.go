package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/audit"
	"github.com/skerry-dev/skerry/internal/auth"
	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/usage"
)

// firstToken sees to it that the user who runs the server can use it at once:
// the first token is written where the CLI and the SDKs look for one. A
// configuration for another server is left alone.
func firstToken(ctx context.Context, accounts *auth.Auth, url string, records *auditing, log *slog.Logger) error {
	project, err := accounts.Bootstrap(ctx)
	if err != nil {
		return err
	}
	path, err := config.Path()
	if err != nil {
		// No home folder, as under some init systems: tokens are made by hand.
		log.Info("no token was written", "why", err)
		return nil
	}
	have, err := config.Load(path)
	if err != nil {
		return err
	}
	if have.Token != "" {
		if have.URL != url {
			return nil
		}
		if _, err := accounts.Authenticate(ctx, have.Token); err == nil {
			return nil
		}
	}
	secret, token, err := accounts.CreateToken(ctx, skerry.TokenParams{
		Name: "first token", TeamID: project.TeamID, ProjectID: project.ID, Role: skerry.RoleOwner,
	})
	if err != nil {
		return err
	}
	records.add(audit.Event{
		Operation: "token.create", Actor: audit.Actor{Kind: audit.ActorServer}, Team: project.TeamID, Project: project.ID,
		Targets: []audit.Target{{Kind: audit.TargetToken, ID: token.ID, Name: token.Name}},
	})
	log.Info("wrote a token for the CLI and the SDKs", "file", path)
	return config.Config{URL: url, Token: secret, Team: project.TeamID, Project: project.ID}.Save(path)
}

// newTokenRequest asks for a token.
type newTokenRequest struct {
	accountRequest
	AllProjects bool          `json:"allProjects,omitempty"`
	Admin       bool          `json:"admin,omitempty"`
	Lifetime    time.Duration `json:"lifetime,omitempty"`
}

type newTokenAnswer struct {
	Token  skerry.AccessToken `json:"token"`
	Secret string             `json:"secret"`
}

var (
	createToken = operation[newTokenRequest, newTokenAnswer]{"token.create", func(ctx context.Context, a *auth.Auth, r newTokenRequest) (answer newTokenAnswer, err error) {
		p := skerry.TokenParams{Name: r.Name, Role: r.Role}
		if r.Lifetime != 0 {
			p.ExpiresAt = skerry.At(time.Now().Add(r.Lifetime))
		}
		if err := tokenFor(ctx, a, r, &p); err != nil {
			return answer, err
		}
		secret, token, err := a.CreateToken(ctx, p)
		if err != nil {
			return answer, err
		}
		return newTokenAnswer{*token, secret}, nil
	}, func(r newTokenRequest, answer newTokenAnswer) []audit.Target {
		t := answer.Token
		return []audit.Target{
			{Kind: audit.TargetToken, ID: t.ID, Name: r.Name}, {Kind: audit.TargetTeam, ID: t.TeamID, Name: r.Team},
			{Kind: audit.TargetProject, ID: t.ProjectID, Name: r.Project}, {Kind: audit.TargetMember, ID: t.UserID, Name: r.User},
		}
	}}
	listTokens = operation[accountRequest, []tokenRow]{name: "token.list", do: func(ctx context.Context, a *auth.Auth, r accountRequest) ([]tokenRow, error) {
		team := ""
		if r.Team != "" {
			t, err := a.Team(ctx, r.Team)
			if err != nil {
				return nil, err
			}
			team = t.ID
		}
		tokens, err := auth.All(ctx, func(ctx context.Context, p skerry.Page) ([]skerry.AccessToken, string, error) {
			return a.Tokens(ctx, team, "", p)
		})
		if err != nil {
			return nil, err
		}
		return tokenRows(ctx, a, tokens)
	}}
	revokeToken = operation[string, *skerry.AccessToken]{"token.revoke", func(ctx context.Context, a *auth.Auth, id string) (*skerry.AccessToken, error) {
		return a.RevokeToken(ctx, id)
	}, func(id string, t *skerry.AccessToken) []audit.Target {
		if t == nil {
			return []audit.Target{{Kind: audit.TargetToken, ID: id}}
		}
		return []audit.Target{{Kind: audit.TargetToken, ID: id, Name: t.Name}}
	}}
)

// tokenFor decides what a token is for.
func tokenFor(ctx context.Context, a *auth.Auth, r newTokenRequest, p *skerry.TokenParams) error {
	switch {
	case r.Admin:
		p.Role = skerry.RoleAdmin
		return nil
	case r.User != "":
		u, err := a.User(ctx, r.User)
		if err != nil {
			return err
		}
		p.UserID, p.Role = u.ID, cmp.Or(p.Role, skerry.RoleOwner)
		return nil
	}
	p.Role = cmp.Or(p.Role, skerry.RoleDeveloper)
	team, err := teamOf(ctx, a, r.Team)
	if err != nil {
		return err
	}
	p.TeamID = team.ID
	if r.Project != "" {
		project, err := a.Project(ctx, team.ID, r.Project)
		if err != nil {
			return err
		}
		p.ProjectID = project.ID
		return nil
	}
	if r.AllProjects {
		return nil
	}
	projects, _, err := a.Projects(ctx, team.ID, skerry.Page{Limit: 2})
	if err != nil {
		return err
	}
	if len(projects) != 1 {
		return skerry.Invalid("project", "is required, as team %s does not have exactly one: name one with --project, or give --all-projects", team.Slug)
	}
	p.ProjectID = projects[0].ID
	return nil
}

// tokenRow is a token with what it is for.
type tokenRow struct {
	Token skerry.AccessToken `json:"token"`
	For   string             `json:"for"`
}

func tokenRows(ctx context.Context, a *auth.Auth, tokens []skerry.AccessToken) ([]tokenRow, error) {
	teams, err := a.Teams(ctx)
	if err != nil {
		return nil, err
	}
	slugs := map[string]string{}
	for _, t := range teams {
		slugs[t.ID] = t.Slug
	}
	rows := make([]tokenRow, 0, len(tokens))
	for _, t := range tokens {
		row := tokenRow{Token: t, For: "teams"}
		switch {
		case t.UserID != "":
			u, err := a.User(ctx, t.UserID)
			if err != nil && skerry.CodeOf(err) != skerry.CodeNotFound {
				return nil, err
			}
			row.For = t.UserID
			if err == nil {
				row.For = u.Name
			}
		case t.TeamID != "":
			row.For = cmp.Or(slugs[t.TeamID], t.TeamID) + "/*"
			if t.ProjectID != "" {
				p, err := a.Project(ctx, t.TeamID, t.ProjectID)
				if err != nil && skerry.CodeOf(err) != skerry.CodeNotFound {
					return nil, err
				}
				if err == nil {
					row.For = cmp.Or(slugs[t.TeamID], t.TeamID) + "/" + p.Name
				}
			}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func newToken() *cobra.Command {
	var r newTokenRequest
	var expires usage.Duration
	create := command("create NAME", "Create a token and print it; it cannot be printed again", 1, func(cmd *cobra.Command, args []string) error {
		for _, group := range [][]string{{"project", "all-projects", "user", "admin"}, {"team", "user", "admin"}, {"role", "admin"}} {
			if err := oneOf(cmd, group...); err != nil {
				return err
			}
		}
		r.Name, r.Lifetime = args[0], time.Duration(expires)
		answer, err := createToken.run(cmd, r)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), answer.Secret)
		return nil
	})
	f := create.Flags()
	f.StringVar(&r.Project, "project", "", "name or id of the project that it is for (default: the only one of the team)")
	f.BoolVar(&r.AllProjects, "all-projects", false, "for all projects of the team; requests have to name the project then")
	f.StringVar(&r.User, "user", "", "for what this user may do in their teams, at most with --role (default owner)")
	f.BoolVar(&r.Admin, "admin", false, "for managing teams, projects, members and tokens, and nothing that is in a project")
	f.Var(&expires, "expires", "how long the token is valid, such as 12h or 30d; 0 is unlimited")
	list := command("ls", "List the tokens", 0, func(cmd *cobra.Command, _ []string) error {
		tokens, err := listTokens.run(cmd, r.accountRequest)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, row := range tokens {
			t := row.Token
			expires := day(t.ExpiresAt.Time)
			if !t.ExpiresAt.IsZero() && !time.Now().Before(t.ExpiresAt.Time) {
				expires += " (expired)"
			}
			role := string(t.Role)
			switch {
			case t.UserID != "" && t.Role == skerry.RoleOwner:
				role = "own"
			case t.UserID != "":
				role = "own, at most " + role
			}
			rows = append(rows, []string{t.ID, t.Name, row.For, role, day(t.CreatedAt.Time), day(t.LastUsedAt.Time), expires})
		}
		return table(cmd, "ID|NAME|FOR|ROLE|CREATED|LAST USED|EXPIRES", rows)
	})
	teamFlag(&r.accountRequest, create, list)
	roleFlag(&r.Role, "", create)
	revoke := command("revoke ID", "Revoke a token by its id; its open streams and terminals end within a second", 1, func(cmd *cobra.Command, args []string) error {
		t, err := revokeToken.run(cmd, args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "revoked token %s (%s)\n", t.ID, t.Name)
		return nil
	})
	return group("token", "Create, list and revoke access tokens", `Create, list and revoke access tokens.

There are three kinds of token: for one project, for all projects of a team (--all-projects), and for a user, who may do what
their role in each team allows (--user). The role says what may be done with it: see "sandboxd member". Give each person and
program a separate token, so that each can be revoked.`, create, list, revoke)
}
