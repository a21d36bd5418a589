package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
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
		Use: "ports [flags] NAME", Short: "Replace the published ports", Args: args(cobra.ExactArgs(1)),
		Long: `Replace the published ports with those given; with none, publish none. A port
that was published before keeps its URL. What comes by --private-port is reached
only with a link that "sandbox url" makes; all others are public.`,
		Example:           "  sandbox config ports demo -p 3000 --private-port 8080",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			opts := client.UpdateOptions{Ports: allPorts(public, private), PrivatePorts: private}
			if opts.Ports == nil {
				opts.Ports = []int{}
			}
			if private == nil {
				opts.PrivatePorts = []int{}
			}
			return a.update(cmd, given[0], opts, "ports "+portList(opts.Ports))
		},
	}
	cmd.Flags().IntSliceVarP(&public, "publish-port", "p", nil, "port to publish (repeatable)")
	cmd.Flags().IntSliceVar(&private, "private-port", nil, "port to publish for who has a link (repeatable)")
	return cmd
}

func (a *app) urlCommand() *cobra.Command {
	life := duration{}
	cmd := &cobra.Command{
		Use: "url [flags] NAME PORT", Short: "Print the URL of a published port", Args: args(cobra.ExactArgs(2)),
		Long: `Print the URL at which a published port is reached. That of a private port has a
token in it: whoever has the link gets in until it expires.`,
		Example:           "  sandbox url demo 3000\n  curl \"$(sandbox url demo 8080 --expires 1h)\"",
		ValidArgsFunction: a.completeFirst,
		RunE: func(cmd *cobra.Command, given []string) error {
			port, err := strconv.Atoi(given[1])
			if err != nil {
				return usagef("%q is not a port", given[1])
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
	cmd.Flags().Var(&life, "expires", "how long the link to a private port is good (default 24h)")
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
