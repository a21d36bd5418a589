package main

import (
	"context"
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/node"
)

// networkOptions are the flags about the sandboxes' networks.
type networkOptions struct {
	outbound  bool
	prefix    string
	resolvers []string
	ready     int
}

func (o *networkOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.outbound, "outbound", true, "let sandboxes open connections to the outside; never to this machine, to other sandboxes or to metadata addresses")
	f.StringVar(&o.prefix, "network", "", "IPv4 range for the sandboxes' networks (default "+network.DefaultPrefix+", or one beside it that is free)")
	f.StringSliceVar(&o.resolvers, "resolver", nil, "DNS server for sandboxes; may be repeated (default: this machine's own that are not on it)")
	f.IntVar(&o.ready, "ready-networks", 4, "how many networks are kept prepared")
}

// networks is a network.Pool as a node needs it.
type networks struct{ *network.Pool }

func (o *networkOptions) open(ctx context.Context, dir string, log *slog.Logger) (networks, error) {
	pool, err := network.New(ctx, network.Config{
		Dir: dir, Prefix: o.prefix, Resolvers: o.resolvers, Outbound: o.outbound, Ready: o.ready, Log: log,
	})
	return networks{pool}, err
}

// Acquire implements node.Networks.
func (n networks) Acquire(ctx context.Context) (node.Lease, error) {
	lease, err := n.Pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	return lease, nil
}

// Adopt implements node.Networks.
func (n networks) Adopt(ctx context.Context, id string) (node.Lease, error) {
	lease, err := n.Pool.Adopt(ctx, id)
	if err != nil {
		return nil, err
	}
	return lease, nil
}
