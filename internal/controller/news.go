package controller

import (
	"context"
	"sync/atomic"
)

// news sends a value that changes to the node. It counts the changes since the last value
// was sent.
type news struct{ untold atomic.Int64 }

// tell calls send, which sends the current value to the node, in the background. Only one
// call of send runs at a time, so a slow node gets the latest value next, and values never
// arrive out of order.
func (n *news) tell(b *background, doing string, send func(context.Context) error) {
	if n.untold.Add(1) == 1 {
		n.tellNewest(b, doing, send)
	}
}

// tellNewest sends the current value, and again if it has changed meanwhile.
func (n *news) tellNewest(b *background, doing string, send func(context.Context) error) {
	b.inBackground(doing, func(ctx context.Context) error {
		wanted := n.untold.Load()
		if err := send(ctx); err != nil {
			return err
		}
		if !n.untold.CompareAndSwap(wanted, 0) {
			n.tellNewest(b, doing, send)
		}
		return nil
	})
}
