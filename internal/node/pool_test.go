package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/blob"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/snapshot"
)

// usual is the specification that most sessions of a pooled node have.
var usual = nodeapi.SessionSpec{ImageDigest: "usual", VCPUs: 1, MemoryMB: 512}

// listedImages are images that can be deleted.
type listedImages struct {
	anyImage
	mu      sync.Mutex
	deleted map[string]bool
}

func (l *listedImages) Path(digest string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deleted[digest] {
		return "", skerry.Errorf(skerry.CodeNotFound, "no image %s", digest)
	}
	return l.anyImage.Path(digest)
}

func (l *listedImages) delete(digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted = map[string]bool{digest: true}
}

// countedNetworks counts the leases that are not given back.
type countedNetworks struct {
	noNetworks
	held atomic.Int64
	// most is how many there are, 0 for any number.
	most int64
}

type countedLease struct {
	noLease
	n *countedNetworks
}

func (n *countedNetworks) Acquire(context.Context) (nodeapi.Lease, error) {
	if held := n.held.Add(1); n.most > 0 && held > n.most {
		n.held.Add(-1)
		return nil, skerry.Errorf(skerry.CodeUnavailable, "all %d networks are in use", n.most)
	}
	return countedLease{n: n}, nil
}

func (n *countedNetworks) Adopt(ctx context.Context, _ string) (nodeapi.Lease, error) {
	return n.Acquire(ctx)
}

func (l countedLease) Release(context.Context) error {
	l.n.held.Add(-1)
	return nil
}

// house is what a node's processes have in common.
type house struct {
	dir      string
	driver   *fake.Driver
	images   *listedImages
	networks *countedNetworks
	starts   atomic.Int64
	// refuse, if set, is asked before each operation of a machine.
	refuse atomic.Pointer[func(op, id string) error]
}

func newHouse(t *testing.T) *house {
	h := &house{dir: t.TempDir(), images: &listedImages{}, networks: &countedNetworks{}}
	h.driver = fakeDriver(t, fake.Config{Before: func(op, id string) error {
		if op == "start" {
			h.starts.Add(1)
		}
		if f := h.refuse.Load(); f != nil {
			return (*f)(op, id)
		}
		return nil
	}})
	return h
}

// node returns a node that keeps count machines ready, and takes over keep.
func (h *house) node(t *testing.T, count int, change func(*Config), keep ...string) *Node {
	t.Helper()
	blobs, err := blob.OpenDir(filepath.Join(h.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	snapshots, err := snapshot.Open(snapshot.Options{
		Blobs: blobs, Key: make([]byte, snapshot.KeySize), CacheDir: filepath.Join(h.dir, "cache"), CacheBytes: 1 << 30, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(h.dir, "drives"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Dir: filepath.Join(h.dir, "sessions"), SnapshotWork: filepath.Join(h.dir, "work"), Driver: h.driver, Networks: h.networks, Images: h.images,
		Snapshots: snapshots, Drives: drives, Agent: "agent", Log: log,
		Warm: WarmConfig{
			Count: count, MemoryBytes: 100 * WarmMemory, Dir: filepath.Join(h.dir, "warm"),
			Usual: func(context.Context) (nodeapi.SessionSpec, error) { return usual, nil },
		},
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // closing twice is no error
		if err := errors.Join(n.Drain(), n.Close()); err != nil {
			t.Error(err)
		}
	})
	wanted := map[string]nodeapi.NetworkSpec{}
	for _, id := range keep {
		wanted[id] = nodeapi.NetworkSpec{Policy: skerry.AllowAll()}
	}
	if _, err := n.Recover(t.Context(), wanted); err != nil {
		t.Fatal(err)
	}
	return n
}

// until waits for a condition.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func readyNow(n *Node) int { return n.PoolStats().Warm.Ready }

func awaitReady(t *testing.T, n *Node, count int) {
	t.Helper()
	until(t, "machines to be ready", func() bool { return readyNow(n) == count })
}

// readyMachines returns the ids of the warm machines that are ready, the oldest first.
func readyMachines(n *Node) []string { return pooled(n, false) }

// pooled returns the ids of the machines that are ready: blank ones, or the others.
func pooled(n *Node, blank bool) (ids []string) {
	n.pool.mu.Lock()
	defer n.pool.mu.Unlock()
	for k, list := range n.pool.ready {
		for _, w := range list {
			if k.isBlank() == blank {
				ids = append(ids, w.id)
			}
		}
	}
	return ids
}

// machineOf returns the id of a session's machine.
func machineOf(t *testing.T, n *Node, session string) string {
	t.Helper()
	s, err := n.find(session)
	if err != nil {
		t.Fatal(err)
	}
	return s.machine().ID()
}

// startUsual starts a usual session with an environment.
func startUsual(t *testing.T, n *Node, env map[string]string) string {
	t.Helper()
	spec := usual
	spec.Env = env
	return startOn(t, n, spec)
}

func TestWarmMachineBecomesASession(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 2, nil)
	awaitReady(t, n, 2)
	ready := readyMachines(n)
	one := startUsual(t, n, map[string]string{"SECRET": "first"})
	two := startUsual(t, n, map[string]string{"OTHER": "second"})
	for i, id := range []string{one, two} {
		if got := machineOf(t, n, id); got != ready[i] {
			t.Errorf("session %d has machine %s, not %s, which was ready", i, got, ready[i])
		}
		if _, err := os.Stat(n.pool.recordPath(ready[i])); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("machine %s is still recorded as ready: %v", ready[i], err)
		}
	}
	if got := runOn(t, n, one, "echo $SECRET,$OTHER"); got != "first,\n" {
		t.Errorf("the first session has the environment %q", got)
	}
	if got := runOn(t, n, two, "echo $SECRET,$OTHER"); got != ",second\n" {
		t.Errorf("the second session has the environment %q", got)
	}
	if s := n.PoolStats().Warm; s.Hits != 2 || s.Misses != 0 {
		t.Errorf("%d hits, %d misses", s.Hits, s.Misses)
	}
	awaitReady(t, n, 2) // they are replaced
}

// TestOtherSessionsAreNoneOfThePool starts sessions that differ in what a machine cannot
// change.
func TestOtherSessionsAreNoneOfThePool(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, nil)
	awaitReady(t, n, 1)
	for what, change := range map[string]func(*nodeapi.SessionSpec){
		"another image": func(s *nodeapi.SessionSpec) { s.ImageDigest = "other" },
		"more vCPUs":    func(s *nodeapi.SessionSpec) { s.VCPUs = 2 },
		"less memory":   func(s *nodeapi.SessionSpec) { s.MemoryMB = 256 },
	} {
		spec := usual
		change(&spec)
		if id := machineOf(t, n, startOn(t, n, spec)); strings.HasPrefix(id, prefixWarm) {
			t.Errorf("%s: the session has machine %s", what, id)
		}
		awaitReady(t, n, 1)
	}
	for what, change := range map[string]func(*nodeapi.SessionSpec){
		"a drive":    func(s *nodeapi.SessionSpec) { s.Mounts = []nodeapi.DriveMount{{Path: "/data", DriveID: "drv_1"}} },
		"a snapshot": func(s *nodeapi.SessionSpec) { s.Snapshot = "snapshot" },
		"a fork":     func(s *nodeapi.SessionSpec) { s.ForkOf = "sbx_1" },
	} {
		spec := usual
		change(&spec)
		if w := n.pool.take(spec); w != nil {
			if !w.kind.isBlank() {
				t.Errorf("%s: the session has machine %s", what, w.id)
			}
			n.pool.discard(w)
		}
	}
}

func TestDeadMachineIsNotGivenOut(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 2, nil)
	awaitReady(t, n, 2)
	dead := readyMachines(n)[0]
	m := h.driver.Machine(dead)
	if err := m.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if got := machineOf(t, n, startUsual(t, n, nil)); got == dead {
		t.Error("the session has the machine that has ended")
	}
	until(t, "the dead machine to be removed", func() bool { return h.driver.Machine(dead) == nil })
	awaitReady(t, n, 2)
}

func TestSilentMachineIsNotUsed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 2, nil)
	awaitReady(t, n, 2)
	silent := readyMachines(n)[0]
	if err := h.driver.Machine(silent).Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	id := startUsual(t, n, map[string]string{"A": "a"})
	if got := machineOf(t, n, id); got == silent {
		t.Error("the session has the machine that does not answer")
	}
	if got := runOn(t, n, id, "echo $A"); got != "a\n" {
		t.Errorf("the session prints %q", got)
	}
	until(t, "the silent machine to be removed", func() bool { return h.driver.Machine(silent) == nil })
}

// TestSilentMachineIsNotBilled: what a machine has used that a session did not get is not
// taken off what the session's own uses.
func TestSilentMachineIsNotBilled(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, nil)
	awaitReady(t, n, 1)
	n.pool.mu.Lock()
	w := n.pool.ready[kindFor(usual)][0]
	n.pool.mu.Unlock()
	_, _, err := errand(t.Context(), w.guest, guest.StartSpec{
		Name: "/bin/sh", Args: []string{"-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"}, Cwd: "/",
	}, func(*guest.Process) {})
	if err != nil {
		t.Fatal(err)
	}
	silent := h.driver.Machine(w.id)
	if used, err := silent.Usage(); err != nil || used.CPU == 0 {
		t.Fatalf("the machine has used %v, %v", used.CPU, err)
	}
	if err := silent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	id := startUsual(t, n, nil)
	s, err := n.find(id)
	if err != nil {
		t.Fatal(err)
	}
	st, err := readState(s.dir)
	if s.machine().ID() != id || s.before != 0 || err != nil || st.Before != 0 {
		t.Errorf("machine %s of session %s had used %v before, %+v, %v", s.machine().ID(), id, s.before, st, err)
	}
}

// TestStartThatIsCancelled cancels starts while their machines become theirs.
func TestStartThatIsCancelled(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, nil)
	for range 5 {
		awaitReady(t, n, 1)
		machine := readyMachines(n)[0]
		if err := h.driver.Machine(machine).Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		spec := usual
		spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
		err := n.Start(ctx, spec)
		cancel()
		if err == nil {
			t.Fatal("a start whose machine does not answer succeeded")
		}
		if _, err := n.find(spec.ID); skerry.CodeOf(err) != skerry.CodeNotFound {
			t.Errorf("the session is still there: %v", err)
		}
		until(t, "the machine to be removed", func() bool { return h.driver.Machine(machine) == nil })
	}
}

// TestPoolOutlivesItsProcess has a second node take over what a first one had ready.
func TestPoolOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.node(t, 2, nil)
	awaitReady(t, first, 2)
	spec := usual
	spec.ID, spec.Hostname, spec.Env = skerry.NewID(skerry.PrefixSession), "one", map[string]string{"A": "a"}
	if err := first.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	machine := machineOf(t, first, spec.ID)
	awaitReady(t, first, 2)
	ready, started := readyMachines(first), h.starts.Load()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := h.node(t, 2, nil, spec.ID)
	if got := readyMachines(second); len(got) != 2 || !(got[0] == ready[0] && got[1] == ready[1] || got[0] == ready[1] && got[1] == ready[0]) {
		t.Errorf("%v are ready, %v were before", got, ready)
	}
	if h.starts.Load() != started {
		t.Error("machines were started anew")
	}
	if got := machineOf(t, second, spec.ID); got != machine {
		t.Errorf("the session has machine %s, not %s", got, machine)
	}
	if got := runOn(t, second, spec.ID, "echo $A"); got != "a\n" {
		t.Errorf("the session prints %q", got)
	}
	if err := second.Forget(t.Context(), spec.ID); err != nil {
		t.Error(err)
	}
	// One that was ready is a session's, with nothing of the one before.
	id := startUsual(t, second, map[string]string{"B": "b"})
	if got := runOn(t, second, id, "echo $A$B"); got != "b\n" {
		t.Errorf("the session prints %q", got)
	}
}

// TestPoolOfAnotherProcess has a second node find machines that it cannot use.
func TestPoolOfAnotherProcess(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		count  int
		change func(*Config)
		before func(*testing.T, *Node, []string)
		refuse string
	}{
		"another agent":      {count: 2, change: func(c *Config) { c.Agent = "other" }},
		"another disk size":  {count: 2, change: func(c *Config) { c.DiskBytes++ }},
		"no pool any more":   {count: 0},
		"a damaged record":   {count: 2, before: func(t *testing.T, n *Node, ids []string) { damage(t, n, ids, "{") }},
		"no record":          {count: 2, before: func(t *testing.T, n *Node, ids []string) { damage(t, n, ids, "") }},
		"no agents":          {count: 2, refuse: "attach"},
		"records of nothing": {count: 2, before: func(t *testing.T, n *Node, ids []string) { kill(t, n, ids) }},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			first := h.node(t, 2, nil)
			awaitReady(t, first, 2)
			ids := readyMachines(first)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			if c.before != nil {
				c.before(t, first, ids)
			}
			refuse := func(op, id string) error {
				if op == c.refuse && slices.Contains(ids, id) {
					return errors.New("no")
				}
				return nil
			}
			h.refuse.Store(&refuse)
			second := h.node(t, c.count, c.change)
			awaitReady(t, second, c.count)
			for _, id := range ids {
				until(t, "the machine to be removed", func() bool {
					left := h.driver.Machine(id)
					return left == nil || ended(left)
				})
				until(t, "its record to be removed", func() bool {
					_, err := os.Stat(second.pool.recordPath(id))
					return errors.Is(err, os.ErrNotExist)
				})
			}
		})
	}
}

func damage(t *testing.T, n *Node, ids []string, content string) {
	for _, id := range ids {
		err := os.Remove(n.pool.recordPath(id))
		if content != "" {
			err = os.WriteFile(n.pool.recordPath(id), []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// kill ends machines behind their node's back.
func kill(t *testing.T, n *Node, ids []string) {
	for _, id := range ids {
		m := n.cfg.Driver.(*fake.Driver).Machine(id)
		if err := m.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-m.Done()
	}
}

// ended reports whether a machine has ended by itself.
func ended(m *fake.Machine) bool {
	select {
	case <-m.Done():
		return true
	default:
		return false
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 3, nil)
	until(t, "a machine to be ready", func() bool { return readyNow(n) > 0 })
	if err := n.Drain(); err != nil { // while others are made
		t.Fatal(err)
	}
	left, err := h.driver.Recover(t.Context())
	if err != nil || len(left) > 0 {
		t.Errorf("%d machines are left: %v", len(left), err)
	}
	if held := h.networks.held.Load(); held != 0 {
		t.Errorf("%d networks are left", held)
	}
	records, err := os.ReadDir(n.cfg.Warm.Dir)
	if err != nil || len(records) > 0 {
		t.Errorf("%d records are left: %v", len(records), err)
	}
	startUsual(t, n, nil) // sessions start as without a pool
}

// TestMachineThatCannotBeEnded is tried again.
func TestMachineThatCannotBeEnded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, nil)
	awaitReady(t, n, 1)
	awaitBlank(t, n, blankCount)
	id := readyMachines(n)[0]
	var tries atomic.Int64
	refuse := func(op, _ string) error {
		if op == "stop" && tries.Add(1) < 3 {
			return errors.New("not now")
		}
		return nil
	}
	h.refuse.Store(&refuse)
	n.pool.squeeze()
	until(t, "the machine to be removed", func() bool { return h.driver.Machine(id) == nil })
	if tries.Load() < 3 {
		t.Errorf("%d attempts", tries.Load())
	}
	until(t, "its network to be given back", func() bool { return h.networks.held.Load() == 0 })
}

// TestSqueeze has the pool give back its memory, and not take it again soon.
func TestSqueeze(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 2, nil)
	awaitReady(t, n, 2)
	awaitBlank(t, n, blankCount)
	n.pool.squeeze()
	until(t, "the machines to be removed", func() bool { return h.networks.held.Load() == 0 })
	n.pool.mu.Lock()
	defer n.pool.mu.Unlock()
	if wait := time.Until(n.pool.notBefore); wait < squeezeTime/2 {
		t.Errorf("machines are made again in %v", wait)
	}
}

// TestImageIsDeleted has the machines of an image end with it.
func TestImageIsDeleted(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 2, nil)
	awaitReady(t, n, 2)
	awaitBlank(t, n, blankCount)
	h.images.delete(usual.ImageDigest)
	awaitReady(t, n, 0)
	// Blank machines have no image.
	until(t, "the machines to be removed", func() bool { return h.networks.held.Load() == blankCount })
	awaitBlank(t, n, blankCount)
}

// TestManyStartsAtOnce has more sessions start than machines are ready.
func TestManyStartsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 4, nil)
	awaitReady(t, n, 4)
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			spec := usual
			spec.ID, spec.Hostname = skerry.NewID(skerry.PrefixSession), "one"
			if err := n.Start(t.Context(), spec); err != nil {
				t.Error(err)
				return
			}
			ids[i] = spec.ID
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	seen := map[string]bool{}
	for _, id := range ids {
		m := machineOf(t, n, id)
		if seen[m] {
			t.Errorf("two sessions have machine %s", m)
		}
		seen[m] = true
	}
	if s := n.PoolStats().Warm; s.Hits < 4 || s.Hits+s.Misses != 8 {
		t.Errorf("%d hits, %d misses", s.Hits, s.Misses)
	}
	// The next burst is expected to be as large, if it does not fall into two slots.
	until(t, "machines for another burst", func() bool { return readyNow(n) > 4 })
	for _, id := range ids {
		if err := n.Forget(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestPoolFitsItsMemory has room for less than is wanted.
func TestPoolFitsItsMemory(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 5, func(c *Config) { c.Warm.MemoryBytes = 2*WarmMemory + WarmMemory/2 })
	if got := n.PoolStats().Warm.Wanted; got > 2 {
		t.Errorf("%d machines are wanted", got)
	}
	awaitReady(t, n, 2)
}

// TestKindsShare: one kind that is much in demand leaves room for others.
func TestKindsShare(t *testing.T) {
	h := newHouse(t)
	n := h.node(t, 0, nil)
	p := newWarmPool(n, WarmConfig{Count: 2, MemoryBytes: 10 * WarmMemory})
	defer p.close()
	now := time.Unix(1_000_000, 0)
	p.usual = kindFor(usual)
	p.demand.add(usual, now)
	for i, starts := range []int{100, 50, 3} {
		spec := usual
		spec.MemoryMB += 1 + i
		for range starts {
			p.demand.add(spec, now)
		}
	}
	var wants []int
	for _, l := range p.wanted(now) {
		wants = append(wants, l.want)
	}
	if !slices.Equal(wants, []int{2, 4, 2, 1}) {
		t.Errorf("of ten machines the kinds get %v", wants)
	}
}

func TestDemand(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := demand{}
	d.add(usual, now)
	s := d[kindFor(usual)]
	if got := s.expected(now); got != 0 {
		t.Errorf("after one start %d more are expected", got)
	}
	for range 4 {
		d.add(usual, now)
	}
	for range 2 {
		d.add(usual, now.Add(3*demandSlot))
	}
	for after, want := range map[time.Duration]int{
		3 * demandSlot:                 5,
		(demandSlots - 1) * demandSlot: 5,
		demandSlots * demandSlot:       2,
		(demandSlots + 3) * demandSlot: 0,
	} {
		c := *s
		if got := c.expected(now.Add(after)); got != want {
			t.Errorf("after %v %d are expected, want %d", after, got, want)
		}
	}
	own := usual
	own.ID, own.Hostname, own.Env = "id", "name", map[string]string{"PATH": "/secret"}
	if got := template(own, kindFor(own)); got.ID != "" || got.Hostname != "" || got.Env != nil {
		t.Errorf("the template has what is a session's own: %v", got)
	}
	for i := range 2 * maxKinds {
		spec := usual
		spec.MemoryMB = i
		d.add(spec, now.Add(time.Duration(i)*time.Second))
	}
	if len(d) != maxKinds {
		t.Errorf("%d kinds are known", len(d))
	}
	// What is in demand stays, however many others there are.
	busy := usual
	busy.VCPUs = 8
	later := now.Add(time.Hour)
	for range 2 {
		d.add(busy, later)
	}
	for i := range 2 * maxKinds {
		spec := usual
		spec.MemoryMB = 10_000 + i
		d.add(spec, later.Add(time.Duration(i)*time.Second))
	}
	if d[kindFor(busy)] == nil {
		t.Error("the kind that is in demand was dropped")
	}
}

// TestPathOfAClient: what a client sets is in no machine that becomes another client's,
// not even PATH.
func TestPathOfAClient(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	n := h.node(t, 1, func(c *Config) {
		c.Warm.Usual = func(context.Context) (nodeapi.SessionSpec, error) {
			spec := usual
			spec.Env = map[string]string{"PATH": "/usr/bin:/bin"}
			return spec, nil
		}
	})
	awaitReady(t, n, 1)
	for range 3 {
		startUsual(t, n, map[string]string{"PATH": "/secret:/bin"})
	}
	n.pool.mu.Lock()
	n.pool.throwAll()
	n.pool.mu.Unlock()
	n.pool.tidy()
	until(t, "it to be quiet", func() bool {
		spec, ok := n.pool.next(time.Now())
		if ok && spec.Env["PATH"] != "/usr/bin:/bin" {
			t.Fatalf("a machine is made with %v", spec.Env)
		}
		return ok || readyNow(n) > 0
	})
}

// TestBackgroundProgram: a machine in which a program of the image goes on running is
// not made ready, and the kind is put off.
func TestBackgroundProgram(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var asked atomic.Bool
	leave := func(op, id string) error {
		if op != "activity" || asked.Swap(true) {
			return nil
		}
		// As if a program had left it behind.
		cmd := exec.Command("sleep", "1000")
		cmd.Env = []string{"skerry_fake_machine=" + filepath.Dir(h.driver.Machine(id).Root())}
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }()
		return nil
	}
	h.refuse.Store(&leave)
	n := h.node(t, 1, nil)
	until(t, "the failure", func() bool {
		n.pool.mu.Lock()
		defer n.pool.mu.Unlock()
		s := n.pool.demand[kindFor(usual)]
		return s != nil && s.failures > 0
	})
	if got := readyNow(n); got != 0 {
		t.Errorf("%d machines are ready", got)
	}
	awaitBlank(t, n, blankCount)
	until(t, "the lease", func() bool { return h.networks.held.Load() == blankCount })
}

// TestFailedKind: a kind of which no machine can be made is put off for longer each
// time, and keeps no other waiting.
func TestFailedKind(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := demand{}
	d.add(usual, now)
	s := d[kindFor(usual)]
	for i, want := range []time.Duration{poolRetry, 2 * poolRetry, 4 * poolRetry} {
		if s.failed(now); s.notBefore.Sub(now) != want {
			t.Errorf("after failure %d the next is after %v, not %v", i+1, s.notBefore.Sub(now), want)
		}
	}
	for range 100 {
		s.failed(now)
	}
	if wait := s.notBefore.Sub(now); wait != demandSlots*demandSlot {
		t.Errorf("after many failures the next is after %v", wait)
	}
}

// TestPoolGivesUpNetworks: what the pool holds is there for sessions of any kind.
func TestPoolGivesUpNetworks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.networks.most = 3
	n := h.node(t, 3, nil)
	awaitReady(t, n, 3)
	other := usual
	other.MemoryMB *= 2
	for range 3 {
		startOn(t, n, other)
	}
	if got := readyNow(n); got != 0 {
		t.Errorf("%d machines are ready beside three sessions", got)
	}
	other.ID, other.Hostname = skerry.NewID(skerry.PrefixSession), "four"
	if err := n.Start(t.Context(), other); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("a fourth session: %v", err)
	}
}
