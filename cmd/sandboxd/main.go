// Command sandboxd is the Skerry server. It is also, by re-execution, the
// gVisor sentry of every sandbox, and it carries the guest agent inside.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/driver/gvisor"
	"github.com/skerry-dev/skerry/internal/usage"
	"github.com/skerry-dev/skerry/internal/version"
)

func main() {
	// As a sentry this does not return; it comes before everything else.
	gvisor.Main()
	if err := keepInherited(); err != nil {
		fmt.Fprintln(os.Stderr, "sandboxd:", err)
		os.Exit(1)
	}
	// A first signal asks for an orderly end; see serve for what it means.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	stderr := os.Stderr // a server replaces it; see gvisor.New
	cmd, err := newRoot().ExecuteContextC(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(stderr, "sandboxd:", withoutCode(err))
	if _, misused := errors.AsType[usage.Error](err); misused {
		fmt.Fprintf(stderr, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
		os.Exit(usage.ExitCode)
	}
	os.Exit(1)
}

// defaultState is where everything that outlives a reboot is kept.
const defaultState = "/var/lib/skerry"

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "sandboxd",
		Short:         "The Skerry sandbox server",
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage.Args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	state := os.Getenv("SKERRY_STATE")
	if state == "" {
		state = defaultState
	}
	root.PersistentFlags().String("state", state, "folder for all persistent data (environment: SKERRY_STATE)")
	root.PersistentFlags().String("database", "", "URL of a PostgreSQL database without a password, such as postgres://skerry@db.example.com/skerry?passfile=/etc/skerry/pgpass&sslmode=verify-full (environment: SKERRY_DATABASE; default: an SQLite database in the state folder)")
	root.PersistentFlags().String("images", "", "folder for images (default: images in the state folder)")
	root.AddCommand(newServe(), newStop(), newStatus(), newTop(), newImage(), newTeam(), newProject(), newMember(), newToken(), newIssuer(), newQuota(), newKey(), newAudit(), newNode())
	return root
}

// stateDir returns the folder that --state names.
func stateDir(cmd *cobra.Command) string {
	dir, err := cmd.Flags().GetString("state")
	if err != nil {
		panic(err) // the flag is the root command's own
	}
	return dir
}

// imagesDir returns the folder that --images names.
func imagesDir(cmd *cobra.Command) string {
	dir, err := cmd.Flags().GetString("images")
	if err != nil {
		panic(err) // the flag is the root command's own
	}
	if dir == "" {
		dir = filepath.Join(stateDir(cmd), "images")
	}
	return dir
}
