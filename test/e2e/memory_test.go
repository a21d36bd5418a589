package e2e

import (
	"bytes"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

//go:embed testdata/warm.py
var warmPython string

//go:embed testdata/warm.js
var warmNode string

// warm starts a Python and a Node.js process that have something in memory, and
// returns the ids of their commands.
func (s *server) warm(sb *client.Sandbox) (ids []string) {
	s.t.Helper()
	for _, command := range [][]string{{"python3", "-c", warmPython}, {"node", "-e", warmNode}} {
		cmd := sb.Command(s.t.Context(), command[0], command[1:]...)
		cmd.Detached = true
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		ids = append(ids, cmd.ID())
	}
	s.waitFor("the warm processes to answer", func() bool {
		return len(strings.Split(s.knows(sb), "\n")) == 2
	})
	return ids
}

// knows asks the warm processes what they know: their secrets, and how often
// they have been asked.
func (s *server) knows(sb *client.Sandbox) string {
	s.t.Helper()
	const ask = `import socket
for port in 8000, 8001:
    try: print(socket.create_connection(("127.0.0.1", port), 5).makefile().read().strip())
    except OSError: pass`
	return s.output(sb, "python3", "-c", ask)
}

// asked is an answer with each process asked so many times more.
func asked(t *testing.T, answer string, more int) string {
	t.Helper()
	lines := strings.Split(answer, "\n")
	for i, line := range lines {
		words := strings.Fields(line)
		if len(words) != 4 {
			t.Fatalf("the warm processes say %q", answer)
		}
		n, err := strconv.Atoi(words[2])
		if err != nil {
			t.Fatal(err)
		}
		words[2] = strconv.Itoa(n + more)
		lines[i] = strings.Join(words, " ")
	}
	return strings.Join(lines, "\n")
}

// identity is what a sandbox must not share with another.
func (s *server) identity(sb *client.Sandbox) (hostname, address string) {
	s.t.Helper()
	host, addr, _ := strings.Cut(s.output(sb, "sh", "-c", "hostname; hostname -I"), "\n")
	return host, strings.TrimSpace(addr)
}

// commands is the list of a session's commands, as it comes.
func (s *server) commands(sb *client.Sandbox) string {
	s.t.Helper()
	a := s.request("GET", "/v2/sandboxes/sessions/"+sb.Session().ID+"/cmd", s.config().Token, nil)
	if a.status != 200 {
		s.t.Fatalf("list commands: %d %s", a.status, a.body)
	}
	return a.body
}

// TestMemoryForks: ten forks of a running sandbox, each of which goes on with
// the processes, under a name and an address of its own. The source is not
// disturbed: not what it streams, not who is at its terminal.
func TestMemoryForks(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "source", VCPUs: 1})
	s.warm(sb)
	session := sb.Session().ID
	s.output(sb, "sh", "-c", "echo saved > file")
	term, shown := openTerminal(t, sb)
	counting := sb.Command(t.Context(), "sh", "-c", "i=0; while ! [ -e enough ]; do i=$((i+1)); echo $i; sleep 0.01; done")
	var counted strings.Builder
	counting.Stdout = &counted
	if err := counting.Start(); err != nil {
		t.Fatal(err)
	}
	before := s.knows(sb)

	var mu sync.Mutex
	addresses := []string{second2(s.identity(sb))}
	var forks sync.WaitGroup
	for i := range 10 {
		forks.Go(func() {
			name := fmt.Sprintf("fork-%d", i)
			fork, err := sb.Fork(t.Context(), client.ForkOptions{Name: name, Memory: true, Env: map[string]string{"MINE": name}})
			if err != nil {
				t.Error(err)
				return
			}
			s := s.in(t)
			if got, want := s.knows(fork), asked(t, before, 1); got != want {
				t.Errorf("%s says %q, want %q", name, got, want)
			}
			host, address := s.identity(fork)
			mu.Lock()
			defer mu.Unlock()
			if host != name || address == "" || slices.Contains(addresses, address) {
				t.Errorf("%s is %s at %q; there are %q", name, host, address, addresses)
			}
			addresses = append(addresses, address)
			if got := s.output(fork, "sh", "-c", "echo $MINE >> file; cat file"); got != "saved\n"+name {
				t.Errorf("%s has %q", name, got)
			}
			if got := s.commands(fork); strings.Contains(got, "warm") || !strings.Contains(got, "hostname") {
				t.Errorf("%s lists %s", name, got)
			}
		})
	}
	forks.Wait()
	if got, want := s.knows(sb), asked(t, before, 1); got != want {
		t.Errorf("the source says %q, want %q", got, want)
	}
	if got := s.output(sb, "cat", "file"); got != "saved" {
		t.Errorf("the source has %q", got)
	}
	if sb.Session().ID != session {
		t.Error("the source was started anew")
	}
	s.output(sb, "touch", "enough")
	if err := counting.Wait(); err != nil {
		t.Error(err)
	}
	for i, line := range strings.Fields(counted.String()) {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d of what the source streams is %q", i+1, line)
		}
	}
	select {
	case got := <-shown:
		t.Errorf("the source's terminal ended: %q", got)
	default:
	}
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	// The fork points become snapshots, which the forks start from again.
	fork := s.get("fork-0")
	snap, err := s.GetSnapshot(t.Context(), fork.Session().SourceSnapshotID)
	if err != nil || !snap.Info().Memory || snap.Info().CreationMethod != skerry.CreatedForFork {
		t.Errorf("the fork point is %+v, %v", snap, err)
	}
	if _, err := sb.Fork(t.Context(), client.ForkOptions{Memory: true, VCPUs: 2}); !isField(err, "resources.vcpus") {
		t.Errorf("a memory fork of another size: %v", err)
	}
	s.assertOwned(5)
}

func second2(_, b string) string { return b }

// isField says whether an error is a 400 about a field.
func isField(err error, field string) bool {
	e, ok := err.(*client.Error)
	return ok && e.Status == 400 && e.Field == field
}

// TestMemorySnapshot: what ran goes on after a stop and another start of the
// server, more than once, and in sandboxes that are made from the snapshot.
func TestMemorySnapshot(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "box", VCPUs: 1, Env: map[string]string{"GREETING": "hello"}})
	ids := s.warm(sb)
	before := s.knows(sb)
	old := sb.Session()
	snap, err := sb.Snapshot(t.Context(), client.TakeOptions{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if !snap.Info().Memory || s.get("box").Info().CurrentSnapshotID != snap.ID() {
		t.Errorf("the snapshot is %+v", snap.Info())
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.start()
	sb = s.get("box")
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sb.Session().ID == old.ID || sb.Session().SourceSnapshotID != snap.ID() {
		t.Errorf("the session is %+v", sb.Session())
	}
	if got, want := s.knows(sb), asked(t, before, 1); got != want {
		t.Errorf("after the resume: %q, want %q", got, want)
	}
	if got := s.output(sb, "sh", "-c", "echo $GREETING"); got != "hello" {
		t.Errorf("a new command has GREETING=%q", got)
	}
	// The commands ended with their session, whatever goes on in this one.
	if got := s.commands(sb); strings.Contains(got, ids[0]) || strings.Contains(got, ids[1]) {
		t.Errorf("the new session lists the old one's commands: %s", got)
	}

	other := s.create(client.CreateOptions{Name: "other", Source: snap.Source(), Env: map[string]string{"GREETING": "hi"}})
	if other.Info().VCPUs != 1 {
		t.Errorf("it has %d vCPUs, the snapshot 1", other.Info().VCPUs)
	}
	if got, want := s.knows(other), asked(t, before, 1); got != want {
		t.Errorf("another sandbox from the snapshot: %q, want %q", got, want)
	}
	if got := s.output(other, "sh", "-c", "hostname; echo $GREETING"); got != "other\nhi" {
		t.Errorf("it is %q", got)
	}
	// The next process of the server finds the way to their agents too.
	s.kill()
	s.start()
	sb, other = s.get("box"), s.get("other")
	if got, want := s.knows(other), asked(t, before, 2); got != want {
		t.Errorf("after a crash of the server: %q, want %q", got, want)
	}
	s.assertAlive(other)
	// What came from a snapshot of memory, and has outlived a server, can be
	// saved again.
	again, err := other.Fork(t.Context(), client.ForkOptions{Memory: true})
	if err != nil {
		t.Fatalf("a memory fork of a memory fork after a crash of the server: %v", err)
	}
	if got := s.knows(again); got == "" {
		t.Error("a memory fork of a memory fork knows nothing")
	}
	s.assertAlive(again)
	s.assertAlive(other)
	// An ordinary stop keeps the files alone.
	s.stopSaved(other)
	if got := s.knows(other); got != "" {
		t.Errorf("after an ordinary stop the processes say %q", got)
	}

	if _, err := s.CreateSandbox(t.Context(), client.CreateOptions{Source: snap.Source(), VCPUs: 2}); !isField(err, "resources.vcpus") {
		t.Errorf("a sandbox of another size: %v", err)
	}
	s.stopSaved(sb)
	if _, err := sb.Fork(t.Context(), client.ForkOptions{Memory: true}); !isField(err, "memory") {
		t.Errorf("a memory fork of what has none: %v", err)
	}
	two, id := 2, snap.ID()
	if err := sb.Update(t.Context(), client.UpdateOptions{CurrentSnapshotID: &id}); err != nil {
		t.Error(err)
	}
	if err := sb.Update(t.Context(), client.UpdateOptions{VCPUs: &two}); !isField(err, "resources.vcpus") {
		t.Errorf("another size for a memory snapshot: %v", err)
	}
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.knows(fork), asked(t, before, 1); got != want {
		t.Errorf("a fork of the stopped sandbox: %q, want %q", got, want)
	}
	s.assertOwned(5)
}

// assertSealed fails if a stored blob is not sealed, or if the database or a blob
// holds one of the secrets in the clear.
func (s *server) assertSealed(secrets ...string) {
	s.t.Helper()
	blobs := s.path("state/snapshots/blobs/blobs")
	n := 0
	for _, dir := range []string{blobs, s.path("state/db")} {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if dir == blobs {
				if n++; !bytes.HasPrefix(b, []byte("SKS\x01")) {
					s.t.Errorf("%s is not sealed", path)
				}
			}
			for _, secret := range secrets {
				if bytes.Contains(b, []byte(secret)) {
					s.t.Errorf("%s holds %q", path, secret)
				}
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if n == 0 {
		s.t.Error("nothing is stored")
	}
}

// TestDamagedMemorySnapshot: it starts nothing, and says why. Nor does it give
// away what the sandbox had in memory.
func TestDamagedMemorySnapshot(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "box", VCPUs: 1, Env: map[string]string{"KEY": "s3cret-environment"}})
	s.warm(sb)
	s.output(sb, "sh", "-c", "echo s3cret-argument > s3cret-file")
	snap, err := sb.Snapshot(t.Context(), client.TakeOptions{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.assertSealed("s3cret-environment", "s3cret-argument", "s3cret-file")
	if err := os.RemoveAll(s.path("state/snapshots/cache")); err != nil {
		t.Fatal(err)
	}
	s.start()
	path := largestFile(t, filepath.Join(s.path("state/snapshots/blobs/blobs"), "sealed-chunk"))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(whole)
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateSandbox(t.Context(), client.CreateOptions{Name: "copy", Source: snap.Source()}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a sandbox from a damaged snapshot: %v", err)
	}
	if _, err := s.GetSandbox(t.Context(), "copy", client.GetOptions{}); !client.IsNotFound(err) {
		t.Errorf("what is left of it: %v", err)
	}
	if err := s.get("box").Resume(t.Context()); err == nil {
		t.Error("a sandbox was resumed from a damaged snapshot")
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.knows(s.get("box")); !strings.Contains(got, "node") {
		t.Errorf("with the whole snapshot: %q", got)
	}
	s.assertOwned(5)
}

// busy has a sandbox use CPU for good.
func (s *server) busy(sb *client.Sandbox) {
	s.t.Helper()
	s.detach(sb, "i=0; while :; do i=$((i+1)); echo $i > count; done")
}

// usesCPU says whether the processes of a session use CPU.
func (s *server) usesCPU(session string) bool {
	s.t.Helper()
	used := func() string {
		for _, dir := range s.groups()[session] {
			for _, name := range []string{"cpuacct.usage", "cpu.stat"} {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err == nil {
					line, _, _ := strings.Cut(string(b), "\n")
					if name == "cpuacct.usage" || strings.HasPrefix(line, "usage_usec") {
						return line
					}
				}
			}
		}
		s.t.Fatalf("session %s has no meter", session)
		return ""
	}
	before := used()
	time.Sleep(300 * time.Millisecond)
	return used() != before
}

// TestPausedSessions: a paused session uses no CPU, is seen to be paused, and
// everything that can happen to a session can happen to it.
func TestPausedSessions(t *testing.T) {
	s := newServer(t)
	newPaused := func(t *testing.T, opts client.CreateOptions) *client.Sandbox {
		t.Helper()
		s := s.in(t)
		opts.VCPUs = 1
		sb := s.create(opts)
		s.busy(sb)
		s.output(sb, "sh", "-c", "echo kept > file; sync")
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.usesCPU(sb.Session().ID) {
			t.Error("the paused session uses CPU")
		}
		return sb
	}
	files := func(t *testing.T, sb *client.Sandbox) {
		t.Helper()
		if got := s.in(t).output(sb, "cat", "file"); got != "kept" {
			t.Errorf("the file has %q", got)
		}
	}
	t.Run("resume", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		now := s.get(sb.Name())
		if now.Session().PausedAt.IsZero() || now.Info().PausedAt.IsZero() || now.Session().Status != skerry.StatusRunning {
			t.Errorf("it is seen as %+v, %+v", now.Session(), now.Info())
		}
		if err := sb.Pause(t.Context()); err != nil {
			t.Errorf("a second pause: %v", err)
		}
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := s.get(sb.Name()); !now.Session().PausedAt.IsZero() || !s.usesCPU(sb.Session().ID) {
			t.Errorf("after the resume it is %+v", now.Session())
		}
		s.in(t).delete(sb)
	})
	t.Run("use", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		s.in(t).assertAlive(sb)
		if now := s.get(sb.Name()); !now.Session().PausedAt.IsZero() {
			t.Error("a command did not resume it")
		}
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b, err := sb.ReadFile(t.Context(), "file"); err != nil || string(b) != "kept\n" {
			t.Errorf("a file of a paused session: %q, %v", b, err)
		}
		s.in(t).delete(sb)
	})
	t.Run("stop", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		s.in(t).stopSaved(sb)
		if now := s.get(sb.Name()); !now.Session().PausedAt.IsZero() || now.Session().Status != skerry.StatusStopped {
			t.Errorf("after the stop it is %+v", now.Session())
		}
		files(t, sb)
		s.in(t).delete(sb)
	})
	t.Run("timeout", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{Timeout: 8 * time.Second})
		s.in(t).waitFor("the paused session to time out", func() bool { return s.get(sb.Name()).Session().Status == skerry.StatusStopped })
		files(t, s.get(sb.Name()))
		s.in(t).delete(sb)
	})
	t.Run("delete", func(t *testing.T) { s.in(t).delete(newPaused(t, client.CreateOptions{})) })
	t.Run("fork", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		for _, opts := range []client.ForkOptions{{Memory: true}, {Live: true}} {
			fork, err := sb.Fork(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if s.usesCPU(sb.Session().ID) {
				t.Errorf("the fork %+v has resumed its source", opts)
			}
			if got := s.usesCPU(fork.Session().ID); got != opts.Memory {
				t.Errorf("the fork %+v uses CPU: %v", opts, got)
			}
			files(t, fork)
			s.in(t).delete(fork)
		}
		s.in(t).delete(sb)
	})
	t.Run("memory snapshot", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		if _, err := sb.Snapshot(t.Context(), client.TakeOptions{Memory: true}); err != nil {
			t.Fatal(err)
		}
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !s.usesCPU(sb.Session().ID) {
			t.Error("the process does not go on")
		}
		s.in(t).delete(sb)
	})
	t.Run("crash of the server", func(t *testing.T) {
		sb := newPaused(t, client.CreateOptions{})
		s.kill()
		s.start()
		if s.usesCPU(sb.Session().ID) {
			t.Error("a new server has resumed the session")
		}
		now := s.get(sb.Name())
		if now.Session().PausedAt.IsZero() {
			t.Error("a new server does not know that it is paused")
		}
		files(t, now)
		s.in(t).assertAlive(now)
		if err := now.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	s.assertOwned(5)
}
