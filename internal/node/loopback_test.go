package node

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// deafNetworks gives leases at whose address nothing listens.
type deafNetworks struct{ noNetworks }

type deafLease struct{ noLease }

func (deafNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) { return deafLease{}, nil }

func (deafLease) Dial(context.Context, uint16) (net.Conn, error) { return nil, unix.ECONNREFUSED }

// visitor is a client's address.
func visitor(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

// TestOneVisitorLeavesRoom has a visitor hold as many connections as it gets.
func TestOneVisitorLeavesRoom(t *testing.T) {
	m := &imitated{earlier: &earlier{}, says: wire.Connected}
	n := m.take(t)
	greedy, open := visitor(0), 0
	n.cfg.loopbackWait = 50 * time.Millisecond
	var last net.Conn
	for {
		c, err := n.Dial(t.Context(), m.id, 3000, greedy)
		if err != nil {
			break
		}
		defer c.Close()
		last = c
		if open++; open > maxLoopback/4 {
			t.Fatalf("one visitor has %d of %d connections", open, maxLoopback)
		}
	}
	if last == nil {
		t.Fatal("one visitor gets none")
	}
	n.cfg.loopbackWait = time.Minute
	for i := 1; i <= 20; i++ {
		c, err := n.Dial(t.Context(), m.id, 3000, visitor(i))
		if err != nil {
			t.Fatalf("another visitor: %v", err)
		}
		defer c.Close()
		if c.(*loopbackConn).ChargeTo(greedy) {
			t.Error("the greedy visitor gets one that another has had")
		}
	}
	// What carries the requests of another is not the greedy one's any more.
	if !last.(*loopbackConn).ChargeTo(visitor(30)) {
		t.Error("another visitor does not get one that waits")
	}
	s, err := n.running(m.id)
	if err != nil {
		t.Fatal(err)
	}
	if used := s.loopbacks.Used(); used != open+20 {
		t.Errorf("%d connections are counted, want %d", used, open+20)
	}
}

// TestLoopbackBounds: a connection to the loopback interface waits for its turn if
// there are as many as may be, but not for ever.
func TestLoopbackBounds(t *testing.T) {
	m := &earlier{keys: []string{}, starts: make(chan struct{}, 1)}
	n, keep := nodeAfter(t, t.TempDir(), time.Minute, m)
	n.cfg.Networks, n.cfg.ReachLoopback, n.cfg.loopbackWait = deafNetworks{}, true, 50*time.Millisecond
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	s, err := n.running(m.id)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLoopback {
		s.loopbacks.Take(visitor(i))
	}
	if _, err := n.Dial(t.Context(), m.id, 3000, visitor(100)); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("one more: %v", err)
	}
	select {
	case <-m.starts:
		t.Error("one more was begun")
	default:
	}

	n.cfg.loopbackWait = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Dial(ctx, m.id, 3000, visitor(100))
		done <- err
	}()
	s.loopbacks.Give(visitor(0))
	<-m.starts // its turn has come
	cancel()
	if err := <-done; err == nil {
		t.Error("a connection that nobody answers is there")
	}
	// Its process may still begin: that it has ended is the agent's to say.
	if n := s.loopbacks.Used(); n != maxLoopback {
		t.Errorf("%d turns are taken, want %d", n, maxLoopback)
	}

	n.cfg.loopbackWait = 50 * time.Millisecond
	s.loopbacks.Give(visitor(1))
	if _, err := n.Dial(t.Context(), m.id, 3000, visitor(100)); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a connection that nobody answers: %v", err)
	}
	if _, err := n.Stop(t.Context(), m.id); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
