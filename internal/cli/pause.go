package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause NAME [NAME...]", Short: "Have sandboxes stand still, so that they use no CPU", Args: args(cobra.MinimumNArgs(1)),
		Long: `Have the programs of running sandboxes stand still, in memory: they use no CPU
until "sandbox resume", or until the next command, file or shell needs them. The
timeout goes on, and when it is up the sandbox is stopped as ever.`,
		Example:           "  sandbox pause demo\n  sandbox resume demo",
		ValidArgsFunction: a.completeAll,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.each(cmd.Context(), "Pausing", "sandboxes", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				sb, err := c.GetSandbox(ctx, name, client.GetOptions{})
				if err == nil {
					err = sb.Pause(ctx)
				}
				return "Paused " + a.err.cyan(clean(name)) + ".", err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME [NAME...]", Short: "Let sandboxes go on", Args: args(cobra.MinimumNArgs(1)),
		Long: `Let paused sandboxes go on. One that has stopped is started: with the files of
its last stop or snapshot, and if that was a snapshot with --memory, with the
programs that ran. Whatever uses a sandbox does the same by itself.`,
		Example:           "  sandbox resume demo",
		ValidArgsFunction: a.completeAll,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.each(cmd.Context(), "Resuming", "sandboxes", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				sb, err := c.GetSandbox(ctx, name, client.GetOptions{})
				if err != nil {
					return "", err
				}
				before := sb.Info()
				err = sb.Resume(ctx)
				did := "Resumed "
				switch {
				case before.Status != skerry.StatusRunning:
					did = "Started "
				case before.PausedAt.IsZero():
					did = "Running already: "
				}
				return did + a.err.cyan(clean(name)) + ".", err
			})
		},
	}
}
