package cli

import (
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) logsCommand() *cobra.Command {
	var network, asJSON bool
	var session string
	var limit int
	cmd := &cobra.Command{
		Use: "logs --network [flags] NAME", Short: "Show what the network policy of a sandbox allowed and denied", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `Show what the network policy of a sandbox allowed and denied: connections, requests
and DNS queries that the proxy decided on, and packets that were denied by their
address; the latest last. For the output of a command, see "sandbox attach".`,
		Example: `  sandbox logs --network demo
  sandbox logs --network demo --limit 1000 --json | jq 'select(.allowed | not)'`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if !network {
				return usage.Errorf("--network is missing: it is the only log of a sandbox")
			}
			sb, err := a.sandbox(cmd.Context(), given[0], false)
			if err != nil {
				return err
			}
			if session == "" {
				session = sb.Session().ID
			}
			events, err := sb.NetworkEvents(cmd.Context(), session, limit)
			if err != nil {
				return err
			}
			if asJSON {
				out := json.NewEncoder(a.Out)
				for _, e := range events {
					if err := out.Encode(e); err != nil {
						return err
					}
				}
				return nil
			}
			a.eventTable(events)
			return nil
		},
	}
	cmd.Flags().BoolVar(&network, "network", false, "show the network policy's decisions")
	cmd.Flags().StringVar(&session, "session", "", "session of the sandbox (default: the last)")
	cmd.Flags().IntVar(&limit, "limit", 100, "number of newest events (1 to 1000)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each event as a line of JSON")
	return cmd
}

func (a *app) eventTable(events []skerry.NetworkEvent) {
	rows := make([][]cell, 0, len(events))
	for _, e := range events {
		verdict, out, in := "denied", "-", "-"
		if e.Allowed {
			verdict = "allowed"
		}
		if e.End {
			verdict, out, in = "ended", size(e.BytesOut), size(e.BytesIn)
		}
		rows = append(rows, []cell{
			plain(e.Time.UTC().Format(time.RFC3339)), plain(verdict), plain(e.Protocol), plain(or(e.Domain)), plain(or(e.Destination)),
			plain(e.Reason), plain(out), plain(in),
		})
	}
	a.table([]string{"TIME", "VERDICT", "PROTOCOL", "DOMAIN", "DESTINATION", "REASON", "OUT", "IN"}, rows,
		"OUT", "IN", "PROTOCOL", "REASON", "TIME")
}
