package ingress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// localhost is the host in the URLs of ports that are published on loopback
// alone. Development servers take requests from there for their own user's, and
// refuse those that name an address.
const localhost = "localhost"

// onLoopback reports whether ports are reached as localhost.
func (c *Config) onLoopback() bool { return c.Address == DefaultAddress && c.Host == localhost }

// listenLocalhost opens a port at both addresses that localhost has. It fails if
// another program has one of them: who asks for localhost would reach that. A
// machine without IPv6 has one.
func listenLocalhost(ctx context.Context, port int) (net.Listener, error) {
	four, err := listenTCP(ctx, "tcp4", DefaultAddress, port)
	if err != nil {
		return nil, err
	}
	six, err := listenTCP(ctx, "tcp6", "::1", port)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.Join(err, four.Close())
	}
	if err != nil {
		return four, nil
	}
	return bothOf(four, six), nil
}

func listenTCP(ctx context.Context, network, address string, port int) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, network, net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	return ln, nil
}

// bothAddresses is several listeners as one.
type bothAddresses struct {
	net.Listener // the first, for its address
	all          []net.Listener
	accepted     chan accepted
	done         chan struct{}
	once         sync.Once
	work         sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

func bothOf(all ...net.Listener) *bothAddresses {
	j := &bothAddresses{Listener: all[0], all: all, accepted: make(chan accepted), done: make(chan struct{})}
	for _, ln := range all {
		j.work.Go(func() { j.take(ln) })
	}
	return j
}

// take hands on what one of the listeners accepts, until all are closed.
func (j *bothAddresses) take(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		select {
		case j.accepted <- accepted{conn, err}:
		case <-j.done:
			if err == nil {
				_ = conn.Close()
			}
			return
		}
	}
}

// Accept implements net.Listener.
func (j *bothAddresses) Accept() (net.Conn, error) {
	select {
	case a := <-j.accepted:
		return a.conn, a.err
	case <-j.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (j *bothAddresses) Close() error {
	err := net.ErrClosed
	j.once.Do(func() {
		close(j.done)
		err = nil
		for _, ln := range j.all {
			err = errors.Join(err, ln.Close())
		}
		j.work.Wait()
	})
	return err
}
