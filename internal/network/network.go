// Package network gives each sandbox a private IPv4 network: a network namespace
// with one interface. The host filters at the other end of that interface.
//
// The sandbox's own kernel (gVisor) takes over the address of the interface in the
// namespace and sends raw frames there, so rules inside the namespace would not see
// its packets. Therefore all rules are at the host's end, in one nftables table per
// installation (rules.go). A sandbox can reach networks that the host reaches
// through a default route, with the host's address as source. It can reach nothing
// else: not the host, not another sandbox, no link-local or metadata address, no
// IPv6, and no private network unless the operator has opened it (private.go). From
// outside, only replies reach it. The host itself can connect to it (Lease.Dial),
// and the sandbox can only answer in these connections.
//
// Everything that the package creates carries a mark, which is derived from
// Config.Dir: the names of interfaces begin with "sky" and the mark, and the table
// is "skerry-" and the mark. Recover uses it to find what a crash left behind.
package network

import (
	"cmp"
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
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// DefaultPrefix is the default address range for sandboxes.
const DefaultPrefix = "10.201.0.0/16"

// refillRetry is the delay before leases are prepared again after a failure.
const refillRetry = time.Second

// Config configures a Pool.
type Config struct {
	// Dir is the folder in which the namespaces are mounted, such as
	// /run/skerry/netns. It distinguishes this installation's networks from those
	// of others on the machine.
	Dir string
	// Prefix is the IPv4 range for sandboxes, from /14 to /28. Each sandbox takes
	// four addresses, and so does the gateway. If it is empty, DefaultPrefix is
	// used or, if the host has a route into that, one of the fifteen ranges after
	// it.
	Prefix string
	// Resolvers are the DNS servers for sandboxes. If nil, the host's DNS servers
	// are used, except those on the host itself.
	Resolvers []string
	// Outbound lets sandboxes open connections to the outside.
	Outbound bool
	// Private are private networks that sandboxes may reach if their policies allow
	// it. All others are closed. See CheckPrivate.
	Private []netip.Prefix
	// Ready is the number of leases to prepare ahead.
	Ready int
	// Proxy redirects connections of sandboxes with a list to the Gateway, unless
	// the networks in the list decide about them.
	Proxy bool
	Log   *slog.Logger

	// connections, if positive, replaces a sandbox's share of the connection table.
	connections uint32
	// table, if positive, replaces the size of the connection table.
	table int
	// dialTimeout, if positive, is in the place of the constant.
	dialTimeout time.Duration
	// unguarded disables the guard, which repairs changes by others to the rules.
	unguarded bool
}

// Pool creates leases and takes them back.
type Pool struct {
	cfg       Config
	mark      string
	prefix    netip.Prefix
	resolvers []string
	rules     *rules
	gateway   *Gateway
	// uplinks are the uplinks that the rules know.
	uplinks atomic.Pointer[uplinks]
	denials *denials // nil if the kernel tells of no packets
	// routes and tables notify the guard of changes by other programs.
	routes, tables *watcher
	gate           *gate
	forgetter      forgetter
	// host queries the host's namespace, from a thread in any namespace.
	host *netlink.Handle
	// packets is a socket for sending frames. It stays open because closing one
	// takes the kernel tens of milliseconds.
	packets int
	// carried is the policies of running sandboxes that an earlier process set.
	carried map[netip.Addr]verdicts

	// ready holds the prepared leases. The refill goroutine holds one more, blocked
	// on the send. It is nil if no leases are prepared.
	ready  chan *Lease
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu sync.Mutex
	// leases are all leases that exist or are being created by this process, by id.
	// A nil value is a lease of an earlier process that has not been adopted yet.
	leases map[string]*Lease
	free   freeList
	closed bool
}

// New prepares the host: it creates the table of rules and, for Outbound, enables
// forwarding. It does not touch what an earlier process left; see Adopt and
// Recover.
func New(ctx context.Context, cfg Config) (_ *Pool, err error) {
	if !filepath.IsAbs(cfg.Dir) || cfg.Ready < 0 || cfg.Log == nil {
		return nil, fmt.Errorf("network: dir %q must be absolute, ready %d not negative, and a log set", cfg.Dir, cfg.Ready)
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	cfg.dialTimeout = cmp.Or(cfg.dialTimeout, dialTimeout)
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
	for _, private := range cfg.Private {
		if err := CheckPrivate(private); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	p.rules = &rules{
		mark: p.mark, ifPrefix: p.ifPrefix(), prefix: p.prefix, outbound: cfg.Outbound, connections: share,
		private: cfg.Private, resolvers: p.resolverAddrs(),
	}
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
	// Opened before the rules are created from the host's present state.
	if p.routes, err = watch(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE); err != nil {
		return nil, fmt.Errorf("network: watch the host's routes: %w", err)
	}
	if p.tables, err = watch(unix.NETLINK_NETFILTER, nfGroupNFTables); err != nil {
		return nil, fmt.Errorf("network: watch the host's rules: %w", err)
	}
	if p.gate, err = openGate(p.mark); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := p.takeOverGate(); err != nil {
		return nil, fmt.Errorf("network: take over the gate: %w", err)
	}
	up, err := findUplinks()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	p.uplinks.Store(&up)
	p.rules.uplinks = up.names()
	if err := p.rules.assumeOpened(len(p.leases) > 0); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if p.carried, err = p.rules.carried(p.elements()); err != nil {
		return nil, fmt.Errorf("network: read the rules: %w", err)
	}
	if err := errors.Join(p.addGateRules(), p.rules.install(p.elements(), p.carried)); err != nil {
		err = fmt.Errorf("network: install the rules: %w", err)
		if len(p.leases) == 0 {
			err = errors.Join(err, p.rules.remove(), p.removeGateRules(), p.removeGateway())
		}
		return nil, err
	}
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if !cfg.unguarded {
		p.work.Go(func() { p.guard(ctx) })
	}
	if cfg.Ready > 0 {
		p.ready = make(chan *Lease, cfg.Ready-1)
		p.work.Go(func() { p.keepReady(ctx) })
	}
	return p, nil
}

// markOf returns a mark of four characters, so that with a lease's id it fits the
// 15 bytes of an interface name.
func markOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5])[:4])
}

// ifPrefix is the prefix of this installation's interface names.
func (p *Pool) ifPrefix() string { return anyInterface + p.mark }

// takeStock reserves the indexes of the leases that an earlier process left.
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

// elements returns every known lease.
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

func (p *Pool) resolverAddrs() (list []netip.Addr) {
	for _, s := range p.resolvers {
		list = append(list, netip.MustParseAddr(s)) // checked by resolvers
	}
	return list
}

// Acquire returns a lease: a prepared one, or else a new one.
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

// giveBack releases a lease that was not used.
func (p *Pool) giveBack(l *Lease) {
	if err := l.Release(context.Background()); err != nil {
		p.cfg.Log.Warn("cannot give back a prepared network", "network", l.id, "error", err)
	}
}

// errClosed is the error of a closed pool.
var errClosed = errors.New("network: the pool is closed")

// create creates a lease. If it fails, nothing is left behind.
func (p *Pool) create() (*Lease, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	n, ok := p.free.take()
	if !ok {
		p.mu.Unlock()
		return nil, skerry.Errorf(skerry.CodeUnavailable, "all %d networks of %s are in use", p.free.size, p.prefix)
	}
	l := p.lease(newID(n), n)
	p.leases[l.id] = l
	p.mu.Unlock()
	if err := l.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("make network %s: %w", l.id, err), l.Release(context.Background()))
	}
	return l, nil
}

// Adopt returns a lease that an earlier process acquired, for a sandbox that is
// still running.
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
	if err := errors.Join(l.check(), l.renewGate()); err != nil {
		return nil, fmt.Errorf("adopt network %s: %w", id, err)
	}
	p.leases[id] = l
	return l, nil
}

// Recover removes everything that an earlier process left behind, except the leases
// in inUse.
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

// Close releases the prepared leases. Leases in use stay. The rules stay as long as
// there are any.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.work.Wait()
	var errs []error
	for p.ready != nil {
		select {
		case l := <-p.ready:
			p.giveBack(l)
			continue
		default:
		}
		break
	}
	errs = append(errs, p.closeSockets())
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.leases) == 0 {
		errs = append(errs, p.rules.remove(), p.removeGateRules(), p.removeGateway())
	}
	return errors.Join(errs...)
}

// closeSockets closes all open sockets.
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
	for _, w := range []*watcher{p.routes, p.tables} {
		if w != nil {
			errs = append(errs, w.close())
		}
	}
	if p.gate != nil {
		errs = append(errs, p.gate.close())
	}
	if p.gateway != nil {
		errs = append(errs, p.gateway.close())
	}
	return errors.Join(errs...)
}

// forget frees the index of a released lease.
func (p *Pool) forget(l *Lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.leases[l.id]; known {
		delete(p.leases, l.id)
		p.free.give(l.index)
	}
}

// newID returns an id with the lease's index, so that the address is known from the
// id, and two random bytes, so that the id is not soon used again.
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
