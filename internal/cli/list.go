package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// listFlags are those of every listing.
type listFlags struct {
	all, json bool
	order     choice
	limit     int
	cursor    string
}

func (f *listFlags) register(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "show all "+what+", not only those that run")
	f.registerPage(cmd)
}

func (f *listFlags) registerPage(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.order.choices = []string{"asc", "desc"}
	fs.Var(&f.order, "sort-order", "ascending or descending (default desc)")
	fs.IntVar(&f.limit, "limit", skerry.DefaultPageSize, "maximum number of rows")
	fs.StringVar(&f.cursor, "cursor", "", "continue an earlier listing")
	fs.BoolVar(&f.json, "json", false, "print JSON")
}

func (f *listFlags) check() error {
	if f.limit < 1 || f.limit > skerry.MaxPageSize {
		return usage.Errorf("--limit must be between 1 and %d", skerry.MaxPageSize)
	}
	return nil
}

// fillPage gets pages until limit items were found that are to be shown, so that
// what runs is found behind any number of what does not. The cursor of the
// result is "" if nothing more is to be shown.
func fillPage[T any](cursor string, limit int, get func(cursor string, limit int) (client.Page[T], error), show func(T) bool) (client.Page[T], error) {
	out := client.Page[T]{Items: []T{}}
	for size := skerry.MaxPageSize; ; {
		page, err := get(cursor, size)
		if err != nil {
			return page, err
		}
		var found []T
		for _, item := range page.Items {
			if show(item) {
				found = append(found, item)
			}
		}
		left := limit - len(out.Items)
		if left == 0 && len(found) > 0 {
			return out, nil // there is more, after out.Next
		}
		if len(found) > left && size > left {
			// A cursor is at the end of a page: a smaller one is needed.
			size = left
			continue
		}
		out.Items = append(out.Items, found...)
		last := page.Next == "" || page.Next == cursor
		cursor, size = page.Next, skerry.MaxPageSize
		switch {
		case last:
			out.Next = ""
			return out, nil
		case left > 0 && left == len(found):
			out.Next = cursor
		}
	}
}

// pagination is the JSON form of where a listing goes on.
type pagination struct {
	Count int     `json:"count"`
	Next  *string `json:"next"`
}

func paginate[T any](p client.Page[T]) pagination {
	out := pagination{Count: len(p.Items)}
	if p.Next != "" {
		out.Next = &p.Next
	}
	return out
}

// more tells how to see what follows.
func (a *app) more(cmd *cobra.Command, next string) {
	if next != "" {
		fmt.Fprintf(a.Err, "There is more: repeat the command with\n--cursor %s\n", clean(next))
	}
}

func (a *app) listCommand() *cobra.Command {
	var f listFlags
	var prefix string
	var tags pairs
	sortBy := choice{choices: []string{"createdAt", "name", "statusUpdatedAt", "currentSnapshotId"}}
	cmd := &cobra.Command{
		Use: "list [flags]", Aliases: []string{"ls"}, Short: "List sandboxes", Args: usage.Args(cobra.NoArgs),
		Long: `List the project's running sandboxes, the latest first; flags change both. On a
terminal it is a table of the columns that fit; when piped, the fields of each line
are separated by tabs, and --json prints everything that the server returns.`,
		Example: `  sandbox list --all
  sandbox ls --name-prefix demo- --sort-order asc
  sandbox ls --tag team=web --json | jq -r '.sandboxes[].name'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if prefix != "" && sortBy.value != "" && sortBy.value != "name" {
				return usage.Errorf("--name-prefix sorts by name; --sort-by %s does not go with it", sortBy.value)
			}
			opts := client.ListOptions{
				SortBy: sortBy.value, Ascending: f.order.value == "asc", NamePrefix: prefix, Tags: tags.m,
			}
			if prefix != "" {
				opts.SortBy = "name"
			}
			page, err := a.listSandboxes(cmd.Context(), opts, &f)
			if err != nil {
				return err
			}
			if f.json {
				return a.json(struct {
					Sandboxes  []skerry.Sandbox `json:"sandboxes"`
					Pagination pagination       `json:"pagination"`
				}{page.Items, paginate(page)})
			}
			a.sandboxTable(page.Items, f.all)
			a.more(cmd, page.Next)
			return nil
		},
	}
	f.register(cmd, "sandboxes")
	fs := cmd.Flags()
	fs.StringVar(&prefix, "name-prefix", "", "only names with this prefix")
	fs.Var(&sortBy, "sort-by", "what to sort by (default createdAt)")
	fs.Var(&tags, "tag", "only those with this tag key=value (repeatable)")
	return cmd
}

func (a *app) listSandboxes(ctx context.Context, opts client.ListOptions, f *listFlags) (client.Page[skerry.Sandbox], error) {
	c, err := a.client()
	if err != nil {
		return client.Page[skerry.Sandbox]{}, err
	}
	defer a.spin("Fetching sandboxes…", false)()
	get := func(cursor string, limit int) (client.Page[skerry.Sandbox], error) {
		opts.Cursor, opts.Limit = cursor, limit
		return c.ListSandboxesPage(ctx, opts)
	}
	return fillPage(f.cursor, f.limit, get, func(sb skerry.Sandbox) bool { return f.all || sb.Status == skerry.StatusRunning })
}

func (a *app) sandboxTable(list []skerry.Sandbox, all bool) {
	title := []string{"NAME", "STATUS", "CREATED", "VCPUS", "MEMORY", "IMAGE/RUNTIME", "TIMEOUT", "TAGS"}
	if all {
		title = append(title, "CPU", "MEMORY TIME", "NETWORK (OUT/IN)", "PORTS")
	}
	rows := make([][]cell, 0, len(list))
	for _, sb := range list {
		timeout := "-"
		if !sb.ExpiresAt.IsZero() && !sb.Status.Ended() {
			timeout = a.ago(sb.ExpiresAt)
		}
		row := []cell{
			plain(sb.Name), a.statusCell(sb.Status, sb.PausedAt, sb.IdleState), plain(a.ago(sb.CreatedAt)), plain(number(sb.VCPUs)), plain(memory(sb.MemoryMB)),
			plain(image(sb.Image, sb.Runtime)), plain(timeout), plain(or(tagList(sb.Tags))),
		}
		if all {
			row = append(row, plain(cpu(sb.TotalActiveCPU)), plain(memoryTime(sb.TotalResidentMBSeconds)), plain(network(sb.TotalEgressBytes, sb.TotalIngressBytes)), plain(portsOf(sb.Routes)))
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 && a.OutTTY {
		a.nothing("sandbox", all, "sandbox list --all")
		return
	}
	a.table(title, rows, "MEMORY", "TIMEOUT", "VCPUS", "MEMORY TIME", "NETWORK (OUT/IN)", "CPU", "IMAGE/RUNTIME", "TAGS", "PORTS", "CREATED")
}

// nothing says to a person that a listing is empty, in place of a table that
// is only a title.
func (a *app) nothing(what string, all bool, showAll string) {
	if all {
		fmt.Fprintf(a.Err, "There is no such %s.\n", what)
		return
	}
	fmt.Fprintf(a.Err, "No %s is running; '%s' shows those that have ended too.\n", what, showAll)
}

func (a *app) statusCell(s skerry.SessionStatus, pausedAt skerry.Time, idle skerry.IdleState) cell {
	switch {
	case s == skerry.StatusRunning && !pausedAt.IsZero():
		return cell{"paused", a.out.yellow}
	case s == skerry.StatusRunning && idle != "": // the next use has it run
		return cell{clean(idle.Shown()), a.out.green}
	}
	return cell{clean(string(s)), func(string) string { return a.out.status(s) }}
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func memory(mb int) string {
	if mb == 0 {
		return "-"
	}
	return size(int64(mb) << 20)
}

func cpu(d skerry.Duration) string {
	if d == 0 {
		return "-"
	}
	return span(time.Duration(d))
}

// memoryTime is memory that was held over time, in MiB minutes or GiB hours.
func memoryTime(mbSeconds int64) string {
	switch minutes := mbSeconds / 60; {
	case mbSeconds == 0:
		return "-"
	case minutes < 1:
		return "< 1 MiB min"
	case minutes < 60<<10:
		return number(int(minutes)) + " MiB min"
	default:
		return fmt.Sprintf("%.1f GiB h", float64(minutes)/60/1024)
	}
}

func network(out, in int64) string {
	if out == 0 && in == 0 {
		return "-"
	}
	return strings.Join([]string{size(out), size(in)}, " / ")
}
