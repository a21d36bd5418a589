package client

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/skerry-dev/skerry/internal/config"
)

// DefaultURL is the address of a server on this machine with default settings:
// http://127.0.0.1:7700.
const DefaultURL = config.DefaultURL

// Options say which server to talk to, and as whom.
type Options struct {
	// URL of the server; DefaultURL when empty.
	URL string
	// Token is sent as a bearer token.
	Token string
	// Team is the id ("team_…") or the slug of a team; empty is the team of
	// the token.
	Team string
	// Project is the id or the name of a project; empty is the project of the
	// token.
	Project string
	// HTTPClient makes the requests; nil is a client of its own without a
	// timeout, since commands run for as long as they like. Contexts bound
	// each call.
	HTTPClient *http.Client
	// UserAgent is sent before the SDK's own.
	UserAgent string
	// NoResume makes calls on a stopped sandbox fail instead of starting a
	// new session.
	NoResume bool
}

// Client talks to one server on behalf of one project. Make one with [New] or
// [FromEnvironment].
type Client struct {
	base      *url.URL
	token     string
	team      string
	project   string
	http      *http.Client
	userAgent string
	noResume  bool
}

// New returns a client. It makes no request.
func New(opts Options) (*Client, error) {
	if opts.URL == "" {
		opts.URL = DefaultURL
	}
	base, err := url.Parse(strings.TrimRight(opts.URL, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("the server's address %q is not an http or https URL", opts.URL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("the server's address may have no user, query or fragment")
	}
	if strings.ContainsFunc(opts.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("the token has characters that no token has (a space or a line break?)")
	}
	c := &Client{
		base:      base,
		token:     opts.Token,
		team:      opts.Team,
		project:   opts.Project,
		http:      opts.HTTPClient,
		userAgent: strings.TrimSpace(opts.UserAgent + " skerry-go"),
		noResume:  opts.NoResume,
	}
	if c.http == nil {
		c.http = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	}
	return c, nil
}

// FromEnvironment returns a client with the options of OptionsFromEnvironment.
func FromEnvironment() (*Client, error) {
	opts, err := OptionsFromEnvironment()
	if err != nil {
		return nil, err
	}
	return New(opts)
}

// OptionsFromEnvironment reads SKERRY_URL, SKERRY_TOKEN, SKERRY_TEAM and
// SKERRY_PROJECT; each that is not set comes from skerry/config.json under
// $XDG_CONFIG_HOME, by default ~/.config (on macOS and Windows too), but for
// the file's team and project when SKERRY_TOKEN is another token than the
// file's. A missing file is no error.
func OptionsFromEnvironment() (Options, error) {
	path, err := config.Path()
	if err != nil {
		return Options{}, err
	}
	file, err := config.Load(path)
	if err != nil {
		return Options{}, err
	}
	c := file.WithEnvironment(os.Getenv)
	return Options{URL: c.URL, Token: c.Token, Team: c.Team, Project: c.Project}, nil
}

// URL returns the address of the server.
func (c *Client) URL() string { return c.base.String() }

// Close drops the idle connections. The client may be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// scope returns the query of a call: the team, and the project under the name
// that the endpoint knows it by ("" for endpoints that need none).
func (c *Client) scope(projectKey string) url.Values {
	q := url.Values{}
	switch {
	case strings.HasPrefix(c.team, "team_"):
		q.Set("teamId", c.team)
	case c.team != "":
		q.Set("slug", c.team)
	}
	if projectKey != "" && c.project != "" {
		q.Set(projectKey, c.project)
	}
	return q
}
