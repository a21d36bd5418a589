package node

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// hungry is a machine that holds memory, in processes and beside them.
type hungry struct {
	*earlier
	mu        sync.Mutex
	processes []int64
	rest      int64
	confined  int64
	paused    bool
	killed    int
	ended     string
}

func (m *hungry) PinnedMemory(int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := m.rest
	for _, p := range m.processes {
		sum += p
	}
	return sum, nil
}

func (m *hungry) Confine(bytes int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.confined = bytes
	return nil
}

// Relieve kills the largest process, if the machine runs.
func (m *hungry) Relieve(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused {
		<-ctx.Done()
		return "", ctx.Err()
	}
	if len(m.processes) == 0 {
		return "no process holds enough memory", nil
	}
	slices.Sort(m.processes)
	last := len(m.processes) - 1
	said, err := json.Marshal(wire.Victim{PID: 7, Name: "greedy", Bytes: m.processes[last]})
	m.processes = m.processes[:last]
	m.killed++
	return string(said), err
}

func (m *hungry) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = true
	return nil
}

func (m *hungry) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = false
	return nil
}

func (m *hungry) End(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended, m.processes, m.rest = reason, nil, 0
}

// pool is the machines of a driver with a limit for all of them.
type pool struct {
	machines
	limit int64
}

func (p pool) Memory() (driver.Memory, error) {
	m := driver.Memory{Limit: p.limit}
	for _, each := range p.machines {
		held, err := each.PinnedMemory(0)
		if err != nil {
			return m, err
		}
		m.Used += held
	}
	return m, nil
}

// TestFurthestIsRelieved has four sandboxes share a GiB.
func TestFurthestIsRelieved(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name   string
		greedy *hungry
		frozen bool
		// killed is how many processes of the greedy it takes; ended whether the
		// greedy itself must go.
		killed int
		ended  bool
	}{
		{name: "large processes", greedy: &hungry{processes: []int64{150 * mib, 160 * mib, 170 * mib}}, killed: 1},
		{name: "paused", greedy: &hungry{processes: []int64{150 * mib, 160 * mib, 170 * mib}}, frozen: true, killed: 1},
		{name: "files in memory", greedy: &hungry{rest: 480 * mib}, ended: true},
		{name: "many small processes", greedy: &hungry{processes: slices.Repeat([]int64{mib}, 480)}, killed: togetherTries, ended: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// The others hold less than their share, one of them in the largest process.
				all := []*hungry{c.greedy, {processes: []int64{240 * mib}}, {processes: []int64{200 * mib}}, {rest: 40 * mib}}
				var list []*earlier
				p := pool{limit: 1 << 30}
				for _, m := range all {
					m.earlier = &earlier{keys: []string{}}
					list, p.machines = append(list, m.earlier), append(p.machines, m)
				}
				n, keep := nodeAfter(t, t.TempDir(), time.Hour, list...)
				n.cfg.Driver = p
				if _, err := n.Recover(t.Context(), keep); err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				s, err := n.running(c.greedy.id)
				if err != nil {
					t.Fatal(err)
				}
				if c.frozen {
					if err := s.freeze(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				for i, m := range all {
					m.mu.Lock()
					if want := i == 0 && c.ended; (m.ended != "") != want {
						t.Errorf("sandbox %d ended: %q", i, m.ended)
					}
					if i == 0 && m.killed != c.killed || i > 0 && m.killed > 0 {
						t.Errorf("sandbox %d lost %d processes", i, m.killed)
					}
					if i == 0 && m.paused != c.frozen {
						t.Errorf("paused: %v", m.paused)
					}
					m.mu.Unlock()
				}
				if c.killed > 0 && !s.hasYielded(7) {
					t.Error("its command is not told why")
				}
				if m, _ := p.Memory(); m.Used > p.limit-margin(p.limit) {
					t.Errorf("%d bytes are still used", m.Used)
				}
			})
		})
	}
}

// TestSandboxesAreConfined: near the limit the kernel holds sandboxes to their share
// or what they hold and a little more, and to their own limits again afterwards.
func TestSandboxesAreConfined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		large, small := &hungry{earlier: &earlier{keys: []string{}}, rest: 700 * mib}, &hungry{earlier: &earlier{keys: []string{}}, rest: 120 * mib}
		p := pool{machines{large, small}, 1 << 30}
		n, keep := nodeAfter(t, t.TempDir(), time.Hour, large.earlier, small.earlier)
		n.cfg.Driver = p
		if _, err := n.Recover(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		look := func() (a, b int64) {
			time.Sleep(time.Second)
			synctest.Wait()
			large.mu.Lock()
			defer large.mu.Unlock()
			small.mu.Lock()
			defer small.mu.Unlock()
			return large.confined, small.confined
		}
		if a, b := look(); a < 700*mib || a > 800*mib || b != 544*mib {
			t.Errorf("of 700 and 120 MiB they are held to %d and %d", a, b)
		}
		large.mu.Lock()
		large.rest = 100 * mib
		large.mu.Unlock()
		if a, b := look(); a != 0 || b != 0 {
			t.Errorf("when there is room they are held to %d and %d", a, b)
		}
		large.mu.Lock()
		large.rest = 700 * mib
		large.mu.Unlock()
		if a, b := look(); a == 0 || b == 0 {
			t.Errorf("when there is no room again they are held to %d and %d", a, b)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if a, b := look(); a != 0 || b != 0 {
			t.Errorf("after the server's end they are held to %d and %d", a, b)
		}
	})
}
