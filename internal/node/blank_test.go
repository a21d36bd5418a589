package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

func awaitBlank(t *testing.T, n *Node, count int) {
	t.Helper()
	until(t, "blank machines", func() bool { return n.PoolStats().Blank.Ready == count })
}

// saved returns the specification of sessions that start from a usual session's files: the
// file kept has the word kept.
func saved(t *testing.T, n *Node) nodeapi.SessionSpec {
	t.Helper()
	first := startUsual(t, n, nil)
	runOn(t, n, first, "echo kept >kept")
	files, err := n.Snapshot(t.Context(), first, nodeapi.Saving{Lease: "lease"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Forget(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	spec := usual
	spec.Snapshot = files.Manifest
	return spec
}

// TestBlankMachineBecomesASession starts sessions from a snapshot in blank machines.
func TestBlankMachineBecomesASession(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, nil)
	spec := saved(t, n)
	for i := range 2 {
		until(t, "a blank machine", func() bool { return n.PoolStats().Blank.Ready > 0 })
		ready := pooled(n, true)[0]
		id := startOn(t, n, spec)
		if got := machineOf(t, n, id); got != ready || !strings.HasPrefix(got, prefixBlank) {
			t.Errorf("session %d has machine %s, not %s, which was ready", i, got, ready)
		}
		if got := runOn(t, n, id, "cat kept"); got != "kept\n" {
			t.Errorf("session %d has %q", i, got)
		}
		if err := n.Forget(t.Context(), id); err != nil {
			t.Error(err)
		}
		if h.driver.Machine(ready) != nil {
			t.Errorf("machine %s is left", ready)
		}
		if s := n.PoolStats().Blank; s.Hits != int64(i+1) || s.Misses != 0 || s.Discarded != 0 {
			t.Errorf("%+v", s)
		}
	}
	if err := n.Drain(); err != nil {
		t.Fatal(err)
	}
	if held := h.networks.held.Load(); held != 0 {
		t.Errorf("%d networks are left", held)
	}
}

// TestUnusableBlanks are not given out: one that has ended, and one that does not answer.
func TestUnusableBlanks(t *testing.T) {
	t.Parallel()
	for what, sig := range map[string]syscall.Signal{"ended": syscall.SIGKILL, "silent": syscall.SIGSTOP} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			n := h.node(t, 1, nil)
			spec := saved(t, n)
			awaitBlank(t, n, blankCount)
			id := pooled(n, true)[0]
			m := h.driver.Machine(id)
			if err := m.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if sig == syscall.SIGKILL {
				<-m.Done()
			}
			s := startOn(t, n, spec)
			if got := machineOf(t, n, s); got == id {
				t.Error("the session has it")
			}
			if got := runOn(t, n, s, "cat kept"); got != "kept\n" {
				t.Errorf("the session has %q", got)
			}
			until(t, "it to be removed", func() bool { return h.driver.Machine(id) == nil })
			until(t, "another", func() bool { return n.PoolStats().Blank.Ready > 0 })
		})
	}
}

// TestBlankStartThatFails leaves nothing: neither the machine nor its network.
func TestBlankStartThatFails(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"start", "attach"} {
		h := newHouse(t)
		n := h.node(t, 1, nil)
		spec := saved(t, n)
		awaitReady(t, n, 1)
		awaitBlank(t, n, blankCount)
		id := pooled(n, true)[0]
		refuse := func(op, machine string) error {
			if op == step && machine == id {
				return errors.New("a step failed")
			}
			return nil
		}
		h.refuse.Store(&refuse)
		spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
		if err := n.Start(t.Context(), spec); err == nil {
			t.Errorf("%s: it has started", step)
		}
		if h.driver.Machine(id) != nil {
			t.Errorf("%s: the machine is left", step)
		}
		if _, err := os.Stat(n.dir(spec.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the session's folder: %v", step, err)
		}
		// The snapshot is missing: the machine has not been told anything.
		until(t, "another", func() bool { return n.PoolStats().Blank.Ready > 0 })
		spec.Snapshot = "missing"
		if err := n.Start(t.Context(), spec); err == nil {
			t.Errorf("%s: a session has started from nothing", step)
		}
		until(t, step+": the networks that are held to be those of machines", func() bool {
			s := n.PoolStats()
			return s.Warm.Ready == 1 && s.Blank.Ready == s.Blank.Wanted && h.networks.held.Load() == int64(1+s.Blank.Ready)
		})
	}
}

// TestBlanksOfAnotherProcess: a session in a blank machine goes on in the next process of
// the server, and those that nobody has used end with theirs.
func TestBlanksOfAnotherProcess(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.node(t, 1, nil)
	spec := saved(t, first)
	awaitBlank(t, first, blankCount)
	spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
	if err := first.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	machine := machineOf(t, first, spec.ID)
	if !strings.HasPrefix(machine, prefixBlank) {
		t.Fatalf("the session has machine %s", machine)
	}
	until(t, "another", func() bool { return len(pooled(first, true)) > 0 })
	unused := pooled(first, true)[0]
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if h.driver.Machine(unused) != nil {
		t.Error("a blank machine is left")
	}
	// One that a crash has left is found by the driver.
	if _, err := h.driver.Prepare(t.Context(), driver.Spec{ID: prefixBlank + "left"}); err != nil {
		t.Fatal(err)
	}
	second := h.node(t, 1, nil, spec.ID)
	if left := h.driver.Machine(prefixBlank + "left"); left != nil && !ended(left) {
		t.Error("a blank machine of an earlier process is left")
	}
	if got := machineOf(t, second, spec.ID); got != machine {
		t.Errorf("the session has machine %s, not %s", got, machine)
	}
	if got := runOn(t, second, spec.ID, "cat kept"); got != "kept\n" {
		t.Errorf("the session has %q", got)
	}
	if err := second.Forget(context.Background(), spec.ID); err != nil {
		t.Error(err)
	}
}

// unprepared is a driver that cannot prepare machines.
type unprepared struct{ *fake.Driver }

func (d unprepared) Capabilities() driver.Capabilities {
	c := d.Driver.Capabilities()
	c.Prepare = false
	return c
}

// TestDriverWithoutBlanks: the pool has warm machines alone, and sessions start as without
// a pool.
func TestDriverWithoutBlanks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, func(c *Config) { c.Driver = unprepared{h.driver} })
	spec := saved(t, n)
	for range 2 {
		id := startOn(t, n, spec)
		if got := machineOf(t, n, id); got != id {
			t.Errorf("the session has machine %s", got)
		}
	}
	awaitReady(t, n, 1)
	if s := n.PoolStats().Blank; s != (KindStats{}) {
		t.Errorf("%+v", s)
	}
}
