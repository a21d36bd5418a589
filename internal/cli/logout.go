package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Forget the stored access token", Args: usage.Args(cobra.NoArgs),
		Long: `Remove the access token, the team and the project from the configuration file.
The server's address stays. The token itself stays valid: have it revoked on the
server if someone else may know it.`,
		Example: "  sandbox logout",
		RunE: func(*cobra.Command, []string) error {
			path, err := config.Path()
			if err != nil {
				return err
			}
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			if c.Token == "" {
				fmt.Fprintln(a.Err, "You are not logged in: there is no stored token.")
				return nil
			}
			if err := (config.Config{URL: c.URL}).Save(path); err != nil {
				return err
			}
			fmt.Fprintf(a.Err, "%s Logged out: the token is no longer in %s.\n", a.err.green("✔"), path)
			return nil
		},
	}
}
