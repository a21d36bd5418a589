package node

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// mute starts machines whose agents take in everything and say nothing.
type mute struct {
	machines
	started []*earlier
}

func (d *mute) Start(_ context.Context, spec driver.Spec) (driver.Machine, error) {
	m := &earlier{id: spec.ID, done: make(chan struct{})}
	d.started = append(d.started, m)
	return muted{m}, nil
}

type muted struct{ *earlier }

func (muted) Attach(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	go io.Copy(io.Discard, agent)
	return host, nil
}

// anyImage says that every image is there.
type anyImage struct{}

func (anyImage) Path(string) (string, error)                         { return os.DevNull, nil }
func (anyImage) Xattrs(string) (map[string]map[string][]byte, error) { return nil, nil }

// TestSilentAgentFailsTheStart leaves nothing of the session.
func TestSilentAgentFailsTheStart(t *testing.T) {
	n, _ := nodeAfter(t, t.TempDir(), 50*time.Millisecond)
	d := &mute{}
	n.cfg.Driver, n.cfg.Images = d, anyImage{}
	if err := n.Start(t.Context(), nodeapi.SessionSpec{ID: skerry.NewID(skerry.PrefixSession)}); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a start before Recover: %v", err)
	}
	if _, err := n.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	id := skerry.NewID(skerry.PrefixSession)
	if err := n.Start(t.Context(), nodeapi.SessionSpec{ID: id, Hostname: "one"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start() = %v", err)
	}
	if len(d.started) != 1 {
		t.Fatalf("%d machines were started", len(d.started))
	}
	select {
	case <-d.started[0].done:
	default:
		t.Error("the machine runs on")
	}
	if _, err := os.Stat(n.dir(id)); !os.IsNotExist(err) {
		t.Errorf("the session's folder: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestHostProcesses: the host allows a session some for each of its own, but no
// more than a share of the machine's.
func TestHostProcesses(t *testing.T) {
	for _, c := range []struct{ own, share, want int }{
		{4096, 0, 4*4096 + 1024}, {4096, 1 << 20, 4*4096 + 1024}, {4096, 8192, 8192},
	} {
		if got := (&Config{Processes: c.own, HostProcesses: c.share}).hostProcesses(); got != c.want {
			t.Errorf("of %d, with %d of its own: %d, want %d", c.share, c.own, got, c.want)
		}
	}
}

// TestKilledNotesAreBounded has a command that lost more processes than it is
// told of.
func TestKilledNotesAreBounded(t *testing.T) {
	s := newSession(&Node{}, "")
	s.setMachine(&earlier{})
	for n, want := range map[int]int{1: 1, wire.MaxVictims: wire.MaxVictims, wire.MaxVictims + 1: wire.MaxVictims} {
		if got := s.killedNotes(guest.Exit{Killed: make([]wire.Victim, n)}); len(got) != want {
			t.Errorf("of %d that were killed, %d are told", n, len(got))
		}
	}
}
