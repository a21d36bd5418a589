package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) removeCommand() *cobra.Command {
	var opts client.DeleteOptions
	cmd := &cobra.Command{
		Use: "remove [flags] NAME [NAME...]", Aliases: []string{"rm"}, Short: "Remove sandboxes for good", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Stop one or more sandboxes and remove them for good, with all changes since their
last stop. Their snapshots stay until they expire, unless
--delete-orphan-snapshots is given. If one cannot be removed, the others are
removed anyway, and the tool ends with 1.`,
		Example: `  sandbox rm demo
  sandbox ls --all --json | jq -r '.sandboxes[].name' | xargs sandbox rm`,
		ValidArgsFunction: a.completeAll,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.each(cmd.Context(), "Removing", "sandboxes", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				return "Removed " + a.err.cyan(clean(name)) + ".", c.DeleteSandbox(ctx, name, opts)
			})
		},
	}
	cmd.Flags().BoolVar(&opts.OrphanSnapshots, "delete-orphan-snapshots", false, "also delete snapshots that no other sandbox uses")
	return cmd
}
