package client

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/internal/config"
)

// DefaultURL is the address of a server on this machine with default settings:
// http://127.0.0.1:7700.
const DefaultURL = config.DefaultURL

// Options configure a Client: the server, and the credentials.
type Options struct {
	// URL is the address of the server; DefaultURL if empty. Uploads to a loopback
	// address are not compressed.
	URL string
	// Token is sent as a bearer token.
	Token string
	// Team is the id ("team_…") or the slug of a team; the team of the token if empty.
	Team string
	// Project is the id or the name of a project; the project of the token if empty.
	Project string
	// HTTPClient makes the requests. If nil, a separate client without a timeout is
	// used, because commands may run for any time. Use contexts to limit calls.
	HTTPClient *http.Client
	// UserAgent is sent before the SDK's own.
	UserAgent string
	// Reattach is how long Wait tries to reconnect to a command after its
	// connection broke, counted from the last data from the server. 0 is
	// [DefaultReattach]; a negative value disables it.
	Reattach time.Duration
	// NoResume makes calls on a stopped sandbox fail instead of starting a
	// new session.
	NoResume bool
}

// Client is a client of one server, for one project. Create it with [New] or
// [FromEnvironment].
type Client struct {
	base      *url.URL
	token     string
	team      string
	project   string
	http      *http.Client
	userAgent string
	noResume  bool
	reattach  time.Duration
	maxOutput int // the constant, except in tests
}

// New returns a client. It sends no request.
func New(opts Options) (*Client, error) {
	if opts.URL == "" {
		opts.URL = DefaultURL
	}
	base, err := url.Parse(strings.TrimRight(opts.URL, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("the server's address %q is not an http or https URL", opts.URL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("the server's address must not have a user, query or fragment")
	}
	if strings.ContainsFunc(opts.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("the token contains characters that are not allowed in a token, such as a space or a line break")
	}
	c := &Client{
		base:      base,
		token:     opts.Token,
		team:      opts.Team,
		project:   opts.Project,
		http:      opts.HTTPClient,
		userAgent: strings.TrimSpace(opts.UserAgent + " skerry-go"),
		noResume:  opts.NoResume,
		reattach:  cmp.Or(opts.Reattach, DefaultReattach),
		maxOutput: maxOutput,
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
// SKERRY_PROJECT. Variables that are not set are read from skerry/config.json under
// $XDG_CONFIG_HOME, by default ~/.config (on macOS and Windows too). The file's
// team and project are ignored if SKERRY_TOKEN differs from the file's token. A
// missing file is not an error.
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

// Close closes idle connections. The client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// scope returns the query of a call: the team, and the project in the parameter that the
// endpoint has for it ("" for endpoints without one).
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
