package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show whose the access token is, and what it is for", Args: usage.Args(cobra.NoArgs),
		Long: `Show the server, whose access token is used, and the teams and projects that it is
for, with the role in each team.`,
		Example: "  sandbox whoami",
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := a.options()
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			user, err := c.User(cmd.Context())
			if err != nil {
				return err
			}
			teams, err := c.Teams(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.Out, 0, 4, 2, ' ', 0)
			fmt.Fprintf(w, "server\t%s\n", clean(opts.URL))
			fmt.Fprintf(w, "user\t%s\t%s\n", clean(user.Username), clean(user.ID))
			for _, t := range teams {
				mark := ""
				if opts.Team == t.Slug || opts.Team == t.ID {
					mark = "  (used)"
				}
				fmt.Fprintf(w, "team\t%s\t%s%s\n", clean(t.Slug), clean(strings.ToLower(t.Membership.Role)), mark)
			}
			if len(teams) == 1 || opts.Team != "" {
				for p, err := range c.ListProjects(cmd.Context()) {
					if err != nil {
						return err
					}
					mark := ""
					if opts.Project == p.Name || opts.Project == p.ID {
						mark = "  (used)"
					}
					fmt.Fprintf(w, "project\t%s\t%s%s\n", clean(p.Name), clean(p.ID), mark)
				}
			}
			return w.Flush()
		},
	}
}
