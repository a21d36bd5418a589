package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) drivesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drives", Short: "Create, list and delete drives",
		Long: `Create, list and delete drives. A drive is a folder that outlives the sandboxes in
which it is mounted. One running sandbox at a time can write to it. Any number of
others can mount a snapshot of it: a read-only copy, made when they started.`,
		Example: `  sandbox drives create data --max-size 5GiB
  sandbox create --mount data:/data
  sandbox create --mount data:/data:snapshot`,
		Args: usage.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.drivesListCommand(), a.drivesGetCommand(), a.drivesCreateCommand(), a.drivesForkCommand(), a.drivesDeleteCommand())
	return cmd
}

func (a *app) drivesListCommand() *cobra.Command {
	var f listFlags
	var prefix string
	sortBy := choice{choices: []string{"createdAt", "updatedAt", "name"}}
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List drives", Args: usage.Args(cobra.NoArgs),
		Long: `List the project's drives, the latest first. On a terminal it is a table of the
columns that fit; piped, the fields of each line are separated by tabs, and --json
prints everything that the server returns.`,
		Example: `  sandbox drives list --name-prefix data-
  sandbox drives ls --json | jq -r '.drives[].name'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if prefix != "" && sortBy.value == "" {
				sortBy.value = "name"
			}
			page, err := a.listDrives(cmd.Context(), client.DriveListOptions{
				Limit: f.limit, Cursor: f.cursor, Ascending: f.order.value == "asc", SortBy: sortBy.value, NamePrefix: prefix,
			})
			if err != nil {
				return err
			}
			if f.json {
				if page.Items == nil {
					page.Items = []skerry.Drive{}
				}
				return a.json(struct {
					Drives     []skerry.Drive `json:"drives"`
					Pagination pagination     `json:"pagination"`
				}{page.Items, paginate(page)})
			}
			if len(page.Items) == 0 && a.OutTTY {
				a.nothing("drive", true, "")
				return nil
			}
			a.driveTable(page.Items)
			a.more(cmd, page.Next)
			return nil
		},
	}
	f.registerPage(cmd)
	cmd.Flags().StringVar(&prefix, "name-prefix", "", "only names with this prefix")
	cmd.Flags().Var(&sortBy, "sort-by", "what to sort by (default createdAt, with --name-prefix name)")
	return cmd
}

func (a *app) listDrives(ctx context.Context, opts client.DriveListOptions) (client.Page[skerry.Drive], error) {
	c, err := a.client()
	if err != nil {
		return client.Page[skerry.Drive]{}, err
	}
	defer a.spin("Fetching drives…", false)()
	return c.ListDrivesPage(ctx, opts)
}

func (a *app) driveTable(list []skerry.Drive) {
	rows := make([][]cell, 0, len(list))
	for i := range list {
		d := &list[i]
		rows = append(rows, []cell{
			plain(d.Name), plain(d.Region), plain(a.ago(d.CreatedAt)), plain(a.ago(d.UpdatedAt)), plain(size(d.MaxSizeBytes)),
			plain(or(d.CurrentSandboxName)), plain(or(d.CurrentSessionID)),
		})
	}
	a.table([]string{"NAME", "REGION", "CREATED", "UPDATED", "SIZE", "ATTACHED SANDBOX", "ATTACHED SESSION"}, rows,
		"ATTACHED SESSION", "REGION", "UPDATED", "CREATED", "SIZE")
}

// showDrive prints a drive as fields or as JSON.
func (a *app) showDrive(d *skerry.Drive, asJSON bool) error {
	if asJSON {
		return a.json(d)
	}
	rows := [][]cell{
		{plain("Name"), plain(d.Name)},
		{plain("ID"), plain(d.ID)},
		{plain("Size"), plain(size(d.MaxSizeBytes))},
		{plain("Attached sandbox"), plain(or(d.CurrentSandboxName))},
		{plain("Attached session"), plain(or(d.CurrentSessionID))},
		{plain("Created"), plain(a.ago(d.CreatedAt))},
		{plain("Updated"), plain(a.ago(d.UpdatedAt))},
		{plain("Region"), plain(or(d.Region))},
	}
	if d.ParentDriveID != "" {
		rows = append(rows, []cell{plain("Forked from"), plain(d.ParentDriveID)})
	}
	for _, row := range rows {
		row[0].paint = a.out.bold
	}
	a.table([]string{"FIELD", "VALUE"}, rows)
	return nil
}

func (a *app) drivesGetCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "get [flags] NAME", Short: "Show a drive", Args: usage.Args(cobra.ExactArgs(1)),
		Long:              "Show a drive: its size and the sandbox that can write to it, if there is one.",
		Example:           "  sandbox drives get data",
		ValidArgsFunction: a.completeDrives,
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.GetDrive(cmd.Context(), given[0])
			if err != nil {
				return err
			}
			return a.showDrive(&d, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the drive as JSON")
	return cmd
}

func (a *app) drivesCreateCommand() *cobra.Command {
	var max, region string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "get-or-create [flags] NAME", Aliases: []string{"create"}, Short: "Create a drive, unless it exists", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `Create a drive, unless one of that name exists, and print its name. An existing
drive is left as it is, whatever its size.

The name goes to standard output, all else to standard error.`,
		Example: `  sandbox drives create data
  sandbox drives get-or-create data --max-size 5GiB`,
		RunE: func(cmd *cobra.Command, given []string) error {
			opts := client.DriveOptions{Region: region}
			var err error
			if max != "" {
				if opts.MaxSizeBytes, err = parseSize(max); err != nil {
					return usage.Errorf("--max-size: %w", err)
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			stop := a.spin("Creating the drive…", false)
			defer stop()
			d, err := c.GetOrCreateDrive(cmd.Context(), given[0], opts)
			stop()
			if err != nil {
				return err
			}
			if opts.MaxSizeBytes != 0 && d.MaxSizeBytes != opts.MaxSizeBytes {
				fmt.Fprintf(a.Err, "%s the drive exists, and keeps its size; --max-size is for a new one.\n", a.err.yellow("Warning:"))
			}
			return a.showNewDrive(&d, asJSON)
		},
	}
	cmd.Flags().StringVar(&max, "max-size", "", "size of a new drive, in bytes or such as 512MiB or 5GiB (default 10GiB)")
	cmd.Flags().StringVar(&region, "region", "", "region of a new drive")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the drive as JSON in place of its name")
	return cmd
}

// showNewDrive says that a drive is there and prints its name.
func (a *app) showNewDrive(d *skerry.Drive, asJSON bool) error {
	if asJSON {
		return a.json(d)
	}
	fmt.Fprintf(a.Err, "%s Drive %s is ready (%s).\n", a.err.green("✔"), a.err.cyan(clean(d.Name)), size(d.MaxSizeBytes))
	fmt.Fprintln(a.Out, clean(d.Name))
	return nil
}

func (a *app) drivesForkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "fork [flags] SOURCE NAME", Short: "Create a copy of a drive", Args: usage.Args(cobra.ExactArgs(2)),
		Long: `Create a drive with the present content and the size of another. A sandbox that
writes to the source waits for the copy, and then continues.`,
		Example:           "  sandbox drives fork data data-experiment",
		ValidArgsFunction: a.completeDrives,
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			stop := a.spin("Copying the drive…", false)
			defer stop()
			d, err := c.ForkDrive(cmd.Context(), given[0], given[1])
			stop()
			if err != nil {
				return err
			}
			return a.showNewDrive(&d, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the drive as JSON in place of its name")
	return cmd
}

// sizeUnits are powers of 1024; the letters alone mean the same.
var sizeUnits = []string{"", "K", "M", "G", "T"}

// parseSize reads a number of bytes, or one with a unit.
func parseSize(s string) (int64, error) {
	bad := fmt.Errorf("%q is not a size; write a number of bytes, or a size such as 512MiB or 5GiB", s)
	digits := strings.TrimRight(s, "KMGTiB")
	letters := strings.TrimSuffix(s[len(digits):], "B")
	if len(letters) == 2 {
		letters = strings.TrimSuffix(letters, "i")
	}
	unit := slices.Index(sizeUnits, letters)
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 1 || unit < 0 || n > 1<<62>>(10*unit) {
		return 0, bad
	}
	return n << (10 * unit), nil
}

func (a *app) drivesDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME [NAME...]", Aliases: []string{"rm", "remove"}, Short: "Delete drives for good", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: `Delete one or more drives, with all files in them, for good. A drive that a
running sandbox can write to is refused: stop the sandbox first. If one cannot be
deleted, the others are deleted anyway, and the tool ends with 1. Sandboxes that
mount a deleted drive are named: they cannot be resumed without it.`,
		Example:           "  sandbox drives rm data",
		ValidArgsFunction: a.completeDrives,
		RunE: func(cmd *cobra.Command, names []string) error {
			var mu sync.Mutex
			var deleted []string
			err := a.each(cmd.Context(), "Deleting", "drives", names, func(ctx context.Context, c *client.Client, name string) (string, error) {
				_, err := c.DeleteDrive(ctx, name)
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					deleted = append(deleted, name)
				}
				return "Deleted " + a.err.cyan(clean(name)) + ".", err
			})
			slices.Sort(deleted)
			a.warnMounted(cmd.Context(), deleted)
			return err
		},
	}
}

// maxMountedPages bounds the sandboxes that warnMounted looks at.
const maxMountedPages = 10

// warnMounted names the sandboxes that mount drives which were deleted.
func (a *app) warnMounted(ctx context.Context, drives []string) {
	c, err := a.client()
	if err != nil || len(drives) == 0 {
		return
	}
	users := map[string][]string{}
	opts := client.ListOptions{Limit: skerry.MaxPageSize}
	for range maxMountedPages {
		page, err := c.ListSandboxesPage(ctx, opts)
		if err != nil {
			return // the drives are deleted all the same
		}
		for i := range page.Items {
			box := &page.Items[i]
			for _, m := range box.Mounts {
				if slices.Contains(drives, m.Drive) && !slices.Contains(users[m.Drive], clean(box.Name)) {
					users[m.Drive] = append(users[m.Drive], clean(box.Name))
				}
			}
		}
		if opts.Cursor = page.Next; opts.Cursor == "" {
			break
		}
	}
	for _, drive := range drives {
		if list := users[drive]; len(list) > 0 {
			fmt.Fprintf(a.Err, "%s %s is mounted by %s, which cannot be resumed without it; 'sandbox config mounts NAME' changes what a sandbox mounts.\n",
				a.err.yellow("Warning:"), clean(drive), strings.Join(list, ", "))
		}
	}
}

// completeDrives completes names of drives, each once.
func (a *app) completeDrives(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeWait)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	page, err := c.ListDrivesPage(ctx, client.DriveListOptions{Limit: 100, NamePrefix: prefix, SortBy: "name", Ascending: true})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, d := range page.Items {
		if !slices.Contains(given, d.Name) {
			names = append(names, clean(d.Name)+"\t"+size(d.MaxSizeBytes))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
