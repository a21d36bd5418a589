package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) snapshotCommand() *cobra.Command {
	var stop, silent, asJSON, memory bool
	expiration := duration{none: true}
	cmd := &cobra.Command{
		Use: "snapshot [flags] NAME", Short: "Save the files of a running sandbox, and stop it", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `Save the files of a running sandbox as a snapshot, and stop its session; --stop
confirms that. The snapshot's id goes to standard output.

New sandboxes can start from it with "sandbox create --snapshot". A persistent
sandbox (the default) starts from it at its next "sandbox exec", and takes a snapshot
at every stop by itself. "sandbox fork --live" copies a sandbox without stopping it.

With --memory the snapshot includes the running programs. Sandboxes that start from
it continue them where they were, in a network of their own. Random numbers that a
program derives from a seed in its memory are the same in all of them.`,
		Example: `  sandbox snapshot --stop demo
  id=$(sandbox snapshot --stop --expiration 7d demo)
  sandbox create --snapshot "$id"
  sandbox snapshot --stop --memory demo`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if !stop {
				return usage.Errorf("a snapshot stops the session of %s; confirm that with --stop", clean(given[0]))
			}
			opts := client.TakeOptions{Memory: memory}
			if expiration.set {
				opts.Expiration = &expiration.d
			}
			snap, err := a.snapshot(cmd, given[0], opts, silent)
			switch {
			case err != nil:
				return err
			case asJSON:
				return a.json(snap.Info())
			case !silent:
				fmt.Fprintln(a.Out, clean(snap.ID()))
				a.hint(true, "start from it with: sandbox create --snapshot %s", clean(snap.ID()))
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&stop, "stop", false, "confirm that the session ends")
	fs.Var(&expiration, "expiration", "how long the snapshot is kept, or none for ever (default as the sandbox says)")
	fs.BoolVar(&memory, "memory", false, "keep the running programs too")
	fs.BoolVar(&silent, "silent", false, "print nothing, not even the id")
	fs.BoolVar(&asJSON, "json", false, "print the snapshot as JSON in place of its id")
	return cmd
}

// snapshot takes a snapshot of a sandbox that runs, and says so.
func (a *app) snapshot(cmd *cobra.Command, name string, opts client.TakeOptions, silent bool) (*client.Snapshot, error) {
	stopSpin := a.spin("Saving the files of "+clean(name)+"…", silent)
	defer stopSpin()
	sb, err := a.sandbox(cmd.Context(), name, false)
	if err != nil {
		return nil, err
	}
	if info := sb.Info(); info.Status != skerry.StatusRunning { // it would be resumed only to be stopped again
		saved := ""
		if info.CurrentSnapshotID != "" {
			saved = "; its files are in " + clean(info.CurrentSnapshotID)
		}
		return nil, fmt.Errorf("%s is %s, and only a running sandbox can be saved%s", clean(name), clean(string(info.Status)), saved)
	}
	snap, err := sb.Snapshot(cmd.Context(), opts)
	stopSpin()
	if err != nil || silent {
		return snap, err
	}
	fmt.Fprintf(a.Err, "%s Saved %s of %s as %s, %s.\n", a.err.green("✔"), size(snap.Info().SizeBytes), a.err.cyan(clean(name)),
		a.err.cyan(clean(snap.ID())), kept(a.ago(snap.Info().ExpiresAt)))
	return snap, nil
}

// kept says how long something is kept, of when that ends.
func kept(ends string) string {
	if ends == "-" {
		return "kept for ever"
	}
	return "which expires " + ends
}
