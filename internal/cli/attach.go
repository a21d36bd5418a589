package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) attachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "attach NAME [COMMAND_ID]", Short: "Follow a running command, or show the output of an ended one", Args: usage.Args(cobra.RangeArgs(1, 2)),
		Long: `Follow a command that runs in a sandbox or has ended there, and end with its exit
code: one to which "sandbox exec" lost its connection, or one that was started
through the API. Its kept output comes first (the newest 16 MiB by default). Without
COMMAND_ID it follows the only running command.

Ctrl-C only stops following; the command keeps running.`,
		Example: `  sandbox attach demo
  sandbox attach demo cmd_jffcvrrax3btns5kgy789hn7`,
		Annotations:       map[string]string{passesOn: "yes"},
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			sb, err := a.sandbox(cmd.Context(), given[0], false)
			if err != nil {
				return err
			}
			id := ""
			if len(given) == 2 {
				id = given[1]
			} else if id, err = a.runningCommand(cmd.Context(), sb); err != nil {
				return err
			}
			return a.attach(cmd.Context(), sb, id)
		},
	}
	return cmd
}

// maxShown is how much of a command line is shown of several, in characters.
const maxShown = 60

func (a *app) attach(ctx context.Context, sb *client.Sandbox, id string) error {
	cmd, err := sb.FindCommand(ctx, id)
	if client.IsNotFound(err) {
		return fmt.Errorf("there is no command %s in the current session of %s", clean(id), clean(sb.Name()))
	}
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = a.Out, a.Err
	cmd.Reconnect = a.tellReconnect(cmd, false)
	return a.ended(ctx, sb, cmd.Wait(), duration{}, 0)
}

// runningCommand returns the id of the command that runs, if it is one.
func (a *app) runningCommand(ctx context.Context, sb *client.Sandbox) (string, error) {
	all, err := sb.Commands(ctx)
	if err != nil {
		return "", err
	}
	var running []skerry.Command
	for _, c := range all {
		if !c.Finished() {
			running = append(running, c)
		}
	}
	switch len(running) {
	case 0:
		return "", fmt.Errorf("no command runs in %s; give COMMAND_ID for one that has ended", clean(sb.Name()))
	case 1:
		return running[0].ID, nil
	}
	for _, c := range running {
		line := []rune(strings.Join(append([]string{c.Name}, c.Args...), " "))
		fmt.Fprintf(a.Err, "%s  %s  %s\n", clean(c.ID), a.ago(c.StartedAt), clean(string(line[:min(len(line), maxShown)])))
	}
	return "", usage.Errorf("%d commands run in %s; name one of them by its id", len(running), clean(sb.Name()))
}
