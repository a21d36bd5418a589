package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry/internal/driver/fake"
)

// TestResidentMemory: what a session holds is summed up over time, also while it is paused,
// and over a restart of the server.
func TestResidentMemory(t *testing.T) {
	const mib = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		m := &hungry{earlier: &earlier{keys: []string{}}, rest: 100 * mib}
		dir := t.TempDir()
		n, keep := nodeAfter(t, dir, time.Hour, m.earlier)
		n.cfg.Driver = pool{machines: machines{m}}
		open := func(n *Node) *session {
			t.Helper()
			if _, err := n.Recover(t.Context(), keep); err != nil {
				t.Fatal(err)
			}
			s, err := n.running(m.id)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		holds := func(bytes int64) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.rest = bytes
		}
		// A real clock runs between two processes.
		about := func(what string, got, want int64) {
			t.Helper()
			if got < want || got > want+want/20 {
				t.Errorf("%s: %d MB seconds, not %d", what, got, want)
			}
		}
		s := open(n)
		time.Sleep(time.Minute)
		s.meterMemory()
		about("a minute with 100 MiB", s.resident.mbSeconds(), 6000)
		if err := n.Pause(t.Context(), m.id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		meters, err := n.Meters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		about("an hour paused", meters[m.id].ResidentMBSeconds, 6000+360000)
		if err := n.Resume(t.Context(), m.id); err != nil {
			t.Fatal(err)
		}
		// It grows evenly for as long as nobody looks.
		holds(300 * mib)
		time.Sleep(residentTick)
		synctest.Wait()
		sum := 6000 + 360000 + 200*int64(residentTick/time.Second)
		about("a growth", s.resident.mbSeconds(), sum)
		if got := n.Totals().ResidentByteSeconds; got != float64(sum)*mib {
			t.Errorf("all sessions held %v byte seconds, not %v", got, float64(sum)*mib)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}

		// The file is of ten seconds ago, as after a crash.
		path := filepath.Join(dir, "sessions", m.id, residentFile)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var st residentState
		if err := json.Unmarshal(b, &st); err != nil {
			t.Fatal(err)
		}
		st.At -= int64(10 * time.Second)
		if b, err = json.Marshal(st); err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		next, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		open(next)
		time.Sleep(time.Minute)
		used, err := next.Stop(t.Context(), m.id)
		if err != nil {
			t.Fatal(err)
		}
		about("after a restart", used.ResidentMBSeconds, sum+300*70)
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the file is left: %v", err)
		}
		if got := next.Totals().ResidentByteSeconds; got != 300*60*mib {
			t.Errorf("since the restart all sessions held %v byte seconds, not %v", got, 300*60*mib)
		}
	})
}

// TestHibernatedHoldsNothing: from its end to its return a machine holds nothing.
func TestHibernatedHoldsNothing(t *testing.T) {
	d := newParking(t, fake.Config{})
	d.holds.Store(1 << 30)
	n, _ := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	s := sessionOn(t, n, id)
	now := func() (bytes int64, sum float64) {
		s.resident.mu.Lock()
		defer s.resident.mu.Unlock()
		return s.resident.bytes, s.resident.sum
	}
	if bytes, _ := now(); bytes != 1<<30 {
		t.Errorf("it holds %d bytes", bytes)
	}
	hibernates(t, n, id)
	bytes, before := now()
	s.meterMemory()
	if _, after := now(); bytes != 0 || before <= 0 || after != before {
		t.Errorf("while it hibernates it holds %d bytes; it has held %v byte seconds, and then %v", bytes, before, after)
	}
	// A later process goes on with what is written.
	b, err := os.ReadFile(s.residentPath())
	if err != nil {
		t.Fatal(err)
	}
	var st residentState
	if err := json.Unmarshal(b, &st); err != nil || st.ByteSeconds != before {
		t.Errorf("%s was written, %v; it has held %v", b, err, before)
	}
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
	if bytes, after := now(); bytes != 1<<30 || after < before {
		t.Errorf("after its return it holds %d bytes, and has held %v byte seconds", bytes, after)
	}
}
