package ingress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// place is a port of the machine that a route has in port mode.
type place struct {
	port  int
	route atomic.Pointer[route]
	// ctx ends with the place.
	ctx    context.Context
	cancel context.CancelFunc

	mu sync.Mutex
	// ln is nil while another program has the port.
	ln net.Listener
}

// close gives the port back.
func (p *place) close() {
	p.cancel()
	p.route.Store(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close()
	}
}

// hold makes ln the place's listener, or closes it if the place is closed.
func (p *place) hold(ln net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		_ = ln.Close()
		return false
	}
	p.ln = ln
	return true
}

// openPlace opens a port: that one or, if it is 0, any of the range that no
// route has and no program listens at. It is a random one, so that a port is
// not soon another sandbox's. If patient, a port that cannot be opened is
// waited for. i.mu is held.
func (i *Ingress) openPlace(port int, patient bool) (*place, error) {
	p := &place{port: port}
	p.ctx, p.cancel = context.WithCancel(i.ctx)
	var ln net.Listener
	var err error
	if port != 0 {
		if i.places[port] != nil {
			return nil, fmt.Errorf("ingress: port %d is another route's", port)
		}
		ln, err = i.listenAt(port)
	} else {
		p.port, ln, err = i.listenAnywhere()
	}
	if err != nil && !(patient && port != 0) {
		p.cancel()
		return nil, err
	}
	i.places[p.port] = p
	if err != nil {
		i.cfg.Log.Error("a route's port cannot be opened; trying on", "port", p.port, "error", err)
		i.work.Go(func() { i.waitForPort(p) })
		return p, nil
	}
	p.ln = ln
	i.work.Go(func() { i.serveAt(p, ln) })
	return p, nil
}

func (i *Ingress) listenAt(port int) (net.Listener, error) {
	if i.cfg.onLoopback() {
		return listenLocalhost(i.ctx, port)
	}
	return listenTCP(i.ctx, "tcp", i.cfg.Address, port)
}

func (i *Ingress) listenAnywhere() (int, net.Listener, error) {
	size := i.cfg.LastPort - i.cfg.FirstPort + 1
	start := rand.IntN(size)
	for n := range size {
		port := i.cfg.FirstPort + (start+n)%size
		if i.places[port] != nil {
			continue
		}
		ln, err := i.listenAt(port)
		if err == nil {
			return port, ln, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, nil, err
		}
	}
	return 0, nil, skerry.Errorf(skerry.CodeUnavailable, "all ports from %d to %d of the server are in use", i.cfg.FirstPort, i.cfg.LastPort)
}

// portRetry is how long a port that another program has is left alone.
const portRetry = time.Second

// waitForPort opens a place once its port is free.
func (i *Ingress) waitForPort(p *place) {
	tick := time.NewTicker(portRetry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
		if ln, err := i.listenAt(p.port); err == nil {
			if p.hold(ln) {
				i.cfg.Log.Info("a route's port could be opened", "port", p.port)
				i.serveAt(p, ln)
			}
			return
		}
	}
}

// serveAt serves a place until it is closed.
func (i *Ingress) serveAt(p *place, ln net.Listener) {
	select {
	case <-i.ready:
	case <-p.ctx.Done():
		_ = ln.Close()
		return
	}
	i.serve(&listener{Listener: ln, place: p, slots: i.connections})
}
