// Package dns resolves the names that sandboxes may use, and answers their
// queries for these and no others.
//
// Messages are those of github.com/miekg/dns. Its server and its client are not
// used. The server starts a goroutine for each packet before anybody can count
// it, and here each sandbox has a share of the queries and connections that are
// worked on. The client takes an answer with the right ID for any question.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// ResolverConfig says how a Resolver works.
type ResolverConfig struct {
	// Upstreams are the recursive servers, asked in this order; at least one.
	Upstreams []netip.AddrPort
	// Timeout is how long one of them may take; default 2 s.
	Timeout time.Duration
	// Mark, if not zero, is set on its sockets (SO_MARK).
	Mark int
}

// Resolver asks recursive DNS servers. It remembers answers (at the most
// 10,000 names, for what their TTL says but 5 s to 5 min; that there is no such
// name, for 5 s). Failures are not remembered. Close ends it.
type Resolver struct {
	cfg    ResolverConfig
	cache  *cache
	flight singleflight.Group

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

const (
	defaultTimeout = 2 * time.Second
	minTTL         = 5 * time.Second
	maxTTL         = 5 * time.Minute
	// udpSize is what we say that we take, and the most that we send: it fits
	// every path without fragments.
	udpSize  = 1232
	maxAddrs = 32
)

// NewResolver returns a Resolver.
func NewResolver(cfg ResolverConfig) (*Resolver, error) {
	if len(cfg.Upstreams) == 0 {
		return nil, errors.New("dns: no upstream server")
	}
	for _, u := range cfg.Upstreams {
		if !u.IsValid() || u.Port() == 0 {
			return nil, fmt.Errorf("dns: %s is no upstream server", u)
		}
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	r := &Resolver{cfg: cfg, cache: newCache()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close ends the lookups that are under way and waits for them.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
}

// begin makes the caller a part of what Close waits for, until it calls
// running.Done.
func (r *Resolver) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return net.ErrClosed
	}
	r.running.Add(1)
	return nil
}

// Upstreams returns the servers that are asked.
func (r *Resolver) Upstreams() []netip.AddrPort { return r.cfg.Upstreams }

// ErrNotFound is the error for names that have no IPv4 address.
var ErrNotFound = errors.New("no such name, or it has no IPv4 address")

// Lookup returns the IPv4 addresses of a name and for how long they are good.
// It does not judge them. The slice must not be changed.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	if addrs, ttl, ok := r.cache.get(name); ok {
		if len(addrs) == 0 {
			return nil, ttl, ErrNotFound
		}
		return addrs, ttl, nil
	}
	// The query goes on when the one who asked first gives up: others may wait.
	result := r.flight.DoChan(name, func() (any, error) {
		if err := r.begin(); err != nil {
			return nil, err
		}
		defer r.running.Done()
		ctx, cancel := context.WithTimeout(r.ctx, time.Duration(len(r.cfg.Upstreams))*2*r.cfg.Timeout)
		defer cancel()
		return r.lookup(ctx, name)
	})
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case res := <-result:
		if res.Err != nil {
			return nil, 0, res.Err
		}
		a := res.Val.(answer)
		if len(a.addrs) == 0 {
			return nil, a.ttl, ErrNotFound
		}
		return a.addrs, a.ttl, nil
	}
}

type answer struct {
	addrs []netip.Addr
	ttl   time.Duration
}

func (r *Resolver) lookup(ctx context.Context, name string) (answer, error) {
	fqdn := dns.Fqdn(name)
	if _, ok := dns.IsDomainName(fqdn); !ok {
		return answer{}, ErrNotFound
	}
	msg, err := r.Exchange(ctx, dns.Question{Name: fqdn, Qtype: dns.TypeA, Qclass: dns.ClassINET})
	if err != nil {
		return answer{}, err
	}
	a := readAddrs(msg, fqdn)
	r.cache.put(name, a)
	return a, nil
}

// Exchange asks one question and returns the answer, whose ID is random.
func (r *Resolver) Exchange(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	query := newQuery(q)
	var errs []error
	for range 2 {
		for _, server := range r.cfg.Upstreams {
			msg, err := r.ask(ctx, server, query)
			if err == nil {
				return msg, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			errs = append(errs, fmt.Errorf("ask %s: %w", server, err))
		}
	}
	return nil, fmt.Errorf("dns: %w", errors.Join(errs...))
}

func newQuery(q dns.Question) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id(), RecursionDesired: true}, Question: []dns.Question{q}}
	return m.SetEdns0(udpSize, false)
}

// ask asks one server over UDP, and over TCP if the answer is cut off.
func (r *Resolver) ask(ctx context.Context, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	msg, err := r.askOver(ctx, "udp4", server, query)
	if err == nil && msg.Truncated {
		msg, err = r.askOver(ctx, "tcp4", server, query)
	}
	if err != nil {
		return nil, err
	}
	// After any other answer another server should be asked.
	if msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("the server answers %s", dns.RcodeToString[msg.Rcode])
	}
	return msg, nil
}

// dial returns a connection of which every read and write ends with ctx, until
// unbind is called.
func (r *Resolver) dial(ctx context.Context, network string, server netip.AddrPort) (_ net.Conn, unbind func() bool, err error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if r.cfg.Mark == 0 {
			return nil
		}
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, r.cfg.Mark) })
		return errors.Join(cerr, err)
	}}
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	return conn, context.AfterFunc(ctx, func() { conn.SetDeadline(longAgo) }), nil
}

// longAgo, as a deadline, ends what is under way.
var longAgo = time.Unix(1, 0)

func (r *Resolver) askOver(ctx context.Context, network string, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	// A socket of its own for each query: its random port is half of what a
	// forger has to guess.
	dialed, unbind, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer dialed.Close()
	defer unbind()
	conn := &dns.Conn{Conn: dialed, UDPSize: dns.MaxMsgSize}
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		raw, err := conn.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		if err == nil {
			msg := &dns.Msg{}
			err = msg.Unpack(raw)
			if answers(msg, query) {
				if msg.Truncated {
					err = nil // the rest may be anything
				}
				return msg, err
			}
		}
		// Over UDP it may be a forger's, and the answer may come yet.
		if network == "tcp4" {
			return nil, errors.New("the answer is to another question, or none that can be read")
		}
	}
}

// answers reports whether msg answers query.
func answers(msg, query *dns.Msg) bool {
	if !msg.Response || msg.Id != query.Id || len(msg.Question) != 1 {
		return false
	}
	got, q := msg.Question[0], query.Question[0]
	return got.Qtype == q.Qtype && got.Qclass == q.Qclass && strings.EqualFold(got.Name, q.Name)
}

// readAddrs returns the addresses of a name, following its aliases in the
// answer.
func readAddrs(msg *dns.Msg, name string) answer {
	a := answer{ttl: maxTTL}
	if msg.Rcode == dns.RcodeNameError {
		return answer{ttl: minTTL}
	}
	for _, rr := range msg.Answer {
		h := rr.Header()
		if len(a.addrs) == maxAddrs {
			break
		}
		if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			name = rr.Target
		case *dns.A:
			addr, ok := netip.AddrFromSlice(rr.A)
			if !ok {
				continue
			}
			a.addrs = append(a.addrs, addr.Unmap())
		default:
			continue
		}
		a.ttl = min(a.ttl, time.Duration(h.Ttl)*time.Second)
	}
	a.ttl = max(a.ttl, minTTL)
	if len(a.addrs) == 0 {
		a.ttl = minTTL
	}
	return a
}
