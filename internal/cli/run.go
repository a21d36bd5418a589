package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// leaveWait bounds what --rm and --stop do at the end, also when the command
// was interrupted.
const leaveWait = time.Minute

func (a *app) runCommand() *cobra.Command {
	var c createFlags
	var f execFlags
	var remove, stop, connect bool
	cmd := &cobra.Command{
		Use: "run [flags] [--] COMMAND [ARG...]", Short: "Create a sandbox and run a command in it",
		Long: `Create a sandbox, run a command in it, and end with the command's exit code.

With --name, an existing sandbox of that name is used if there is one. The
sandbox stays until its timeout unless --rm or --stop is given. Only the command's
output goes to standard output. The first Ctrl-C interrupts the
remote command, the second kills it; --rm and --stop still apply.

Everything after COMMAND is passed to it, also flags. Unlike the npm tool, this one
does not print the sandbox's name to standard output. A sandbox created with --rm is
not persistent: nothing of it is saved.`,
		Example: `  sandbox run --rm -- node -e 'console.log(1 + 1)'
  sandbox run --runtime python3.13 --rm python3 -c 'print(1 + 1)'
  sandbox run --name demo --timeout 1h --stop npm test
  sandbox run --rm -i bash`,
		Args:        usage.Args(cobra.MinimumNArgs(1)),
		Annotations: map[string]string{passesOn: "yes"},
		RunE: func(cmd *cobra.Command, argv []string) error {
			if remove && stop {
				return usage.Errorf("--rm and --stop cannot be combined")
			}
			if f.interactive || connect {
				if err := a.needTerminal("an interactive command"); err != nil {
					return err
				}
			}
			c.nonPersistent = c.nonPersistent || (remove && !c.persistent)
			f.silent, f.env = c.silent, c.env
			sb, err := a.runSandbox(cmd.Context(), &c)
			if err != nil {
				return err
			}
			return a.leave(cmd.Context(), sb, remove, stop, c.silent, func() error {
				if connect {
					if err := a.shell(cmd.Context(), sb, shellOptions{silent: c.silent}); err != nil && !isExitCode(err) {
						return err
					}
				}
				f.env.missing = nil // told already
				return a.exec(cmd.Context(), sb, &f, argv)
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	c.register(cmd, a)
	f.register(cmd)
	f.registerInteractive(cmd, "")
	cmd.Flags().BoolVar(&connect, "connect", false, "open a shell in it first")
	cmd.Flags().BoolVar(&remove, "rm", false, "remove the sandbox when the command ends")
	cmd.Flags().BoolVar(&stop, "stop", false, "stop the sandbox when the command ends")
	return cmd
}

func isExitCode(err error) bool {
	_, ok := errors.AsType[exitCode](err)
	return ok
}

// runSandbox gets the sandbox that --name names, or creates one.
func (a *app) runSandbox(ctx context.Context, f *createFlags) (*client.Sandbox, error) {
	if f.name != "" {
		sb, err := a.resumed(ctx, f.name, f.silent)
		if err == nil || !client.IsNotFound(err) {
			a.warnMissing(&f.env)
			return sb, err
		}
	}
	return a.create(ctx, f)
}

// leave runs fn and then removes or stops the sandbox, whatever fn came to.
func (a *app) leave(ctx context.Context, sb *client.Sandbox, remove, stop, silent bool, fn func() error) error {
	err := fn()
	if !remove && !stop {
		return err
	}
	if _, lost := errors.AsType[*lostCommand](err); lost && ctx.Err() == nil {
		fmt.Fprintf(a.Err, "%s the sandbox %s was left as it is, because its command may still run.\n", a.err.yellow("Warning:"), clean(sb.Name()))
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWait)
	defer cancel()
	var leaveErr error
	if remove {
		if leaveErr = sb.Delete(ctx); client.IsNotFound(leaveErr) {
			leaveErr = nil
		}
	} else {
		done := a.spin("Stopping "+clean(sb.Name())+"…", silent)
		_, leaveErr = sb.Stop(ctx)
		done()
	}
	if leaveErr == nil {
		return err
	}
	message, _ := a.explain(leaveErr)
	fmt.Fprintf(a.Err, "%s the sandbox %s was left running: %s\n", a.err.yellow("Warning:"), clean(sb.Name()), message)
	if err == nil {
		return exitCode(exitOwnFailure)
	}
	return err
}
