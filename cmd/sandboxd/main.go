// Command sandboxd is the Skerry server. It is also, by re-execution, the
// gVisor sentry of every sandbox, and it carries the guest agent inside.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry/internal/driver/gvisor"
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
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "sandboxd:", err)
		os.Exit(1)
	}
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
	}
	state := os.Getenv("SKERRY_STATE")
	if state == "" {
		state = defaultState
	}
	root.PersistentFlags().String("state", state, "folder for everything that outlives a reboot (environment: SKERRY_STATE)")
	root.PersistentFlags().String("images", "", "folder for images (default: images in the state folder)")
	root.AddCommand(newServe(), newStop(), newStatus(), newImage(), newToken())
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
