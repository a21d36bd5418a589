package node

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// strictNetworks gives leases that fail a test when they are released before the
// machine has ended, and whose release fails once.
type strictNetworks struct {
	noNetworks
	t       *testing.T
	machine *earlier
	lease   *strictLease
}

type strictLease struct {
	noLease
	t        *testing.T
	machine  *earlier
	releases int
}

var errBusy = errors.New("device or resource busy")

func (n *strictNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) {
	n.lease = &strictLease{t: n.t, machine: n.machine}
	return n.lease, nil
}

func (l *strictLease) Release(context.Context) error {
	select {
	case <-l.machine.done:
	default:
		l.t.Error("the lease was released while the machine ran")
	}
	if l.releases++; l.releases == 1 {
		return errBusy
	}
	return nil
}

// TestStopCanBeRepeated fails each step of a stop, of a session that runs and of
// one that could not be taken over.
func TestStopCanBeRepeated(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		stuck := errors.New("the sentry does not end")
		m := &earlier{keys: []string{}, stops: []error{stuck, stuck}}
		dir := t.TempDir()
		n, ids := nodeAfter(t, dir, time.Minute, m)
		networks := &strictNetworks{t: t, machine: m}
		n.cfg.Networks = networks
		keep, failures := ids, 3 // the machine's twice, the lease's
		if !wanted {
			keep, failures = map[string]nodeapi.NetworkSpec{}, 1 // one is met by Recover, and it has no lease
		}
		if adopted, err := n.Recover(t.Context(), keep); err != nil || (len(adopted) == 1) != wanted {
			t.Fatalf("Recover() = %v, %v", adopted, err)
		}
		for range failures {
			if _, err := n.Stop(t.Context(), m.id); err == nil {
				t.Error("a stop that failed says nothing")
			}
		}
		for range 2 {
			if _, err := n.Stop(t.Context(), m.id); err != nil {
				t.Error(err)
			}
		}
		if wanted && networks.lease.releases != 2 {
			t.Errorf("the lease was released %d times", networks.lease.releases)
		}
		if err := n.Forget(t.Context(), m.id); err != nil {
			t.Error(err)
		}
		if _, err := n.find(m.id); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("the session is still known: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "sessions", m.id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder is still there: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// brokenNetworks cannot remove what an earlier process left.
type brokenNetworks struct{ noNetworks }

func (brokenNetworks) Recover(context.Context, []string) error { return errBusy }

// TestRecoverWhatCanBe has one thing that cannot be recovered.
func TestRecoverWhatCanBe(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, m)
	n.cfg.Networks = brokenNetworks{}
	adopted, err := n.Recover(t.Context(), ids)
	if err != nil || len(adopted) != 1 {
		t.Errorf("Recover() = %v, %v", adopted, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestWaitsForOthersEnd has a save and a stop wait for another of their kind, for
// callers that are gone.
func TestWaitsForOthersEnd(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.cfg.Snapshots = shelf{}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	m.saving = func() {
		if _, err := n.Snapshot(gone, m.id, nodeapi.Saving{}); !errors.Is(err, context.Canceled) {
			t.Errorf("a save beside another: %v", err)
		}
	}
	if _, err := n.Snapshot(t.Context(), m.id, nodeapi.Saving{}); err != nil {
		t.Error(err)
	}
	m.stopping = func() {
		if _, err := n.Stop(gone, m.id); !errors.Is(err, context.Canceled) {
			t.Errorf("a stop beside another: %v", err)
		}
	}
	if _, err := n.Stop(t.Context(), m.id); err != nil {
		t.Error(err)
	}
}

// TestStateIsReplacedWhole has a reader open the state of a session before it is
// written again.
func TestStateIsReplacedWhole(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), time.Minute, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	s, err := n.running(m.id)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.dir, stateFile)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.drives = []string{"drv_1"}
	if err := s.saveState(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || string(got) != string(before) {
		t.Errorf("the file that was open has %q, %v; it had %q", got, err, before)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) == string(before) {
		t.Errorf("the new file has %q, %v", after, err)
	}
}
