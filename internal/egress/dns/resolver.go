// Package dns resolves the names that sandboxes may use, and answers their
// queries for these and no others.
package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
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
	udpSize    = 1232
	maxMessage = 64 << 10
	maxAddrs   = 32
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
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return answer{}, ErrNotFound
	}
	msg, err := r.Exchange(ctx, dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	if err != nil {
		return answer{}, err
	}
	a, err := readAddrs(msg, n)
	if err != nil {
		return answer{}, fmt.Errorf("resolve %s: %w", name, err)
	}
	r.cache.put(name, a)
	return a, nil
}

// Exchange asks one question and returns the answer as it came. Its id is
// random.
func (r *Resolver) Exchange(ctx context.Context, q dnsmessage.Question) ([]byte, error) {
	query, err := buildQuery(q)
	if err != nil {
		return nil, err
	}
	var errs []error
	for range 2 {
		for _, server := range r.cfg.Upstreams {
			msg, err := r.ask(ctx, server, query, q)
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

func buildQuery(q dnsmessage.Question) ([]byte, error) {
	var id [2]byte
	rand.Read(id[:])
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
		return nil, err
	}
	return b.Finish()
}

// ask asks one server over UDP, and over TCP if the answer is cut off.
func (r *Resolver) ask(ctx context.Context, server netip.AddrPort, query []byte, q dnsmessage.Question) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	msg, truncated, err := r.askUDP(ctx, server, query, q)
	if err != nil || !truncated {
		return msg, err
	}
	return r.askTCP(ctx, server, query, q)
}

func (r *Resolver) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if r.cfg.Mark == 0 {
			return nil
		}
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, r.cfg.Mark) })
		return errors.Join(cerr, err)
	}}
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return conn, conn.SetDeadline(deadline)
}

func (r *Resolver) askUDP(ctx context.Context, server netip.AddrPort, query []byte, q dnsmessage.Question) ([]byte, bool, error) {
	// A socket of its own for each query: its random port is half of what a
	// forger has to guess.
	conn, err := r.dial(ctx, "udp4", server)
	if err != nil {
		return nil, false, err
	}
	defer conn.Close()
	if _, err := conn.Write(query); err != nil {
		return nil, false, err
	}
	buf := make([]byte, maxMessage)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, false, err
		}
		if h, ok := answers(buf[:n], query, q); ok {
			return buf[:n:n], h.Truncated, usable(h)
		}
	}
}

func (r *Resolver) askTCP(ctx context.Context, server netip.AddrPort, query []byte, q dnsmessage.Question) ([]byte, error) {
	conn, err := r.dial(ctx, "tcp4", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := writeMessage(conn, query); err != nil {
		return nil, err
	}
	msg, err := readMessage(conn)
	if err != nil {
		return nil, err
	}
	h, ok := answers(msg, query, q)
	if !ok {
		return nil, errors.New("the answer is to another question")
	}
	return msg, usable(h)
}

// usable refuses answers after which another server should be asked.
func usable(h dnsmessage.Header) error {
	if h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return fmt.Errorf("the server answers %v", h.RCode)
	}
	return nil
}

func writeMessage(w io.Writer, msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// answers reports whether msg answers query.
func answers(msg, query []byte, q dnsmessage.Question) (dnsmessage.Header, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(query) {
		return h, false
	}
	got, err := p.Question()
	if err != nil || got.Type != q.Type || got.Class != q.Class || !sameName(got.Name, q.Name) {
		return h, false
	}
	return h, true
}

func sameName(a, b dnsmessage.Name) bool { return strings.EqualFold(a.String(), b.String()) }

// readAddrs returns the addresses of a name, following its aliases in the
// answer.
func readAddrs(msg []byte, name dnsmessage.Name) (answer, error) {
	a := answer{ttl: maxTTL}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err == nil {
		err = p.SkipAllQuestions()
	}
	if err != nil {
		return a, err
	}
	if h.RCode == dnsmessage.RCodeNameError {
		return answer{ttl: minTTL}, nil
	}
	for len(a.addrs) < maxAddrs {
		rh, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return a, err
		}
		relevant := rh.Class == dnsmessage.ClassINET && sameName(rh.Name, name)
		switch {
		case relevant && rh.Type == dnsmessage.TypeCNAME:
			body, err := p.CNAMEResource()
			if err != nil {
				return a, err
			}
			name = body.CNAME
		case relevant && rh.Type == dnsmessage.TypeA:
			body, err := p.AResource()
			if err != nil {
				return a, err
			}
			a.addrs = append(a.addrs, netip.AddrFrom4(body.A))
		default:
			if err := p.SkipAnswer(); err != nil {
				return a, err
			}
			continue
		}
		a.ttl = min(a.ttl, time.Duration(rh.TTL)*time.Second)
	}
	a.ttl = max(a.ttl, minTTL)
	if len(a.addrs) == 0 {
		a.ttl = minTTL
	}
	return a, nil
}
