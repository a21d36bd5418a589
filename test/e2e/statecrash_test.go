package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// kills is how often the server is killed: a few times in CI, as often as
// SKERRY_KILLS says by hand.
func kills(t *testing.T) int {
	t.Helper()
	v := os.Getenv("SKERRY_KILLS")
	if v == "" {
		return 10
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSnapshotsSurviveCrashes kills the server at any point of creating,
// saving, resuming, forking and deleting, with the memory and without. Whatever snapshot was acknowledged
// must have its files afterwards, nothing may be stuck or left on the host, and
// in the end no byte may be kept that no snapshot needs.
func TestSnapshotsSurviveCrashes(t *testing.T) {
	const clients = 3
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newServer(t, "--ready-networks", "0")
	acked := &ledger{saved: map[string]string{}}
	rounds := kills(t)
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		for i := range clients {
			k := &keeper{c: s.Client, name: fmt.Sprintf("kept-%d", i), acked: acked, random: rand.New(rand.NewPCG(random.Uint64(), uint64(i)))}
			work.Go(func() {
				for ctx.Err() == nil {
					k.act(ctx)
				}
			})
		}
		// A random moment: saving takes some 200 ms here, starting as much.
		time.Sleep(time.Duration(200+random.IntN(900)) * time.Millisecond)
		s.kill()
		cancel()
		work.Wait()
		s.start()
		s.waitFor("what was interrupted to be settled", func() bool { return !s.unsettled() })
		s.assertOwned(0)
		for id, content := range acked.some(2) {
			s.assertSaved(id, content)
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	all := acked.some(rounds * clients * 10)
	t.Logf("%d kills, %d acknowledged snapshots", rounds, len(all))
	if len(all) == 0 {
		t.Error("no snapshot was acknowledged: nothing was tested")
	}
	for id, content := range all {
		s.assertSaved(id, content)
	}
	s.assertBytesGo()
}

// ledger has the acknowledged snapshots that nobody has asked to delete, with
// what is in them.
type ledger struct {
	mu    sync.Mutex
	saved map[string]string
}

func (l *ledger) add(id, content string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.saved[id] = content
}

// take removes one, which is deleted next: after a crash nobody knows whether
// it was.
func (l *ledger) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.saved {
		delete(l.saved, id)
		return id
	}
	return ""
}

func (l *ledger) some(n int) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	some := map[string]string{}
	for id, content := range l.saved {
		if len(some) < n {
			some[id] = content
		}
	}
	return some
}

// keeper uses one sandbox, and remembers what it was told is saved.
type keeper struct {
	c      *client.Client
	name   string
	acked  *ledger
	random *rand.Rand
}

// act does one thing. Its errors are those of a server that is being killed.
func (k *keeper) act(ctx context.Context) {
	sb, err := k.c.GetSandbox(ctx, k.name, client.GetOptions{Resume: true})
	if client.IsNotFound(err) || client.IsSnapshotNotFound(err) {
		_ = k.c.DeleteSandbox(ctx, k.name, client.DeleteOptions{})
		sb, err = k.c.CreateSandbox(ctx, client.CreateOptions{Name: k.name, VCPUs: 1})
	}
	if err != nil {
		return
	}
	switch k.random.IntN(8) {
	case 0:
		_ = sb.Delete(ctx)
	case 1:
		if id := k.acked.take(); id != "" {
			_, _ = k.c.DeleteSnapshot(ctx, id)
		}
	case 2:
		how := []client.ForkOptions{{}, {Live: true}, {Memory: true}}[k.random.IntN(3)]
		if fork, err := sb.Fork(ctx, how); err == nil {
			_ = fork.Delete(ctx)
		}
	default:
		k.save(ctx, sb)
	}
}

// save changes the sandbox's files and has them saved.
func (k *keeper) save(ctx context.Context, sb *client.Sandbox) {
	content := fmt.Sprintf("%s %d", k.name, k.random.Uint64())
	data := []byte(strings.Repeat(content+"\n", 20_000))
	if sb.WriteFile(ctx, "content", []byte(content), 0o644) != nil || sb.WriteFile(ctx, "data", data, 0o644) != nil {
		return
	}
	var snap *client.Snapshot
	if k.random.IntN(2) == 0 {
		snap, _ = sb.Snapshot(ctx, client.TakeOptions{Memory: k.random.IntN(3) == 0})
	} else if stopped, err := sb.Stop(ctx); err == nil {
		snap = stopped.Snapshot
	}
	if snap != nil {
		k.acked.add(snap.ID(), content)
	}
}

// assertSaved starts a sandbox from a snapshot and looks at its files.
func (s *server) assertSaved(id, content string) {
	s.t.Helper()
	sb, err := s.CreateSandbox(s.t.Context(), client.CreateOptions{Source: client.FromSnapshot(id), VCPUs: 1})
	if err != nil {
		s.t.Errorf("a sandbox from the acknowledged snapshot %s: %v", id, err)
		return
	}
	defer s.delete(sb)
	if got, err := sb.ReadFile(s.t.Context(), "content"); err != nil || string(got) != content {
		s.t.Errorf("snapshot %s has %q, %v, want %q", id, got, err, content)
	}
	if got := s.output(sb, "sh", "-c", "sort data | uniq -c"); strings.TrimSpace(got) != "20000 "+content {
		s.t.Errorf("the data of snapshot %s is %q", id, got)
	}
}

// unsettled says whether a session is neither running nor over.
func (s *server) unsettled() bool {
	s.t.Helper()
	page, err := s.ListSessionsPage(s.t.Context(), "", client.SessionOptions{Limit: 100})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, run := range page.Items {
		if run.Status != skerry.StatusRunning && !run.Status.Ended() {
			return true
		}
	}
	return false
}

// deleteAll deletes every sandbox and every snapshot.
func (s *server) deleteAll() {
	s.t.Helper()
	ctx := s.t.Context()
	for box, err := range s.ListSandboxes(ctx, client.ListOptions{}) {
		if err == nil {
			err = s.DeleteSandbox(ctx, box.Name, client.DeleteOptions{})
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for snap, err := range s.ListSnapshots(ctx, client.SnapshotOptions{}) {
		if err == nil {
			_, err = s.DeleteSnapshot(ctx, snap.ID)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// assertBytesGo deletes everything and waits for the blobs to be gone.
func (s *server) assertBytesGo() {
	s.t.Helper()
	s.deleteAll()
	blobs := func() (files []string) {
		err := filepath.Walk(s.path("state/snapshots/blobs"), func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				files = append(files, path)
			}
			return nil // folders come and go
		})
		if err != nil {
			s.t.Fatal(err)
		}
		return files
	}
	// What was saved within the last minute is spared for a while.
	deadline := time.After(3 * time.Minute)
	for len(blobs()) > 0 {
		select {
		case <-deadline:
			s.t.Fatalf("%d blobs are kept that no snapshot needs, such as %s", len(blobs()), blobs()[0])
		case <-time.After(200 * time.Millisecond):
		}
	}
	if work := s.list(s.path("state/snapshots/work")); len(work) > 0 {
		s.t.Errorf("unfinished snapshots are left: %v", work)
	}
}
