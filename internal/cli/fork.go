package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

func (a *app) forkCommand() *cobra.Command {
	var f createFlags
	var live, memory, connect, asJSON bool
	cmd := &cobra.Command{
		Use: "fork [flags] SOURCE", Short: "Create a sandbox from another one", Args: usage.Args(cobra.ExactArgs(1)),
		Long: `Create a sandbox with the configuration and the files of another, start it, and
print its name. Flags override the source's configuration; --env and --tag replace
all variables and all tags.

The files are those of the source's last stop or snapshot, or of its image if
there was none. With --live they are the source's present files, and the source
keeps running. With --memory the fork also continues the source's running programs,
with their memory but in a network of its own: open connections are cut. The fork
then has the vCPUs and memory of the source. Random numbers that a program derives
from a seed in its memory (OpenSSL, Math.random, UUID pools) are the same in source
and fork; the kernel's are not.`,
		Example: `  sandbox fork demo --name attempt
  sandbox fork --live demo --vcpus 4 --tag stage=test
  sandbox fork --memory demo
  sandbox fork demo --non-persistent --connect`,
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			if connect {
				if err := a.needTerminal("--connect"); err != nil {
					return err
				}
			}
			opts, err := f.forkOptions()
			if err != nil {
				return err
			}
			opts.Live, opts.Memory = live, memory
			a.warnMissing(&f.env)
			sb, err := a.fork(cmd.Context(), given[0], opts, f.silent)
			if err != nil {
				return err
			}
			if !f.silent {
				a.hintPolicy(f.allowDomains, f.allowCIDRs, f.denyCIDR)
			}
			if asJSON {
				err = a.json(described(sb))
			} else if !f.silent {
				fmt.Fprintln(a.Out, clean(sb.Name()))
				a.hint(!connect, "connect with: sandbox connect %s", clean(sb.Name()))
			}
			if err != nil || !connect {
				return err
			}
			return a.shell(cmd.Context(), sb, shellOptions{})
		},
	}
	f.registerShared(cmd, a.Getenv)
	fs := cmd.Flags()
	for name, usage := range map[string]string{
		"timeout":       "how long a session may last, such as 30s, 5m or 2h",
		"vcpus":         "number of virtual CPUs, with 2048 MiB of memory each",
		"oidc-audience": "audience of its programs' token, in the file that $SKERRY_OIDC_TOKEN_FILE names",
		"persistent":    "keep the files when a session ends, for the next one",
	} {
		fs.Lookup(name).Usage = usage + " (default: the source's)"
	}
	fs.BoolVar(&live, "live", false, "take the files of a running source as they are now, without stopping it")
	fs.BoolVar(&memory, "memory", false, "take the running programs along, without stopping the source")
	fs.BoolVar(&connect, "connect", false, "open a shell in it")
	fs.BoolVar(&asJSON, "json", false, "print the sandbox as JSON in place of its name")
	return cmd
}

// forkOptions turns the flags into what the client takes.
func (f *createFlags) forkOptions() (client.ForkOptions, error) {
	o, err := f.options()
	return client.ForkOptions{
		Name: o.Name, Timeout: o.Timeout, VCPUs: o.VCPUs, Env: o.Env, Tags: o.Tags, Persistent: o.Persistent, Ports: o.Ports, PrivatePorts: o.PrivatePorts,
		NetworkPolicy: o.NetworkPolicy, SnapshotExpiration: o.SnapshotExpiration, KeepLastSnapshots: o.KeepLastSnapshots,
		Idle: o.Idle, OIDCAudience: o.OIDCAudience, Region: o.Region, FailoverRegions: o.FailoverRegions, NetworkID: o.NetworkID,
	}, err
}

// fork makes the new sandbox and says so on standard error.
func (a *app) fork(ctx context.Context, name string, opts client.ForkOptions, silent bool) (*client.Sandbox, error) {
	stop := a.spin("Forking "+clean(name)+"…", silent)
	defer stop()
	source, err := a.sandbox(ctx, name, false)
	if err != nil {
		return nil, err
	}
	begin := a.Now()
	sb, err := source.Fork(ctx, opts)
	stop()
	if err != nil || silent {
		return sb, err
	}
	info := source.Info()
	from := "from its image"
	switch {
	case opts.Memory && info.Status == skerry.StatusRunning:
		from = "with its running programs"
	case opts.Live && info.Status == skerry.StatusRunning:
		from = "from its files of this moment"
	case info.CurrentSnapshotID != "":
		from = "from " + clean(info.CurrentSnapshotID)
	case sb.Session().SourceSnapshotID != "":
		from = "from " + clean(sb.Session().SourceSnapshotID)
	}
	if info.Status == skerry.StatusRunning && !opts.Live && !opts.Memory {
		fmt.Fprintf(a.Err, "%s %s is running, and what has changed in it since it started is not in the fork; --live takes it along.\n",
			a.err.yellow("Warning:"), clean(name))
	}
	fmt.Fprintf(a.Err, "%s Forked %s as %s %s in %s.\n", a.err.green("✔"), a.err.cyan(clean(name)), a.err.cyan(clean(sb.Name())),
		from, a.Now().Sub(begin).Round(time.Millisecond))
	return sb, nil
}
