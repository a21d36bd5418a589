package guest_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// numbers is a script that prints the numbers from 1 to n on both streams. So every lost
// or repeated byte shows.
func numbers(n int) guest.StartSpec {
	return guest.StartSpec{Name: "sh", Args: []string{"-c", fmt.Sprintf("seq %d & seq %d >&2; wait; exit 3", n, n)}}
}

// store is the state that a host keeps of a process: hashes and lengths of the streams.
type store struct {
	sum map[skerry.Stream]hash.Hash
	len map[skerry.Stream]int64
}

func newStore() *store {
	return &store{
		sum: map[skerry.Stream]hash.Hash{skerry.Stdout: sha256.New(), skerry.Stderr: sha256.New()},
		len: map[skerry.Stream]int64{},
	}
}

func (s *store) add(c guest.Chunk) error {
	if c.Offset != s.len[c.Stream] {
		return fmt.Errorf("%s goes on at %d after %d", c.Stream, c.Offset, s.len[c.Stream])
	}
	s.sum[c.Stream].Write(c.Data)
	s.len[c.Stream] = c.End()
	return nil
}

func (s *store) point(id string) guest.ResumePoint {
	return guest.ResumePoint{Key: id, Stdout: s.len[skerry.Stdout], Stderr: s.len[skerry.Stderr]}
}

func (s *store) check(t *testing.T, n int) {
	t.Helper()
	want := sha256.New()
	w := bufio.NewWriter(want)
	for i := 1; i <= n; i++ {
		fmt.Fprintln(w, i)
	}
	w.Flush()
	for stream, sum := range s.sum {
		if string(sum.Sum(nil)) != string(want.Sum(nil)) {
			t.Errorf("%s: %d bytes that are not the numbers to %d", stream, s.len[stream], n)
		}
	}
}

func TestResumeContinuesToTheByte(t *testing.T) {
	const n = 1_000_000 // some 7 MB a stream
	s, c := start(t)
	ctx := testContext(t)
	spec := numbers(n)
	spec.ID = "long"
	p := mustStart(t, c, spec)
	kept := newStore()
	for round := 0; ; round++ {
		// Store all chunks, but acknowledge only some, as a host that dies. Count
		// per stream: the streams take turns, and with a common count one of them
		// might never be acknowledged and block at its full window.
		chunks, got := 0, map[skerry.Stream]int{}
		for limit := 7 + round*13; chunks < limit; chunks++ {
			chunk, err := p.Next(ctx)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := kept.add(chunk); err != nil {
				t.Fatal(err)
			}
			if got[chunk.Stream]++; got[chunk.Stream]%3 != 0 {
				if err := p.Ack(chunk.Stream, chunk.End()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if chunks == 0 {
			break
		}
		c.Close()
		var procs map[string]*guest.Process
		c, procs = s.reattach(kept.point("long"))
		if p = procs["long"]; p == nil || len(procs) != 1 {
			t.Fatalf("round %d: processes %v", round, procs)
		}
		if p.Offset(skerry.Stdout) != kept.len[skerry.Stdout] || p.Offset(skerry.Stderr) != kept.len[skerry.Stderr] {
			t.Fatalf("round %d: goes on elsewhere than asked", round)
		}
	}
	exit, err := p.Wait(ctx)
	if err != nil || exit.Code != 3 {
		t.Fatalf("%+v, %v", exit, err)
	}
	kept.check(t, n)
	// The agent keeps the exit until Forget, and no longer.
	c.Close()
	c, procs := s.reattach(kept.point("long"))
	if p = procs["long"]; p == nil {
		t.Fatal("the agent has forgotten an exit that nobody acknowledged")
	}
	if exit, err := p.Wait(ctx); err != nil || exit.Code != 3 {
		t.Fatalf("%+v, %v", exit, err)
	}
	if err := p.Forget(); err != nil {
		t.Fatal(err)
	}
	if left, err := c.Processes(ctx); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if got := sh(t, c, "echo works"); got != "works" {
		t.Errorf("a command after all that: %q", got)
	}
}

// TestHostKilled kills the whole host process in the middle of output.
func TestHostKilled(t *testing.T) {
	if os.Getenv("GUEST_TEST_HOST") != "" {
		doomedHost(t)
		return
	}
	conn, guestEnd, err := pipes.New()
	if err != nil {
		t.Fatal(err)
	}
	s := bootWith(t, guestEnd)
	host := exec.Command(os.Args[0], "-test.run=^TestHostKilled$")
	host.Env = append(os.Environ(), "GUEST_TEST_HOST=1")
	host.ExtraFiles = conn.Files()
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	host.Wait() // its error is the kill
	var have int64
	if _, err := fmt.Sscanf(line, "stored %d", &have); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	// What the first host had stored is the numbers' first bytes.
	var text strings.Builder
	for i := 1; i <= 500_000; i++ {
		fmt.Fprintln(&text, i)
	}
	c, procs := s.reattach(guest.ResumePoint{Key: "doomed", Stdout: have})
	p := procs["doomed"]
	if p == nil {
		t.Fatal("the process did not outlive its host")
	}
	r, err := finish(testContext(t), p)
	if err != nil || r.Code != 0 || r.stdout != text.String()[have:] {
		t.Errorf("exit %d, %d bytes after %d of %d, %v", r.Code, len(r.stdout), have, text.Len(), err)
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// doomedHost stores some output, reports how much, and reads more without storing it
// until it is killed.
func doomedHost(t *testing.T) {
	conn, err := wire.NewDuplex(3, 4)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	c, _, err := guest.Connect(ctx, conn, guest.Setup{Hostname: "box"})
	if err != nil {
		t.Fatal(err)
	}
	p := mustStart(t, c, guest.StartSpec{ID: "doomed", Name: "seq", Args: []string{"500000"}})
	for stored := int64(0); stored < 1<<20; {
		chunk, err := p.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		stored = chunk.End()
		p.Ack(chunk.Stream, stored)
		if stored >= 1<<20 {
			fmt.Printf("stored %d\n", stored)
		}
	}
	for {
		if _, err := p.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProcessEndsWithoutHost(t *testing.T) {
	s, c := start(t)
	p := mustStart(t, c, guest.StartSpec{ID: "alone", Name: "sh", Args: []string{"-c", "echo early; read x; echo \"late <$x>\"; exit 9"}, Stdin: true})
	if _, err := p.Next(testContext(t)); err != nil {
		t.Fatal(err)
	}
	c.Close() // which ends the input too
	if _, err := p.Wait(testContext(t)); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("waiting on a closed client: %v", err)
	}
	_, procs := s.reattach()
	r, err := finish(testContext(t), procs["alone"])
	if err != nil || r.Code != 9 || r.stdout != "early\nlate <>\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestTimeoutsAreKnownAfterwards: a later host knows when the agent kills a process.
func TestTimeoutsAreKnownAfterwards(t *testing.T) {
	s, c := start(t)
	for id, timeout := range map[string]time.Duration{"limited": time.Hour, "unlimited": 0} {
		p, err := c.Start(testContext(t), guest.StartSpec{ID: id, Name: "sleep", Args: []string{"1000"}, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(p.Timeout()); p.Timeout().IsZero() != (timeout == 0) || left > timeout {
			t.Errorf("%s is killed in %s", id, left)
		}
	}
	c.Close()
	_, procs := s.reattach()
	if len(procs) != 2 {
		t.Fatalf("%d processes", len(procs))
	}
	for _, p := range procs {
		left := time.Until(p.Timeout())
		if limited := p.ID() == "limited"; p.Timeout().IsZero() == limited || limited && (left < 50*time.Minute || left > time.Hour) {
			t.Errorf("%s is killed in %s", p.ID(), left)
		}
	}
}

// TestBrokenHostsLoseTheAgent: a violation of the protocol ends the connection for good,
// and has no other effect.
func TestBrokenHostsLoseTheAgent(t *testing.T) {
	frames := map[string]func(l *wire.Link) error{
		"garbage":         nil,
		"a second resume": func(l *wire.Link) error { return l.SendJSON(wire.TypeResume, 1, wire.Resume{Version: wire.Version}) },
		"a late renewal":  func(l *wire.Link) error { return l.SendJSON(wire.TypeRenew, 7, wire.Setup{}) },
		"a late setup":    func(l *wire.Link) error { return l.SendJSON(wire.TypeSetup, 7, wire.Setup{}) },
		"guest's frame":   func(l *wire.Link) error { return l.SendJSON(wire.TypeExit, 7, wire.Exit{}) },
		"no JSON":         func(l *wire.Link) error { return l.Send(wire.TypeStart, 0, 7, []byte("{]"), nil) },
		"an id in use":    func(l *wire.Link) error { return l.SendJSON(wire.TypeStart, 1<<20, wire.Start{Key: "x", Name: "true"}) },
		"beyond window": func(l *wire.Link) error {
			l.SendJSON(wire.TypeStart, 1<<21, wire.Start{Key: "y", Name: "sleep", Args: []string{"100"}, Stdin: true})
			for range 2*(wire.Window+1<<20)/wire.MaxData + 2 {
				if err := l.Send(wire.TypeData, wire.StreamIn, 1<<21, make([]byte, wire.MaxData), nil); err != nil {
					return nil // the agent has closed the connection
				}
			}
			return nil
		},
	}
	for name, send := range frames {
		s, c := start(t)
		c.Close()
		conn := s.attach()
		if send == nil {
			conn.Write([]byte(strings.Repeat("garbage ", 100)))
		} else {
			link := wire.NewLink(conn)
			link.SendJSON(wire.TypeResume, 1, wire.Resume{Version: wire.Version})
			if name == "an id in use" {
				link.SendJSON(wire.TypeStart, 1<<20, wire.Start{Key: "w", Name: "sleep", Args: []string{"100"}})
			}
			if err := send(link); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the agent did not end the connection", name)
		}
		conn.Close()
		ctx, cancel := context.WithTimeout(testContext(t), 10*time.Second)
		if _, err := pipes.Take(ctx, s.pid, s.pipes); err == nil {
			t.Errorf("%s: the agent serves on", name)
		}
		cancel()
	}
}

// TestHostsThatGoInTheMiddle: hosts leave an incomplete frame.
func TestHostsThatGoInTheMiddle(t *testing.T) {
	s, c := start(t)
	p := mustStart(t, c, guest.StartSpec{ID: "steady", Name: "cat", Stdin: true, TTY: &guest.Size{Cols: 80, Rows: 24}})
	c.Close()
	for range 5 {
		conn := s.attach()
		link := wire.NewLink(conn)
		link.SendJSON(wire.TypeResume, 1, wire.Resume{Version: wire.Version})
		conn.Write([]byte{100, 0, 0})
		conn.Close()
	}
	_, procs := s.reattach()
	if procs["steady"] == nil || procs["steady"].PID() != p.PID() {
		t.Fatal("the process is gone")
	}
	procs["steady"].Signal(syscall.SIGKILL)
	if exit, err := procs["steady"].Wait(testContext(t)); err != nil || exit.Code != 137 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestSlowReaderOfAGigabyte(t *testing.T) {
	s, c := start(t)
	ctx := testContext(t)
	const size = 1 << 30
	p := mustStart(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", "head -c 1073741824 /dev/zero"}})
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	// While nobody reads, the command blocks. Others are not affected.
	for range 20 {
		if got := sh(t, c, "head -c 2000000 /dev/zero | wc -c; ps -C head -o stat= | head -1"); !strings.HasPrefix(got, "2000000") {
			t.Fatalf("beside the slow one: %q", got)
		}
	}
	_, idle := memory(t, s.pid)
	var total, peak int64
	for {
		chunk, err := p.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if chunk.Offset != total {
			t.Fatalf("offset %d after %d", chunk.Offset, total)
		}
		for _, b := range chunk.Data[:min(8, len(chunk.Data))] {
			if b != 0 {
				t.Fatal("other bytes than were written")
			}
		}
		total = chunk.End()
		if err := p.Ack(chunk.Stream, total); err != nil {
			t.Fatal(err)
		}
		if total%(64<<20) < wire.MaxData {
			_, anon := memory(t, s.pid)
			peak = max(peak, int64(anon))
		}
	}
	if exit, err := p.Wait(ctx); err != nil || exit.Code != 0 || total != size {
		t.Fatalf("%+v, %v, %d bytes", exit, err, total)
	}
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapInuse) - int64(before.HeapInuse)
	t.Logf("agent: %d KiB before, at most %d KiB; heap here grew by %d KiB", idle, peak, grown>>10)
	if peak > 16<<10 || grown > 16<<20 {
		t.Error("memory grew with the output")
	}
}
