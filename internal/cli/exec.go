package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// execFlags are those of every command that runs a command.
type execFlags struct {
	sudo, interactive, noExtend, tty bool
	dir                              string
	env                              pairs
	timeout                          duration
	silent                           bool
}

func (f *execFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.sudo, "sudo", false, "run as root")
	fs.StringVarP(&f.dir, "workdir", "w", "", "directory to run in (default /vercel/sandbox)")
	fs.BoolVar(&f.noExtend, "no-extend-timeout", false, "let the session time out under an interactive command")
}

// registerInteractive takes the short form of --tty: run has another use for
// docker's -t, as the npm tool does.
func (f *execFlags) registerInteractive(cmd *cobra.Command, short string) {
	fs := cmd.Flags()
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "run on a terminal of its own, connected to this one")
	fs.BoolVarP(&f.tty, "tty", short, false, "accepted for compatibility with docker; --interactive is enough")
}

func (f *execFlags) registerEnv(cmd *cobra.Command, getenv func(string) string) {
	f.env.getenv = getenv
	cmd.Flags().VarP(&f.env, "env", "e", "variable KEY=value for the command; KEY alone takes the local value (repeatable)")
}

func (f *execFlags) registerTimeout(cmd *cobra.Command) {
	cmd.Flags().Var(&f.timeout, "timeout", "kill the command after this time, such as 30s or 5m")
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec [flags] NAME [flags] [--] COMMAND [ARG...]", Short: "Run a command in an existing sandbox",
		Long: `Run a command in an existing sandbox, and end with its exit code.

A sandbox whose session has ended is resumed. Standard output and standard
error of the command stay apart. The first Ctrl-C interrupts the remote command,
the second kills it. The command's standard input is empty; use --interactive
to type into it. Piped or redirected input is refused, on Linux: the command
would not receive it. A shell loop ("while read") may keep its own input.

Everything after COMMAND is passed to it, also flags. The output is text: bytes that
are not UTF-8 are replaced. Copy binary files with "sandbox cp".`,
		Example: `  sandbox exec demo ls -la
  sandbox exec demo --workdir app --env CI=1 -- npm test
  sandbox exec --sudo demo apt-get install -y jq
  sandbox exec -i demo python3`,
		Args:              usage.Args(cobra.MinimumNArgs(1)),
		Annotations:       map[string]string{passesOn: "yes"},
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			name, argv, err := splitCommand(cmd, given)
			if err != nil {
				return err
			}
			if f.interactive && f.timeout.set {
				return usage.Errorf("--timeout cannot be combined with --interactive")
			}
			if f.timeout.set && f.timeout.d <= 0 {
				return usage.Errorf("--timeout must be positive")
			}
			sb, err := a.resumed(cmd.Context(), name, f.silent)
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), sb, &f, argv)
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.register(cmd)
	f.registerInteractive(cmd, "t")
	f.registerEnv(cmd, a.Getenv)
	f.registerTimeout(cmd)
	cmd.Flags().BoolVar(&f.silent, "silent", false, "print nothing but the command's output")
	return cmd
}

// splitCommand takes the name of the sandbox off the arguments, the flags
// that follow it, and leaves the command.
func splitCommand(cmd *cobra.Command, given []string) (name string, argv []string, err error) {
	name = given[0]
	if err := cmd.Flags().Parse(given[1:]); err != nil {
		return "", nil, usage.Error{Err: err}
	}
	if help, _ := cmd.Flags().GetBool("help"); help {
		return "", nil, errors.Join(cmd.Help(), exitCode(0))
	}
	argv = cmd.Flags().Args()
	if len(argv) == 0 {
		return "", nil, usage.Errorf("COMMAND is missing; for a shell: sandbox connect %s", clean(name))
	}
	return name, argv, nil
}

// sandbox gets a sandbox by its name.
func (a *app) sandbox(ctx context.Context, name string, resume bool) (*client.Sandbox, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	return c.GetSandbox(ctx, name, client.GetOptions{Resume: resume})
}

// resumed gets a sandbox by its name, with a session that runs.
func (a *app) resumed(ctx context.Context, name string, silent bool) (*client.Sandbox, error) {
	stop := a.spin("Waiting for "+clean(name)+" to run…", silent)
	defer stop()
	begin := a.Now()
	sb, err := a.sandbox(ctx, name, true)
	stop()
	if err == nil && sb.Resumed() {
		from := ""
		if id := sb.Session().SourceSnapshotID; id != "" {
			from = " from " + clean(id)
		}
		a.hint(!silent, "Resumed %s%s in %s.", clean(name), from, a.Now().Sub(begin).Round(time.Millisecond))
	}
	return sb, err
}

// exec runs a command and returns its exit code as an error.
func (a *app) exec(ctx context.Context, sb *client.Sandbox, f *execFlags, argv []string) error {
	a.warnMissing(&f.env)
	if f.interactive {
		if err := a.needTerminal("--interactive"); err != nil {
			return err
		}
		return a.shell(ctx, sb, shellOptions{
			argv: argv, sudo: f.sudo, dir: f.dir, env: f.env.m, noExtend: f.noExtend, silent: f.silent,
		})
	}
	if givenInput(a.In) {
		return usage.Errorf("standard input is not passed on to the command: copy the input into the sandbox with 'sandbox cp' and read it there, or add </dev/null")
	}
	a.hint(!f.silent, "$ %s", clean(quoted(argv)))
	cmd := sb.Command(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Sudo, cmd.Timeout = f.dir, f.env.m, f.sudo, f.timeout.d
	cmd.Stdout, cmd.Stderr = a.Out, a.Err
	cmd.Reconnect = a.tellReconnect(cmd, f.silent)
	begin := a.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	release := a.signals.handle(a.forward(ctx, cmd, f.silent))
	err := cmd.Wait()
	release()
	if givenInput(a.In) { // it came later
		fmt.Fprintf(a.Err, "%s standard input was not passed on to the command.\n", a.err.yellow("Warning:"))
	}
	return a.ended(ctx, sb, err, f.timeout, a.Now().Sub(begin))
}

// bare is a word that a shell takes as it is.
var bare = regexp.MustCompile(`^[\w@%+=:,./-]+$`)

// quoted writes a command as it would be typed into a shell.
func quoted(argv []string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		if words[i] = word; !bare.MatchString(word) {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// ended returns what the tool ends with after a command that has run for some
// time, or was waited for in vain.
func (a *app) ended(ctx context.Context, sb *client.Sandbox, err error, timeout duration, after time.Duration) error {
	if lost, ok := errors.AsType[*client.LostError](err); ok {
		return a.lost(sb, lost)
	}
	exit, failed := errors.AsType[*client.ExitError](err)
	if !failed {
		return err
	}
	if exit.Code == 128+int(client.SIGKILL) {
		a.tellWhyKilled(ctx, sb, timeout, after)
	}
	return exitCode(exit.Code)
}

// tellReconnect returns what says that the connection to a command broke, and
// that there is one again.
func (a *app) tellReconnect(cmd *client.Cmd, silent bool) func(error) {
	return func(err error) {
		if silent {
			return
		}
		if err == nil {
			fmt.Fprintf(a.Err, "%s reconnected.\n", a.err.green("✔"))
			return
		}
		fmt.Fprintf(a.Err, "%s the connection broke; the command keeps running as %s. Reconnecting…\n", a.err.yellow("Warning:"), clean(cmd.ID()))
	}
}

// lostCommand is a command that cannot be reached, and may run on.
type lostCommand struct {
	sandbox string
	*client.LostError
}

func (e *lostCommand) Unwrap() error { return e.LostError }

func (a *app) lost(sb *client.Sandbox, err *client.LostError) error {
	return &lostCommand{sandbox: sb.Name(), LostError: err}
}

// hint says how to get back to the command.
func (e *lostCommand) hint() string {
	return fmt.Sprintf("it may still run; to follow it again: sandbox attach %s %s", clean(e.sandbox), clean(e.Command.ID))
}

// tellWhyKilled says what killed a command, if it was its own timeout or the
// end of the session; else its exit code says all that is known.
func (a *app) tellWhyKilled(ctx context.Context, sb *client.Sandbox, timeout duration, after time.Duration) {
	if timeout.set && after >= timeout.d {
		fmt.Fprintf(a.Err, "%s the command was killed after %s.\n", a.err.yellow("Timeout:"), span(timeout.d))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, forwardWait)
	defer cancel()
	id := sb.Session().ID
	if err := sb.Refresh(ctx); err != nil {
		return
	}
	session := sb.Session()
	if session.ID == id && session.Status == skerry.StatusRunning {
		return
	}
	why := "it was stopped"
	if session.ID == id && !session.RequestedStopAt.Before(session.ExpiresAt().Time) {
		why = "its timeout of " + span(time.Duration(session.Timeout)) + " was over"
	}
	fmt.Fprintf(a.Err, "%s the session of %s ended while the command ran: %s.\n", a.err.yellow("Warning:"), clean(sb.Name()), why)
}

// forwardWait bounds the call that passes a signal on.
const forwardWait = 3 * time.Second

// forward returns a handler that passes the first signal on to the remote
// command, kills it at the second, and at the third leaves it alone.
func (a *app) forward(ctx context.Context, cmd *client.Cmd, silent bool) func(os.Signal) {
	times := 0
	return func(sig os.Signal) {
		times++
		remote := client.SIGKILL
		switch {
		case times == 2:
			a.hint(!silent, "Killing the command.")
		case times > 2:
			a.signals.interrupt()
			return
		case times == 1 && sig == os.Interrupt:
			remote = client.SIGINT
			a.hint(!silent, "Interrupting the command; Ctrl-C again kills it.")
		case times == 1:
			remote = client.SIGTERM
			if n, ok := sig.(syscall.Signal); ok && int(n) == int(client.SIGHUP) {
				remote = client.SIGHUP
			}
		}
		ctx, cancel := context.WithTimeout(ctx, forwardWait)
		defer cancel()
		if err := cmd.Kill(ctx, remote); err != nil { // it cannot be reached: end here at least
			a.signals.interrupt()
		}
	}
}
