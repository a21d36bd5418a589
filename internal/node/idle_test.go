package node

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// shortly is how long sessions are unused in tests until they are paused.
const shortly = 80 * time.Millisecond

// wires are networks whose traffic the test makes.
type wires struct {
	noNetworks
	packets   atomic.Uint64
	connected atomic.Bool
	dial      func() (net.Conn, error)
	fails     atomic.Bool
}

func (w *wires) Acquire(context.Context) (nodeapi.Lease, error) { return wireLease{of: w}, nil }
func (w *wires) Traffic(context.Context) (map[string]uint64, error) {
	if w.fails.Load() {
		return nil, errors.New("the counters are not there")
	}
	return map[string]uint64{"lease": w.packets.Load()}, nil
}

func (w *wires) Connected(context.Context) (map[netip.Addr]bool, error) {
	return map[netip.Addr]bool{netip.MustParseAddr("10.0.0.2"): w.connected.Load()}, nil
}

type wireLease struct {
	noLease
	of *wires
}

func (l wireLease) Interface() nodeapi.Interface {
	return nodeapi.Interface{Address: netip.MustParsePrefix("10.0.0.2/30")}
}
func (l wireLease) Dial(context.Context, uint16) (net.Conn, error) { return l.of.dial() }

// idleNode returns a node that pauses unused sessions shortly.
func idleNode(t *testing.T, cfg fake.Config, mode skerry.IdleMode) (*Node, *wires) {
	t.Helper()
	w := &wires{}
	n := fakeNodeWith(t, fakeDriver(t, cfg), func(c *Config) {
		c.IdlePause, c.Idle, c.Networks = shortly, mode, w
	})
	return n, w
}

// eventually waits for a state, which may take long on a busy machine.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("there is no " + what)
		}
	}
}

func sessionOn(t *testing.T, n *Node, id string) *session {
	t.Helper()
	s, err := n.find(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sleeps waits until the session is asleep, and its machine paused.
func sleeps(t *testing.T, n *Node, id string) {
	t.Helper()
	s := sessionOn(t, n, id)
	eventually(t, "sleep of the session", func() bool {
		if !s.isAsleep() {
			return false
		}
		// Who pauses it has done so.
		if err := s.alone(t.Context(), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		return s.isAsleep()
	})
}

// staysAwake fails if the session falls asleep although it has the time to.
func staysAwake(t *testing.T, n *Node, id, why string) {
	t.Helper()
	s := sessionOn(t, n, id)
	for end := time.Now().Add(4 * shortly); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s.isAsleep() {
			t.Fatalf("the session is asleep: %s", why)
		}
	}
}

// TestIdleSession is paused, and every call wakes it and is answered.
func TestIdleSession(t *testing.T) {
	n, w := idleNode(t, fake.Config{}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w.dial = func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Exec": func() error {
			if got := runOn(t, n, id, "echo on"); got != "on\n" {
				t.Errorf("it says %q", got)
			}
			return nil
		},
		"Terminal": func() error {
			tty, err := n.Terminal(ctx, id, skerry.TerminalParams{Name: "sh", Args: []string{"-c", "echo on"}, Cols: 80, Rows: 24})
			if err != nil {
				return err
			}
			said, err := io.ReadAll(tty)
			if !strings.Contains(string(said), "on") {
				t.Errorf("the terminal says %q, %v", said, err)
			}
			return tty.Close()
		},
		"WriteFiles": func() error {
			var b bytes.Buffer
			archive := tar.NewWriter(&b)
			err := errors.Join(archive.WriteHeader(&tar.Header{Name: "file", Size: 2, Mode: 0o644}))
			if _, werr := archive.Write([]byte("on")); err == nil {
				err = errors.Join(werr, archive.Close())
			}
			return errors.Join(err, n.WriteFiles(ctx, id, "", &b))
		},
		"MakeDir": func() error { return n.MakeDir(ctx, id, "", skerry.NewID("dir_"), true) },
		"Dial": func() error {
			conn, err := n.Dial(ctx, id, 80, netip.Addr{})
			if err == nil {
				err = conn.Close()
			}
			return err
		},
		"Resume": func() error { return n.Resume(ctx, id) },
	} {
		sleeps(t, n, id)
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if sessionOn(t, n, id).isAsleep() {
			t.Errorf("%s does not wake it", name)
		}
	}
	sleeps(t, n, id)
	r, err := n.ReadFile(ctx, id, "", "file")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "on" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	staysAwake(t, n, id, "a file is being read")
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	sleeps(t, n, id)
	for what, call := range map[string]func() error{
		"SetNetwork":  func() error { return n.SetNetwork(ctx, id, nodeapi.NetworkSpec{Policy: skerry.AllowAll()}) },
		"SetDeadline": func() error { return n.SetDeadline(ctx, id, time.Hour) },
		"Snapshot":    func() error { _, err := n.Snapshot(ctx, id, nodeapi.Saving{Lease: "lease"}); return err },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if !sessionOn(t, n, id).isAsleep() {
			t.Errorf("%s wakes it, and needs nothing of it", what)
		}
	}
	if got := runOn(t, n, id, "cat file"); got != "on" {
		t.Errorf("in the end the file has %q", got)
	}
}

// TestManyCallsOfASleeper: calls at once resume it once, and all are answered; also
// while it is being paused.
func TestManyCallsOfASleeper(t *testing.T) {
	var resumes, pauses atomic.Int32
	pausing := make(chan struct{}, 1)
	n, _ := idleNode(t, fake.Config{Before: func(op, _ string) error {
		switch op {
		case "resume":
			resumes.Add(1)
		case "pause":
			pauses.Add(1)
			select {
			case pausing <- struct{}{}:
			default:
			}
		}
		return nil
	}}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)
	pauses.Store(0)
	call := func(count int) {
		var wg sync.WaitGroup
		for range count {
			wg.Go(func() {
				if got := runOn(t, n, id, "echo on"); got != "on\n" {
					t.Errorf("it says %q", got)
				}
			})
		}
		wg.Wait()
	}
	call(100)
	if got := resumes.Load(); got != 1+pauses.Load() {
		t.Errorf("resumed %d times for 100 calls at once, and paused %d times meanwhile", got, pauses.Load())
	}
	for range 5 {
		select {
		case <-pausing:
		default:
		}
		<-pausing
		call(3)
	}
}

// TestWhatKeepsAwake: by default any process does, and so do streams and packets.
func TestWhatKeepsAwake(t *testing.T) {
	n, w := idleNode(t, fake.Config{}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)

	w.packets.Add(1)
	eventually(t, "waking for a packet", func() bool { return !sessionOn(t, n, id).isAsleep() })
	sleeps(t, n, id)

	runOn(t, n, id, "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >pid") // left behind by its command
	staysAwake(t, n, id, "a process runs that no command waits for")
	runOn(t, n, id, "kill $(cat pid)")
	sleeps(t, n, id)

	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "cat", Stdin: true}}
	if _, err := n.Exec(t.Context(), id, command, false); err != nil {
		t.Fatal(err)
	}
	staysAwake(t, n, id, "a command runs")
	if _, err := n.WriteStdin(t.Context(), id, command.ID, skerry.StdinParams{Close: true}); err != nil {
		t.Fatal(err)
	}
	sleeps(t, n, id)

	if err := n.SetIdle(t.Context(), id, skerry.IdleNever); err != nil || sessionOn(t, n, id).isAsleep() {
		t.Errorf("it sleeps in mode never: %v", err)
	}
	staysAwake(t, n, id, "the mode is never")
	w.fails.Store(true)
	if err := n.SetIdle(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	staysAwake(t, n, id, "nobody knows whether packets reach it")
	w.fails.Store(false)
	sleeps(t, n, id)
	if err := n.SetIdle(t.Context(), id, "sometimes"); skerry.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("a mode that is none: %v", err)
	}
}

// TestIdleProcesses: in mode pause a session sleeps although it runs a command, unless
// that has connections, or somebody follows it. It goes on where it was.
func TestIdleProcesses(t *testing.T) {
	n, w := idleNode(t, fake.Config{}, skerry.IdlePause)
	id := startOn(t, n, nodeapi.SessionSpec{})
	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{
		Name: "sh", Args: []string{"-c", "read line; echo got $line"}, Stdin: true,
	}}
	out, err := n.Exec(t.Context(), id, command, true)
	if err != nil {
		t.Fatal(err)
	}
	staysAwake(t, n, id, "somebody follows the command")
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	sleeps(t, n, id)
	w.connected.Store(true)
	if out, err = n.Output(t.Context(), id, command.ID); err != nil { // which wakes it
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	staysAwake(t, n, id, "it has connections")
	w.connected.Store(false)
	sleeps(t, n, id)
	if _, err := n.WriteStdin(t.Context(), id, command.ID, skerry.StdinParams{Data: []byte("it\n")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the command", func() bool { return n.commandOver(id, command.ID) })
	sleeps(t, n, id)
	if out, err = n.Output(t.Context(), id, command.ID); err != nil {
		t.Fatal(err)
	}
	if said, err := out.Next(); err != nil || string(said.Data) != "got it\n" {
		t.Errorf("it says %q, %v", said.Data, err)
	}
	if err := out.Close(); err != nil || !sessionOn(t, n, id).isAsleep() {
		t.Errorf("reading what is on the host wakes it: %v", err)
	}
}

// commandOver reports whether a command has ended.
func (n *Node) commandOver(id, command string) bool {
	_, c, err := n.command(context.Background(), id, command)
	return err == nil && c.over()
}

// TestSleeperIsPausedByItsClient: a use does not resume it then.
func TestSleeperIsPausedByItsClient(t *testing.T) {
	n, w := idleNode(t, fake.Config{}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)
	if err := n.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s := sessionOn(t, n, id)
	frozen := func() bool { _, frozen := s.standstills(); return frozen && !s.isAsleep() }
	w.packets.Add(1)
	done, err := s.use(t.Context())
	if err != nil || !frozen() {
		t.Fatalf("a use has resumed it, or not: %v", err)
	}
	done()
	for range 4 { // and nobody takes it for idle
		time.Sleep(shortly / 2)
		if !frozen() {
			t.Fatal("it is asleep, and not paused any more")
		}
	}
	if err := n.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
	// A stop that saves it first leaves it paused.
	sleeps(t, n, id)
	if _, err := n.Snapshot(t.Context(), id, nodeapi.Saving{Hold: true, Lease: "lease"}); err != nil || !frozen() {
		t.Errorf("saved and held: %v", err)
	}
}

// listOf returns what a node lists, and the cursor behind it.
func listOf(ctx context.Context, n *Node) (list []nodeapi.Event, at nodeapi.Cursor, err error) {
	for {
		b, err := n.Events(ctx, at)
		if err != nil {
			return nil, "", err
		}
		list, at = append(list, b.Events...), b.Next
		if b.Listed {
			return list, at, nil
		}
	}
}

// TestSleepIsTold has the events and the list say which sessions are asleep.
func TestSleepIsTold(t *testing.T) {
	n, _ := idleNode(t, fake.Config{}, skerry.IdleDefault)
	_, at, err := listOf(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	id := startOn(t, n, nodeapi.SessionSpec{})
	next := func(kind nodeapi.EventKind) nodeapi.Event {
		t.Helper()
		for {
			b, err := n.Events(t.Context(), at)
			if err != nil || b.Expired {
				t.Fatalf("%+v, %v", b, err)
			}
			at = b.Next
			for _, e := range b.Events {
				if e.Kind == kind && e.SessionID == id {
					return e
				}
			}
		}
	}
	next(nodeapi.SessionAsleep)
	list, _, err := listOf(t.Context(), n)
	asleep := false
	for _, e := range list {
		asleep = asleep || e.Kind == nodeapi.SessionAsleep && e.SessionID == id
	}
	if err != nil || !asleep {
		t.Errorf("the list has %+v, %v", list, err)
	}
	runOn(t, n, id, "true")
	if e := next(nodeapi.SessionAwake); e.Took <= 0 {
		t.Errorf("it woke within %s", e.Took)
	}
}

// TestSleepThatFails: a session that cannot be paused goes on, and one that cannot be
// resumed is lost with a reason.
func TestSleepThatFails(t *testing.T) {
	var fails sync.Map
	n, _ := idleNode(t, fake.Config{Before: func(op, _ string) error {
		if _, ok := fails.Load(op); ok {
			fails.Store("met "+op, true)
			return errors.New("the kernel does not answer")
		}
		return nil
	}}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	met := func(op string) func() bool { return func() bool { _, ok := fails.Load("met " + op); return ok } }
	for _, op := range []string{"activity", "pause"} {
		fails.Store(op, true)
		eventually(t, "attempt to pause", met(op))
		if got := runOn(t, n, id, "echo on"); got != "on\n" {
			t.Errorf("after a failed %s: %q", op, got)
		}
		fails.Delete(op)
	}
	sleeps(t, n, id)
	fails.Store("resume", true)
	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{Name: "true"}}
	if _, err := n.Exec(t.Context(), id, command, false); err == nil {
		t.Error("a command runs in it")
	}
	if loss, err := eventlog.AwaitLoss(t.Context(), n, id); err != nil || loss.Reason != lostAsleep {
		t.Errorf("lost as %+v, %v", loss, err)
	}
}

// TestHeartbeatOfASleeper: silence of a session that is asleep is no loss.
func TestHeartbeatOfASleeper(t *testing.T) {
	n, _ := idleNode(t, fake.Config{}, skerry.IdleDefault)
	n.beat = 250 * time.Millisecond
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)
	time.Sleep(2 * heartbeatPatience * n.beat)
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Fatalf("%q", got)
	}
}

// TestSleeperIsTakenOver by a later process of the node, with its mode.
func TestSleeperIsTakenOver(t *testing.T) {
	d := fakeDriver(t, fake.Config{})
	n := fakeNodeWith(t, d, func(c *Config) { c.IdlePause, c.Networks = shortly, &wires{} })
	id := skerry.NewID(skerry.PrefixSession)
	if err := n.Start(t.Context(), nodeapi.SessionSpec{ID: id, Hostname: "one", Idle: skerry.IdleDefault}); err != nil {
		t.Fatal(err)
	}
	if err := n.SetIdle(t.Context(), id, skerry.IdlePause); err != nil {
		t.Fatal(err)
	}
	command := nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: skerry.CommandParams{
		Name: "sh", Args: []string{"-c", "mkfifo go && read line <go"},
	}}
	if _, err := n.Exec(t.Context(), id, command, false); err != nil {
		t.Fatal(err)
	}
	sleeps(t, n, id)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	adopted, err := again.Recover(t.Context(), map[string]nodeapi.NetworkSpec{id: {Policy: skerry.AllowAll()}})
	if err != nil || len(adopted) != 1 {
		t.Fatal(adopted, err)
	}
	if mode := sessionOn(t, again, id).idle.mode; mode != skerry.IdlePause {
		t.Errorf("its mode is %q", mode)
	}
	runOn(t, again, id, "echo >go")
	eventually(t, "end of the command", func() bool { return again.commandOver(id, command.ID) })
	sleeps(t, again, id)
	if err := again.Forget(context.Background(), id); err != nil {
		t.Error(err)
	}
}

// TestOverdueSleeper: without a controller a session whose time is up is paused for
// that, also if it is asleep. A use does not wake it any more, and more time resumes it.
func TestOverdueSleeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &standing{earlier: &earlier{}}
		n, keep := nodeAfter(t, t.TempDir(), time.Hour, m.earlier)
		n.cfg.Driver, n.cfg.Snapshots, n.cfg.IdlePause = machines{m}, shelf{}, DefaultIdlePause
		defer n.Close()
		if _, err := n.Recover(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil {
			t.Fatal(err)
		}
		s := sessionOn(t, n, m.id)
		time.Sleep(DefaultIdlePause - idleTick)
		if s.isAsleep() {
			t.Error("it sleeps before its time")
		}
		time.Sleep(4 * idleTick)
		if !s.isAsleep() || !m.paused.Load() {
			t.Fatal("it does not sleep")
		}
		time.Sleep(time.Hour + deadlineGrace + 2*deadlineTick)
		if kind := kindOf(t, n); kind != nodeapi.SessionOverdue || s.isAsleep() {
			t.Fatalf("it is listed as %s, asleep %v", kind, s.isAsleep())
		}
		done, err := s.use(t.Context())
		if err != nil || !m.paused.Load() {
			t.Errorf("a use has resumed it: %v", err)
		}
		done()
		if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil || m.paused.Load() {
			t.Errorf("with more time: %v, paused: %v", err, m.paused.Load())
		}
		time.Sleep(DefaultIdlePause + 4*idleTick)
		if !s.isAsleep() {
			t.Error("it does not sleep again")
		}
	})
}

// TestSleeperYields: a session that holds too much memory is woken to free some.
func TestSleeperYields(t *testing.T) {
	n, _ := idleNode(t, fake.Config{}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)
	s := sessionOn(t, n, id)
	if freed := s.yield(); freed != 0 {
		t.Errorf("it has killed something of %d bytes, and runs nothing", freed)
	}
	if _, frozen := s.standstills(); frozen {
		t.Error("it is still paused")
	}
	sleeps(t, n, id)
	if got := runOn(t, n, id, "echo on"); got != "on\n" {
		t.Errorf("%q", got)
	}
}

// TestPausedWhileItIsAsked: a machine is not paused while it is asked what runs in it,
// since it would not answer then.
func TestPausedWhileItIsAsked(t *testing.T) {
	var n *Node
	var id atomic.Value
	paused := make(chan error, 1)
	n, _ = idleNode(t, fake.Config{Before: func(op, machine string) error {
		if op == "activity" && id.Load() == machine && len(paused) == 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			select {
			case paused <- n.Pause(ctx, machine):
			default:
			}
		}
		return nil
	}}, skerry.IdlePause)
	id.Store(startOn(t, n, nodeapi.SessionSpec{}))
	if err := <-paused; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it is paused meanwhile: %v", err)
	}
}

// TestUsedWhenItIsOverdue: a session that was used just before it is paused because its time
// is up is resumed with more time.
func TestUsedWhenItIsOverdue(t *testing.T) {
	n, _ := idleNode(t, fake.Config{}, skerry.IdleDefault)
	id := startOn(t, n, nodeapi.SessionSpec{})
	sleeps(t, n, id)
	s := sessionOn(t, n, id)
	s.mu.Lock()
	s.deadline = time.Now().Add(-2 * deadlineGrace)
	s.mu.Unlock()
	if !s.timeIsUp() {
		t.Fatal("its time is not up")
	}
	done, err := s.use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done()
	s.pauseOverdue()
	if _, frozen := s.standstills(); !frozen || !s.isOverdue() {
		t.Fatalf("frozen %v, overdue %v", frozen, s.isOverdue())
	}
	if err := n.SetDeadline(t.Context(), id, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, frozen := s.standstills(); frozen && !s.isAsleep() {
		t.Error("it is still paused")
	}
}
