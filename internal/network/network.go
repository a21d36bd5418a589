// Package network gives each sandbox a private IPv4 network: a network
// namespace with one interface, whose other end the host filters.
//
// The sandbox's own kernel (gVisor) takes the address off the interface in the
// namespace and sends raw frames there, so no rule inside the namespace sees
// its packets. Everything is therefore enforced on the host's end, in one
// nftables table per installation (rules.go). A sandbox reaches what the host
// routes to, from the host's address, and nothing else: not the host, not
// another sandbox, not link-local or metadata addresses, not IPv6. Nothing
// from outside reaches it that it did not ask for. The host itself can open
// connections to it (Lease.Dial), and it can only answer in them.
//
// All that is made carries a mark that is derived from Config.Dir: the
// interfaces begin with "sky" and the mark, the table is "skerry-" and the
// mark. What a crash leaves is found by it (Recover).
package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultPrefix is where the addresses of sandboxes are taken from.
const DefaultPrefix = "10.201.0.0/16"

// refillRetry is how long the preparing of leases rests after a failure.
const refillRetry = time.Second

// Config says what networks a Pool makes.
type Config struct {
	// Dir is where the namespaces are mounted, such as /run/skerry/netns. It
	// tells this installation's networks from those of others on the machine.
	Dir string
	// Prefix is the IPv4 range for sandboxes, /14 to /28, four addresses
	// each, and four for the gateway; empty is DefaultPrefix or, if the host has a route into that, one
	// of the fifteen ranges after it.
	Prefix string
	// Resolvers are the DNS servers for sandboxes; nil means those of the
	// host that are not on the host itself.
	Resolvers []string
	// Outbound lets sandboxes open connections to the outside.
	Outbound bool
	// Ready is how many leases are kept prepared.
	Ready int
	// Proxy has the connections of sandboxes with a list that its networks do
	// not decide redirected to the Gateway.
	Proxy bool
	Log   *slog.Logger

	// connections, if positive, is in the place of a sandbox's share.
	connections uint32
}

// Pool makes leases and takes them back.
type Pool struct {
	cfg       Config
	mark      string
	prefix    netip.Prefix
	resolvers []string
	rules     *rules
	gateway   *Gateway
	denials   *denials // nil if the kernel tells of no packets
	// host asks the host's namespace, from a thread in whatever namespace.
	host *netlink.Handle
	// packets is a socket that sends frames; to close one takes the kernel tens
	// of milliseconds.
	packets int
	// carried is what an earlier process let the sandboxes that run reach.
	carried map[netip.Addr]verdicts

	// ready has the prepared leases but one, which the refill goroutine holds
	// out; nil when none are prepared.
	ready  chan *Lease
	cancel context.CancelFunc
	refill sync.WaitGroup

	mu sync.Mutex
	// leases are all that exist or are being made by this process, by id;
	// nil values were left by an earlier process and not adopted yet.
	leases map[string]*Lease
	free   freeList
	closed bool
}

// New prepares the host: the table of rules and, for Outbound, forwarding. It
// leaves alone what an earlier process left; see Adopt and Recover.
func New(ctx context.Context, cfg Config) (_ *Pool, err error) {
	if !filepath.IsAbs(cfg.Dir) || cfg.Ready < 0 || cfg.Log == nil {
		return nil, fmt.Errorf("network: dir %q must be absolute, ready %d not negative, and a log set", cfg.Dir, cfg.Ready)
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	p := &Pool{cfg: cfg, mark: markOf(cfg.Dir), leases: map[string]*Lease{}, packets: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.closeSockets())
		}
	}()
	if p.resolvers, err = resolvers(cfg.Resolvers); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if len(p.resolvers) == 0 && cfg.Outbound {
		cfg.Log.Warn("no DNS resolver for sandboxes: the host names none that is not on itself")
	}
	if p.prefix, err = choosePrefix(cfg.Prefix, p.ifPrefix()); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := p.takeStock(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	share, err := connectionShare()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if cfg.connections > 0 {
		share = cfg.connections
	}
	p.rules = &rules{mark: p.mark, ifPrefix: p.ifPrefix(), prefix: p.prefix, outbound: cfg.Outbound, connections: share}
	if cfg.Proxy {
		if p.gateway, err = p.openGateway(); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
		p.rules.gateway = p.gateway
	}
	if p.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	// Protocol 0 receives nothing.
	if p.packets, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("network: open a packet socket: %w", err)
	}
	if p.denials, err = openDenials(p.mark); err != nil {
		p.denials = nil
		cfg.Log.Warn("packets that are denied by their address alone are not in the network log", "error", err)
	} else {
		p.rules.tellTo = &p.denials.group
	}
	if p.carried, err = p.rules.carried(p.elements()); err != nil {
		return nil, fmt.Errorf("network: read the rules: %w", err)
	}
	if err := p.rules.install(p.elements(), p.carried); err != nil {
		err = fmt.Errorf("network: install the rules: %w", err)
		if len(p.leases) == 0 {
			err = errors.Join(err, p.rules.remove(), p.removeGateway())
		}
		return nil, err
	}
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if cfg.Ready > 0 {
		p.ready = make(chan *Lease, cfg.Ready-1)
		p.refill.Go(func() { p.keepReady(ctx) })
	}
	return p, nil
}

// markOf is four characters, so that with a lease's id it fits the 15 bytes
// of an interface name.
func markOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5])[:4])
}

// ifPrefix is what the names of this installation's interfaces begin with.
func (p *Pool) ifPrefix() string { return anyInterface + p.mark }

// takeStock reserves what an earlier process left.
func (p *Pool) takeStock() error {
	found, err := p.found()
	if err != nil {
		return err
	}
	p.free = newFreeList(p.prefix)
	for id := range found {
		p.leases[id] = nil
		if n, ok := parseID(id); ok {
			p.free.reserve(n)
		}
	}
	return nil
}

// elements are those of every lease known.
func (p *Pool) elements() []*Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*Lease
	for id := range p.leases {
		if n, ok := parseID(id); ok && n < p.free.size {
			list = append(list, p.lease(id, n))
		}
	}
	return list
}

// Resolvers returns the DNS servers that sandboxes should use.
func (p *Pool) Resolvers() []string { return append([]string(nil), p.resolvers...) }

// Acquire returns a network of its own: a prepared one, or one made now.
func (p *Pool) Acquire(ctx context.Context) (*Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case l := <-p.ready: // never, if nil
		return l, nil
	default:
		return p.create()
	}
}

// keepReady prepares leases until ctx ends.
func (p *Pool) keepReady(ctx context.Context) {
	for ctx.Err() == nil {
		l, err := p.create()
		if err != nil {
			p.cfg.Log.Warn("cannot prepare a network", "error", err)
			select {
			case <-time.After(refillRetry):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case p.ready <- l:
		case <-ctx.Done():
			p.giveBack(l)
		}
	}
}

// giveBack releases a lease that nobody used.
func (p *Pool) giveBack(l *Lease) {
	if err := l.Release(context.Background()); err != nil {
		p.cfg.Log.Warn("cannot give back a prepared network", "network", l.id, "error", err)
	}
}

// errClosed is what a closed pool answers.
var errClosed = errors.New("network: the pool is closed")

// create makes a lease; if it fails nothing is left.
func (p *Pool) create() (*Lease, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	n, ok := p.free.take()
	if !ok {
		p.mu.Unlock()
		return nil, fmt.Errorf("network: all %d addresses of %s are in use", p.free.size, p.prefix)
	}
	l := p.lease(newID(n), n)
	p.leases[l.id] = l
	p.mu.Unlock()
	if err := l.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("make network %s: %w", l.id, err), l.Release(context.Background()))
	}
	return l, nil
}

// Adopt returns the lease that an earlier process acquired, for a sandbox
// that still runs.
func (p *Pool) Adopt(_ context.Context, id string) (*Lease, error) {
	n, ok := parseID(id)
	if !ok || n >= p.free.size {
		return nil, fmt.Errorf("adopt network: %q is no id of one in %s", id, p.prefix)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l, known := p.leases[id]; !known || l != nil {
		return nil, fmt.Errorf("adopt network %s: it was not left by an earlier process", id)
	}
	l := p.lease(id, n)
	l.verdicts = p.carried[l.sandbox]
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("adopt network %s: %w", id, err)
	}
	p.leases[id] = l
	return l, nil
}

// Recover removes what an earlier process left and inUse does not name.
func (p *Pool) Recover(ctx context.Context, inUse []string) error {
	keep := map[string]bool{}
	for _, id := range inUse {
		keep[id] = true
	}
	p.mu.Lock()
	var stray []*Lease
	for id, l := range p.leases {
		if l == nil && !keep[id] {
			n, _ := parseID(id)
			left := p.lease(id, n)
			left.verdicts = p.carried[left.sandbox]
			stray = append(stray, left)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, l := range stray {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := l.Release(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close gives back the prepared leases. Those in use stay, and so do the
// rules unless there are none in use.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.refill.Wait()
	errs := []error{p.closeSockets()}
	for p.ready != nil {
		select {
		case l := <-p.ready:
			p.giveBack(l)
			continue
		default:
		}
		break
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.leases) == 0 {
		errs = append(errs, p.rules.remove(), p.removeGateway())
	}
	return errors.Join(errs...)
}

// closeSockets closes those that are open.
func (p *Pool) closeSockets() error {
	var errs []error
	if p.host != nil {
		p.host.Close()
	}
	if p.packets >= 0 {
		errs = append(errs, unix.Close(p.packets))
		p.packets = -1
	}
	if p.denials != nil {
		errs = append(errs, p.denials.close())
	}
	if p.gateway != nil {
		errs = append(errs, p.gateway.close())
	}
	return errors.Join(errs...)
}

// forget gives the index of a lease that is gone to the next.
func (p *Pool) forget(l *Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.leases[l.id]; known {
		delete(p.leases, l.id)
		p.free.give(l.index)
	}
}

// newID names a lease after its index, so that its address is known from its
// name, and two random bytes, so that a name is not soon used again.
func newID(index uint32) string {
	var b [2]byte
	rand.Read(b[:])
	return fmt.Sprintf("%04x%04x", index, b)
}

// parseID returns the index in an id.
func parseID(id string) (uint32, bool) {
	var index, random uint32
	if n, err := fmt.Sscanf(id, "%04x%04x", &index, &random); n != 2 || err != nil {
		return 0, false
	}
	return index, fmt.Sprintf("%04x%04x", index, random) == id
}
