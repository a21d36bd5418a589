package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "See and change the configuration of a sandbox", Args: args(cobra.NoArgs),
		Long: `See and change the configuration of a sandbox. Most changes count from the next
session on. What the server cannot do yet it refuses, and says so.`,
		Example: `  sandbox config list demo
  sandbox config timeout demo 1h
  sandbox config tags demo --tag team=web --tag stage=test
  sandbox config keep-last-snapshots demo 3`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configListCommand(), a.configTagsCommand(), a.configPortsCommand(), a.configMountsCommand(), a.configPolicyCommand())
	for _, s := range settings {
		cmd.AddCommand(a.settingCommand(s))
	}
	return cmd
}

// setting is a subcommand of config that takes a name and a value.
type setting struct {
	name, value, short, example string
	parse                       func(string) (client.UpdateOptions, error)
}

var settings = []setting{
	{"vcpus", "COUNT", "Change the number of virtual CPUs (2048 MiB of memory each)", "4", func(s string) (client.UpdateOptions, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return client.UpdateOptions{}, usagef("%q is not a positive number", s)
		}
		return client.UpdateOptions{VCPUs: &n}, nil
	}},
	{"timeout", "DURATION", "Change how long later sessions may last", "1h", func(s string) (client.UpdateOptions, error) {
		d, err := parseDuration(s)
		return client.UpdateOptions{Timeout: &d}, asUsage(err)
	}},
	{"persistent", "true|false", "Keep the files from one session to the next, or do not", "true", func(s string) (client.UpdateOptions, error) {
		yes, err := yesNo(s)
		return client.UpdateOptions{Persistent: &yes}, err
	}},
	{"region", "REGION", "Change the region of later sessions", "local", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{Region: &s}, nil
	}},
	{"failover-regions", "REGION,...|none", "Replace the regions to fail over to", "none", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{FailoverRegions: regions(s)}, nil
	}},
	{"network-id", "ID|none", "Change the private network", "none", func(s string) (client.UpdateOptions, error) {
		if s == "none" {
			s = ""
		}
		return client.UpdateOptions{NetworkID: &s}, nil
	}},
	{"current-snapshot", "SNAPSHOT", "Change the snapshot that the next session starts from", "snap_…", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{CurrentSnapshotID: &s}, nil
	}},
	{"snapshot-expiration", "DURATION|none", "Change how long later snapshots are kept", "30d", func(s string) (client.UpdateOptions, error) {
		d := duration{none: true}
		err := d.Set(s)
		return client.UpdateOptions{SnapshotExpiration: &d.d}, asUsage(err)
	}},
	{"keep-last-snapshots", "COUNT", "Keep only the latest snapshots (1 to 10), or all of them (0)", "3", func(s string) (client.UpdateOptions, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > skerry.MaxKeepLast {
			return client.UpdateOptions{}, usagef("%q is not a number from 1 to %d, or 0 to keep all", s, skerry.MaxKeepLast)
		}
		if n == 0 {
			return client.UpdateOptions{ClearKeepLastSnapshots: true}, nil
		}
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{Count: n}}, nil
	}},
	{"keep-last-snapshots-for", "DURATION|none", "Change how long the snapshots are kept that keep-last-snapshots keeps", "7d", func(s string) (client.UpdateOptions, error) {
		d := duration{none: true}
		err := d.Set(s)
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{Expiration: (*skerry.Duration)(&d.d)}}, asUsage(err)
	}},
	{"delete-evicted-snapshots", "true|false", "Delete what keep-last-snapshots does not keep at once, or let it expire", "false", func(s string) (client.UpdateOptions, error) {
		yes, err := yesNo(s)
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{DeleteEvicted: &yes}}, err
	}},
}

// complete fills in what a change of the retention leaves as it is: the API
// replaces it as a whole.
func complete(change *client.KeepLastSnapshots, sb *client.Sandbox) error {
	current := sb.Info().Retention
	if change == nil {
		return nil
	}
	if current == nil {
		if change.Count == 0 {
			return fmt.Errorf("%[1]s keeps all its snapshots; say how many first: sandbox config keep-last-snapshots %[1]s COUNT", clean(sb.Name()))
		}
		return nil
	}
	if change.Count == 0 {
		change.Count = current.Count
	}
	if change.Expiration == nil {
		change.Expiration = current.Expiration
	}
	if change.DeleteEvicted == nil {
		change.DeleteEvicted = current.DeleteEvicted
	}
	return nil
}

func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

func yesNo(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, usagef("%q is neither true nor false", s)
	}
	return s == "true", nil
}

func (a *app) settingCommand(s setting) *cobra.Command {
	return &cobra.Command{
		Use: s.name + " NAME " + s.value, Short: s.short, Args: args(cobra.ExactArgs(2)),
		Example: "  sandbox config " + s.name + " demo " + s.example,
		ValidArgsFunction: func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if s.name == "current-snapshot" && len(given) == 1 {
				return a.completeSnapshots(cmd, nil, prefix)
			}
			return a.completeFirst(cmd, given, prefix)
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			opts, err := s.parse(given[1])
			if err != nil {
				return err
			}
			return a.update(cmd, given[0], opts, s.name+": "+given[1])
		},
	}
}

// update changes a sandbox and says what was changed.
func (a *app) update(cmd *cobra.Command, name string, opts client.UpdateOptions, what string) error {
	defer a.spin("Updating "+clean(name)+"…", false)()
	sb, err := a.sandbox(cmd.Context(), name, false)
	if err != nil {
		return err
	}
	if err := complete(opts.KeepLastSnapshots, sb); err != nil {
		return err
	}
	if err := sb.Update(cmd.Context(), opts); err != nil {
		return err
	}
	fmt.Fprintf(a.Err, "%s Updated %s: %s\n", a.err.green("✔"), a.err.cyan(clean(name)), clean(what))
	return nil
}

func (a *app) configTagsCommand() *cobra.Command {
	var tags pairs
	cmd := &cobra.Command{
		Use: "tags [flags] NAME", Short: "Replace all tags", Args: args(cobra.ExactArgs(1)),
		Long:              "Replace all tags with those given; with none, remove them.",
		Example:           "  sandbox config tags demo --tag team=web --tag stage=test",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if tags.m == nil {
				tags.m = map[string]string{}
			}
			what := "no tags"
			if len(tags.m) > 0 {
				what = "tags " + tagList(tags.m)
			}
			return a.update(cmd, given[0], client.UpdateOptions{Tags: tags.m}, what)
		},
	}
	cmd.Flags().VarP(&tags, "tag", "t", "tag key=value (repeatable)")
	return cmd
}

func (a *app) configMountsCommand() *cobra.Command {
	var list []string
	cmd := &cobra.Command{
		Use: "mounts [flags] NAME", Short: "Replace the mounted drives", Args: args(cobra.ExactArgs(1)),
		Long:              "Replace the mounted drives with those given; with none, mount none. It counts from the next session on.",
		Example:           "  sandbox config mounts demo --mount data:/data",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			m, err := mounts(list)
			if err != nil {
				return err
			}
			if m == nil {
				m = map[string]client.Mount{}
			}
			return a.update(cmd, given[0], client.UpdateOptions{Mounts: m}, "mounts "+or(strings.Join(list, ", ")))
		},
	}
	cmd.Flags().StringArrayVar(&list, "mount", nil, "drive:/path[:read-write|snapshot] (repeatable)")
	return cmd
}

func (a *app) configPolicyCommand() *cobra.Command {
	var mode choice
	var domains, allow, deny []string
	cmd := &cobra.Command{
		Use: "network-policy [flags] NAME", Short: "Change what a sandbox may reach", Args: args(cobra.ExactArgs(1)),
		Long:              "Change what a sandbox may reach, at once.",
		Example:           "  sandbox config network-policy demo --network-policy deny-all\n  sandbox config network-policy demo --allowed-domain '*.example.com'",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := policy(mode.value, domains, allow, deny)
			if err != nil {
				return err
			}
			if p == nil {
				return usagef("there is nothing to change: give --network-policy or what to allow or deny")
			}
			return a.update(cmd, given[0], client.UpdateOptions{NetworkPolicy: p}, "network policy "+policyName(mode.value))
		},
	}
	registerPolicy(cmd, &mode, &domains, &allow, &deny)
	cmd.Flags().Var(&mode, "mode", "same as --network-policy")
	return cmd
}

func policyName(mode string) string {
	if mode == "" {
		return "restricted"
	}
	return mode
}

func (a *app) configListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list [flags] NAME", Aliases: []string{"ls"}, Short: "Show the configuration", Args: args(cobra.ExactArgs(1)),
		Example:           "  sandbox config list demo",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			sb, err := a.sandbox(cmd.Context(), given[0], false)
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(described(sb))
			}
			a.configTable(sb.Info(), sb.Routes())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the sandbox as JSON")
	return cmd
}

func (a *app) configTable(sb skerry.Sandbox, routes []skerry.Route) {
	timeout, network := "-", "-"
	if sb.Timeout > 0 {
		timeout = span(time.Duration(sb.Timeout))
	}
	if sb.NetworkPolicy != nil {
		network = policyName(strings.Replace(string(sb.NetworkPolicy.Mode), "custom", "", 1))
	}
	var rows [][]cell
	for _, r := range [][2]string{
		{"Status", string(sb.Status)},
		{"Image/runtime", image(sb.Image, sb.Runtime)},
		{"vCPUs", number(sb.VCPUs)},
		{"Memory", memory(sb.MemoryMB)},
		{"Timeout", timeout},
		{"Persistent", strconv.FormatBool(sb.Persistent)},
		{"Current snapshot", or(sb.CurrentSnapshotID)},
		{"Snapshot expiration", expiration(sb.SnapshotExpiration)},
		{"Keep last snapshots", retention(sb.Retention)},
		{"Network policy", network},
		{"Ports", routeList(routes)},
		{"Region", or(sb.Region)},
		{"Tags", or(tagList(sb.Tags))},
	} {
		rows = append(rows, []cell{{clean(r[0]), a.out.bold}, plain(r[1])})
	}
	a.table([]string{"FIELD", "VALUE"}, rows)
}

// expiration says how long snapshots are kept.
func expiration(d *skerry.Duration) string {
	switch {
	case d == nil:
		return days(skerry.DefaultSnapshotExpiration) + " (default)"
	case *d == 0:
		return "none"
	}
	return days(d.Std())
}

// days writes a span to be read, in days if it is that long.
func days(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return span(d)
}

func retention(r *skerry.Retention) string {
	if r == nil {
		return "all"
	}
	text := strconv.Itoa(r.Count)
	if r.Expiration != nil {
		text += " for " + expiration(r.Expiration)
	}
	if r.DeleteEvicted != nil && !*r.DeleteEvicted {
		text += ", the others expire"
	}
	return text
}
