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

// createFlags are those of every command that creates a sandbox.
type createFlags struct {
	name, runtime, image, snapshot     string
	region, failover, networkID        string
	audience                           string
	timeout                            duration
	vcpus                              int
	ports, privatePorts                []int
	env, tags                          pairs
	mounts                             []string
	nonPersistent, persistent, silent  bool
	snapshotExpiration, keepFor        duration
	keepLast                           int
	deleteEvicted, policy, idle        choice
	allowDomains, allowCIDRs, denyCIDR []string
	// given reports whether a flag was given.
	given func(name string) bool
}

func (f *createFlags) register(cmd *cobra.Command, a *app) {
	f.registerShared(cmd, a.Getenv)
	fs := cmd.Flags()
	fs.StringVar(&f.runtime, "runtime", "", "runtime that comes first on PATH in the default image: node24 (default), node26, node22, python3.13")
	fs.StringVar(&f.image, "image", "", "OCI image to start from, instead of the default one")
	fs.StringVarP(&f.snapshot, "snapshot", "s", "", "id of the snapshot to start from")
	fs.StringArrayVar(&f.mounts, "mount", nil, "attach a drive: drive:/path[:read-write|snapshot] (repeatable)")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(skerry.Runtimes, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("snapshot", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeSnapshots(cmd, nil, prefix)
	})
}

// registerShared is for the flags that creating and forking have in common.
func (f *createFlags) registerShared(cmd *cobra.Command, getenv func(string) string) {
	f.given = cmd.Flags().Changed
	fs := cmd.Flags()
	f.env.getenv = getenv
	f.snapshotExpiration.none, f.keepFor.none = true, true
	f.deleteEvicted.choices = []string{"true", "false"}
	f.policy.choices = []string{"allow-all", "deny-all"}
	fs.StringVar(&f.name, "name", "", "name, unique in the project (default: generated)")
	fs.Var(&f.timeout, "timeout", "how long a session may last, such as 30s, 5m or 2h (default 5m)")
	fs.IntVar(&f.vcpus, "vcpus", 0, "number of virtual CPUs, with 2048 MiB of memory each (default 2)")
	fs.IntSliceVarP(&f.ports, "publish-port", "p", nil, "make a port reachable from outside (repeatable)")
	fs.IntSliceVar(&f.privatePorts, "private-port", nil, "make a port reachable only for holders of a link from \"sandbox url\" (repeatable)")
	fs.VarP(&f.env, "env", "e", "variable KEY=value for every command; KEY alone takes the local value (repeatable)")
	fs.VarP(&f.tags, "tag", "t", "tag key=value to find the sandbox by (repeatable)")
	f.idle.choices = idleModes()
	fs.Var(&f.idle, "idle", "when the server may pause it while nobody uses it: default (as serve --idle says), never, pause (even if idle programs run in it), hibernate (like pause, and saved to disk after a while)")
	fs.StringVar(&f.audience, "oidc-audience", "", "give its programs a token for this audience, such as sts.amazonaws.com, in the file that $SKERRY_OIDC_TOKEN_FILE names")
	fs.StringVar(&f.region, "region", "", "region to run in")
	fs.StringVar(&f.failover, "failover-regions", "", "comma-separated regions to fail over to, or none")
	fs.StringVar(&f.networkID, "network-id", "", "private network to connect to")
	fs.Var(&f.snapshotExpiration, "snapshot-expiration", "how long snapshots are kept, or none for ever")
	fs.IntVar(&f.keepLast, "keep-last-snapshots", 0, "number of snapshots to keep (1 to 10)")
	fs.Var(&f.keepFor, "keep-last-snapshots-for", "how long the snapshots of --keep-last-snapshots are kept, or none for ever")
	fs.Var(&f.deleteEvicted, "delete-evicted-snapshots", "delete the snapshots beyond --keep-last-snapshots at once (default) or let them expire")
	registerPolicy(cmd, &f.policy, &f.allowDomains, &f.allowCIDRs, &f.denyCIDR)
	fs.BoolVar(&f.nonPersistent, "non-persistent", false, "drop the files when a session ends")
	fs.BoolVar(&f.persistent, "persistent", false, "keep the files when a session ends, for the next one (default)")
	fs.BoolVar(&f.silent, "silent", false, "print nothing about the sandbox")
}

func registerPolicy(cmd *cobra.Command, mode *choice, domains, allow, deny *[]string) {
	fs := cmd.Flags()
	mode.choices = []string{"allow-all", "deny-all"}
	fs.Var(mode, "network-policy", "what the sandbox may reach")
	fs.StringArrayVar(domains, "allowed-domain", nil, "allow this domain and deny what is not listed; * stands for a label (repeatable)")
	fs.StringArrayVar(allow, "allowed-cidr", nil, "allow these addresses and deny what is not listed (repeatable)")
	fs.StringArrayVar(deny, "denied-cidr", nil, "deny these addresses, whatever is allowed, and everything that is not allowed; --allowed-domain '*' allows all other domains (repeatable)")
}

// policy puts the network flags together; nil if there are none.
func policy(mode string, domains, allow, deny []string) (*client.NetworkPolicy, error) {
	custom := len(domains)+len(allow)+len(deny) > 0
	switch {
	case mode != "" && custom:
		return nil, usage.Errorf("--network-policy cannot be combined with --allowed-domain, --allowed-cidr or --denied-cidr")
	case mode == "" && !custom:
		return nil, nil
	}
	return &client.NetworkPolicy{Mode: mode, AllowDomains: domains, AllowCIDRs: allow, DenyCIDRs: deny}, nil
}

// hintPolicy tells that networks which are denied are not all that is, if
// nothing is allowed.
func (a *app) hintPolicy(domains, allow, deny []string) {
	if len(deny) > 0 && len(domains)+len(allow) == 0 {
		fmt.Fprintf(a.Err, "%s this policy denies everything, because it allows nothing; --allowed-domain '*' allows all domains at other addresses.\n",
			a.err.bold("Hint:"))
	}
}

// options turns the flags into what the client takes.
func (f *createFlags) options() (client.CreateOptions, error) {
	o := client.CreateOptions{
		Name: f.name, Runtime: f.runtime, Image: f.image, Timeout: f.timeout.d, VCPUs: f.vcpus,
		Env: f.env.m, Tags: f.tags.m, Ports: allPorts(f.ports, f.privatePorts), PrivatePorts: f.privatePorts, Region: f.region, NetworkID: f.networkID,
		FailoverRegions: regions(f.failover), Idle: skerry.IdleMode(f.idle.value), OIDCAudience: f.audience,
	}
	// As it happens when the command that should have given an id has failed.
	for _, flag := range []struct{ name, value string }{
		{"name", f.name}, {"snapshot", f.snapshot}, {"image", f.image}, {"runtime", f.runtime},
		{"region", f.region}, {"failover-regions", f.failover}, {"network-id", f.networkID}, {"oidc-audience", f.audience},
	} {
		if flag.value == "" && f.given(flag.name) {
			return o, usage.Errorf("--%s is empty", flag.name)
		}
	}
	switch {
	case f.runtime != "" && f.image != "":
		return o, usage.Errorf("--runtime and --image cannot be combined")
	case f.snapshot != "" && f.image != "":
		return o, usage.Errorf("--snapshot and --image cannot be combined: a snapshot has its own image")
	case f.persistent && f.nonPersistent:
		return o, usage.Errorf("--persistent and --non-persistent cannot be combined")
	case f.vcpus < 1 && f.given("vcpus"):
		return o, usage.Errorf("--vcpus must be a positive number")
	case (f.keepLast < 1 || f.keepLast > skerry.MaxKeepLast) && f.given("keep-last-snapshots"):
		return o, usage.Errorf("--keep-last-snapshots must be from 1 to %d; leave it out to keep all", skerry.MaxKeepLast)
	case f.timeout.set && f.timeout.d <= 0:
		return o, usage.Errorf("--timeout must be positive")
	}
	if f.snapshot != "" {
		o.Source = client.FromSnapshot(f.snapshot)
	}
	switch {
	case f.persistent:
		o.Persistent = &f.persistent
	case f.nonPersistent:
		o.Persistent = new(bool)
	}
	if f.snapshotExpiration.set {
		o.SnapshotExpiration = &f.snapshotExpiration.d
	}
	var err error
	if o.Mounts, err = mounts(f.mounts); err != nil {
		return o, err
	}
	if o.KeepLastSnapshots, err = f.keep(); err != nil {
		return o, err
	}
	o.NetworkPolicy, err = policy(f.policy.value, f.allowDomains, f.allowCIDRs, f.denyCIDR)
	return o, err
}

// idleModes are the values of --idle.
func idleModes() (modes []string) {
	for _, m := range skerry.IdleModes {
		modes = append(modes, string(m))
	}
	return modes
}

func (f *createFlags) keep() (*client.KeepLastSnapshots, error) {
	if f.keepLast == 0 {
		if f.keepFor.set || f.deleteEvicted.value != "" {
			return nil, usage.Errorf("--keep-last-snapshots-for and --delete-evicted-snapshots need --keep-last-snapshots")
		}
		return nil, nil
	}
	k := &client.KeepLastSnapshots{Count: f.keepLast}
	if f.keepFor.set {
		k.Expiration = (*skerry.Duration)(&f.keepFor.d)
	}
	if f.deleteEvicted.value != "" {
		yes := f.deleteEvicted.value == "true"
		k.DeleteEvicted = &yes
	}
	return k, nil
}

func regions(s string) []string {
	switch s {
	case "":
		return nil
	case "none":
		return []string{}
	}
	return strings.Split(s, ",")
}

// mounts parses drive:/path[:mode].
func mounts(list []string) (map[string]client.Mount, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := map[string]client.Mount{}
	for _, s := range list {
		parts := strings.Split(s, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !strings.HasPrefix(parts[1], "/") {
			return nil, usage.Errorf("--mount %q is not of the form drive:/path or drive:/path:mode", s)
		}
		mount := client.Mount{Drive: parts[0]}
		if len(parts) == 3 {
			mount.Mode = parts[2]
		}
		m[parts[1]] = mount
	}
	return m, nil
}

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	var connect, asJSON bool
	cmd := &cobra.Command{
		Use: "create [flags]", Short: "Create a sandbox", Args: usage.Args(cobra.NoArgs),
		Long: `Create a sandbox, start its first session, and print its name.

The name goes to standard output, all else to standard error, so that
"name=$(sandbox create)" works. The session ends after --timeout, and its files
are saved as a snapshot; the next "sandbox exec" goes on from there. With
--non-persistent they are dropped, and each session starts anew.

The server refuses flags for features that it does not have yet.`,
		Example: `  sandbox create --name demo --timeout 1h --tag team=web
  sandbox create --runtime python3.13 --env API_URL=http://example.com
  sandbox create --snapshot snap_… --keep-last-snapshots 3
  sandbox create --vcpus 4 --connect`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if connect {
				if err := a.needTerminal("--connect"); err != nil {
					return err
				}
			}
			sb, err := a.create(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(described(sb))
			} else if !f.silent {
				fmt.Fprintln(a.Out, sb.Name())
				a.hint(!connect, "connect with: sandbox connect %s", sb.Name())
			}
			if err != nil || !connect {
				return err
			}
			return a.shell(cmd.Context(), sb, shellOptions{})
		},
	}
	f.register(cmd, a)
	cmd.Flags().BoolVar(&connect, "connect", false, "open a shell in it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the sandbox as JSON in place of its name")
	return cmd
}

// description is the JSON form of a sandbox with its session.
type description struct {
	Sandbox skerry.Sandbox `json:"sandbox"`
	Session skerry.Session `json:"session"`
	Routes  []skerry.Route `json:"routes"`
}

func described(sb *client.Sandbox) description {
	d := description{sb.Info(), sb.Session(), sb.Routes()}
	if d.Routes == nil {
		d.Routes = []skerry.Route{}
	}
	return d
}

// create makes a sandbox and says so on standard error.
func (a *app) create(ctx context.Context, f *createFlags) (*client.Sandbox, error) {
	opts, err := f.options()
	if err != nil {
		return nil, err
	}
	a.warnMissing(&f.env)
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	stop := a.spin("Creating sandbox…", f.silent)
	defer stop()
	begin := a.Now()
	sb, err := c.CreateSandbox(ctx, opts)
	stop()
	if err != nil {
		return nil, err
	}
	if !f.silent {
		defer a.hintPolicy(f.allowDomains, f.allowCIDRs, f.denyCIDR)
		took := a.Now().Sub(begin).Round(time.Millisecond)
		fmt.Fprintf(a.Err, "%s Created sandbox %s in %s.\n", a.err.green("✔"), a.err.cyan(clean(sb.Name())), took)
		for _, r := range sb.Routes() {
			fmt.Fprintf(a.Err, "  port %s is at %s\n", strconv.Itoa(r.Port), clean(r.URL))
		}
	}
	return sb, nil
}

// hint prints a line for a person to whom it is news.
func (a *app) hint(show bool, format string, values ...any) {
	if show && a.ErrTTY {
		fmt.Fprintln(a.Err, a.err.dim("  "+fmt.Sprintf(format, values...)))
	}
}
