package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) snapshotsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshots", Short: "List and delete snapshots",
		Long: `List and delete snapshots: the files of sandboxes as they were at one moment. They
are kept until they expire (after 30 days by default), even if their sandbox is
removed.`,
		Example: `  sandbox snapshots list --name demo
  sandbox snapshots tree demo`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.snapshotsListCommand(), a.snapshotsGetCommand(), a.snapshotsDeleteCommand(), a.snapshotsTreeCommand())
	return cmd
}

func (a *app) snapshotsListCommand() *cobra.Command {
	var f listFlags
	var name string
	var deleted bool
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List snapshots", Args: usage.Args(cobra.NoArgs),
		Long: `List the project's snapshots, the latest first. On a terminal it is a table of the
columns that fit; piped, the fields of each line are separated by tabs, and --json
prints everything that the server returns. With --deleted, snapshots that were
deleted or have expired in the last 30 days are listed too.`,
		Example: `  sandbox snapshots list --name demo
  sandbox snapshots ls --json | jq -r '.snapshots[].id'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			page, err := a.listSnapshots(cmd.Context(), name, deleted, &f)
			if err != nil {
				return err
			}
			if f.json {
				if page.Items == nil {
					page.Items = []skerry.Snapshot{}
				}
				return a.json(struct {
					Snapshots  []skerry.Snapshot `json:"snapshots"`
					Pagination pagination        `json:"pagination"`
				}{page.Items, paginate(page)})
			}
			if len(page.Items) == 0 && a.OutTTY {
				a.nothing("snapshot", true, "")
				return nil
			}
			a.snapshotTable(page.Items)
			a.more(cmd, page.Next)
			return nil
		},
	}
	f.registerPage(cmd)
	cmd.Flags().BoolVar(&deleted, "deleted", false, "list deleted and expired ones too")
	cmd.Flags().StringVar(&name, "name", "", "only snapshots of the sandbox with this name, which may be deleted")
	return cmd
}

func (a *app) listSnapshots(ctx context.Context, name string, deleted bool, f *listFlags) (client.Page[skerry.Snapshot], error) {
	c, err := a.client()
	if err != nil {
		return client.Page[skerry.Snapshot]{}, err
	}
	defer a.spin("Fetching snapshots…", false)()
	return c.ListSnapshotsPage(ctx, name, client.SnapshotOptions{Limit: f.limit, Cursor: f.cursor, Ascending: f.order.value == "asc", Deleted: deleted})
}

func (a *app) snapshotTable(list []skerry.Snapshot) {
	rows := make([][]cell, 0, len(list))
	for i := range list {
		s := &list[i]
		rows = append(rows, []cell{
			plain(s.ID), plain(or(s.SandboxName)), plain(a.ago(s.CreatedAt)), a.expiresCell(s), plain(size(s.SizeBytes)),
			plain(content(s)), plain(or(string(s.CreationMethod))), plain(s.SourceSessionID),
		})
	}
	a.table([]string{"ID", "SANDBOX", "CREATED", "EXPIRES", "SIZE", "CONTENT", "TAKEN", "SOURCE SESSION"}, rows,
		"SOURCE SESSION", "TAKEN", "CONTENT", "SIZE", "CREATED", "EXPIRES")
}

// content says what a snapshot has of a session.
func content(s *skerry.Snapshot) string {
	if s.Memory {
		return "files, memory"
	}
	return "files"
}

// expiresCell says when a snapshot goes, in red if that is soon.
func (a *app) expiresCell(s *skerry.Snapshot) cell {
	switch left := s.ExpiresAt.Sub(a.Now()); {
	case s.Status != skerry.SnapshotCreated:
		return cell{clean(string(s.Status)), a.out.dim}
	case s.ExpiresAt.IsZero():
		return plain("never")
	case left <= 0:
		return cell{"expired", a.out.red}
	case left < time.Hour:
		return cell{a.ago(s.ExpiresAt), a.out.red}
	}
	return plain(a.ago(s.ExpiresAt))
}

func (a *app) snapshotsGetCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "get [flags] SNAPSHOT", Short: "Show a snapshot", Args: usage.Args(cobra.ExactArgs(1)),
		Long:              "Show a snapshot, also a deleted one.",
		Example:           "  sandbox snapshots get snap_…",
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			stop := a.spin("Fetching the snapshot…", false)
			defer stop()
			snap, err := c.GetSnapshot(cmd.Context(), given[0])
			stop()
			if err != nil {
				return err
			}
			info := snap.Info()
			if asJSON {
				return a.json(info)
			}
			a.snapshotFields(&info)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the snapshot as JSON")
	return cmd
}

func (a *app) snapshotFields(s *skerry.Snapshot) {
	used := "never"
	if !s.LastUsedAt.IsZero() {
		used = a.ago(s.LastUsedAt)
	}
	rows := [][]cell{
		{plain("ID"), plain(s.ID)},
		{plain("Status"), plain(string(s.Status))},
		{plain("Sandbox"), plain(or(s.SandboxName))},
		{plain("Source session"), plain(s.SourceSessionID)},
		{plain("Parent"), plain(or(s.ParentID))},
		{plain("Size"), plain(size(s.SizeBytes))},
		{plain("Content"), plain(content(s))},
		{plain("Taken"), plain(or(string(s.CreationMethod)))},
		{plain("Created"), plain(a.ago(s.CreatedAt))},
		{plain("Last used"), plain(used)},
		{plain("Expires"), a.expiresCell(s)},
		{plain("Region"), plain(or(s.Region))},
	}
	for _, row := range rows {
		row[0].paint = a.out.bold
	}
	a.table([]string{"FIELD", "VALUE"}, rows)
}

func (a *app) snapshotsDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete SNAPSHOT [SNAPSHOT...]", Aliases: []string{"rm", "remove"}, Short: "Delete snapshots for good", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Delete one or more snapshots for good. A sandbox that would start from one of
them cannot be resumed until it is given another one with "sandbox config
current-snapshot". If one cannot be deleted, the others are deleted anyway, and the
tool ends with 1.`,
		Example: `  sandbox snapshots rm snap_…
  sandbox snapshots ls --name demo --json | jq -r '.snapshots[1:][].id' | xargs sandbox snapshots rm`,
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.each(cmd.Context(), "Deleting", "snapshots", ids, func(ctx context.Context, c *client.Client, id string) (string, error) {
				_, err := c.DeleteSnapshot(ctx, id)
				return "Deleted " + a.err.cyan(clean(id)) + ".", err
			})
		},
	}
}
