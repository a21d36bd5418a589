package ingress

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a port of a session. Connections to one are never used for another.
type peer struct {
	session string
	port    int
}

// upstream is a connection to a sandbox. One request at a time has it, and
// that request's goroutine reads from it: a connection that waits is watched
// by nobody, but looked at when it is taken (quiet).
type upstream struct {
	net.Conn
	peer peer
	raw  syscall.RawConn
	br   *bufio.Reader
	// waits, if set, is called before anything is read from the connection.
	waits func()
	// left is how much may still be read before the answer's header is whole.
	left int64
	// deadline is what is set for reads; it is moved seldom.
	deadline time.Time
	// used says that it has answered a request before.
	used bool
	// since is when it began to wait.
	since time.Time
}

// errLongHeader is what a sandbox gets for a header without end.
var errLongHeader = errors.New("the answer's header is too long")

// Read implements io.Reader for br.
func (u *upstream) Read(p []byte) (int, error) {
	if u.left <= 0 {
		return 0, errLongHeader
	}
	if int64(len(p)) > u.left {
		p = p[:u.left]
	}
	if u.waits != nil {
		u.waits()
	}
	n, err := u.Conn.Read(p)
	if n == 0 && u.left > maxAnswerHeader && errors.Is(err, os.ErrDeadlineExceeded) {
		// That was for the answer's beginning; a body takes the time that it takes.
		if err = u.patient(); err == nil {
			n, err = u.Conn.Read(p)
		}
	}
	u.left -= int64(n)
	return n, err
}

// bound lets so much come, unbounded a body of any length.
func (u *upstream) bound(most int64) { u.left = most }
func (u *upstream) unbounded()       { u.left = math.MaxInt64 }

// await has reads fail unless they are over in d. As to move a deadline costs
// more than to keep it, it is up to a tenth later.
func (u *upstream) await(d time.Duration) error {
	now := time.Now()
	if u.deadline.Sub(now) >= d {
		return nil
	}
	u.deadline = now.Add(d + d/10)
	return u.SetReadDeadline(u.deadline)
}

// patient lets reads wait for as long as they do.
func (u *upstream) patient() error {
	if u.deadline.IsZero() {
		return nil
	}
	u.deadline = time.Time{}
	return u.SetReadDeadline(u.deadline)
}

// quiet reports whether nothing has come since the last answer: neither an end
// nor bytes that would be taken for the next answer.
func (u *upstream) quiet() bool {
	if u.raw == nil || u.br.Buffered() > 0 {
		return false
	}
	var b [1]byte
	var seen error
	err := u.raw.Read(func(fd uintptr) bool {
		_, _, seen = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && errors.Is(seen, unix.EAGAIN)
}

// upstreams keeps connections for the next requests.
type upstreams struct {
	dial func(ctx context.Context, p peer, client netip.Addr) (net.Conn, error)
	// keep is for how long one may wait.
	keep time.Duration

	mu     sync.Mutex
	closed bool
	idle   map[peer][]*upstream
	count  int
	// sweep runs while any waits.
	sweep *time.Timer
}

// Chargeable is a connection of which one client may have only some.
type Chargeable interface {
	// ChargeTo counts the connection against another client's share. It reports
	// false if that client's share is used up.
	ChargeTo(client netip.Addr) bool
	// Wanted reports whether calls of Dial wait for others like it to be closed.
	Wanted() bool
}

// wanted reports whether the connection is not to be kept, as others wait for its
// place.
func (u *upstream) wanted() bool {
	c, ok := u.Conn.(Chargeable)
	return ok && c.Wanted()
}

// take returns the connection to a peer that waits for the shortest time, nil
// if there is none that the client may have.
func (s *upstreams) take(p peer, client netip.Addr) *upstream {
	for {
		u := s.pop(p)
		if u == nil {
			return nil
		}
		if u.quiet() {
			c, ok := u.Conn.(Chargeable)
			if !ok || c.ChargeTo(client) {
				return u
			}
			_ = u.Close()
			return nil
		}
		_ = u.Close()
	}
}

func (s *upstreams) pop(p peer) *upstream {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle[p]
	if len(list) == 0 {
		return nil
	}
	last := len(list) - 1
	u := list[last]
	list[last] = nil
	s.idle[p] = list[:last]
	s.count--
	return u
}

// open makes a connection for a client.
func (s *upstreams) open(ctx context.Context, p peer, client netip.Addr) (*upstream, error) {
	c, err := s.dial(ctx, p, client)
	if err != nil {
		return nil, err
	}
	u := &upstream{Conn: c, peer: p}
	u.br = bufio.NewReader(u)
	if sc, ok := c.(syscall.Conn); ok {
		if u.raw, err = sc.SyscallConn(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return u, nil
}

// put keeps a connection whose last answer has come whole. What is too much is
// closed.
func (s *upstreams) put(u *upstream) {
	u.used, u.since = true, time.Now()
	if u.wanted() {
		_ = u.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle[u.peer]
	if s.closed || u.raw == nil || s.count >= maxIdle || len(list) >= maxIdleEach {
		_ = u.Close()
		return
	}
	if s.idle == nil {
		s.idle = map[peer][]*upstream{}
	}
	s.idle[u.peer] = append(list, u)
	s.count++
	if s.sweep == nil {
		s.sweep = time.AfterFunc(sweepEvery, s.expire)
	}
}

// sweepEvery is how much longer than keep a connection may wait.
const sweepEvery = 500 * time.Millisecond

// expire closes those that have waited for too long.
func (s *upstreams) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := time.Now().Add(-s.keep)
	for p, list := range s.idle {
		n := 0 // the oldest are first
		for n < len(list) && list[n].since.Before(old) {
			_ = list[n].Close()
			n++
		}
		s.count -= n
		if n == len(list) {
			delete(s.idle, p)
		} else {
			clear(list[copy(list, list[n:]):])
			s.idle[p] = list[:len(list)-n]
		}
	}
	s.sweep = nil
	if !s.closed && len(s.idle) > 0 {
		s.sweep = time.AfterFunc(sweepEvery, s.expire)
	}
}

// close ends all that wait, and those that would.
func (s *upstreams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.sweep != nil {
		s.sweep.Stop()
	}
	for _, list := range s.idle {
		for _, u := range list {
			_ = u.Close()
		}
	}
	s.idle, s.count = nil, 0
}
