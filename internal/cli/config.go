package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show and change the configuration of a sandbox", Args: usage.Args(cobra.NoArgs),
		Long: `Show and change the configuration of a sandbox. Most changes count from the next
session on. The server refuses settings that it does not support yet.`,
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
	// later tells that a session which runs keeps what it has.
	later bool
}

var settings = []setting{
	{"vcpus", "COUNT", "Change the number of virtual CPUs (2048 MiB of memory each)", "4", func(s string) (client.UpdateOptions, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return client.UpdateOptions{}, usage.Errorf("%q is not a positive number", s)
		}
		return client.UpdateOptions{VCPUs: &n}, nil
	}, true},
	{"timeout", "DURATION", "Change how long later sessions may last", "1h", func(s string) (client.UpdateOptions, error) {
		d, err := usage.ParseDuration(s)
		return client.UpdateOptions{Timeout: &d}, asUsage(err)
	}, true},
	{"persistent", "true|false", "Keep the files from one session to the next, or do not", "true", func(s string) (client.UpdateOptions, error) {
		yes, err := yesNo(s)
		return client.UpdateOptions{Persistent: &yes}, err
	}, false},
	{"idle", "default|never|pause|hibernate", "Change whether the sandbox is paused while nobody uses it; applies to its running session too", "pause", func(s string) (client.UpdateOptions, error) {
		mode := skerry.IdleMode(s)
		if !slices.Contains(skerry.IdleModes, mode) {
			return client.UpdateOptions{}, usage.Errorf("%q is not one of %s", s, strings.Join(idleModes(), ", "))
		}
		return client.UpdateOptions{Idle: &mode}, nil
	}, false},
	{"region", "REGION", "Change the region of later sessions", "local", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{Region: &s}, nil
	}, false},
	{"failover-regions", "REGION,...|none", "Replace the failover regions", "none", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{FailoverRegions: regions(s)}, nil
	}, false},
	{"network-id", "ID|none", "Change the private network", "none", func(s string) (client.UpdateOptions, error) {
		if s == "none" {
			s = ""
		}
		return client.UpdateOptions{NetworkID: &s}, nil
	}, false},
	{"current-snapshot", "SNAPSHOT", "Change the snapshot that the next session starts from", "snap_…", func(s string) (client.UpdateOptions, error) {
		return client.UpdateOptions{CurrentSnapshotID: &s}, nil
	}, false},
	{"snapshot-expiration", "DURATION|none", "Change how long later snapshots are kept", "30d", func(s string) (client.UpdateOptions, error) {
		d := duration{none: true}
		err := d.Set(s)
		return client.UpdateOptions{SnapshotExpiration: &d.d}, asUsage(err)
	}, false},
	{"keep-last-snapshots", "COUNT", "Keep only the latest snapshots (1 to 10), or all of them (0)", "3", func(s string) (client.UpdateOptions, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > skerry.MaxKeepLast {
			return client.UpdateOptions{}, usage.Errorf("%q is not a number from 1 to %d, or 0 to keep all", s, skerry.MaxKeepLast)
		}
		if n == 0 {
			return client.UpdateOptions{ClearKeepLastSnapshots: true}, nil
		}
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{Count: n}}, nil
	}, false},
	{"keep-last-snapshots-for", "DURATION|none", "Change how long the snapshots of keep-last-snapshots are kept", "7d", func(s string) (client.UpdateOptions, error) {
		d := duration{none: true}
		err := d.Set(s)
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{Expiration: (*skerry.Duration)(&d.d)}}, asUsage(err)
	}, false},
	{"delete-evicted-snapshots", "true|false", "Delete evicted snapshots at once, or let them expire", "false", func(s string) (client.UpdateOptions, error) {
		yes, err := yesNo(s)
		return client.UpdateOptions{KeepLastSnapshots: &client.KeepLastSnapshots{DeleteEvicted: &yes}}, err
	}, false},
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
			return fmt.Errorf("%[1]s keeps all its snapshots; set a number first: sandbox config keep-last-snapshots %[1]s COUNT", clean(sb.Name()))
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
	return usage.Error{Err: err}
}

func yesNo(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, usage.Errorf("%q is neither true nor false", s)
	}
	return s == "true", nil
}

func (a *app) settingCommand(s setting) *cobra.Command {
	return &cobra.Command{
		Use: s.name + " NAME " + s.value, Short: s.short, Args: usage.Args(cobra.ExactArgs(2)),
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
			return a.update(cmd, given[0], opts, s.name+": "+given[1], s.later)
		},
	}
}

// update changes a sandbox and says what was changed, and with later that a
// session which runs is not.
func (a *app) update(cmd *cobra.Command, name string, opts client.UpdateOptions, what string, later bool) error {
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
	if later && !sb.Info().Status.Ended() {
		fmt.Fprintln(a.Err, "The session that runs keeps what it has.")
	}
	return nil
}

// replacing is a subcommand of config that replaces a whole list. Without flags
// it shows the list, so that a call which only looks changes nothing.
type replacing struct {
	// what the list has, and flags are those that it is given with.
	what  string
	flags []string
	show  func(*client.Sandbox) (title []string, rows [][]cell)
	// options are the new list, empty if none of the flags is given, and changed
	// says it in words.
	options func() (opts client.UpdateOptions, changed string, err error)
	// later tells that a session which runs keeps what it has.
	later bool
}

// replace makes cmd such a subcommand.
func (a *app) replace(cmd *cobra.Command, r replacing) *cobra.Command {
	var none bool
	cmd.Flags().BoolVar(&none, "none", false, "remove all "+r.what)
	cmd.Args, cmd.ValidArgsFunction = usage.Args(cobra.ExactArgs(1)), a.completeFirst
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		listed := slices.ContainsFunc(r.flags, cmd.Flags().Changed)
		switch {
		case none && listed:
			return usage.Errorf("--none cannot be combined with --%s", strings.Join(r.flags, " or --"))
		case none || listed:
			opts, changed, err := r.options()
			if err != nil {
				return err
			}
			return a.update(cmd, given[0], opts, changed, r.later)
		}
		sb, err := a.sandbox(cmd.Context(), given[0], false)
		if err != nil {
			return err
		}
		title, rows := r.show(sb)
		if len(rows) == 0 && a.OutTTY {
			fmt.Fprintf(a.Err, "%s has no %s.\n", clean(sb.Name()), r.what)
			return nil
		}
		a.table(title, rows)
		return nil
	}
	return cmd
}

func (a *app) configTagsCommand() *cobra.Command {
	var tags pairs
	cmd := &cobra.Command{
		Use: "tags [flags] NAME", Short: "Show or replace all tags",
		Long:    "Replace all tags with those given, or remove them with --none. Without flags, show them.",
		Example: "  sandbox config tags demo\n  sandbox config tags demo --tag team=web --tag stage=test\n  sandbox config tags demo --none",
	}
	cmd.Flags().VarP(&tags, "tag", "t", "tag key=value (repeatable)")
	return a.replace(cmd, replacing{
		what: "tags", flags: []string{"tag"},
		show: func(sb *client.Sandbox) ([]string, [][]cell) {
			var rows [][]cell
			tags := sb.Info().Tags
			for _, key := range slices.Sorted(maps.Keys(tags)) {
				rows = append(rows, []cell{plain(key), plain(tags[key])})
			}
			return []string{"TAG", "VALUE"}, rows
		},
		options: func() (client.UpdateOptions, string, error) {
			if len(tags.m) == 0 {
				return client.UpdateOptions{Tags: map[string]string{}}, "no tags", nil
			}
			return client.UpdateOptions{Tags: tags.m}, "tags " + tagList(tags.m), nil
		},
	})
}

func (a *app) configMountsCommand() *cobra.Command {
	var list []string
	cmd := &cobra.Command{
		Use: "mounts [flags] NAME", Short: "Show or replace the mounted drives",
		Long: `Replace the mounted drives with those given, or remove them with --none. This
applies from the next session on. Without flags, show them.`,
		Example: "  sandbox config mounts demo\n  sandbox config mounts demo --mount data:/data\n  sandbox config mounts demo --none",
	}
	cmd.Flags().StringArrayVar(&list, "mount", nil, "drive:/path[:read-write|snapshot] (repeatable)")
	return a.replace(cmd, replacing{
		what: "mounts", flags: []string{"mount"}, later: true,
		show: func(sb *client.Sandbox) ([]string, [][]cell) {
			var rows [][]cell
			mounts := sb.Info().Mounts
			for _, path := range slices.Sorted(maps.Keys(mounts)) {
				rows = append(rows, []cell{plain(path), plain(mounts[path].Drive), plain(string(mounts[path].Mode))})
			}
			return []string{"PATH", "DRIVE", "MODE"}, rows
		},
		options: func() (client.UpdateOptions, string, error) {
			m, err := mounts(list)
			if len(list) == 0 {
				return client.UpdateOptions{Mounts: map[string]client.Mount{}}, "no mounts", nil
			}
			return client.UpdateOptions{Mounts: m}, "mounts " + strings.Join(list, ", "), err
		},
	})
}

func (a *app) configPolicyCommand() *cobra.Command {
	var mode choice
	var domains, allow, deny []string
	cmd := &cobra.Command{
		Use: "network-policy [flags] NAME", Short: "Change what a sandbox may reach", Args: usage.Args(cobra.ExactArgs(1)),
		Long:              "Change what a sandbox may reach, at once.",
		Example:           "  sandbox config network-policy demo --network-policy deny-all\n  sandbox config network-policy demo --allowed-domain '*.example.com'",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			p, err := policy(mode.value, domains, allow, deny)
			if err != nil {
				return err
			}
			if p == nil {
				return usage.Errorf("there is nothing to change: give --network-policy or what to allow or deny")
			}
			if err := a.update(cmd, given[0], client.UpdateOptions{NetworkPolicy: p}, "network policy "+policyName(mode.value), false); err != nil {
				return err
			}
			a.hintPolicy(domains, allow, deny)
			return nil
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
		Use: "list [flags] NAME", Aliases: []string{"ls"}, Short: "Show the configuration", Args: usage.Args(cobra.ExactArgs(1)),
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
	timeout, idle := "-", skerry.IdleDefault
	if sb.Timeout > 0 {
		timeout = span(time.Duration(sb.Timeout))
	}
	if sb.Idle != "" {
		idle = sb.Idle
	}
	fields := [][2]string{
		{"Status", string(sb.Status)},
		{"Image/runtime", image(sb.Image, sb.Runtime)},
		{"vCPUs", number(sb.VCPUs)},
		{"Memory", memory(sb.MemoryMB)},
		{"Timeout", timeout},
		{"Persistent", strconv.FormatBool(sb.Persistent)},
		{"Idle", string(idle)},
		{"Current snapshot", or(sb.CurrentSnapshotID)},
		{"Snapshot expiration", expiration(sb.SnapshotExpiration)},
		{"Keep last snapshots", retention(sb.Retention)},
	}
	if sb.OIDCAudience != "" {
		fields = append(fields, [2]string{"OIDC audience", sb.OIDCAudience})
	}
	fields = append(fields, policyFields(sb.NetworkPolicy)...)
	fields = append(fields, mountFields(sb.Mounts)...)
	fields = append(fields,
		[2]string{"Ports", routeList(routes)},
		[2]string{"Region", or(sb.Region)},
		[2]string{"Tags", or(tagList(sb.Tags))},
	)
	var rows [][]cell
	for _, r := range fields {
		rows = append(rows, []cell{{clean(r[0]), a.out.bold}, plain(r[1])})
	}
	a.table([]string{"FIELD", "VALUE"}, rows)
}

// policyFields are a network policy and what it lists, each in a row of its own.
func policyFields(p *skerry.NetworkPolicySummary) [][2]string {
	if p == nil {
		return [][2]string{{"Network policy", "-"}}
	}
	fields := [][2]string{{"Network policy", policyName(strings.Replace(string(p.Mode), "custom", "", 1))}}
	for _, list := range []struct {
		title  string
		values []string
	}{{"Allowed domain", p.AllowedDomains}, {"Allowed CIDR", p.AllowedCIDRs}, {"Denied CIDR", p.DeniedCIDRs}} {
		for _, value := range list.values {
			fields = append(fields, [2]string{list.title, value})
		}
	}
	return fields
}

// mountFields are the mounted drives, each in a row of its own, as --mount takes
// them.
func mountFields(mounts map[string]skerry.Mount) [][2]string {
	if len(mounts) == 0 {
		return [][2]string{{"Mount", "-"}}
	}
	var fields [][2]string
	for _, path := range slices.Sorted(maps.Keys(mounts)) {
		m := mounts[path]
		fields = append(fields, [2]string{"Mount", m.Drive + ":" + path + ":" + string(m.Mode)})
	}
	return fields
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
