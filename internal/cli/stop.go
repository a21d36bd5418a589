package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// atOnce bounds how many sandboxes are stopped or removed at a time.
const atOnce = 8

func (a *app) stopCommand() *cobra.Command {
	var asJSON, force bool
	cmd := &cobra.Command{
		Use: "stop NAME [NAME...]", Short: "Stop sandboxes, and save their files", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Stop the current session of one or more sandboxes. The sandboxes stay. Their files
are saved, unless the sandbox is not persistent, and the next "sandbox exec" starts
from them. Stopping a stopped sandbox is not an error. If one cannot be stopped, the
others are stopped anyway, and the tool ends with 1.

A sandbox that cannot be saved keeps running. --force stops it without saving: the
next session starts from the files of the last stop.`,
		Example:           "  sandbox stop demo other",
		ValidArgsFunction: a.completeAll,
		RunE: func(cmd *cobra.Command, names []string) error {
			results := make(map[string]client.Stopped)
			var mu sync.Mutex
			err := a.each(cmd.Context(), "Stopping", "sandboxes", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				sb, err := c.GetSandbox(ctx, name, client.GetOptions{})
				if err != nil {
					return "", err
				}
				before := sb.Info()
				stopped, err := sb.StopWith(ctx, client.StopOptions{Force: force})
				if err != nil {
					return "", err
				}
				mu.Lock()
				defer mu.Unlock()
				results[name] = stopped
				if before.Status.Ended() {
					return a.err.cyan(clean(name)) + " was stopped already.", nil
				}
				unsaved := force && before.Persistent && stopped.Snapshot == nil
				return "Stopped " + a.err.cyan(clean(name)) + a.outcome(stopped, unsaved) + ".", nil
			})
			if !asJSON {
				return err
			}
			sessions, snapshots := []skerry.Session{}, []skerry.Snapshot{}
			for _, name := range names {
				if r, ok := results[name]; ok {
					sessions = append(sessions, r.Session)
					if r.Snapshot != nil {
						snapshots = append(snapshots, r.Snapshot.Info())
					}
				}
			}
			if jsonErr := a.json(map[string]any{"sessions": sessions, "snapshots": snapshots}); jsonErr != nil {
				return jsonErr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "stop without saving the files")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the stopped sessions, and the snapshots that were taken, as JSON")
	return cmd
}

// outcome says what a session came to, and what is kept of it. unsaved is one
// whose files would have been saved.
func (a *app) outcome(stopped client.Stopped, unsaved bool) string {
	s := stopped.Session
	var parts []string
	if unsaved {
		parts = append(parts, "its changes were not saved")
	}
	if snap := stopped.Snapshot; snap != nil {
		parts = append(parts, "saved "+size(snap.Info().SizeBytes)+" as "+a.err.cyan(clean(snap.ID())))
	}
	if s.Duration > 0 {
		parts = append(parts, "it ran "+span(time.Duration(s.Duration)))
	}
	if s.ActiveCPU > 0 {
		parts = append(parts, "CPU "+span(time.Duration(s.ActiveCPU)))
	}
	if s.ResidentMBSeconds >= 60 {
		parts = append(parts, "memory "+memoryTime(s.ResidentMBSeconds))
	}
	if s.Network != nil && s.Network.Egress+s.Network.Ingress > 0 {
		parts = append(parts, "network "+size(s.Network.Egress)+" out, "+size(s.Network.Ingress)+" in")
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// each does something to every name of a kind, several at a time, and tells the outcomes
// in the order of the names.
func (a *app) each(ctx context.Context, doing string, kind string, names []string,
	do func(context.Context, *client.Client, string) (done string, err error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var unique []string
	for _, name := range names {
		if !slices.Contains(unique, name) {
			unique = append(unique, name)
		}
	}
	what := unique[0]
	if len(unique) > 1 {
		what = fmt.Sprintf("%d %s", len(unique), kind)
	}
	stop := a.spin(doing+" "+clean(what)+"…", false)
	done, errs := make([]string, len(unique)), make([]error, len(unique))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, name := range unique {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			done[i], errs[i] = do(ctx, c, name)
		})
	}
	wg.Wait()
	stop()
	return a.outcomes(ctx, unique, done, errs)
}

func (a *app) outcomes(ctx context.Context, names, done []string, errs []error) error {
	if len(names) == 1 && errs[0] != nil {
		return errs[0] // told with its hint
	}
	var failed error
	for i, err := range errs {
		if err == nil {
			fmt.Fprintf(a.Err, "%s %s\n", a.err.green("✔"), done[i])
			continue
		}
		message, _ := a.explain(err)
		fmt.Fprintf(a.Err, "%s %s: %s\n", a.err.red("✖"), clean(names[i]), message)
		failed = exitCode(exitFailure)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return failed
}
