package ingress

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry"
)

// route is a published port. It never changes: what replaces it cuts off the
// requests that came through it.
type route struct {
	sandboxID string
	skerry.PublishedPort
	// place is where it is reached in port mode.
	place *place

	// ctx ends with the route, and so do its requests.
	ctx    context.Context
	cancel context.CancelFunc
	// requests are under way.
	requests atomic.Int64
	// failed is the last failure to start the sandbox.
	failed atomic.Pointer[failure]

	mu sync.Mutex
	// held are the connections to the sandbox that requests have; nil once the
	// route has ended.
	held map[*upstream]struct{}
}

// hold has a connection end with the route, drop ends that and says whether it
// was in time.
func (r *route) hold(u *upstream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		_ = u.Close()
		return
	}
	r.held[u] = struct{}{}
}

func (r *route) drop(u *upstream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, held := r.held[u]
	delete(r.held, u)
	return held
}

// closeHeld ends all that is held.
func (r *route) closeHeld() {
	r.mu.Lock()
	held := r.held
	r.held = nil
	r.mu.Unlock()
	for u := range held {
		_ = u.Close()
	}
}

// failure keeps requests from starting a sandbox over and over that does not
// start.
type failure struct {
	until time.Time
	err   error
}

// is reports whether the route is that of a published port, key included.
func (r *route) is(p skerry.PublishedPort) bool {
	return r.Subdomain == p.Subdomain && r.Port == p.Port && r.HostPort == p.HostPort && bytes.Equal(r.Key, p.Key)
}

// Publish has a sandbox's ports reachable, and none that were before and are
// not among them. In port mode it sets the HostPort of those that have none.
// If it fails, all is as it was.
func (i *Ingress) Publish(sandboxID string, ports []skerry.PublishedPort) error {
	return i.replace(sandboxID, ports, false)
}

// Restore is Publish for what was published by an earlier process: a port that
// another program has taken meanwhile is no error, and is waited for.
func (i *Ingress) Restore(sandboxID string, ports []skerry.PublishedPort) error {
	return i.replace(sandboxID, ports, true)
}

// Withdraw gives back all of a sandbox.
func (i *Ingress) Withdraw(sandboxID string) {
	_ = i.replace(sandboxID, nil, false) // nothing is opened, so nothing fails
}

func (i *Ingress) replace(sandboxID string, ports []skerry.PublishedPort, patient bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return skerry.Errorf(skerry.CodeUnavailable, "the server is shutting down")
	}
	places, err := i.placesFor(ports, i.routes[sandboxID], patient)
	if err != nil {
		return err
	}
	var next []*route
	kept := map[*route]bool{}
	used := map[*place]bool{}
	for n, p := range ports {
		r := findRoute(i.routes[sandboxID], p)
		if r == nil {
			r = &route{sandboxID: sandboxID, PublishedPort: p, place: places[n]}
			r.ctx, r.cancel = context.WithCancel(i.ctx)
			r.held = map[*upstream]struct{}{}
			context.AfterFunc(r.ctx, r.closeHeld)
		}
		kept[r], used[r.place] = true, true
		next = append(next, r)
	}
	for _, r := range i.routes[sandboxID] {
		if kept[r] {
			continue
		}
		r.cancel()
		delete(i.bySubdomain, r.Subdomain)
		if r.place != nil && !used[r.place] {
			delete(i.places, r.HostPort)
			r.place.close()
		}
	}
	for _, r := range next {
		i.bySubdomain[r.Subdomain] = r
		if r.place != nil {
			r.place.route.Store(r)
		}
	}
	i.routes[sandboxID] = next
	if len(next) == 0 {
		delete(i.routes, sandboxID)
	}
	return nil
}

func findRoute(list []*route, p skerry.PublishedPort) *route {
	for _, r := range list {
		if r.is(p) {
			return r
		}
	}
	return nil
}

// placesFor returns where each port is reached: where it is already, or at a
// place that is opened now. It fills in the ports' HostPort. mu is held.
func (i *Ingress) placesFor(ports []skerry.PublishedPort, old []*route, patient bool) (_ []*place, err error) {
	places := make([]*place, len(ports))
	if i.cfg.Domain != "" {
		return places, nil
	}
	var opened []*place
	for n := range ports {
		for _, r := range old {
			if r.Subdomain == ports[n].Subdomain {
				places[n] = r.place
			}
		}
		if places[n] == nil {
			if places[n], err = i.openPlace(ports[n].HostPort, patient); err != nil {
				for _, p := range opened {
					delete(i.places, p.port)
					p.close()
				}
				return nil, err
			}
			opened = append(opened, places[n])
		}
		ports[n].HostPort = places[n].port
	}
	return places, nil
}

// routeBySubdomain is for domain mode.
func (i *Ingress) routeBySubdomain(name string) *route {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.bySubdomain[name]
}

// Knows reports whether a host name is that of a route, in domain mode.
func (i *Ingress) Knows(host string) bool {
	name, ok := subdomainOf(host, i.cfg.Domain)
	return ok && i.routeBySubdomain(name) != nil
}
