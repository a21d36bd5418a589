package node

// Totals is what all sessions together did since the node began.
type Totals struct {
	// Reclaimed is the bytes that sessions gave back while they slept; see reclaim.go.
	Reclaimed int64
}

// Totals returns the node's totals.
func (n *Node) Totals() Totals { return Totals{Reclaimed: n.reclaimed.Load()} }
