package cli

import (
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
)

func (a *app) logsCommand() *cobra.Command {
	var network, asJSON bool
	var session string
	var limit int
	cmd := &cobra.Command{
		Use: "logs --network [flags] NAME", Short: "See what a sandbox was let reach", Args: args(cobra.ExactArgs(1)),
		Long: `See what the proxy has allowed and denied to a sandbox whose network policy
lists domains: connections, requests and queries, the latest last. What is denied
by its address alone is not among them. What a command has printed, "sandbox exec"
shows.`,
		Example: `  sandbox logs --network demo
  sandbox logs --network demo --limit 1000 --json | jq 'select(.allowed | not)'`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if !network {
				return usagef("give --network: it is the only log that a sandbox has")
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
	cmd.Flags().BoolVar(&network, "network", false, "the decisions of the proxy")
	cmd.Flags().StringVar(&session, "session", "", "of this session of the sandbox (default: the last)")
	cmd.Flags().IntVar(&limit, "limit", 100, "how many of the newest (1 to 1000)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a line of JSON for each")
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
	a.table([]string{"TIME", "VERDICT", "PROTOCOL", "DOMAIN", "DESTINATION", "REASON", "OUT", "IN"}, rows)
}
