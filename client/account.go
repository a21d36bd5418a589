package client

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"

	"github.com/skerry-dev/skerry"
)

// Team is a team that the token may use.
type Team struct {
	skerry.Team
	// Membership has the caller's role in capitals: OWNER, DEVELOPER or VIEWER.
	Membership struct {
		Role string `json:"role"`
	} `json:"membership"`
}

// User is who calls.
type User struct {
	// ID is that of the user, or of the token if it is not a user's.
	ID string `json:"id"`
	// Username is the name of the user, or the slug of the team if the token is not a user's.
	Username string `json:"username"`
}

// User returns whose the token is.
func (c *Client) User(ctx context.Context) (User, error) {
	var answer struct {
		User User `json:"user"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: "/v2/user"}, &answer)
	return answer.User, err
}

// Teams returns the teams that the token may use: one, unless it is a user's or an
// administrator's.
func (c *Client) Teams(ctx context.Context) ([]Team, error) {
	var answer struct {
		Teams []Team `json:"teams"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: "/v2/teams"}, &answer)
	return answer.Teams, err
}

// Project returns a project of the team by its id or name.
func (c *Client) Project(ctx context.Context, project string) (skerry.Project, error) {
	var p skerry.Project
	err := c.call(ctx, request{method: http.MethodGet, path: "/v2/projects/" + url.PathEscape(project), query: c.scope("")}, &p)
	return p, err
}

// DevelopmentToken is a token for one project that clients take as VERCEL_OIDC_TOKEN.
type DevelopmentToken struct {
	Token     string      `json:"token"`
	ExpiresAt skerry.Time `json:"expiresAt"`
}

// DevelopmentToken makes a token for the client's project with its access token. It is good for
// 12 hours, or as long as the access token, and allows no more than that. Without a project, it
// returns an error.
func (c *Client) DevelopmentToken(ctx context.Context) (DevelopmentToken, error) {
	var t DevelopmentToken
	if c.project == "" {
		return t, errors.New("a development token takes a project; none is set")
	}
	err := c.call(ctx, request{method: http.MethodPost, path: "/v1/projects/" + url.PathEscape(c.project) + "/token", query: c.scope("")}, &t)
	return t, err
}

// ListProjects iterates over the projects of the team by name, and fetches pages as needed. With
// a token for one project it is that one. An error ends the sequence. An addition to the public
// API.
func (c *Client) ListProjects(ctx context.Context) iter.Seq2[skerry.Project, error] {
	return pages("", func(cursor string) (Page[skerry.Project], error) {
		q := c.scope("")
		pageQuery(q, skerry.MaxPageSize, cursor, true)
		var body struct {
			Projects   []skerry.Project `json:"projects"`
			Pagination pagination       `json:"pagination"`
		}
		err := c.call(ctx, request{method: http.MethodGet, path: "/v2/projects", query: q}, &body)
		return Page[skerry.Project]{body.Projects, body.Pagination.cursor()}, err
	})
}
