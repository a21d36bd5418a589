package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/usage"
)

const (
	// loginWait bounds the check of a token.
	loginWait = 20 * time.Second
	// maxToken bounds what is read as a token; a JWT is a few kilobytes.
	maxToken = 16 << 10
)

func (a *app) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use: "login [flags]", Short: "Store an access token", Args: usage.Args(cobra.NoArgs),
		Long: `Store an access token, and the address of the server it is for, in the
configuration file, which only you can read. The token comes from --token, from a
prompt that does not show it, or from standard input. It is checked with the server
first. --scope and --project are stored too; a token for several teams or projects
needs them.

An administrator of the server creates tokens. "make run" stores the first one
automatically.`,
		Example: `  sandbox login
  sandbox login --url https://sandboxes.example.com
  sandbox login --token "$TOKEN"
  pass show skerry | sandbox login`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.login(cmd.Context()) },
	}
}

func (a *app) login(ctx context.Context) error {
	path, err := config.Path()
	if err != nil {
		return err
	}
	old, err := config.Load(path)
	if err != nil {
		return err
	}
	env := config.Config{URL: old.URL}.WithEnvironment(a.Getenv)
	c := config.Config{URL: env.URL, Token: a.flags.token, Team: a.flags.scope, Project: a.flags.project}
	if a.flags.url != "" {
		c.URL = a.flags.url
	}
	if c.URL == "" {
		c.URL = config.DefaultURL
	}
	if c.Team == "" {
		c.Team = a.flags.team
	}
	if c.Token == "" {
		if c.Token, err = a.askToken(ctx, c.URL); err != nil {
			return err
		}
	}
	a.flags.url, a.flags.token = c.URL, c.Token // what messages are about from here on
	if err := checkToken(ctx, &c); err != nil {
		return err
	}
	if err := c.Save(path); err != nil {
		return err
	}
	fmt.Fprintf(a.Err, "%s Logged in to %s. The token is in %s.\n", a.err.green("✔"), c.URL, path)
	if a.Getenv("SKERRY_TOKEN") != "" {
		fmt.Fprintf(a.Err, "%s SKERRY_TOKEN is set and comes before it.\n", a.err.yellow("Warning:"))
	}
	return nil
}

// checkToken makes a call that any token may make. If the token is for more than one team or
// project, and none was named, it chooses the only one that there is.
func checkToken(ctx context.Context, c *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, loginWait)
	defer cancel()
	for tries := 0; ; tries++ {
		cl, err := client.New(client.Options{URL: c.URL, Token: c.Token, Team: c.Team, Project: c.Project})
		if err != nil {
			return usage.Error{Err: err}
		}
		_, err = cl.ListSandboxesPage(ctx, client.ListOptions{Limit: 1})
		refused, ok := errors.AsType[*client.Error](err)
		switch {
		case !ok:
			return err
		case tries < 2 && refused.Field == "teamId" && c.Team == "":
			if c.Team, err = onlyTeam(ctx, cl); err != nil {
				return err
			}
		case tries < 2 && refused.Field == "projectId" && c.Project == "":
			if c.Project, err = onlyProject(ctx, cl); err != nil {
				return err
			}
		case refused.Status == http.StatusForbidden && refused.Field == "":
			return fmt.Errorf("%s: %s; nothing was stored", c.URL, clean(refused.Message))
		case client.IsUnauthorized(err) && refused.Field == "":
			return fmt.Errorf("%s does not accept this token; nothing was stored", c.URL)
		default:
			return err
		}
	}
}

func onlyTeam(ctx context.Context, cl *client.Client) (string, error) {
	teams, err := cl.Teams(ctx)
	if err != nil {
		return "", err
	}
	var names []string
	for _, t := range teams {
		names = append(names, t.Slug)
	}
	return only(names, "team", "--scope")
}

func onlyProject(ctx context.Context, cl *client.Client) (string, error) {
	var names []string
	for p, err := range cl.ListProjects(ctx) {
		if err != nil {
			return "", err
		}
		names = append(names, p.Name)
	}
	return only(names, "project", "--project")
}

// only returns the only name, or an error that says how to choose.
func only(names []string, what, flag string) (string, error) {
	if len(names) == 1 {
		return names[0], nil
	}
	if len(names) == 0 {
		return "", fmt.Errorf("the token is for a team without a %s; nothing was stored", what)
	}
	const most = 20
	list := clean(strings.Join(names[:min(len(names), most)], ", "))
	if len(names) > most {
		list += ", …"
	}
	return "", usage.Errorf("the token is for several %ss; name one with %s: %s", what, flag, list)
}

// askToken reads a token from the keyboard, without showing it, or from what
// standard input is connected to.
func (a *app) askToken(ctx context.Context, server string) (string, error) {
	var token string
	var err error
	if term.IsTerminal(int(a.In.Fd())) {
		token, err = a.typeToken(ctx, server)
	} else {
		token, err = bufio.NewReader(io.LimitReader(a.In, maxToken)).ReadString('\n')
	}
	if err != nil && err != io.EOF {
		return "", err
	}
	if token = strings.TrimSpace(token); token == "" {
		return "", usage.Error{Err: errors.New("there is no token; give one with --token or type it")}
	}
	return token, nil
}

// typeToken asks for a token in raw mode, where nothing that is typed is shown
// and Ctrl-C is a key (it ends the input).
func (a *app) typeToken(ctx context.Context, server string) (string, error) {
	restore, err := rawMode(a.In)
	if err != nil {
		return "", err
	}
	defer restore()
	screen := struct {
		io.Reader
		io.Writer
	}{keyboard{ctx, a.In}, a.Err}
	token, err := term.NewTerminal(screen, "").ReadPassword("Access token for " + server + ": ")
	if errors.Is(err, errCtrlC) {
		restore()
		fmt.Fprintln(a.Err, "\nInterrupted.")
		return "", exitCode(exitInterrupt)
	}
	return token, err
}

// errCtrlC is that key, which is a character like any other in raw mode.
var errCtrlC = errors.New("Ctrl-C was typed")

// keyboard reads what is typed until ctx ends.
type keyboard struct {
	ctx context.Context
	in  *os.File
}

func (k keyboard) Read(p []byte) (int, error) {
	if err := waitInput(k.ctx, k.in); err != nil {
		return 0, err
	}
	n, err := k.in.Read(p)
	if bytes.IndexByte(p[:n], 3) >= 0 {
		return 0, errCtrlC
	}
	return n, err
}
