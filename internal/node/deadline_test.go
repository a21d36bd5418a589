package node

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// standing is a machine that can be paused. Its agent answers while it is not.
type standing struct {
	*earlier
	paused atomic.Bool
	fails  atomic.Bool
}

func (m *standing) Pause(context.Context) error {
	if m.fails.Load() {
		return os.ErrDeadlineExceeded
	}
	m.paused.Store(true)
	return nil
}

func (m *standing) Resume(context.Context) error {
	m.paused.Store(false)
	return nil
}

func (m *standing) Attach(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	l := wire.NewLink(pipe{agent})
	go func() {
		for {
			h, err := l.Receive()
			if err != nil || l.Discard(h.Length) != nil {
				return
			}
			switch {
			case h.Type == wire.TypeResume:
				err = l.SendJSON(wire.TypeListing, h.ID, wire.Reply{})
			case h.Type == wire.TypePing && !m.paused.Load():
				err = l.SendJSON(wire.TypeReply, h.ID, wire.Reply{})
			}
			if err != nil {
				return
			}
		}
	}()
	return host, nil
}

// take has a node take the machine over.
func (m *standing) take(t *testing.T, dir string) *Node {
	t.Helper()
	n, keep := nodeAfter(t, dir, time.Hour, m.earlier)
	n.cfg.Driver, n.cfg.Snapshots = machines{m}, shelf{}
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	return n
}

func kindOf(t *testing.T, n *Node) nodeapi.EventKind {
	t.Helper()
	b, err := n.Events(t.Context(), "")
	if err != nil || !b.Listed || len(b.Events) != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	return b.Events[0].Kind
}

func TestDeadlineWithoutController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &standing{earlier: &earlier{}}
		n := m.take(t, t.TempDir())
		defer n.Close()
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + deadlineGrace - time.Second)
		if m.paused.Load() {
			t.Error("paused before its time and a grace were over")
		}
		time.Sleep(2 * deadlineTick)
		if !m.paused.Load() {
			t.Fatal("not paused")
		}
		if kind := kindOf(t, n); kind != nodeapi.SessionOverdue {
			t.Errorf("it is listed as %s", kind)
		}
		// A controller that is back saves it, and it stays paused.
		if _, err := n.Snapshot(t.Context(), m.id, nodeapi.Saving{}); err != nil || !m.paused.Load() {
			t.Errorf("saved: %v, paused: %v", err, m.paused.Load())
		}
		if err := n.SetDeadline(t.Context(), m.id, 0); err != nil || !m.paused.Load() {
			t.Errorf("without more time: %v, paused: %v", err, m.paused.Load())
		}
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil || m.paused.Load() {
			t.Errorf("with more time: %v, paused: %v", err, m.paused.Load())
		}
		if kind := kindOf(t, n); kind != nodeapi.SessionRuns {
			t.Errorf("with more time it is listed as %s", kind)
		}
		// A pause that fails is tried again.
		m.fails.Store(true)
		time.Sleep(time.Hour + deadlineGrace + 2*deadlineTick)
		if kind := kindOf(t, n); m.paused.Load() || kind != nodeapi.SessionRuns {
			t.Errorf("it is listed as %s", kind)
		}
		m.fails.Store(false)
		time.Sleep(silentAfter + 2*deadlineTick)
		if !m.paused.Load() {
			t.Error("not paused later")
		}
		if _, err := n.Stop(t.Context(), m.id); err != nil {
			t.Error(err)
		}
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
			t.Errorf("after its stop: %v", err)
		}
		if _, err := os.Stat(filepath.Join(n.dir(m.id), stateFile)); !os.IsNotExist(err) {
			t.Errorf("its state is back: %v", err)
		}
		if err := n.SetDeadline(t.Context(), skerry.NewID(skerry.PrefixSession), time.Hour); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("of no session: %v", err)
		}
	})
}

// TestDeadlineWithController has somebody read the events: the node leaves the end of
// the session to the reader.
func TestDeadlineWithController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &standing{earlier: &earlier{}}
		n := m.take(t, t.TempDir())
		defer n.Close()
		if err := n.SetDeadline(t.Context(), m.id, time.Minute); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var at nodeapi.Cursor
		for ctx.Err() == nil {
			if b, err := n.Events(ctx, at); err == nil {
				at = b.Next
			}
			time.Sleep(30 * time.Second) // as after an error
		}
		if m.paused.Load() {
			t.Error("paused although the controller lives")
		}
		time.Sleep(silentAfter + 2*deadlineTick)
		if !m.paused.Load() {
			t.Error("not paused when the controller has gone")
		}
	})
}

// TestDeadlineIsKept has a later process know the deadline.
func TestDeadlineIsKept(t *testing.T) {
	m := &standing{earlier: &earlier{}}
	dir := t.TempDir()
	n := m.take(t, dir)
	if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(n.dir(m.id), stateFile))
	var st state
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil || time.Until(time.UnixMilli(st.Deadline)) < 59*time.Minute {
		t.Errorf("%s, %v", b, err)
	}
	again, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Recover(t.Context(), map[string]nodeapi.NetworkSpec{m.id: {}}); err != nil {
		t.Fatal(err)
	}
	s, err := again.find(m.id)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(s.deadline); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the later process knows a deadline in %s", left)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeadlineDuringSave: only a session that was paused has to wait for the save,
// which resumes the machine by itself.
func TestDeadlineDuringSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &standing{earlier: &earlier{}}
		n := m.take(t, t.TempDir())
		defer n.Close()
		var err error
		m.saving = func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err = n.SetDeadline(ctx, m.id, time.Hour)
		}
		if _, saved := n.Snapshot(t.Context(), m.id, nodeapi.Saving{}); saved != nil || err != nil {
			t.Fatalf("of a session that runs: %v, saved: %v", err, saved)
		}
		time.Sleep(time.Hour + deadlineGrace + 2*deadlineTick)
		if !m.paused.Load() {
			t.Fatal("not paused")
		}
		if _, saved := n.Snapshot(t.Context(), m.id, nodeapi.Saving{}); saved != nil || err == nil || !m.paused.Load() {
			t.Errorf("of one that is paused: %v, paused: %v, saved: %v", err, m.paused.Load(), saved)
		}
		m.saving = nil
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil || m.paused.Load() {
			t.Errorf("after the save: %v, paused: %v", err, m.paused.Load())
		}
	})
}
