// Package cli is the command-line tool "sandbox": one file per command, each
// a thin layer over package client. It knows nothing of the server but the
// API, and writes what belongs to a program's data to standard output and
// everything meant for a person to standard error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// The exit codes of the tool's own making; run, exec, sh and connect pass on
// that of the remote command.
const (
	exitFailure = 1
	exitUsage   = usage.ExitCode
	// exitOwnFailure is what commands that pass on an exit code end with when
	// the failure is not the remote command's: the code that docker and
	// podman use too.
	exitOwnFailure = 125
	// exitNotFound is that of a remote command that there is not, as a shell
	// has it.
	exitNotFound  = 127
	exitInterrupt = 130
	exitPipe      = 141
)

// Env is what the tool gets from the system.
type Env struct {
	Args   []string // without the program's name
	In     *os.File
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
	Now    func() time.Time
	// OutTTY and ErrTTY say that a person looks at Out and Err.
	OutTTY, ErrTTY bool
	// OutWidth is the columns of the terminal Out, 0 if they are not known.
	OutWidth int
	// Version is what --version prints.
	Version string
}

// System returns the Env of this process.
func System(version string) Env {
	width, _, _ := term.GetSize(int(os.Stdout.Fd())) // 0 if it fails
	return Env{
		Args: os.Args[1:], In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Getenv: os.Getenv, Now: time.Now, Version: version,
		OutTTY:   term.IsTerminal(int(os.Stdout.Fd())),
		ErrTTY:   term.IsTerminal(int(os.Stderr.Fd())),
		OutWidth: width,
	}
}

// app is one invocation of the tool.
type app struct {
	Env
	flags   scopeFlags
	signals *signals
	written *checkedWriter // what Out is
	out     painter
	err     painter
}

// Main runs the tool and returns its exit code.
func Main(env Env) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sig := watchSignals(cancel)
	defer sig.close()
	plain := env.Getenv("NO_COLOR") != "" || env.Getenv("TERM") == "dumb"
	written := &checkedWriter{Writer: env.Out}
	env.Out = written
	a := &app{
		Env: env, signals: sig, written: written,
		out: painter(env.OutTTY && !plain),
		err: painter(env.ErrTTY && !plain),
	}
	root := a.root()
	cmd, err := root.ExecuteContextC(ctx)
	if code, ok := errors.AsType[exitCode](err); written.err != nil && (err == nil || ok && code == 0) {
		err = written.err
	}
	return a.report(ctx, cmd, err)
}

// checkedWriter keeps the first error of writing, so that what prints need not
// look for it.
type checkedWriter struct {
	io.Writer
	err error
}

func (w *checkedWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

const rootHelp = `Run code in isolated sandboxes on a Skerry server.

A sandbox is a small Linux machine that starts in a blink and is thrown away
when you like. It has a name; each run of it is a session, which ends when you
stop it or when its timeout is over (five minutes unless you say otherwise). Its
files are saved then, and the next session goes on with them.`

const rootExample = `  # A command in a new sandbox that is removed afterwards
  sandbox run --rm -- node -e 'console.log(process.version)'

  # A shell to play in
  sandbox sh --rm

  # A sandbox that stays for an hour, step by step
  sandbox create --name demo --timeout 1h
  sandbox cp ./app demo:app
  sandbox exec demo --workdir app -- npm test
  sandbox fork --live demo --name attempt
  sandbox rm demo`

const scopeHelp = `
Server and credentials (the first one that is set is used):
  server    --url, SKERRY_URL, the configuration file, http://127.0.0.1:7700
  token     --token, SKERRY_TOKEN, the configuration file, VERCEL_AUTH_TOKEN, VERCEL_OIDC_TOKEN
  team      --scope (or --team), SKERRY_TEAM, the configuration file, the token's own
  project   --project, SKERRY_PROJECT, the configuration file, the token's own
The configuration file is skerry/config.json in $XDG_CONFIG_HOME (default
~/.config, on macOS and Windows too); "sandbox login" writes it. NO_COLOR turns
colours off.

Exit codes:
  run, exec, attach, sh and connect end with the exit code of the remote command,
  with 127 if there is no such program in the sandbox, and with 125 after any
  other error. The other commands end with 0, with 1 on failure, and with 2
  after a usage error. 130 is an interrupt (Ctrl-C).
`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "sandbox", Short: "Run code in isolated sandboxes", Long: rootHelp, Example: rootExample,
		Version: a.Version, SilenceErrors: true, SilenceUsage: true,
		Args: usage.Args(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetArgs(a.Args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(usage.FlagError)
	a.flags.register(root)
	root.AddCommand(
		a.createCommand(), a.runCommand(), a.shCommand(),
		a.execCommand(), a.attachCommand(), a.connectCommand(),
		a.listCommand(), a.stopCommand(), a.removeCommand(), a.copyCommand(),
		a.pauseCommand(), a.resumeCommand(),
		a.forkCommand(), a.snapshotCommand(), a.snapshotsCommand(), a.drivesCommand(),
		a.sessionsCommand(), a.configCommand(), a.urlCommand(), a.logsCommand(),
		a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.linkCommand(), a.envCommand(),
	)
	completion(root)
	refuseUnknownTopics(root)
	root.SetUsageTemplate(root.UsageTemplate() + "{{if not .HasParent}}" + scopeHelp + "{{end}}")
	return root
}

// refuseUnknownTopics makes it an error to ask for the help of a command that is
// not there; cobra answers with the help of another one.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	show := help.Run
	help.Run = nil
	help.RunE = func(cmd *cobra.Command, topic []string) error {
		target, rest, err := root.Find(topic)
		if err != nil {
			target, rest = root, topic
		}
		if target.HasSubCommands() && len(rest) > 0 {
			return usage.Args(cobra.NoArgs)(target, rest)
		}
		show(cmd, topic)
		return nil
	}
}

// exitCode is an outcome that was told already: the code alone is left.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// passesOn marks the commands whose exit code is the remote command's.
const passesOn = "passes-on-exit-code"

// report tells the user what went wrong and returns the exit code.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if ctx.Err() != nil { // only a signal ends it before its time
		fmt.Fprintln(a.Err, "Interrupted.")
		if lost, ok := errors.AsType[*lostCommand](err); ok {
			fmt.Fprintf(a.Err, "%s the command could not be killed: %s\n", a.err.yellow("Warning:"), lost.hint())
		}
		return exitInterrupt
	}
	if isBrokenPipe(err) {
		return exitPipe
	}
	message, hint := a.explainTo(cmd, err)
	fmt.Fprintf(a.Err, "%s %s\n", a.err.red("Error:"), message)
	if hint != "" {
		fmt.Fprintf(a.Err, "%s %s\n", a.err.bold("Hint:"), hint)
	}
	_, misused := errors.AsType[usage.Error](err)
	if misused {
		if cmd.Name() == "help" { // its own help is not what was asked for
			cmd = cmd.Root()
		}
		fmt.Fprintf(a.Err, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
	}
	switch {
	case cmd.Annotations[passesOn] != "" && client.IsExecutableNotFound(err):
		return exitNotFound
	case cmd.Annotations[passesOn] != "":
		return exitOwnFailure
	case misused:
		return exitUsage
	}
	return exitFailure
}
