package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// earlier is a machine that an earlier process left, with an agent that has
// been taken over by what runs in it.
type earlier struct {
	id   string
	keys []string // of the processes that its agent lists; nil if it says nothing
	done chan struct{}
}

func (m *earlier) ID() string                   { return m.id }
func (m *earlier) Done() <-chan struct{}        { return m.done }
func (m *earlier) Reason() string               { return "it was stopped" }
func (m *earlier) Usage() (driver.Usage, error) { return driver.Usage{}, nil }
func (m *earlier) Stop(context.Context) error {
	close(m.done)
	return nil
}

func (m *earlier) SnapshotMemory(context.Context, string) error { return nil }

func (m *earlier) Attach(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	go m.serve(wire.NewLink(pipe{agent}))
	return host, nil
}

type pipe struct{ net.Conn }

func (p pipe) WriteVec(bufs [][]byte) error {
	_, err := (*net.Buffers)(&bufs).WriteTo(p.Conn)
	return err
}

func (m *earlier) serve(l *wire.Link) {
	for {
		h, err := l.Receive()
		if err != nil || l.Discard(h.Length) != nil {
			return
		}
		if h.Type != wire.TypeResume || m.keys == nil {
			continue
		}
		list := wire.Reply{LastID: h.ID + 100}
		for i, key := range m.keys {
			list.Processes = append(list.Processes, wire.ProcessState{ID: h.ID + 1 + uint32(i), Key: key})
		}
		if l.SendJSON(wire.TypeListing, h.ID, list) != nil {
			return
		}
		for _, p := range list.Processes {
			if l.Send(wire.TypeData, wire.StreamOut, p.ID, make([]byte, wire.MaxData), nil) != nil {
				return
			}
		}
	}
}

func (m *earlier) Snapshot(context.Context, string, driver.AttrReader) error {
	return errors.New("not here")
}
func (m *earlier) Pause(context.Context) error  { return nil }
func (m *earlier) Resume(context.Context) error { return nil }

type machines []driver.Machine

func (m machines) Recover(context.Context) ([]driver.Machine, error) { return m, nil }
func (m machines) Restore(context.Context, driver.Spec, func() (string, error)) (driver.Machine, error) {
	return nil, errors.New("not in this test")
}
func (m machines) Start(context.Context, driver.Spec) (driver.Machine, net.Conn, error) {
	return nil, nil, errors.New("not here")
}

type noNetworks struct{}

func (noNetworks) Acquire(context.Context) (Lease, error)       { return noLease{}, nil }
func (noNetworks) Adopt(context.Context, string) (Lease, error) { return noLease{}, nil }
func (noNetworks) Recover(context.Context, []string) error      { return nil }
func (noNetworks) Resolvers() []string                          { return nil }

type noLease struct{}

func (noLease) ID() string                      { return "lease" }
func (noLease) NetNSPath() string               { return "" }
func (noLease) Counters() (int64, int64, error) { return 0, 0, nil }
func (noLease) Dial(context.Context, uint16) (net.Conn, error) {
	return nil, errors.New("there is no network")
}
func (noLease) Release(context.Context) error { return nil }

func (noLease) SetNetwork(context.Context, string, controller.NetworkSpec) error { return nil }

func (noNetworks) Authority() []byte { return nil }
func (noNetworks) Events(context.Context, string, int) ([]skerry.NetworkEvent, error) {
	return nil, nil
}

// nodeAfter returns a node whose earlier process left the machines, with their
// ids.
func nodeAfter(t *testing.T, dir string, wait time.Duration, all ...*earlier) (_ *Node, keep map[string]controller.NetworkSpec) {
	keep = map[string]controller.NetworkSpec{}
	var driver machines
	sessions := filepath.Join(dir, "sessions")
	for _, m := range all {
		m.id, m.done = skerry.NewID(skerry.PrefixSession), make(chan struct{})
		driver, keep[m.id] = append(driver, m), controller.NetworkSpec{Policy: skerry.AllowAll()}
		if err := os.MkdirAll(filepath.Join(sessions, m.id, "output"), 0o700); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(state{Lease: "lease"})
		if err == nil {
			err = os.WriteFile(filepath.Join(sessions, m.id, stateFile), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(dir, "drives"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{
		Drives: drives,
		Dir:    sessions, SnapshotWork: filepath.Join(dir, "work"), Driver: driver, Networks: noNetworks{}, AgentWait: wait, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, keep
}

// TestSilentAgentEndsSession has an agent stop answering.
func TestSilentAgentEndsSession(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), 50*time.Millisecond, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := n.Watch(ctx, m.id); err != nil {
		t.Fatal(err)
	}
	if _, err := n.running(m.id); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("after the end: %v", err)
	}
	if err := n.Forget(ctx, m.id); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestRecoverFromHostileAgents has agents list processes whose ids would name
// files outside their session, and agents that say nothing, beside one that
// does what it should.
func TestRecoverFromHostileAgents(t *testing.T) {
	dir := t.TempDir()
	good := skerry.NewID(skerry.PrefixCommand)
	sane := &earlier{keys: []string{good}}
	all := []*earlier{
		sane,
		{keys: []string{"../../stolen"}},
		{keys: []string{filepath.Join(dir, "stolen")}},
		{keys: []string{"tty_/../../../stolen"}},
		{keys: []string{good + "/../../../stolen"}},
		{keys: []string{""}},
		{}, {}, {}, {}, {}, {}, {}, {},
	}
	const wait = time.Second
	n, keep := nodeAfter(t, dir, wait, all...)
	// One after the other, the silent agents would take longer than this.
	ctx, cancel := context.WithTimeout(context.Background(), 6*wait)
	defer cancel()
	adopted, err := n.Recover(ctx, keep)
	if err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	if !slices.Equal(adopted, []string{sane.id}) {
		t.Errorf("adopted %d sessions", len(adopted))
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	sessions := filepath.Join(dir, "sessions")
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Dir(path) != filepath.Join(sessions, sane.id) &&
			filepath.Dir(path) != filepath.Join(sessions, sane.id, "output") {
			t.Errorf("there is a file %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
