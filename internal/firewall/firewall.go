// Package firewall gives each session a network that lets out what its policy
// allows: the kernel's rules (package network) judge addresses, and redirect
// what is to be judged by names to the proxy (package egress).
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/egress"
	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/oidc"
	"github.com/skerry-dev/skerry/internal/egress/policy"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/node"
)

// Config configures a Firewall.
type Config struct {
	Network network.Config
	// Dir has the keys of the certificate authority and of tokens.
	Dir string
	// Sessions has a folder for each session, in which what it was allowed and
	// denied is logged.
	Sessions string
	// Issuer is the URL at which Discovery is served.
	Issuer string
	// Export, if set, is a file to which the events of all sandboxes are
	// appended, or "-" for standard output.
	Export string
	Log    *slog.Logger
}

// Firewall implements node.Networks.
type Firewall struct {
	pool   *network.Pool
	names  *dns.Resolver
	proxy  *egress.Proxy
	ca     *ca.Authority
	signer *oidc.Signer
	events *recorder
	export *exporter // may be nil
	log    *slog.Logger

	cancel context.CancelFunc
	serves sync.WaitGroup
}

var _ node.Networks = (*Firewall)(nil)

// New prepares the host and starts the proxy.
func New(ctx context.Context, cfg Config) (_ *Firewall, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the firewall's folder: %w", err)
	}
	f := &Firewall{log: cfg.Log, cancel: func() {}}
	if f.ca, err = ca.Open(filepath.Join(cfg.Dir, "ca.pem")); err != nil {
		return nil, err
	}
	if f.signer, err = oidc.Open(filepath.Join(cfg.Dir, "tokens.pem"), cfg.Issuer); err != nil {
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
	if err := f.startProxy(ctx, cfg.Network.Resolvers); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Firewall) startProxy(ctx context.Context, configured []string) error {
	servers, err := nameServers(configured)
	if err != nil {
		return err
	}
	if f.names, err = dns.NewResolver(dns.ResolverConfig{Upstreams: servers}); err != nil {
		return err
	}
	f.proxy, err = egress.New(egress.Config{
		Resolver: f.names, Forbidden: f.pool.Forbidden, CA: f.ca, Tokens: f.signer,
		OnEvent: f.tell, Mark: network.ProxyMark, Log: f.log,
	})
	if err != nil {
		return err
	}
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	gateway := f.pool.Gateway()
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

// denied tells of a packet that the kernel's rules denied.
func (f *Firewall) denied(d network.Denied) {
	f.proxy.Tell(d.Source, egress.Event{Protocol: d.Protocol, Reason: d.Reason, Destination: d.Destination})
}

// Close ends the proxy and gives back the networks that are not in use. What
// sandboxes that run on may reach without the proxy stays as it is.
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

// tell implements egress.Config.OnEvent: it never waits.
func (f *Firewall) tell(e egress.Event) {
	f.events.add(e)
	if f.export != nil {
		f.export.add(e)
	}
}

// Discovery serves what it takes to verify the tokens of forwarded requests.
func (f *Firewall) Discovery() http.Handler { return f.signer.Handler() }

// Authority implements node.Networks.
func (f *Firewall) Authority() []byte { return f.ca.CertificatePEM() }

// Resolvers implements node.Networks.
func (f *Firewall) Resolvers() []string { return f.pool.Resolvers() }

// Recover implements node.Networks.
func (f *Firewall) Recover(ctx context.Context, inUse []string) error {
	return f.pool.Recover(ctx, inUse)
}

// Acquire implements node.Networks.
func (f *Firewall) Acquire(ctx context.Context) (node.Lease, error) {
	l, err := f.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	return &lease{Lease: l, firewall: f}, nil
}

// Adopt implements node.Networks.
func (f *Firewall) Adopt(ctx context.Context, id string) (node.Lease, error) {
	l, err := f.pool.Adopt(ctx, id)
	if err != nil {
		return nil, err
	}
	return &lease{Lease: l, firewall: f}, nil
}

// lease is a network.Lease that the proxy knows of.
type lease struct {
	*network.Lease
	firewall *Firewall

	mu sync.Mutex
	// known is what the proxy has been told; nil for nothing.
	known *egress.Sandbox
}

// SetNetwork implements node.Lease. The proxy comes first: of what the kernel
// redirects to it, it lets through nothing that it has not been told of.
func (l *lease) SetNetwork(ctx context.Context, sessionID string, spec controller.NetworkSpec) error {
	compiled, err := compile(spec.Policy)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	proxy, addr, before := l.firewall.proxy, l.Address(), l.known
	next := egress.Sandbox{ID: sessionID, Box: spec.SandboxID, Policy: compiled, Claims: oidc.Claims{
		TeamID: spec.Claims["team_id"], ProjectID: spec.Claims["project_id"],
		SandboxID: spec.Claims["sandbox_id"], SandboxName: spec.Claims["sandbox_name"],
	}}
	if err := proxy.Set(addr, next); err != nil {
		return err // nothing has changed
	}
	if err := l.SetPolicy(ctx, spec.Policy); err != nil {
		if before == nil {
			proxy.Remove(addr)
			return err
		}
		return errors.Join(err, proxy.Set(addr, *before))
	}
	l.known = &next
	return nil
}

// Release implements node.Lease.
func (l *lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.firewall.proxy.Remove(l.Address())
	l.known = nil
	return l.Lease.Release(ctx)
}

// compile makes the proxy's form of a policy.
func compile(p *skerry.NetworkPolicy) (*policy.Compiled, error) {
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
	c, err := policy.Compile(out)
	if e, ok := errors.AsType[*policy.Error](err); ok {
		return nil, skerry.Invalid("networkPolicy."+e.Field, "%s", e.Message)
	}
	return c, err
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
