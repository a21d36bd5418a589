package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) shCommand() *cobra.Command {
	var c createFlags
	var remove, noExtend bool
	cmd := &cobra.Command{
		Use: "sh [flags]", Short: "Create a sandbox and open a shell in it",
		Long: `Create a sandbox and open a shell in it. The tool ends with the exit code of the
shell. While the shell is open, the session's timeout is extended as needed.`,
		Example: `  sandbox sh --rm
  sandbox sh --name demo --runtime python3.13`,
		Annotations: map[string]string{passesOn: "yes"},
		Args: func(_ *cobra.Command, given []string) error {
			if len(given) > 0 {
				return usage.Errorf("sh opens a plain shell and takes no command; for a command of your own: sandbox run -i %s",
					strings.Join(given, " "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needTerminal("a shell"); err != nil {
				return err
			}
			c.nonPersistent = c.nonPersistent || (remove && !c.persistent)
			sb, err := a.create(cmd.Context(), &c)
			if err != nil {
				return err
			}
			return a.leave(cmd.Context(), sb, remove, false, c.silent, func() error {
				return a.shell(cmd.Context(), sb, shellOptions{noExtend: noExtend, silent: c.silent})
			})
		},
	}
	cmd.Flags().SetInterspersed(false) // a command is answered with a hint, its flags too
	c.register(cmd, a)
	cmd.Flags().BoolVar(&remove, "rm", false, "remove the sandbox when the shell ends")
	cmd.Flags().BoolVar(&noExtend, "no-extend-timeout", false, "let the session time out under the shell")
	return cmd
}
