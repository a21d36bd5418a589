package cli

import (
	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) connectCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "connect [flags] NAME", Aliases: []string{"ssh", "shell"}, Short: "Open a shell in an existing sandbox",
		Long: `Open a shell in an existing sandbox. A sandbox whose session has ended is resumed.
The tool ends with the exit code of the shell. While the shell is open, the
session's timeout is extended as needed.`,
		Example: `  sandbox connect demo
  sandbox ssh --sudo --workdir /etc demo`,
		Args:              usage.Args(cobra.ExactArgs(1)),
		Annotations:       map[string]string{passesOn: "yes"},
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if f.timeout.set {
				return usage.Errorf("--timeout does not go with a shell; it stays until you leave it")
			}
			if err := a.needTerminal("a shell"); err != nil {
				return err
			}
			a.warnMissing(&f.env)
			sb, err := a.resumed(cmd.Context(), given[0], false)
			if err != nil {
				return err
			}
			return a.shell(cmd.Context(), sb, shellOptions{sudo: f.sudo, dir: f.dir, env: f.env.m, noExtend: f.noExtend})
		},
	}
	f.register(cmd)
	f.registerEnv(cmd, a.Getenv)
	f.registerTimeout(cmd)
	cmd.Flags().Lookup("timeout").Hidden = true
	return cmd
}
