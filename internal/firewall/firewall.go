// Package firewall gives each session a network that enforces the session's policy.
// The kernel's rules (package network) decide by address. They redirect connections
// that must be decided by name to the proxy (package egress).
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/egress"
	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/policy"
	"github.com/skerry-dev/skerry/internal/issuer"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Config configures a Firewall.
type Config struct {
	Network network.Config
	// Dir is the folder with the key of the certificate authority.
	Dir string
	// Sessions has a folder for each session. The log of what the session was
	// allowed and denied is in it.
	Sessions string
	// Tokens signs the tokens of forwarded requests.
	Tokens *issuer.Issuer
	// Export, if set, is a file to which the events of all sandboxes are
	// appended, or "-" for standard output.
	Export string
	// Connections is the maximum number of connections through the proxy; 0 is the
	// proxy's own maximum.
	Connections int
	Log         *slog.Logger
}

// Firewall implements nodeapi.Networks.
type Firewall struct {
	pool   *network.Pool
	names  *dns.Resolver
	proxy  *egress.Proxy
	ca     *ca.Authority
	events *recorder
	export *exporter // may be nil
	log    *slog.Logger

	cancel context.CancelFunc
	serves sync.WaitGroup
}

var _ nodeapi.Networks = (*Firewall)(nil)

// New prepares the host and starts the proxy.
func New(ctx context.Context, cfg Config) (_ *Firewall, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the firewall's folder: %w", err)
	}
	f := &Firewall{log: cfg.Log, cancel: func() {}}
	if f.ca, err = ca.Open(filepath.Join(cfg.Dir, "ca.pem")); err != nil {
		return nil, err
	}
	if cfg.Export != "" {
		if f.export, err = newExporter(cfg.Export, cfg.Log); err != nil {
			return nil, err
		}
	}
	cfg.Network.Proxy, cfg.Network.Log = true, cfg.Log
	if f.pool, err = network.New(ctx, cfg.Network); err != nil {
		return nil, errors.Join(err, f.closeExport())
	}
	f.events = newRecorder(cfg.Sessions, cfg.Log)
	if err := f.startProxy(ctx, cfg); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Firewall) startProxy(ctx context.Context, cfg Config) error {
	servers, err := nameServers(cfg.Network.Resolvers)
	if err != nil {
		return err
	}
	if f.names, err = dns.NewResolver(dns.ResolverConfig{Upstreams: servers}); err != nil {
		return err
	}
	gateway := f.pool.Gateway()
	f.proxy, err = egress.New(egress.Config{
		Resolver: f.names, Forbidden: f.pool.Forbidden, CA: f.ca, Tokens: cfg.Tokens,
		OnEvent: f.tell, Mark: int(gateway.Mark), Log: f.log,
		Limits: egress.Limits{Connections: cfg.Connections},
	})
	if err != nil {
		return err
	}
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	serve := func(what string, run func() error) {
		f.serves.Go(func() {
			if err := run(); err != nil {
				f.log.Error("the proxy has ended", "part", what, "error", err)
			}
		})
	}
	serve("web", func() error { return f.proxy.ServeTCP(ctx, gateway.Web) })
	serve("dns", func() error { return f.proxy.ServeDNS(ctx, gateway.DNS, gateway.DNSTCP) })
	serve("denied packets", func() error { return f.pool.Denials(ctx, f.denied) })
	return nil
}

// denied reports a packet that the kernel's rules denied.
func (f *Firewall) denied(d network.Denied) {
	f.proxy.Tell(d.Source, egress.Event{Protocol: d.Protocol, Reason: d.Reason, Destination: d.Destination})
}

// Close stops the proxy and releases the networks that are not in use. Running
// sandboxes keep what they may reach without the proxy.
func (f *Firewall) Close() error {
	f.cancel()
	var errs []error
	if f.proxy != nil {
		errs = append(errs, f.proxy.Close())
	}
	if f.names != nil {
		f.names.Close()
	}
	f.serves.Wait()
	f.events.close()
	return errors.Join(append(errs, f.closeExport(), f.pool.Close())...)
}

func (f *Firewall) closeExport() error {
	if f.export == nil {
		return nil
	}
	return f.export.close()
}

// tell implements egress.Config.OnEvent. It never waits.
func (f *Firewall) tell(e egress.Event) {
	f.events.add(e)
	if f.export != nil {
		f.export.add(e)
	}
}

// Authority implements nodeapi.Networks.
func (f *Firewall) Authority() []byte { return f.ca.CertificatePEM() }

// Resolvers implements nodeapi.Networks.
func (f *Firewall) Resolvers() []string { return f.pool.Resolvers() }

// Traffic implements nodeapi.Networks.
func (f *Firewall) Traffic(ctx context.Context) (map[string]uint64, error) {
	return f.pool.Traffic(ctx)
}

// Connected implements nodeapi.Networks.
func (f *Firewall) Connected(ctx context.Context) (map[netip.Addr]bool, error) {
	return f.pool.Connected(ctx)
}

// Recover implements nodeapi.Networks.
func (f *Firewall) Recover(ctx context.Context, inUse []string) error {
	return f.pool.Recover(ctx, inUse)
}

// Acquire implements nodeapi.Networks.
func (f *Firewall) Acquire(ctx context.Context) (nodeapi.Lease, error) {
	l, err := f.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	return &lease{Lease: l, firewall: f}, nil
}

// Adopt implements nodeapi.Networks.
func (f *Firewall) Adopt(ctx context.Context, id string) (nodeapi.Lease, error) {
	l, err := f.pool.Adopt(ctx, id)
	if err != nil {
		return nil, err
	}
	return &lease{Lease: l, firewall: f}, nil
}

// lease is a network.Lease that is known to the proxy.
type lease struct {
	*network.Lease
	firewall *Firewall

	mu sync.Mutex
	// known is the sandbox as the proxy knows it, or nil.
	known *egress.Sandbox
}

// Interface implements nodeapi.Lease.
func (l *lease) Interface() nodeapi.Interface {
	return nodeapi.Interface{
		NetNS: l.NetNSPath(), Name: network.IfName,
		Address: netip.PrefixFrom(l.Address(), network.PrefixBits), Gateway: l.Gateway(),
	}
}

// SetNetwork implements nodeapi.Lease. The proxy gets the policy before the kernel
// does: it refuses every redirected connection that no policy allows.
func (l *lease) SetNetwork(ctx context.Context, sessionID string, spec nodeapi.NetworkSpec) error {
	compiled, err := compile(spec.Policy)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	proxy, addr, before := l.firewall.proxy, l.Address(), l.known
	// The public proxy library takes the session's id for the sandbox's.
	next := egress.Sandbox{ID: sessionID, Box: spec.Owner.SandboxID, Policy: compiled, Claims: issuer.Sandbox{
		TeamID: spec.Owner.TeamID, ProjectID: spec.Owner.ProjectID, SessionID: sessionID, SandboxName: spec.Owner.SandboxName,
	}}
	if err := proxy.Set(addr, next); err != nil {
		return l.orShut(sessionID, spec.Policy, err) // nothing has changed at the proxy
	}
	err = l.orShut(sessionID, spec.Policy, l.SetPolicy(ctx, spec.Policy))
	if err != nil {
		if before == nil {
			proxy.Remove(addr)
			return err
		}
		return errors.Join(err, proxy.Set(addr, *before))
	}
	l.known = &next
	return nil
}

// orShut shuts the network if a policy that allows nothing could not be enforced in
// another way.
func (l *lease) orShut(sessionID string, p *skerry.NetworkPolicy, err error) error {
	if err == nil || p.Mode != skerry.NetworkDenyAll {
		return err
	}
	l.firewall.log.Error("a network is shut, as a policy that allows nothing could not be enforced", "network", l.ID(), "session", sessionID, "error", err)
	return l.Shut()
}

// Release implements nodeapi.Lease.
func (l *lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.firewall.proxy.Remove(l.Address())
	l.known = nil
	return l.Lease.Release(ctx)
}

// compile converts a policy into the proxy's form. It is validated again: it may
// come from another machine, or from a database that an earlier version wrote.
func compile(p *skerry.NetworkPolicy) (*policy.Compiled, error) {
	if err := p.Validate("networkPolicy"); err != nil {
		return nil, err
	}
	out := policy.Policy{Mode: policy.DenyAll}
	switch p.Mode {
	case skerry.NetworkAllowAll:
		out.Mode = policy.AllowAll
	case skerry.NetworkCustom:
		out.Mode, out.AllowedCIDRs, out.DeniedCIDRs = policy.Custom, ipv4(p.Allow), ipv4(p.Deny)
		for _, d := range p.Domains {
			domain := policy.Domain{Pattern: d.Domain}
			for i := range d.Rules {
				domain.Rules = append(domain.Rules, rule(&d.Rules[i]))
			}
			out.Domains = append(out.Domains, domain)
		}
	}
	return policy.Compile(out)
}

func ipv4(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out
}

func rule(r *skerry.NetworkRule) policy.Rule {
	out := policy.Rule{ForwardURL: r.ForwardURL}
	if r.Transform != nil {
		out.Transform = []policy.Transform{}
		for _, t := range r.Transform {
			out.Transform = append(out.Transform, policy.Transform{Headers: t.Headers})
		}
	}
	if a := r.Response; a != nil {
		out.Response = &policy.Response{StatusCode: a.StatusCode, Headers: a.Headers, ContentType: a.ContentType}
		if a.Body != nil {
			out.Response.Body = *a.Body
		}
	}
	if m := r.Match; m != nil {
		out.Match = &policy.Match{
			Path: (*policy.Matcher)(m.Path), Method: m.Method, QueryString: pairs(m.QueryString), Headers: pairs(m.Headers),
		}
	}
	return out
}

func pairs(list []skerry.PairMatcher) (out []policy.KeyValue) {
	for _, p := range list {
		out = append(out, policy.KeyValue{Key: (*policy.Matcher)(p.Key), Value: (*policy.Matcher)(p.Value)})
	}
	return out
}
