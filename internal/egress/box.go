package egress

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/skerry-dev/skerry/internal/egress/dns"
	"github.com/skerry-dev/skerry/internal/egress/policy"
)

// box is what the proxy holds of a sandbox.
//
// Its mutex makes judging a connection and changing the policy exclude each
// other: what was judged by an old policy is already known to the change.
type box struct {
	p                *Proxy
	queries, telling *rate.Limiter
	// judging is held while a request is judged by rules: regular expressions
	// cost time of the host's.
	judging sync.Mutex

	mu         sync.Mutex
	s          Sandbox
	gone       bool
	conns      map[*conn]struct{}
	suppressed int64
}

func (p *Proxy) newBox(s Sandbox) *box {
	l := p.cfg.Limits
	return &box{
		p: p, s: s, conns: map[*conn]struct{}{},
		queries: rate.NewLimiter(rate.Limit(l.QueriesPerSecond), 2*l.QueriesPerSecond),
		telling: rate.NewLimiter(rate.Limit(l.EventsPerSecond), 10*l.EventsPerSecond),
	}
}

// admit adds a connection, unless the sandbox is gone.
func (b *box) admit(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return false
	}
	b.conns[c] = struct{}{}
	return true
}

func (b *box) set(s Sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.s = s
	for c := range b.conns {
		if !c.permitted(s.Policy) {
			c.abortLocked()
			continue
		}
		c.endForwarded(s.Policy)
	}
}

func (b *box) remove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	for c := range b.conns {
		c.abortLocked()
	}
}

func (b *box) closeIdle(before time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		if c.last.Load() < before.UnixNano() {
			c.abortLocked()
		}
	}
}

// endIdlest ends the connection that has carried nothing for longest.
func (b *box) endIdlest() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	var idlest *conn
	for c := range b.conns {
		if idlest == nil || c.last.Load() < idlest.last.Load() {
			idlest = c
		}
	}
	if idlest == nil {
		return false
	}
	idlest.abortLocked()
	return true
}

func (b *box) policy() *policy.Compiled {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.s.Policy
}

func (b *box) sandbox() Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.s
}

// Tell passes on what others have decided about the sandbox with an address, as
// one of its events. Of an address that is not known there is nothing to tell.
func (p *Proxy) Tell(addr netip.Addr, e Event) {
	if b := p.box(addr); b != nil {
		b.tell(e)
	}
}

// tell passes an event on, unless there were too many.
func (b *box) tell(e Event) {
	if b.p.cfg.OnEvent == nil {
		return
	}
	allowed := b.telling.Allow()
	b.mu.Lock()
	if !allowed {
		b.suppressed++
		b.mu.Unlock()
		return
	}
	e.Sandbox, e.Box, e.Claims, e.Suppressed = b.s.ID, b.s.Box, b.s.Claims, b.suppressed
	b.suppressed = 0
	b.mu.Unlock()
	e.Time = time.Now()
	b.p.cfg.OnEvent(e)
}

// dnsClient is what the DNS server sees of a sandbox.
type dnsClient struct {
	*box
	policy *policy.Compiled
}

func (p *Proxy) dnsClient(addr netip.Addr) dns.Client {
	b := p.box(addr)
	if b == nil {
		return nil
	}
	return dnsClient{b, b.policy()}
}

func (c dnsClient) Allow() bool { return c.queries.Allow() }

// Everything is what a sandbox may ask that may talk to our upstream servers
// itself: it could ask them without us.
func (c dnsClient) Everything() bool {
	return slices.ContainsFunc(c.p.cfg.Resolver.Upstreams(), func(a netip.AddrPort) bool {
		return c.policy.Address(a.Addr()) == policy.Allowed
	})
}

func (c dnsClient) Name(name string) bool { return name != "" && c.policy.Site(name) != nil }

func (c dnsClient) Refused(name string) {
	c.tell(Event{Protocol: ProtocolDNS, Reason: reasonDomain, Domain: name})
}

func (c dnsClient) Withheld(name string, a netip.Addr) {
	reason := c.p.forbidden(a)
	if reason == "" {
		reason = reasonDenied
	}
	c.tell(Event{Protocol: ProtocolDNS, Reason: reason, Domain: name, Upstream: netip.AddrPortFrom(a, 0)})
}

func (c dnsClient) Unanswered(name string) {
	c.tell(Event{Protocol: ProtocolDNS, Reason: reasonNameServer, Domain: name})
}

func (c dnsClient) Address(a netip.Addr) bool {
	return c.p.forbidden(a) == "" && c.policy.Address(a) != policy.Denied
}

// permitted reports whether a policy allows what a connection does. The box is
// locked.
func (c *conn) permitted(pol *policy.Compiled) bool {
	if c.kind == pending { // will be judged by the policy of then
		return true
	}
	byName := false
	for _, a := range append(slices.Collect(maps.Values(c.upstreams)), c.dest.Addr()) {
		switch pol.Address(a) {
		case policy.Denied:
			return false
		case policy.ByName:
			byName = true
		}
	}
	if !byName {
		return true
	}
	if c.kind == byAddress {
		return false
	}
	for name := range c.names {
		site := pol.Site(name)
		if site == nil || c.kind == passed && site.HasRules() {
			return false
		}
	}
	return true
}

// choose judges a request, one of the sandbox's at a time.
func (b *box) choose(site *policy.Site, r *http.Request) (*policy.Action, bool) {
	b.judging.Lock()
	defer b.judging.Unlock()
	return site.Choose(r)
}
