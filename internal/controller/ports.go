package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
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

// validatePorts checks what a client asks to be published; private must be
// among all.
func (c *Controller) validatePorts(ports, private, all []int) error {
	if len(ports) > 0 && c.cfg.Ingress == nil {
		return skerry.NotImplemented("ports", "publishing ports without an ingress")
	}
	if len(ports) > c.cfg.MaxPorts {
		return skerry.Invalid("ports", "are %d, more than %d", len(ports), c.cfg.MaxPorts)
	}
	for i, port := range ports {
		field := fmt.Sprintf("ports[%d]", i)
		if port < 1 || port > skerry.MaxPort {
			return skerry.Invalid(field, "must be 1 to %d, is %d", skerry.MaxPort, port)
		}
		if slices.Contains(ports[:i], port) {
			return skerry.Invalid(field, "is %d, which is there already", port)
		}
	}
	for i, port := range private {
		if !slices.Contains(all, port) {
			return skerry.Invalid(fmt.Sprintf("privatePorts[%d]", i), "is %d, which is not published", port)
		}
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
func forkedPorts(box *skerry.Sandbox, p skerry.ForkParams) (ports, private []int) {
	ports, private = p.Ports, p.PrivatePorts
	if ports == nil {
		ports = numbers(box.Ports, false)
	}
	if private == nil {
		private = slices.DeleteFunc(numbers(box.Ports, true), func(port int) bool { return !slices.Contains(ports, port) })
	}
	return ports, private
}

// publish makes a sandbox's ports reachable. A request that comes before the
// sandbox is in the store is told that there is none.
func (c *Controller) publish(box *skerry.Sandbox) error {
	if c.cfg.Ingress == nil {
		return nil
	}
	return c.cfg.Ingress.Publish(box.ID, box.Ports)
}

func (c *Controller) withdraw(boxID string) {
	if c.cfg.Ingress != nil {
		c.cfg.Ingress.Withdraw(boxID)
	}
}

// republish saves a sandbox with other ports than it had; edits is held.
func (c *Controller) republish(ctx context.Context, box *skerry.Sandbox, p skerry.UpdateParams) error {
	old, ports := box.Ports, p.Ports
	if ports == nil {
		ports = numbers(old, false)
	}
	if err := c.validatePorts(p.Ports, p.PrivatePorts, ports); err != nil {
		return err
	}
	box.Ports = published(old, ports, p.PrivatePorts)
	if err := c.publish(box); err != nil {
		return err
	}
	err := c.cfg.Store.SaveSandbox(ctx, box)
	if err != nil {
		box.Ports = old
		err = errors.Join(err, c.publish(box))
	}
	return err
}

// publishAgain is for what was published when the service ended.
func (c *Controller) publishAgain(ctx context.Context) error {
	if c.cfg.Ingress == nil {
		return nil
	}
	boxes, err := c.cfg.Store.PublishedSandboxes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range boxes {
		before := slices.Clone(boxes[i].Ports)
		if err := c.cfg.Ingress.Restore(boxes[i].ID, boxes[i].Ports); err != nil {
			errs = append(errs, fmt.Errorf("publish the ports of sandbox %s: %w", boxes[i].ID, err))
			continue
		}
		moved := func(a, b skerry.PublishedPort) bool { return a.HostPort == b.HostPort }
		if !slices.EqualFunc(before, boxes[i].Ports, moved) {
			errs = append(errs, c.cfg.Store.SaveSandbox(ctx, &boxes[i]))
		}
	}
	return errors.Join(errs...)
}

// routes are how a sandbox's ports are reached; never nil.
func (c *Controller) routes(box *skerry.Sandbox) []skerry.Route {
	routes := []skerry.Route{}
	if c.cfg.Ingress == nil {
		return routes
	}
	for _, p := range box.Ports {
		routes = append(routes, skerry.Route{URL: c.cfg.Ingress.URL(p), Subdomain: p.Subdomain, Port: p.Port, Private: p.Private()})
	}
	return routes
}

// RouteToken implements api.Service.
func (c *Controller) RouteToken(ctx context.Context, scope skerry.Scope, name string, port int, life skerry.Duration) (*skerry.RouteToken, error) {
	box, err := c.cfg.Store.SandboxByName(ctx, scope, name)
	if err != nil {
		return nil, err
	}
	if life == 0 {
		life = skerry.Duration(skerry.DefaultRouteToken)
	}
	if life.Std() < time.Second || life.Std() > skerry.MaxRouteToken {
		return nil, skerry.Invalid("expiration", "must be 1000 to %d ms, is %d", skerry.MaxRouteToken.Milliseconds(), life.Millis())
	}
	i := slices.IndexFunc(box.Ports, func(p skerry.PublishedPort) bool { return p.Port == port })
	if i < 0 || c.cfg.Ingress == nil {
		return nil, skerry.Errorf(skerry.CodeNotFound, "sandbox %q does not publish port %d", name, port)
	}
	p := box.Ports[i]
	if !p.Private() {
		return nil, skerry.Errorf(skerry.CodeConflict, "port %d is public: it needs no token", port)
	}
	expires := time.Now().Add(life.Std()).Truncate(time.Second)
	token := c.cfg.Ingress.Token(p, expires)
	return &skerry.RouteToken{Token: token, URL: c.cfg.Ingress.URL(p) + "/?token=" + token, ExpiresAt: skerry.At(expires)}, nil
}

// Ready returns the session that takes a sandbox's requests at once, "" if there
// is none.
func (c *Controller) Ready(boxID string) (sessionID string) {
	if l := c.liveOf(boxID); l != nil {
		if run := l.session(); run.Status == skerry.StatusRunning && run.PausedAt.IsZero() {
			return l.id
		}
	}
	return ""
}

// Reach returns the session that takes a sandbox's requests. One that is
// paused goes on for it; with resume, so does a persistent sandbox that has
// stopped, and the caller waits for that.
func (c *Controller) Reach(ctx context.Context, boxID string, resume bool) (sessionID string, err error) {
	for {
		l := c.liveOf(boxID)
		if l == nil {
			if err := c.mayResume(ctx, boxID, resume); err != nil {
				return "", err
			}
			if _, err := c.resume(ctx, boxID); err != nil {
				return "", err
			}
			continue
		}
		run := l.session()
		switch {
		case run.Status == skerry.StatusRunning && run.PausedAt.IsZero(), run.Status == skerry.StatusSnapshotting:
			return l.id, nil
		case run.Status == skerry.StatusRunning:
			if err := c.wake(context.WithoutCancel(ctx), l); err != nil {
				return "", c.failure(ctx, l, err)
			}
		default:
			// It starts or stops; which way it goes is seen afterwards.
			next := l.ended
			if run.Status == skerry.StatusPending {
				next = l.started
			}
			select {
			case <-next:
			case <-ctx.Done():
				return "", ctx.Err()
			}
			if run.Status == skerry.StatusPending && l.startErr != nil {
				return "", l.startErr
			}
		}
	}
}

// mayResume says why a request does not start a sandbox.
func (c *Controller) mayResume(ctx context.Context, boxID string, resume bool) error {
	box, err := c.cfg.Store.Sandbox(ctx, boxID)
	if err != nil {
		return err
	}
	if !resume || !box.Persistent {
		return skerry.Errorf(skerry.CodeSandboxStopped, "the sandbox has stopped")
	}
	return nil
}

// Dial connects to a port of a running session.
func (c *Controller) Dial(ctx context.Context, sessionID string, port int) (net.Conn, error) {
	return c.cfg.Node.Dial(ctx, sessionID, port)
}
