package acme

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/time/rate"
)

// What single names may ask of the authority. Let's Encrypt takes 300 orders in
// three hours from an account.
const (
	orderRate    = rate.Limit(100.0 / 3600)
	orderBurst   = 20
	ordersAtOnce = 4
	// orderWait is how long a handshake waits for its certificate; the order
	// goes on, for the next handshake.
	orderWait = 30 * time.Second
	// handshakeRest is what the handshake gets after that.
	handshakeRest = 10 * time.Second
)

// order is a certificate on its way. err is set when done is closed.
type order struct {
	done chan struct{}
	err  error
}

// rest keeps a name from being ordered over and over.
type rest struct {
	wait  time.Duration
	until time.Time
	err   error
}

var errTooMany = errors.New("acme: too many certificates were asked for of late")

// order waits for the certificate of one name, if it is a route's or the API's.
func (c *Certificates) order(hello *tls.ClientHelloInfo, name string) error {
	o, err := c.begin(name)
	if err != nil {
		return err
	}
	// The server's own bound on handshakes is for clients that are slow.
	_ = hello.Conn.SetDeadline(time.Now().Add(c.cfg.wait + handshakeRest))
	wait := time.NewTimer(c.cfg.wait)
	defer wait.Stop()
	select {
	case <-o.done:
		_ = hello.Conn.SetDeadline(time.Now().Add(handshakeRest))
		return o.err
	case <-wait.C:
		return fmt.Errorf("acme: the certificate for %s is still on its way", name)
	case <-hello.Context().Done():
		return hello.Context().Err()
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// begin returns the order of a name, which it starts if there is none.
func (c *Certificates) begin(name string) (*order, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.orders[name]; o != nil {
		return o, nil
	}
	limit := c.limit
	if c.isHost(name) {
		limit = nil // one name, which no client chooses
	}
	if c.closed || c.known == nil || !c.isHost(name) && (c.cfg.DNS != nil || !c.isKnown(name)) {
		return nil, fmt.Errorf("acme: there is no certificate for %q", name)
	}
	last := c.rests[name]
	if time.Now().Before(last.until) {
		return nil, last.err
	}
	o := &order{done: make(chan struct{})}
	c.orders[name] = o
	c.work.Go(func() {
		o.err = c.attempt(name, limit)
		c.end(name, o.err, last.wait)
		close(o.done)
	})
	return o, nil
}

func (c *Certificates) isHost(name string) bool { return name != "" && name == c.cfg.Host }

// isKnown reports whether a name has a certificate of its own.
func (c *Certificates) isKnown(name string) bool {
	return c.isHost(name) || c.cfg.Domain != "" && c.known(name)
}

// restOf is how long a name is not to be ordered.
func (c *Certificates) restOf(name string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, rests := c.rests[name]; rests {
		return time.Until(r.until)
	}
	return c.cfg.retry
}

// limit takes from what may be asked for. What cannot be had at once is
// refused: a client would not wait for it.
func (c *Certificates) limit() (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
	default:
		return nil, errTooMany
	}
	if !c.pace.Allow() {
		<-c.slots
		return nil, errTooMany
	}
	return func() { <-c.slots }, nil
}

// end notes how an order has ended. wait is the rest after the failure before.
func (c *Certificates) end(name string, err error, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.orders, name)
	switch {
	case err == nil:
		c.names[name] = true
		delete(c.rests, name)
	case errors.Is(err, errTooMany), c.ctx.Err() != nil:
	default:
		wait = min(max(2*wait, c.cfg.retry), lastRetry)
		c.rests[name] = rest{wait: wait, until: time.Now().Add(wait), err: err}
		what := "there is no certificate for a published port"
		if c.isHost(name) {
			what = "there is no certificate for the API"
		}
		c.cfg.Log.Error(what, "name", name, "authority", c.cfg.CA, "retry", wait, "error", err)
	}
}

// forget takes certificates out of service whose routes are gone, so that they
// are not renewed. Their files stay until they have expired.
func (c *Certificates) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var gone []certmagic.SubjectIssuer
	for name := range c.names {
		if !c.isKnown(name) {
			delete(c.names, name)
			gone = append(gone, certmagic.SubjectIssuer{Subject: name})
		}
	}
	c.cache.RemoveManaged(gone)
	for name, r := range c.rests {
		if time.Since(r.until) > lastRetry || !c.isKnown(name) {
			delete(c.rests, name)
		}
	}
}
