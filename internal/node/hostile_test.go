package node

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// imitated is a machine whose agent was replaced by a program that says that all
// processes are started, and never that one has ended.
type imitated struct {
	*earlier
	// says is the first byte that every process prints; 0 is none.
	says    byte
	started atomic.Int64
}

func (m *imitated) Attach(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	go m.serve(wire.NewLink(pipe{agent}))
	return host, nil
}

func (m *imitated) serve(l *wire.Link) {
	for {
		h, err := l.Receive()
		if err != nil || l.Discard(h.Length) != nil {
			return
		}
		switch h.Type {
		case wire.TypeResume:
			err = l.SendJSON(wire.TypeListing, h.ID, wire.Reply{})
		case wire.TypePing:
			err = l.SendJSON(wire.TypeReply, h.ID, wire.Reply{})
		case wire.TypeStart:
			m.started.Add(1)
			if err = l.SendJSON(wire.TypeReply, h.ID, wire.Reply{}); err == nil && m.says != 0 {
				err = l.Send(wire.TypeData, wire.StreamOut, h.ID, []byte{m.says}, nil)
			}
		}
		if err != nil {
			return
		}
	}
}

// take has a node take the machine over.
func (m *imitated) take(t *testing.T) *Node {
	t.Helper()
	n, keep := nodeAfter(t, t.TempDir(), time.Hour, m.earlier)
	n.cfg.Driver, n.cfg.Networks, n.cfg.ReachLoopback = machines{m}, deafNetworks{}, true
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestLoopbackOfHostileAgent has visitors ask for what a hostile agent never
// gives: however many come, and whether or not they wait, the agent gets no more
// processes to keep than there may be connections.
func TestLoopbackOfHostileAgent(t *testing.T) {
	for name, says := range map[string]byte{"not connected": 'x', "nothing": 0} {
		synctest.Test(t, func(t *testing.T) {
			m := &imitated{earlier: &earlier{}, says: says}
			n := m.take(t)
			defer n.Close()
			for i := range 10 * maxLoopback {
				if c, err := n.Dial(t.Context(), m.id, 80, visitor(i)); err == nil {
					c.Close()
					t.Fatalf("%s: there is a connection", name)
				}
			}
			if got := m.started.Load(); got != maxLoopback {
				t.Errorf("%s: an agent was given %d processes", name, got)
			}
		})
	}
}

// TestTerminalsOfHostileAgent has terminals opened and closed that never end.
func TestTerminalsOfHostileAgent(t *testing.T) {
	m := &imitated{earlier: &earlier{}}
	n := m.take(t)
	for opened := 0; ; opened++ {
		term, err := n.Terminal(t.Context(), m.id, skerry.TerminalParams{Name: "sh"})
		if skerry.CodeOf(err) == skerry.CodeRateLimited && opened == wire.MaxProcesses {
			return
		}
		if err != nil || opened == wire.MaxProcesses {
			t.Fatalf("terminal %d: %v", opened, err)
		}
		if err := term.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
