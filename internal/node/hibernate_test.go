package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/room"
)

// parking is a fake driver that can also save memory, if it is loaded once: a machine that
// was saved so is stopped, and continued when another one starts from what was saved.
type parking struct {
	*fake.Driver

	mu       sync.Mutex
	machines map[string]*parked // those that run, by id
	saved    map[string]*parked // those that have been saved, by the id that they had
	full     atomic.Bool        // no memory can be saved
	// fails is called before a machine starts from memory.
	fails func() error
	// reclaims, if set, is called for the machines' memory to be reclaimed.
	reclaims func(ctx context.Context, id string) (int64, error)
	// holds is what each machine holds.
	holds atomic.Int64
}

// parked is a machine of a parking driver.
type parked struct {
	*fake.Machine
	d    *parking
	id   string
	done chan struct{} // closed when it has ended under this id
	once sync.Once
}

func newParking(t *testing.T, cfg fake.Config) *parking {
	d := &parking{Driver: fakeDriver(t, cfg), machines: map[string]*parked{}, saved: map[string]*parked{}}
	t.Cleanup(func() {
		for _, m := range d.saved {
			if err := m.Machine.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

func (d *parking) Capabilities() driver.Capabilities {
	can := d.Driver.Capabilities()
	can.Memory = true
	return can
}

func (d *parking) open(id string, m *fake.Machine) *parked {
	p := &parked{Machine: m, d: d, id: id, done: make(chan struct{})}
	d.mu.Lock()
	d.machines[id] = p
	d.mu.Unlock()
	go func() {
		<-m.Done()
		p.once.Do(func() { close(p.done) })
	}()
	return p
}

func (d *parking) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if spec.Source.Memory == "" {
		m, err := d.Driver.Start(ctx, spec)
		if err != nil {
			return nil, err
		}
		return d.open(spec.ID, m.(*fake.Machine)), nil
	}
	if d.fails != nil {
		if err := d.fails(); err != nil {
			return nil, err
		}
	}
	id, err := os.ReadFile(filepath.Join(spec.Source.Memory, "parked"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	m := d.saved[string(id)]
	delete(d.saved, string(id))
	d.mu.Unlock()
	if m == nil {
		return nil, errors.New("no such machine was saved, or it was loaded before")
	}
	return d.open(spec.ID, m.Machine), m.Machine.Resume(ctx)
}

func (d *parking) Recover(ctx context.Context) (all []driver.Machine, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		all = append(all, m)
		err = errors.Join(err, m.Resume(ctx))
	}
	return all, err
}

func (m *parked) ID() string            { return m.id }
func (m *parked) Done() <-chan struct{} { return m.done }

func (m *parked) Save(ctx context.Context, dir string, how driver.Saving) error {
	if !how.Memory {
		return m.Machine.Save(ctx, dir, how)
	}
	if m.d.full.Load() {
		return unix.ENOSPC
	}
	if err := m.Pause(ctx); err != nil {
		return err
	}
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.d.saved[m.id] = m
	return os.WriteFile(filepath.Join(dir, "parked"), []byte(m.id), 0o600)
}

func (m *parked) Reclaim(ctx context.Context) (int64, error) {
	if m.d.reclaims == nil {
		return 0, nil
	}
	return m.d.reclaims(ctx, m.id)
}

func (m *parked) PinnedMemory(int64) (int64, error) { return m.d.holds.Load(), nil }

func (m *parked) Stop(ctx context.Context) error {
	m.d.mu.Lock()
	delete(m.d.machines, m.id)
	saved := m.d.saved[m.id] == m
	m.d.mu.Unlock()
	if saved {
		m.once.Do(func() { close(m.done) })
		return nil
	}
	return m.Machine.Stop(ctx)
}

// hibernatingNode returns a node whose unused sessions hibernate shortly.
func hibernatingNode(t *testing.T, d driver.Driver, change func(*Config)) (*Node, *wires) {
	t.Helper()
	w := &wires{}
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return fakeNodeWith(t, d, func(c *Config) {
		c.IdlePause, c.IdleHibernate, c.Idle, c.Networks, c.Agent = shortly, shortly, skerry.IdleHibernate, w, agent
		if change != nil {
			change(c)
		}
	}), w
}

// big is a session with a size, which one needs to hibernate.
var big = nodeapi.SessionSpec{ImageDigest: "image", VCPUs: 1, MemoryMB: 2048}

// hibernates waits until the session hibernates.
func hibernates(t *testing.T, n *Node, id string) {
	t.Helper()
	s := sessionOn(t, n, id)
	eventually(t, "hibernation of the session", func() bool {
		if !s.isHibernated() {
			return false
		}
		if err := s.alone(t.Context(), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		return s.isHibernated()
	})
}

// TestHibernate: a session that nobody uses hibernates, every use has it come back, with
// its processes, and nothing of their output is lost.
func TestHibernate(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, w := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	s := sessionOn(t, n, id)
	cmd := startCommand(t, n, id, "echo first; sleep 1000 & while [ ! -e go ]; do sleep 0.1; done; echo second; kill $!; exit 7")
	var machines []string
	for range 3 {
		machines = append(machines, s.machine().ID())
		hibernates(t, n, id)
		if d.machines[machines[len(machines)-1]] != nil {
			t.Error("a session that hibernates has a machine")
		}
		if _, ok := n.meter(t, id); !ok {
			t.Error("a session that hibernates has no meters")
		}
		if st, err := readState(s.dir); err != nil || !st.Hibernated {
			t.Errorf("its state is %+v, %v", st, err)
		}
		if got := runOn(t, n, id, "echo awake"); got != "awake\n" {
			t.Errorf("a command says %q", got)
		}
		if _, err := os.Stat(s.memoryDir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was saved is still there: %v", err)
		}
	}
	hibernates(t, n, id)
	w.packets.Add(1)
	eventually(t, "return because of a packet", func() bool { return !s.isHibernated() })
	runOn(t, n, id, "touch go")
	if got := outputOf(t, n, id, cmd); got != "first\nsecond\n" {
		t.Errorf("the command has said %q", got)
	}
	if exit := awaitExit(t, n, id, cmd); exit.Code != 7 {
		t.Errorf("the command has ended with %d", exit.Code)
	}
}

// TestHibernateStops: a session that hibernates can be stopped and forgotten, also while
// it comes back, and leaves nothing.
func TestHibernateStops(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	hibernates(t, n, id)
	if _, err := n.Stop(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(sessionDir(n, id, "memory")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was saved is still there: %v", err)
	}
	if _, err := n.running(id); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("the session is %v", err)
	}

	begun, goOn := make(chan struct{}), make(chan struct{})
	d.fails = sync.OnceValue(func() error { close(begun); <-goOn; return nil })
	id = startOn(t, n, big)
	hibernates(t, n, id)
	woken := make(chan error, 1)
	go func() {
		_, done, err := n.use(context.Background(), id)
		if err == nil {
			done()
		}
		woken <- err
	}()
	<-begun
	stopped := make(chan error, 1)
	go func() {
		_, err := n.Stop(context.Background(), id)
		stopped <- err
	}()
	close(goOn)
	<-woken // it may have come back just before the end
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if len(d.machines) != 0 {
		t.Errorf("machines are left: %v", d.machines)
	}
}

// TestHibernateFails: a session that cannot be saved stays paused in memory and goes on.
func TestHibernateFails(t *testing.T) {
	full := newParking(t, fake.Config{})
	full.full.Store(true)
	for name, d := range map[string]driver.Driver{
		"no room": full, "no memory": withoutMemory{newParking(t, fake.Config{})},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := hibernatingNode(t, d, nil)
			id := startOn(t, n, big)
			sleeps(t, n, id)
			for end := time.Now().Add(4 * shortly); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if sessionOn(t, n, id).isHibernated() {
					t.Fatal("the session hibernates")
				}
			}
			if got := runOn(t, n, id, "echo on"); got != "on\n" {
				t.Errorf("%q", got)
			}
		})
	}
}

type withoutMemory struct{ driver.Driver }

func (d withoutMemory) Capabilities() driver.Capabilities { return driver.Capabilities{Pause: true} }

// TestReturnFails: what fails now and then is tried again; then the session is lost, and
// its reason says so.
func TestReturnFails(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, nil)
	tries := 0
	d.fails = func() error {
		if tries++; tries == 1 {
			return unix.EAGAIN
		}
		return nil
	}
	id := startOn(t, n, big)
	hibernates(t, n, id)
	if got := runOn(t, n, id, "echo on"); got != "on\n" || tries != 2 {
		t.Errorf("%q after %d tries", got, tries)
	}
	hibernates(t, n, id)
	d.fails = func() error { return unix.ENOSPC }
	if _, _, err := n.use(t.Context(), id); skerry.CodeOf(err) != skerry.CodeDiskFull {
		t.Errorf("use on a full disk: %v", err)
	}
	if !sessionOn(t, n, id).isHibernated() {
		t.Error("on a full disk the session hibernates no more")
	}
	other := skerry.Errorf(skerry.CodeSnapshotIncompatible, "saved by another version")
	d.fails = func() error { return other }
	if _, _, err := n.use(t.Context(), id); skerry.CodeOf(err) != skerry.CodeSnapshotIncompatible || !sessionOn(t, n, id).isHibernated() {
		t.Errorf("use of a session that another version has saved: %v", err)
	}
	d.fails = func() error { return unix.EIO }
	if _, _, err := n.use(t.Context(), id); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("use of a session that cannot return: %v", err)
	}
	s := sessionOn(t, n, id)
	<-s.ended
	if s.reason != lostHibernating || s.agentLost {
		t.Errorf("lost for %q, savable %v", s.reason, s.agentLost)
	}
}

// upgraded is a driver of which all machines are from before an upgrade.
type upgraded struct{ *parking }

func (upgraded) Format(bool) driver.Format { return driver.Format{Driver: "fake", Version: "newer"} }

// TestFromBeforeAnUpgrade: the memory of a session that this version could not load is not
// saved. The session goes on.
func TestFromBeforeAnUpgrade(t *testing.T) {
	n, _ := hibernatingNode(t, upgraded{newParking(t, fake.Config{})}, nil)
	id := startOn(t, n, big)
	s := sessionOn(t, n, id)
	eventually(t, "the session to sleep", s.isAsleep)
	s.mu.Lock()
	if s.mayHibernate(time.Now().Add(time.Hour), true) {
		t.Error("the session may hibernate")
	}
	s.mu.Unlock()
	_, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Memory: true, Lease: "lease"})
	if skerry.CodeOf(err) != skerry.CodeConflict {
		t.Errorf("a memory snapshot: %v", err)
	}
	if _, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Lease: "lease"}); err != nil {
		t.Errorf("a snapshot of its files: %v", err)
	}
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// TestReturnNeedsRoom: a session is not loaded on a full disk, where its machine would end.
func TestReturnNeedsRoom(t *testing.T) {
	d := newParking(t, fake.Config{})
	full := smallDisk(t)
	n, _ := hibernatingNode(t, d, func(c *Config) { c.Disk = room.New(full, 4<<20) })
	id := startOn(t, n, big)
	hibernates(t, n, id)
	d.fails = func() error { t.Error("a machine was started on a full disk"); return nil }
	filler := filepath.Join(full, "filler")
	if err := os.WriteFile(filler, make([]byte, 7<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.use(t.Context(), id); skerry.CodeOf(err) != skerry.CodeDiskFull {
		t.Errorf("use on a full disk: %v", err)
	}
	if !sessionOn(t, n, id).isHibernated() {
		t.Error("on a full disk the session hibernates no more")
	}
	d.fails = nil
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("with room on the disk again: %q", got)
	}
}

// TestHibernatedIsSaved: a snapshot of a session that hibernates is one of its files, and it
// is as it was afterwards: it sleeps, or is paused by its client.
func TestHibernatedIsSaved(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	runOn(t, n, id, "echo kept >file")
	for _, byClient := range []bool{false, true} {
		hibernates(t, n, id)
		if byClient {
			if err := n.Pause(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		saved, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Lease: "lease"})
		if err != nil {
			t.Fatal(err)
		}
		if _, frozen := sessionOn(t, n, id).standstills(); frozen != byClient {
			t.Errorf("paused: %v, want %v", frozen, byClient)
		}
		copied := startOn(t, n, nodeapi.SessionSpec{Snapshot: saved.Manifest})
		if got := runOn(t, n, copied, "cat file"); got != "kept\n" {
			t.Errorf("the snapshot has %q", got)
		}
	}
	if err := n.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, n, id, "cat file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
}

// TestHibernatedIsTakenOver: a new process has the sessions that hibernate come back, with
// the commands that run in them.
func TestHibernatedIsTakenOver(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, nil)
	id, unwanted := startOn(t, n, big), startOn(t, n, big)
	cmd := startCommand(t, n, id, "echo first; while [ ! -e go ]; do sleep 0.1; done; echo second")
	hibernates(t, n, id)
	hibernates(t, n, unwanted)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.cfg.IdleHibernate = 0
	next := n.after(t, id)
	eventually(t, "return of the session", func() bool { _, err := next.running(id); return err == nil })
	runOn(t, next, id, "touch go")
	if got := outputOf(t, next, id, cmd); got != "first\nsecond\n" {
		t.Errorf("the command has said %q", got)
	}
	if _, err := os.Stat(sessionDir(n, unwanted, "memory")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the memory of a session that nobody wants: %v", err)
	}
}

// TestVersionsInTurn: a session that hibernates under one version of the server waits while
// another one runs, which cannot load it, and comes back with the first.
func TestVersionsInTurn(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	runOn(t, n, id, "echo kept > file")
	hibernates(t, n, id)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	d.fails = func() error { return skerry.Errorf(skerry.CodeSnapshotIncompatible, "saved by another version") }
	other := n.after(t, id)
	for range 2 {
		if _, _, err := other.use(t.Context(), id); skerry.CodeOf(err) != skerry.CodeSnapshotIncompatible {
			t.Errorf("a use: %v", err)
		}
	}
	if _, err := other.Snapshot(t.Context(), id, nodeapi.Saving{Lease: "lease"}); skerry.CodeOf(err) != skerry.CodeSnapshotIncompatible {
		t.Errorf("a snapshot: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	d.fails = nil
	again := other.after(t, id)
	eventually(t, "return of the session", func() bool { _, err := again.running(id); return err == nil })
	if got := runOn(t, again, id, "cat file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
}

// TestKilledWhileItHibernates: if the machine still runs, it counts, and what was saved is
// removed, so that no later process goes back to it.
func TestKilledWhileItHibernates(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, func(c *Config) { c.IdleHibernate = 0 })
	id := startOn(t, n, big)
	s := sessionOn(t, n, id)
	sleeps(t, n, id)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// As leave writes it before it ends the machine.
	if err := os.Mkdir(s.memoryDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	s.enter(&absent{id: id}, -5*time.Second)
	if err := s.saveState(); err != nil {
		t.Fatal(err)
	}
	next := n.after(t, id)
	eventually(t, "session after the restart", func() bool { _, err := next.running(id); return err == nil })
	st, err := readState(s.dir)
	if err != nil || st.Hibernated {
		t.Errorf("its state is %+v, %v", st, err)
	}
	if _, err := os.Stat(s.memoryDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was saved is still there: %v", err)
	}
	if m, ok := next.meter(t, id); !ok || m.ActiveCPU < 5*time.Second || m.ActiveCPU > 10*time.Second {
		t.Errorf("it has used %v of CPU time", m.ActiveCPU)
	}
	if got := runOn(t, next, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// TestShortOfMemory: the sessions that have slept for longest hibernate first.
func TestShortOfMemory(t *testing.T) {
	d := newParking(t, fake.Config{})
	n, _ := hibernatingNode(t, d, func(c *Config) { c.IdleHibernate = 0 })
	first := startOn(t, n, big)
	sleeps(t, n, first)
	second := startOn(t, n, big)
	sleeps(t, n, second)
	n.hibernateOne()
	hibernates(t, n, first)
	if sessionOn(t, n, second).isHibernated() {
		t.Error("the second one hibernates too")
	}
	if got := runOn(t, n, first, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// after returns the node of a later process, which wants one session.
func (n *Node) after(t *testing.T, id string) *Node {
	t.Helper()
	next, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(next.Forget(context.Background(), id), next.Close()); err != nil {
			t.Error(err)
		}
	})
	if kept, err := next.Recover(t.Context(), map[string]nodeapi.NetworkSpec{id: {}}); err != nil || len(kept) != 1 || kept[0] != id {
		t.Fatalf("taken over: %v, %v", kept, err)
	}
	return next
}

func sessionDir(n *Node, id string, rest ...string) string {
	return filepath.Join(append([]string{n.dir(id)}, rest...)...)
}

// meter returns a session's meters.
func (n *Node) meter(t *testing.T, id string) (nodeapi.Meter, bool) {
	t.Helper()
	all, err := n.Meters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, ok := all[id]
	return m, ok
}

// startCommand starts a script and returns the command's id.
func startCommand(t *testing.T, n *Node, session, script string) string {
	t.Helper()
	spec := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "sh", Args: []string{"-c", script}}}
	if _, err := n.Exec(t.Context(), session, spec, false); err != nil {
		t.Fatal(err)
	}
	return spec.ID
}

// outputOf returns the output of a command until its end.
func outputOf(t *testing.T, n *Node, session, cmd string) string {
	t.Helper()
	r, err := n.Output(t.Context(), session, cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var said strings.Builder
	for {
		out, err := r.Next()
		if err != nil {
			return said.String()
		}
		said.Write(out.Data)
	}
}

// awaitExit returns how a command has ended.
func awaitExit(t *testing.T, n *Node, session, cmd string) (exit nodeapi.Exit) {
	t.Helper()
	s := sessionOn(t, n, session)
	eventually(t, "end of the command", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		var ended bool
		exit, ended = s.ends[cmd]
		return ended
	})
	return exit
}

// TestReturnDuringShutdown: a session that comes back while the server's process ends is
// the next process's, with its machine.
func TestReturnDuringShutdown(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d := newParking(t, fake.Config{Before: func(op, _ string) error {
		if op == "resume" {
			once.Do(func() { close(begun); <-goOn })
		}
		return nil
	}})
	n, _ := hibernatingNode(t, d, nil)
	id := startOn(t, n, big)
	cmd := startCommand(t, n, id, "echo first; while [ ! -e go ]; do sleep 0.1; done; echo second")
	hibernates(t, n, id)
	used := make(chan error, 1)
	go func() {
		_, done, err := n.use(context.Background(), id)
		if err == nil {
			done()
		}
		used <- err
	}()
	<-begun
	closed := make(chan error, 1)
	go func() { closed <- n.Close() }()
	eventually(t, "end of the process", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.closed && len(n.sessions) == 0 })
	close(goOn)
	<-used
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	next := n.after(t, id)
	eventually(t, "session after the restart", func() bool { _, err := next.running(id); return err == nil })
	runOn(t, next, id, "touch go")
	if got := outputOf(t, next, id, cmd); got != "first\nsecond\n" {
		t.Errorf("the command has said %q", got)
	}
}
