package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/firewall"
	"github.com/skerry-dev/skerry/internal/network"
)

// networkOptions are the flags about the sandboxes' networks.
type networkOptions struct {
	outbound  bool
	prefix    string
	resolvers []string
	ready     int
	issuer    string
	log       string
}

func (o *networkOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.outbound, "outbound", true, "let sandboxes open connections to the outside; never to this machine, to other sandboxes or to metadata addresses")
	f.StringVar(&o.prefix, "network", "", "IPv4 range for the sandboxes' networks (default "+network.DefaultPrefix+", or one beside it that is free)")
	f.StringSliceVar(&o.resolvers, "resolver", nil, "DNS server for sandboxes; may be repeated (default: this machine's own that are not on it)")
	f.StringVar(&o.issuer, "oidc-issuer", "", "issuer of the tokens of requests that network policies forward, if not the server's URL; the keys are served below it at /.well-known/jwks")
	f.StringVar(&o.log, "network-log", "", `file (absolute path) to which each connection, request and query that a policy has decided on is appended as a line of JSON, or "-" for standard output`)
	f.IntVar(&o.ready, "ready-networks", 4, "how many networks are kept prepared")
}

// open prepares the networks of sandboxes and the proxy on their way out.
func (o *networkOptions) open(ctx context.Context, dir, state, url string, log *slog.Logger) (*firewall.Firewall, error) {
	issuer := o.issuer
	if issuer == "" {
		issuer = url
	}
	return firewall.New(ctx, firewall.Config{
		Network: network.Config{Dir: dir, Prefix: o.prefix, Resolvers: o.resolvers, Outbound: o.outbound, Ready: o.ready},
		Dir:     filepath.Join(state, "firewall"), Sessions: filepath.Join(state, "sessions"),
		Issuer: strings.TrimRight(issuer, "/"), Export: o.log, Log: log,
	})
}
