package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry"
)

// Ingress is what published ports are reached through; package ingress says
// what each method does.
type Ingress interface {
	Publish(sandboxID string, ports []skerry.PublishedPort) error
	Restore(sandboxID string, ports []skerry.PublishedPort) error
	Withdraw(sandboxID string)
	URL(p skerry.PublishedPort) string
	Token(p skerry.PublishedPort, expires time.Time) string
}

// portStore is what ports need of the store.
type portStore interface {
	Sandbox(ctx context.Context, id string) (*skerry.Sandbox, error)
	SandboxByName(ctx context.Context, scope skerry.Scope, name string) (*skerry.Sandbox, error)
	PublishedSandboxes(ctx context.Context) ([]skerry.Sandbox, error)
	UpdateSandbox(ctx context.Context, id string, change func(*skerry.Sandbox) error) (*skerry.Sandbox, error)
}

// ports publishes the ports of sandboxes.
type ports struct {
	*background
	store   portStore
	ingress Ingress // nil if this installation has none
	limits  skerry.Limits
	// updates are held, by the sandbox's id, while a sandbox is updated: its ports
	// are published before they are written.
	updates keyed
}

// canPublish refuses ports if this installation has no ingress.
func (p *ports) canPublish(ports []int) error {
	if len(ports) > 0 && p.ingress == nil {
		return skerry.NotImplemented("ports", "publishing ports without an ingress")
	}
	return nil
}

// published is the list that follows old: ports that stay keep their place. A
// port that becomes private has a new key, so that no token from an earlier
// time opens it. private nil leaves what stays as it is.
func published(old []skerry.PublishedPort, ports, private []int) []skerry.PublishedPort {
	var list []skerry.PublishedPort
	for _, port := range ports {
		p := skerry.PublishedPort{Port: port, Subdomain: strings.ToLower(rand.Text())}
		if i := slices.IndexFunc(old, func(o skerry.PublishedPort) bool { return o.Port == port }); i >= 0 {
			p = old[i]
		}
		switch {
		case private == nil:
		case !slices.Contains(private, port):
			p.Key = nil
		case p.Key == nil:
			p.Key = make([]byte, 32)
			rand.Read(p.Key)
		}
		list = append(list, p)
	}
	return list
}

// numbers are the ports of a list, all or the private ones; never nil.
func numbers(list []skerry.PublishedPort, privateOnly bool) []int {
	ports := []int{}
	for _, p := range list {
		if p.Private() || !privateOnly {
			ports = append(ports, p.Port)
		}
	}
	return ports
}

// forkedPorts are those of a fork. What was private in the source stays so
// unless the call says otherwise.
func forkedPorts(sandbox *skerry.Sandbox, p skerry.ForkParams) (ports, private []int) {
	ports, private = p.Ports, p.PrivatePorts
	if ports == nil {
		ports = numbers(sandbox.Ports, false)
	}
	if private == nil {
		private = slices.DeleteFunc(numbers(sandbox.Ports, true), func(port int) bool { return !slices.Contains(ports, port) })
	}
	return ports, private
}

// publish makes a sandbox's ports reachable. A request that comes before the
// sandbox is in the store is told that there is none.
func (p *ports) publish(sandbox *skerry.Sandbox) error {
	if p.ingress == nil {
		return nil
	}
	return p.ingress.Publish(sandbox.ID, sandbox.Ports)
}

func (p *ports) withdraw(sandboxID string) {
	if p.ingress != nil {
		p.ingress.Withdraw(sandboxID)
	}
}

// republish publishes other ports of a sandbox, and has save write the sandbox
// with them. The sandbox's lock of updates is held.
func (p *ports) republish(sandbox *skerry.Sandbox, up skerry.UpdateParams, save func() error) error {
	old, numbered := sandbox.Ports, up.Ports
	if numbered == nil {
		numbered = numbers(old, false)
	}
	if err := p.canPublish(up.Ports); err != nil {
		return err
	}
	if err := skerry.ValidatePorts(up.Ports, up.PrivatePorts, numbered, p.limits); err != nil {
		return err
	}
	sandbox.Ports = published(old, numbered, up.PrivatePorts)
	if err := p.publish(sandbox); err != nil {
		return err
	}
	err := save()
	if err != nil {
		p.publishStored(sandbox.ID)
	}
	return err
}

// publishStored publishes the ports that a sandbox has in the store. A write
// that failed may have been done: only the store can say. The sandbox's lock of
// updates is held.
func (p *ports) publishStored(sandboxID string) {
	doing := "publish the ports of sandbox " + sandboxID
	publish := func(ctx context.Context) error {
		sandbox, err := p.store.Sandbox(ctx, sandboxID)
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		return p.publish(sandbox)
	}
	err := p.try(publish)
	if err == nil {
		return
	}
	p.keepTrying(doing, err, func(ctx context.Context) error {
		unlock, err := p.updates.lock(ctx, sandboxID) // or an update in between would be taken back
		if err != nil {
			return err
		}
		defer unlock()
		return publish(ctx)
	}, nil)
}

// recover publishes what was published when the service ended.
func (p *ports) recover(ctx context.Context) error {
	if p.ingress == nil {
		return nil
	}
	sandboxes, err := p.store.PublishedSandboxes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range sandboxes {
		errs = append(errs, p.restore(&sandboxes[i]))
	}
	return errors.Join(errs...)
}

// restore publishes the ports of a sandbox again. Some may get another port of
// the host.
func (p *ports) restore(sandbox *skerry.Sandbox) error {
	before := slices.Clone(sandbox.Ports)
	if err := p.ingress.Restore(sandbox.ID, sandbox.Ports); err != nil {
		return fmt.Errorf("publish the ports of sandbox %s: %w", sandbox.ID, err)
	}
	same := func(a, b skerry.PublishedPort) bool { return a.HostPort == b.HostPort }
	if slices.EqualFunc(before, sandbox.Ports, same) {
		return nil
	}
	p.untilDone("record the ports of sandbox "+sandbox.ID, func(ctx context.Context) error {
		_, err := p.store.UpdateSandbox(ctx, sandbox.ID, func(stored *skerry.Sandbox) error {
			for i, now := range stored.Ports {
				j := slices.IndexFunc(sandbox.Ports, func(moved skerry.PublishedPort) bool {
					return moved.Port == now.Port && moved.Subdomain == now.Subdomain
				})
				if j >= 0 {
					stored.Ports[i].HostPort = sandbox.Ports[j].HostPort
				}
			}
			return nil
		})
		if skerry.CodeOf(err) == skerry.CodeNotFound {
			return nil
		}
		return err
	})
	return nil
}

// routes are how a sandbox's ports are reached; never nil.
func (p *ports) routes(sandbox *skerry.Sandbox) []skerry.Route {
	routes := []skerry.Route{}
	if p.ingress == nil {
		return routes
	}
	for _, port := range sandbox.Ports {
		routes = append(routes, skerry.Route{URL: p.ingress.URL(port), Subdomain: port.Subdomain, Port: port.Port, Private: port.Private()})
	}
	return routes
}

// RouteToken implements api.Service.
func (p *ports) RouteToken(ctx context.Context, scope skerry.Scope, name string, port int, life skerry.Duration) (*skerry.RouteToken, error) {
	sandbox, err := p.store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	if life == 0 {
		life = skerry.Duration(skerry.DefaultRouteToken)
	}
	if err := skerry.ValidateRouteToken("expiration", life); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(sandbox.Ports, func(o skerry.PublishedPort) bool { return o.Port == port })
	if i < 0 || p.ingress == nil {
		return nil, skerry.Errorf(skerry.CodeNotFound, "sandbox %q does not publish port %d", name, port)
	}
	published := sandbox.Ports[i]
	if !published.Private() {
		return nil, skerry.Errorf(skerry.CodeConflict, "port %d is public and needs no token", port)
	}
	expires := time.Now().Add(life.Std()).Truncate(time.Second)
	token := p.ingress.Token(published, expires)
	return &skerry.RouteToken{Token: token, URL: p.ingress.URL(published) + "/?token=" + token, ExpiresAt: skerry.At(expires)}, nil
}
