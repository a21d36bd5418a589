package wire

import (
	"context"
	"fmt"
	"sync"
)

// Gate keeps the sender of a stream within the receiver's window.
type Gate struct {
	mu    sync.Mutex
	sent  int64
	acked int64
	err   error
	wake  chan struct{} // holds a token when the state has changed
}

// NewGate returns the Gate of a new stream.
func NewGate() *Gate { return &Gate{wake: make(chan struct{}, 1)} }

// Reserve waits until the window has space, and reserves up to max bytes of it. Only
// one goroutine at a time may call it.
func (g *Gate) Reserve(ctx context.Context, max int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		g.mu.Lock()
		free, err := int(g.acked+Window-g.sent), g.err
		if err == nil && free > 0 {
			n := min(free, max, MaxData)
			g.sent += int64(n)
			g.mu.Unlock()
			return n, nil
		}
		g.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-g.wake:
		case <-ctx.Done():
		}
	}
}

// Sent returns the total number of reserved bytes.
func (g *Gate) Sent() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent
}

// Ack handles an Ack of the receiver. It frees space in the window.
func (g *Gate) Ack(offset int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if offset > g.sent {
		return fmt.Errorf("%w: %d bytes acknowledged, %d sent", errFrame, offset, g.sent)
	}
	g.acked = max(g.acked, offset)
	g.signal()
	return nil
}

// Close makes Reserve return err.
func (g *Gate) Close(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	g.signal()
}

func (g *Gate) signal() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
