package cli

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/config"
)

// scopeFlags say which server, and as whom; every command has them.
type scopeFlags struct {
	url, token, project, scope, team string
}

func (f *scopeFlags) register(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.StringVar(&f.url, "url", "", "address of the server (default "+config.DefaultURL+")")
	fs.StringVar(&f.token, "token", "", "access token")
	fs.StringVar(&f.project, "project", "", "name or id of the project")
	fs.StringVar(&f.scope, "scope", "", "slug or id of the team")
	fs.StringVar(&f.team, "team", "", "same as --scope")
	fs.Lookup("team").Hidden = true
}

// options puts together flags, environment and configuration file.
func (a *app) options() (client.Options, error) {
	path, err := config.Path()
	if err != nil {
		return client.Options{}, err
	}
	file, err := config.Load(path)
	if err != nil {
		return client.Options{}, err
	}
	c := file.WithEnvironment(a.Getenv)
	if token := a.flags.token; token != "" && token != c.Token {
		// The file's team and project are not this token's; the
		// environment's may be.
		c = config.Config{URL: c.URL}.WithEnvironment(a.Getenv)
		c.Token = token
	}
	for value, field := range map[*string]*string{
		&a.flags.url: &c.URL, &a.flags.project: &c.Project,
	} {
		if *value != "" {
			*field = *value
		}
	}
	switch {
	case a.flags.scope != "":
		c.Team = a.flags.scope
	case a.flags.team != "":
		c.Team = a.flags.team
	}
	// A token made for another service is used only if there is none of ours.
	for _, name := range []string{"VERCEL_AUTH_TOKEN", "VERCEL_OIDC_TOKEN"} {
		if c.Token == "" {
			c.Token = a.Getenv(name)
		}
	}
	team, project := claims(c.Token)
	if c.Team == "" {
		c.Team = team
	}
	if c.Project == "" {
		c.Project = project
	}
	return client.Options{
		URL: c.URL, Token: c.Token, Team: c.Team, Project: c.Project,
		UserAgent: "skerry-sandbox/" + a.Version,
	}, nil
}

// claims reads the team and the project that an OIDC token names. Whether the
// token is genuine is for the server to say.
func claims(token string) (team, project string) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", ""
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", ""
	}
	var c struct {
		Owner   string `json:"owner_id"`
		Project string `json:"project_id"`
	}
	if json.Unmarshal(b, &c) != nil {
		return "", ""
	}
	return c.Owner, c.Project
}

// client returns the client that flags, environment and configuration ask
// for.
func (a *app) client() (*client.Client, error) {
	opts, err := a.options()
	if err != nil {
		return nil, err
	}
	c, err := client.New(opts)
	if err != nil {
		return nil, fmt.Errorf("%w; see --url, --token, SKERRY_URL, SKERRY_TOKEN and the configuration file", err)
	}
	return c, nil
}

// serverURL is the server's address for messages.
func (a *app) serverURL() string {
	opts, err := a.options()
	if err != nil || opts.URL == "" {
		return config.DefaultURL
	}
	return opts.URL
}
