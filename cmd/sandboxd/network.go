package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry/internal/egress"
	"github.com/skerry-dev/skerry/internal/firewall"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// networkOptions are the flags about the sandboxes' networks.
type networkOptions struct {
	outbound  bool
	prefix    string
	resolvers []string
	private   []string
	ready     int
	issuer    string
	log       string
	// connections is how many the files suffice for.
	connections int
}

func (o *networkOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.outbound, "outbound", true, "let sandboxes connect to the outside, but never to this machine, other sandboxes or metadata addresses")
	f.StringSliceVar(&o.private, "allow-private", nil, "private network, as a CIDR, that sandboxes may reach if their policies allow it; may be repeated (default: none)")
	f.StringVar(&o.prefix, "network", "", "IPv4 range for the sandboxes' networks (default "+network.DefaultPrefix+", or a free range near it)")
	f.StringSliceVar(&o.resolvers, "resolver", nil, "DNS server for sandboxes; may be repeated (default: this machine's DNS servers, except those on the machine itself)")
	f.StringVar(&o.issuer, "oidc-issuer", "", "issuer that this server's tokens name (default: the server's URL); the keys are served below it at /.well-known/jwks")
	f.StringVar(&o.log, "network-log", "", `file (absolute path) for the decisions of network policies, one JSON line for each connection, request and query; "-" is standard output`)
	f.IntVar(&o.ready, "ready-networks", 4, "number of networks to prepare ahead")
}

// networks parses what --allow-private says.
func (o *networkOptions) networks() (list []netip.Prefix, err error) {
	for _, s := range o.private {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("--allow-private %q: not a network such as 10.1.0.0/16", s)
		}
		if err := network.CheckPrivate(p); err != nil {
			return nil, fmt.Errorf("--allow-private %q: %w", s, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// open prepares the networks of sandboxes and the proxy on their way out.
func (o *networkOptions) open(ctx context.Context, dir, state string, tokens *issuer.Issuer, log *slog.Logger) (*firewall.Firewall, error) {
	private, err := o.networks()
	if err != nil {
		return nil, err
	}
	return firewall.New(ctx, firewall.Config{
		Network: network.Config{Dir: dir, Prefix: o.prefix, Resolvers: o.resolvers, Private: private, Outbound: o.outbound, Ready: o.ready},
		Dir:     filepath.Join(state, "firewall"), Sessions: filepath.Join(state, "sessions"),
		Tokens: tokens, Export: o.log, Log: log,
		Connections: min(o.connections, egress.MaxConnections),
	})
}

// tokens opens what signs the tokens of this machine's sandboxes.
func (o *networkOptions) tokens(ctx context.Context, state, url string, log *slog.Logger) (*issuer.Issuer, error) {
	dir := filepath.Join(state, "firewall")
	keys := issuer.Folder(filepath.Join(dir, "tokens"))
	if err := keys.Adopt(ctx, filepath.Join(dir, "tokens.pem")); err != nil {
		return nil, fmt.Errorf("open the keys for tokens: %w", err)
	}
	return issuer.Open(ctx, keys, url, log)
}

// workloadTokens signs the workload tokens of a node's sandboxes.
type workloadTokens struct{ *issuer.Issuer }

// Workload implements node.Tokens.
func (w workloadTokens) Workload(ctx context.Context, sessionID string, owner nodeapi.Owner, audience string) (token string, expires time.Time, err error) {
	return w.Issuer.Workload(ctx, issuer.Sandbox{
		TeamID: owner.TeamID, ProjectID: owner.ProjectID, SessionID: sessionID, SandboxName: owner.SandboxName,
	}, audience)
}

// connectionsFor is how many connections each of the two proxies takes, to sandboxes
// and from them: two file descriptors each, half of all together.
func connectionsFor(files int) int { return max(files/8, 64) }
