package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// treeLimit is how far a tree goes each way unless --limit says.
const treeLimit = 10

func (a *app) snapshotsTreeCommand() *cobra.Command {
	f := listFlags{limit: treeLimit}
	cmd := &cobra.Command{
		Use: "tree [flags] NAME", Short: "Show the ancestors and descendants of a sandbox's snapshot", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `Show the snapshot that a sandbox starts from, with the snapshots related to it. Its
descendants are above it, and its ancestors below it, down to the image. Snapshots
with the same parent are beside each other. Piped, each snapshot is a line with its
fields separated by tabs.`,
		Example: `  sandbox snapshots tree demo
  sandbox snapshots tree demo --limit 3 --sort-order asc --cursor snap_…`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.order.value != "" && f.cursor == "" {
				return usage.Errorf("--sort-order needs --cursor: it is the direction from there")
			}
			t, err := a.fetchTree(cmd.Context(), given[0], &f)
			if err != nil {
				return err
			}
			if f.json {
				return a.json(t)
			}
			if t.empty() && a.OutTTY {
				fmt.Fprintf(a.Err, "There is no snapshot of %s yet.\n", clean(given[0]))
				return nil
			}
			if a.OutTTY {
				a.drawTree(t)
			} else {
				a.treeTable(t)
			}
			a.moreTree(given[0], t, &f)
			return nil
		},
	}
	fs := cmd.Flags()
	f.order.choices = []string{"asc", "desc"}
	fs.Var(&f.order, "sort-order", "direction from --cursor: desc (default) to its ancestors, asc to its descendants")
	fs.IntVar(&f.limit, "limit", treeLimit, "maximum number of snapshots in each direction")
	fs.StringVar(&f.cursor, "cursor", "", "continue at the snapshot with this id, where an earlier tree ended")
	fs.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

// tree is the neighbourhood of a snapshot.
type tree struct {
	// Current is nil for a tree that goes on where another ended.
	Current     *treeNode  `json:"current,omitempty"`
	Ancestors   []treeNode `json:"ancestors"`
	Descendants []treeNode `json:"descendants"`
	// The ids from which the walk goes on, if it does.
	MoreAncestors   string `json:"moreAncestors,omitempty"`
	MoreDescendants string `json:"moreDescendants,omitempty"`
}

type treeNode struct {
	skerry.Snapshot
	Siblings []skerry.Snapshot `json:"siblings"`
	Count    int               `json:"count"`
}

func (t *tree) empty() bool { return t.Current == nil && len(t.Ancestors)+len(t.Descendants) == 0 }

func (a *app) fetchTree(ctx context.Context, name string, f *listFlags) (*tree, error) {
	defer a.spin("Fetching snapshots…", false)()
	sb, err := a.sandbox(ctx, name, false)
	if err != nil {
		return nil, err
	}
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	t := &tree{Ancestors: []treeNode{}, Descendants: []treeNode{}}
	from := f.cursor
	if from == "" {
		from = sb.Info().CurrentSnapshotID
	}
	if from == "" {
		from = sb.Session().SourceSnapshotID
	}
	if from == "" {
		return t, nil
	}
	if f.order.value != "asc" {
		up, err := c.SnapshotTreePage(ctx, from, client.TreeOptions{Limit: f.limit})
		if err != nil {
			return nil, err
		}
		t.Ancestors, t.MoreAncestors = nodes(up.Items), up.Next
		if f.cursor == "" {
			t.Current = &nodes([]skerry.SnapshotNode{up.Anchor})[0]
		}
	}
	if f.order.value == "asc" || f.cursor == "" {
		down, err := c.SnapshotTreePage(ctx, from, client.TreeOptions{Limit: f.limit, Descendants: true})
		if err != nil {
			return nil, err
		}
		t.Descendants, t.MoreDescendants = nodes(down.Items), down.Next
	}
	return t, nil
}

func nodes(list []skerry.SnapshotNode) []treeNode {
	out := make([]treeNode, len(list))
	for i, n := range list {
		out[i] = treeNode{n.Snapshot, n.Siblings, n.Count}
		if out[i].Siblings == nil {
			out[i].Siblings = []skerry.Snapshot{}
		}
	}
	return out
}

// generations returns all of a tree, the youngest first.
func (t *tree) generations() (list []*treeNode) {
	for i := range t.Descendants {
		list = append(list, &t.Descendants[i])
	}
	slices.Reverse(list)
	if t.Current != nil {
		list = append(list, t.Current)
	}
	for i := range t.Ancestors {
		list = append(list, &t.Ancestors[i])
	}
	return list
}

// drawTree draws a tree for a person.
func (a *app) drawTree(t *tree) {
	var last *treeNode
	for _, n := range t.generations() {
		if last != nil {
			fmt.Fprintln(a.Out, "│")
		}
		last = n
		fmt.Fprintln(a.Out, a.drawNode(n, n == t.Current))
		for i := range n.Siblings {
			joint := "├──"
			if i == len(n.Siblings)-1 && n.Count <= len(n.Siblings)+1 {
				joint = "╰──"
			}
			fmt.Fprintf(a.Out, "│  %s %s\n", joint, a.out.dim(strings.Join(a.nodeFields(&n.Siblings[i]), "  ")))
		}
		if others := n.Count - 1 - len(n.Siblings); others > 0 {
			fmt.Fprintf(a.Out, "│  ╰── %s\n", a.out.dim(fmt.Sprintf("and %d more", others)))
		}
	}
	if last != nil && last.ParentID == "" {
		fmt.Fprintf(a.Out, "│\n○ %s\n", a.out.dim("the image"))
	}
}

func (a *app) drawNode(n *treeNode, current bool) string {
	fields := a.nodeFields(&n.Snapshot)
	fields[0] = a.out.cyan(fields[0])
	line := "● " + strings.Join(fields, "  ")
	if current {
		line += "  " + a.out.green("◂ current")
	}
	return line
}

func (a *app) nodeFields(s *skerry.Snapshot) []string {
	fields := []string{clean(s.ID), a.ago(s.CreatedAt), size(s.SizeBytes)}
	if s.Status != skerry.SnapshotCreated {
		return append(fields, clean(string(s.Status)))
	}
	if s.ExpiresAt.IsZero() {
		return append(fields, "never expires")
	}
	return append(fields, "expires "+a.ago(s.ExpiresAt))
}

// treeTable writes a tree for a program: the youngest generation first, and in
// each the one that the walk went through before the others.
func (a *app) treeTable(t *tree) {
	var rows [][]cell
	row := func(s *skerry.Snapshot, place string) {
		rows = append(rows, []cell{
			plain(s.ID), plain(or(s.ParentID)), plain(place), plain(a.ago(s.CreatedAt)), a.expiresCell(s), plain(size(s.SizeBytes)),
		})
	}
	for _, n := range t.generations() {
		place := "line"
		if n == t.Current {
			place = "current"
		}
		row(&n.Snapshot, place)
		for i := range n.Siblings {
			row(&n.Siblings[i], "sibling")
		}
	}
	a.table([]string{"ID", "PARENT", "PLACE", "CREATED", "EXPIRES", "SIZE"}, rows)
}

// moreTree tells how to see what follows.
func (a *app) moreTree(name string, t *tree, f *listFlags) {
	limit := ""
	if f.limit != treeLimit {
		limit = fmt.Sprintf(" --limit %d", f.limit)
	}
	for _, way := range []struct{ what, order, cursor string }{
		{"descendants", "asc", t.MoreDescendants}, {"ancestors", "desc", t.MoreAncestors},
	} {
		if way.cursor != "" {
			fmt.Fprintf(a.Err, "There are more %s: sandbox snapshots tree %s%s --sort-order %s --cursor %s\n",
				way.what, clean(name), limit, way.order, clean(way.cursor))
		}
	}
}
