package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/usage"
)

// allPorts are the public and the private ports; nil if there are none.
func allPorts(public, private []int) []int {
	all := slices.Clone(public)
	for _, port := range private {
		if !slices.Contains(all, port) {
			all = append(all, port)
		}
	}
	return all
}

func (a *app) configPortsCommand() *cobra.Command {
	var public, private []int
	cmd := &cobra.Command{
		Use: "ports [flags] NAME", Short: "Show or replace the published ports",
		Long: `Replace the published ports with those given, or remove them with --none. A port
that was published before keeps its URL. A port given with --private-port can be
reached only with a link from "sandbox url"; all others are public. Without flags,
show them.`,
		Example: "  sandbox config ports demo\n  sandbox config ports demo -p 3000 --private-port 8080\n  sandbox config ports demo --none",
	}
	cmd.Flags().IntSliceVarP(&public, "publish-port", "p", nil, "port to publish (repeatable)")
	cmd.Flags().IntSliceVar(&private, "private-port", nil, "port to publish for holders of a link (repeatable)")
	return a.replace(cmd, replacing{
		what: "published ports", flags: []string{"publish-port", "private-port"},
		show: func(sb *client.Sandbox) ([]string, [][]cell) {
			var rows [][]cell
			for _, r := range sb.Routes() {
				access := "public"
				if r.Private {
					access = "private"
				}
				rows = append(rows, []cell{plain(strconv.Itoa(r.Port)), plain(access), plain(r.URL)})
			}
			return []string{"PORT", "ACCESS", "URL"}, rows
		},
		options: func() (client.UpdateOptions, string, error) {
			opts := client.UpdateOptions{Ports: allPorts(public, private), PrivatePorts: private}
			if private == nil {
				opts.PrivatePorts = []int{}
			}
			if len(opts.Ports) == 0 {
				opts.Ports = []int{}
				return opts, "no published ports", nil
			}
			return opts, "ports " + portList(opts.Ports), nil
		},
	})
}

func (a *app) urlCommand() *cobra.Command {
	life := duration{}
	cmd := &cobra.Command{
		Use: "url [flags] NAME PORT", Short: "Print the URL of a published port", Args: usage.Args(cobra.ExactArgs(2)),
		Long: `Print the URL of a published port. The URL of a private port contains a token:
anyone with the link has access until it expires.`,
		Example:           "  sandbox url demo 3000\n  curl \"$(sandbox url demo 8080 --expires 1h)\"",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			port, err := strconv.Atoi(given[1])
			if err != nil {
				return usage.Errorf("%q is not a port", given[1])
			}
			sb, err := a.sandbox(cmd.Context(), given[0], false)
			if err != nil {
				return err
			}
			url, err := sb.Domain(port)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(sb.Routes(), func(r skerry.Route) bool { return r.Port == port && r.Private }) {
				token, err := sb.RouteToken(cmd.Context(), port, life.d)
				if err != nil {
					return err
				}
				url = token.URL
			}
			fmt.Fprintln(a.Out, clean(url))
			return nil
		},
	}
	cmd.Flags().Var(&life, "expires", "how long the link to a private port is valid (default 24h)")
	return cmd
}

func portList(ports []int) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = strconv.Itoa(p)
	}
	return or(strings.Join(list, ", "))
}

// routeList tells each port with where it is reached.
func routeList(routes []skerry.Route) string {
	list := make([]string, len(routes))
	for i, r := range routes {
		list[i] = strconv.Itoa(r.Port) + " at " + r.URL
		if r.Private {
			list[i] += " (private)"
		}
	}
	return or(strings.Join(list, ", "))
}

// portsOf are the ports alone.
func portsOf(routes []skerry.Route) string {
	ports := make([]int, len(routes))
	for i, r := range routes {
		ports[i] = r.Port
	}
	return portList(ports)
}
