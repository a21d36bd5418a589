package e2e

import (
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// TestResidentMemory: a session shows the memory that it held over time, also over a crash
// of the server, and its sandbox the sum of its sessions. While it hibernates it holds
// nothing.
func TestResidentMemory(t *testing.T) {
	addr := freeAddress(t)
	s := newServer(t, "--warm", "0", "--idle-pause", "1s", "--idle-hibernate", "1s", "--metrics-listen", addr)
	sb := s.create(client.CreateOptions{VCPUs: 1, Idle: skerry.IdleNever})
	s.detach(sb, "exec python3 -c 'kept = bytearray(range(256)) * (200 << 12); open(\"has\", \"w\"); import time; time.sleep(1000)'")
	s.waitFor("its memory", func() bool {
		code, _ := s.shell(sb, "test -e has")
		return code == 0
	})
	wait := func(d time.Duration) {
		t.Helper()
		at := time.Now().Add(d)
		s.waitFor("time", func() bool { return time.Now().After(at) })
	}
	wait(3 * time.Second)
	s.kill()
	s.start()
	wait(3 * time.Second)
	const least = 200 // a second of the three: what was not written is lost, and a busy server takes over late
	stopped, err := s.get(sb.Name()).Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	most := int64(512 * time.Since(stopped.Session.StartedAt.Time).Seconds())
	got := stopped.Session.ResidentMBSeconds
	if got < least || got > most {
		t.Errorf("it held %d MB seconds, not %d to %d", got, least, most)
	}
	if all := s.get(sb.Name()); all.Info().TotalResidentMBSeconds != got {
		t.Errorf("its sandbox shows %d MB seconds, not %d", all.Info().TotalResidentMBSeconds, got)
	}
	if s.split {
		return // the totals are the node's, and only a server that contains it shows them
	}
	if total := metric(t, addr, "skerry_resident_memory_byte_seconds_total"); total < 200<<20 {
		t.Errorf("all held %v byte seconds", total)
	}
	if cpu := metric(t, addr, "skerry_active_cpu_seconds_total"); cpu <= 0 {
		t.Errorf("all used %v s of CPU time", cpu)
	}
	s.delete(sb)

	sleeper := s.create(client.CreateOptions{VCPUs: 1, Idle: skerry.IdleHibernate})
	s.hibernates(sleeper)
	before := metric(t, addr, "skerry_resident_memory_byte_seconds_total")
	wait(5 * time.Second)
	if after := metric(t, addr, "skerry_resident_memory_byte_seconds_total"); after != before {
		t.Errorf("a sandbox that hibernates held %v byte seconds", after-before)
	}
	s.delete(sleeper)
}
