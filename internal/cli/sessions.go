package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "sessions", Short: "List the sessions of a sandbox",
		Long:    "List the sessions of a sandbox: each is one run of it, from its start to its stop.",
		Example: "  sandbox sessions list demo --all",
		Args:    usage.Args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.sessionsListCommand())
	return cmd
}

func (a *app) sessionsListCommand() *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use: "list [flags] NAME", Aliases: []string{"ls"}, Short: "List the sessions of a sandbox", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `List the sessions of a sandbox: the one that runs, or with --all those that have
ended too, the latest first.`,
		Example: `  sandbox sessions list demo --all
  sandbox sessions ls demo --all --json | jq '.sessions[].duration'`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if err := f.check(); err != nil {
				return err
			}
			sb, err := a.sandbox(cmd.Context(), given[0], false) // a name that is not there is an error, not an empty list
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			get := func(cursor string, limit int) (client.Page[skerry.Session], error) {
				return c.ListSessionsPage(cmd.Context(), sb.Name(), client.SessionOptions{
					Limit: limit, Cursor: cursor, Ascending: f.order.value == "asc",
				})
			}
			page, err := fillPage(f.cursor, f.limit, get, func(s skerry.Session) bool { return f.all || s.Status == skerry.StatusRunning })
			if err != nil {
				return err
			}
			if f.json {
				return a.json(struct {
					Sessions   []skerry.Session `json:"sessions"`
					Pagination pagination       `json:"pagination"`
				}{page.Items, paginate(page)})
			}
			if len(page.Items) == 0 && a.OutTTY {
				a.nothing("session", f.all, "sandbox sessions list --all "+clean(sb.Name()))
				return nil
			}
			a.sessionTable(page.Items, f.all)
			a.more(cmd, page.Next)
			return nil
		},
	}
	f.register(cmd, "sessions")
	return cmd
}

func (a *app) sessionTable(list []skerry.Session, all bool) {
	title := []string{"ID", "STATUS", "CREATED", "VCPUS", "MEMORY", "IMAGE/RUNTIME", "TIMEOUT", "DURATION"}
	if all {
		title = append(title, "CPU", "MEMORY TIME", "NETWORK (OUT/IN)", "STARTED FROM")
	}
	rows := make([][]cell, 0, len(list))
	for _, s := range list {
		timeout, duration := "-", "-"
		if !s.Status.Ended() {
			timeout = a.ago(s.ExpiresAt())
		}
		if s.Duration > 0 {
			duration = span(time.Duration(s.Duration))
		}
		row := []cell{
			plain(s.ID), a.statusCell(s.Status, s.PausedAt, s.IdleState), plain(a.ago(s.CreatedAt)), plain(number(s.VCPUs)), plain(memory(s.MemoryMB)),
			plain(image(s.Image, s.Runtime)), plain(timeout), plain(duration),
		}
		if all {
			var out, in int64
			if s.Network != nil {
				out, in = s.Network.Egress, s.Network.Ingress
			}
			row = append(row, plain(cpu(s.ActiveCPU)), plain(memoryTime(s.ResidentMBSeconds)), plain(network(out, in)), plain(or(s.SourceSnapshotID)))
		}
		rows = append(rows, row)
	}
	a.table(title, rows, "MEMORY", "TIMEOUT", "VCPUS", "MEMORY TIME", "NETWORK (OUT/IN)", "CPU", "IMAGE/RUNTIME", "STARTED FROM", "DURATION", "CREATED")
}
