package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause NAME [NAME...]", Short: "Pause sandboxes, so that they use no CPU", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Pause running sandboxes: their programs stay in memory and use no CPU until
"sandbox resume", or until the next command, file transfer or shell resumes them. The
timeout keeps running, and the sandbox stops when it expires.`,
		Example:           "  sandbox pause demo\n  sandbox resume demo",
		ValidArgsFunction: a.completeAll,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.each(cmd.Context(), "Pausing", "sandboxes", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				sb, err := c.GetSandbox(ctx, name, client.GetOptions{})
				if err != nil {
					return "", err
				}
				if sb.Info().Status.Ended() {
					return "", fmt.Errorf("%s is not running", clean(name))
				}
				err = sb.Pause(ctx)
				return "Paused " + a.err.cyan(clean(name)) + ".", err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME [NAME...]", Short: "Resume paused or stopped sandboxes", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Resume paused sandboxes. A stopped one is started from the files of its last stop
or snapshot and, if that was a snapshot with --memory, with its running programs.
Commands, file transfers and shells resume a sandbox by themselves.`,
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
