package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/drive"
	"github.com/skerry-dev/skerry/internal/driver"
	"github.com/skerry-dev/skerry/internal/guest/wire"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// earlier is a machine that an earlier process left, with an agent that has
// been taken over by what runs in it.
type earlier struct {
	id   string
	keys []string // of the processes that its agent lists; nil if it says nothing
	done chan struct{}
	// What the machine's saves and pauses fail with.
	write, pause, resume error
	stands               bool // it is paused
	// read has the command that is started say how much of its input it has
	// read in all.
	read chan int64
	// size is what a save writes, and saving is called while one is in progress.
	size   int64
	saving func()
	// stops is what the calls of Stop meet before one that succeeds, and stopping
	// is called while one is in progress.
	stops    []error
	stopping func()
	// starts, if set, gets what the agent is asked to start. It answers nothing.
	starts chan struct{}
}

func (m *earlier) ID() string                              { return m.id }
func (m *earlier) Done() <-chan struct{}                   { return m.done }
func (m *earlier) Reason() string                          { return "it was stopped" }
func (m *earlier) Usage() (driver.Usage, error)            { return driver.Usage{}, nil }
func (m *earlier) Memory() (driver.Memory, error)          { return driver.Memory{}, nil }
func (m *earlier) Relieve(context.Context) (string, error) { return "", nil }
func (m *earlier) PinnedMemory(int64) (int64, error)       { return m.size, nil }
func (m *earlier) Confine(int64) error                     { return nil }
func (m *earlier) Reclaim(context.Context) (int64, error)  { return 0, nil }
func (m *earlier) Weigh(float64) error                     { return nil }
func (m *earlier) Activity(context.Context) (driver.Activity, error) {
	return driver.Activity{}, nil
}
func (m *earlier) End(string) {}
func (m *earlier) Stop(context.Context) error {
	if m.stopping != nil {
		m.stopping()
	}
	if len(m.stops) > 0 {
		err := m.stops[0]
		m.stops = m.stops[1:]
		return err
	}
	select {
	case <-m.done:
	default:
		close(m.done)
	}
	return nil
}

func (m *earlier) SaveSize(bool) (int64, error) { return m.size, nil }

func (m *earlier) Fork(context.Context, string, func()) (driver.Fork, error) {
	return nil, errors.New("not here")
}

func (m *earlier) Format(bool) driver.Format { return driver.Format{Driver: "earlier"} }

// Save writes a part of what it should, and the rest unless it fails.
func (m *earlier) Save(_ context.Context, dir string, how driver.Saving) error {
	if m.saving != nil {
		m.saving()
	}
	err := os.WriteFile(filepath.Join(dir, "pages.img"), make([]byte, 1<<20), 0o600)
	if err = errors.Join(err, m.write); err == nil && how.Hold {
		err = m.pause
	}
	return err
}

func (m *earlier) Pause(context.Context) error {
	m.stands = m.pause == nil
	return m.pause
}
func (m *earlier) Resume(context.Context) error {
	m.stands = m.resume != nil
	return m.resume
}

func (m *earlier) Attach(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	go m.serve(wire.NewLink(pipe{agent}))
	return host, nil
}

type pipe struct{ net.Conn }

func (p pipe) WriteVec(bufs [][]byte) error {
	_, err := (*net.Buffers)(&bufs).WriteTo(p.Conn)
	return err
}

func (m *earlier) serve(l *wire.Link) {
	for {
		h, err := l.Receive()
		if err != nil || l.Discard(h.Length) != nil {
			return
		}
		if h.Type == wire.TypeStart && m.read != nil {
			if l.SendJSON(wire.TypeReply, h.ID, wire.Reply{PID: 2}) != nil {
				return
			}
			go func() {
				for n := range m.read {
					_ = l.SendOffset(wire.TypeAck, wire.StreamIn, h.ID, n)
				}
			}()
		}
		if h.Type == wire.TypeStart && m.starts != nil {
			m.starts <- struct{}{}
		}
		if h.Type != wire.TypeResume || m.keys == nil {
			continue
		}
		list := wire.Reply{LastID: h.ID + 100}
		for i, key := range m.keys {
			list.Processes = append(list.Processes, wire.ProcessState{ID: h.ID + 1 + uint32(i), Key: key})
		}
		if l.SendJSON(wire.TypeListing, h.ID, list) != nil {
			return
		}
		for _, p := range list.Processes {
			if l.Send(wire.TypeData, wire.StreamOut, p.ID, make([]byte, wire.MaxData), nil) != nil {
				return
			}
		}
	}
}

type machines []driver.Machine

func (m machines) Memory() (driver.Memory, error)                    { return driver.Memory{}, nil }
func (m machines) Recover(context.Context) ([]driver.Machine, error) { return m, nil }
func (m machines) Name() string                                      { return "earlier" }
func (m machines) Format(bool) driver.Format                         { return driver.Format{Driver: "earlier"} }
func (m machines) Capabilities() driver.Capabilities {
	return driver.Capabilities{Memory: true, Fork: true, Pause: true, Volumes: []driver.VolumeKind{driver.Tree}}
}
func (m machines) Prepare(context.Context, driver.Spec) (driver.Blank, error) {
	return nil, errors.New("no machine can be prepared")
}
func (m machines) Start(context.Context, driver.Spec) (driver.Machine, error) {
	return nil, errors.New("not here")
}

type noNetworks struct{}

func (noNetworks) Acquire(context.Context) (nodeapi.Lease, error)       { return noLease{}, nil }
func (noNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) { return noLease{}, nil }
func (noNetworks) Recover(context.Context, []string) error              { return nil }
func (noNetworks) Resolvers() []string                                  { return nil }
func (noNetworks) Traffic(context.Context) (map[string]uint64, error)   { return nil, nil }
func (noNetworks) Connected(context.Context) (map[netip.Addr]bool, error) {
	return nil, nil
}

type noLease struct{}

func (noLease) ID() string                                     { return "lease" }
func (noLease) Interface() nodeapi.Interface                   { return nodeapi.Interface{} }
func (noLease) Counters(context.Context) (int64, int64, error) { return 0, 0, nil }
func (noLease) Dial(context.Context, uint16) (net.Conn, error) {
	return nil, errors.New("there is no network")
}
func (noLease) Release(context.Context) error { return nil }
func (noLease) Renew(context.Context) error   { return nil }

func (noLease) SetNetwork(context.Context, string, nodeapi.NetworkSpec) error { return nil }

func (noNetworks) Authority() []byte { return nil }
func (noNetworks) Events(context.Context, string, int) ([]skerry.NetworkEvent, error) {
	return nil, nil
}

// nodeAfter returns a node whose earlier process left the machines, with their
// ids.
func nodeAfter(t *testing.T, dir string, wait time.Duration, all ...*earlier) (_ *Node, keep map[string]nodeapi.NetworkSpec) {
	keep = map[string]nodeapi.NetworkSpec{}
	var driver machines
	sessions := filepath.Join(dir, "sessions")
	for _, m := range all {
		m.id, m.done = skerry.NewID(skerry.PrefixSession), make(chan struct{})
		driver, keep[m.id] = append(driver, m), nodeapi.NetworkSpec{Policy: skerry.AllowAll()}
		if err := os.MkdirAll(filepath.Join(sessions, m.id, "output"), 0o700); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(state{Lease: "lease"})
		if err == nil {
			err = os.WriteFile(filepath.Join(sessions, m.id, stateFile), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	drives, err := drive.Open(drive.Options{Dir: filepath.Join(dir, "drives"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(Config{
		Drives: drives,
		Dir:    sessions, SnapshotWork: filepath.Join(dir, "work"), Driver: driver, Networks: noNetworks{}, AgentWait: wait, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, keep
}

// TestSilentAgentEndsSession has an agent stop answering.
func TestSilentAgentEndsSession(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, ids := nodeAfter(t, t.TempDir(), 50*time.Millisecond, m)
	if _, err := n.Recover(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := eventlog.AwaitLoss(ctx, n, m.id); err != nil {
		t.Fatal(err)
	}
	if _, err := n.running(m.id); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("after the end: %v", err)
	}
	if err := n.Forget(ctx, m.id); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestRecoverFromHostileAgents has agents list processes whose ids would name
// files outside their session, and agents that say nothing, beside one that
// does what it should.
func TestRecoverFromHostileAgents(t *testing.T) {
	dir := t.TempDir()
	good := skerry.NewID(skerry.PrefixCommand)
	sane := &earlier{keys: []string{good}}
	all := []*earlier{
		sane,
		{keys: []string{"../../stolen"}},
		{keys: []string{filepath.Join(dir, "stolen")}},
		{keys: []string{"tty_/../../../stolen"}},
		{keys: []string{good + "/../../../stolen"}},
		{keys: []string{""}},
		{}, {}, {}, {}, {}, {}, {}, {},
	}
	const wait = time.Second
	n, keep := nodeAfter(t, dir, wait, all...)
	// One after the other, the silent agents would take longer than this.
	ctx, cancel := context.WithTimeout(context.Background(), 6*wait)
	defer cancel()
	adopted, err := n.Recover(ctx, keep)
	if err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	if len(adopted) != len(all) {
		t.Errorf("adopted %d sessions", len(adopted))
	}
	// Nothing can be run in what has no agent, but its files can be saved.
	n.cfg.Snapshots = shelf{}
	for _, m := range all[1:] {
		loss, err := eventlog.AwaitLoss(ctx, n, m.id)
		if err != nil || !loss.Savable || loss.Reason != "the sandbox's guest agent did not answer the new server process" {
			t.Errorf("a session with a hostile agent: %+v, %v", loss, err)
		}
		if _, err := n.Snapshot(ctx, m.id, nodeapi.Saving{Hold: true}); err != nil {
			t.Errorf("save a session with a hostile agent: %v", err)
		}
		if err := n.Forget(ctx, m.id); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.running(sane.id); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	sessions := filepath.Join(dir, "sessions")
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Dir(path) != filepath.Join(sessions, sane.id) &&
			filepath.Dir(path) != filepath.Join(sessions, sane.id, "output") {
			t.Errorf("there is a file %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLateAgent has an agent that is silent when its session is taken over: the
// start of the server does not wait for it, and it can be saved and stopped.
func TestLateAgent(t *testing.T) {
	silent := &earlier{}
	n, keep := nodeAfter(t, t.TempDir(), time.Hour, silent)
	n.cfg.Snapshots, n.cfg.RecoverWait = shelf{}, 10*time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	adopted, err := n.Recover(ctx, keep)
	if err != nil || !slices.Equal(adopted, []string{silent.id}) {
		t.Fatal(adopted, err)
	}
	if _, err := n.running(silent.id); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("while its agent is waited for: %v", err)
	}
	brief, end := context.WithTimeout(ctx, 10*time.Millisecond)
	defer end()
	if err := n.Signal(brief, silent.id, skerry.NewID(skerry.PrefixCommand), 9); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that may be there: %v", err)
	}
	if b, err := n.Events(ctx, ""); err != nil || !b.Listed || len(b.Events) != 1 || b.Events[0].Kind != nodeapi.SessionAttaching {
		t.Errorf("the list has %+v, %v", b, err)
	}
	if _, err := n.Snapshot(ctx, silent.id, nodeapi.Saving{}); err != nil {
		t.Errorf("save it: %v", err)
	}
	if _, err := n.Stop(ctx, silent.id); err != nil {
		t.Error(err)
	}
	if b, err := n.Events(ctx, ""); err != nil || !b.Listed || len(b.Events) != 0 {
		t.Errorf("after its stop the list has %+v, %v", b, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// countingNetworks has leases that tell what they are to enforce.
type countingNetworks struct {
	noNetworks
	set chan skerry.NetworkMode
}

func (n countingNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) {
	return countingLease{set: n.set}, nil
}

type countingLease struct {
	noLease
	set chan skerry.NetworkMode
}

func (l countingLease) SetNetwork(_ context.Context, _ string, network nodeapi.NetworkSpec) error {
	l.set <- network.Policy.Mode
	return nil
}

// TestNetworkOfSilentAgent changes what sessions may reach while their agents say
// nothing, or are lost.
func TestNetworkOfSilentAgent(t *testing.T) {
	for name, wait := range map[string]time.Duration{"waited for": time.Hour, "lost": 10 * time.Millisecond} {
		m := &earlier{}
		n, keep := nodeAfter(t, t.TempDir(), wait, m)
		set := make(chan skerry.NetworkMode, 10)
		n.cfg.Networks, n.cfg.RecoverWait = countingNetworks{set: set}, 10*time.Millisecond
		if _, err := n.Recover(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		if name == "lost" {
			if loss, err := eventlog.AwaitLoss(t.Context(), n, m.id); err != nil || !loss.Savable {
				t.Fatalf("%+v, %v", loss, err)
			}
		}
		if err := n.SetNetwork(t.Context(), m.id, nodeapi.NetworkSpec{Policy: &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}}); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if first, second := <-set, <-set; first != skerry.NetworkAllowAll || second != skerry.NetworkDenyAll {
			t.Errorf("%s: the lease enforces %s, then %s", name, first, second)
		}
		if _, err := n.Stop(t.Context(), m.id); err != nil {
			t.Error(err)
		}
		// Its address may be another's by now.
		if err := n.SetNetwork(t.Context(), m.id, nodeapi.NetworkSpec{}); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
			t.Errorf("%s, after its end: %v", name, err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// hastyNetworks have the caller of Recover go before a policy is enforced.
type hastyNetworks struct {
	noNetworks
	gone *context.CancelFunc
}

func (n hastyNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) {
	return hastyLease{gone: n.gone}, nil
}

type hastyLease struct {
	noLease
	gone *context.CancelFunc
}

func (l hastyLease) SetNetwork(ctx context.Context, _ string, _ nodeapi.NetworkSpec) error {
	(*l.gone)()
	return ctx.Err()
}

// TestRecoverWhoseCallerIsGone has the caller go while sessions are taken over from
// an earlier process, and then from an earlier controller. Neither ends a session.
func TestRecoverWhoseCallerIsGone(t *testing.T) {
	one, two := &earlier{keys: []string{}}, &earlier{keys: []string{}}
	n, keep := nodeAfter(t, t.TempDir(), time.Minute, one, two)
	ctx, cancel := context.WithCancel(t.Context())
	n.cfg.Networks = hastyNetworks{gone: &cancel}
	for _, from := range []string{"an earlier process", "an earlier controller"} {
		adopted, err := n.Recover(ctx, keep)
		if err != nil || len(adopted) != 2 || ctx.Err() == nil {
			t.Errorf("taken over from %s: %v, %v", from, adopted, err)
		}
		ctx, cancel = context.WithCancel(t.Context())
	}
	defer cancel()
	for _, m := range []*earlier{one, two} {
		if m.hasStopped() {
			t.Errorf("session %s was ended", m.id)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// failingNetworks have leases that enforce no policy but one that allows nothing
// while failing is true, and not even that one while stuck is. They tell what is
// enforced.
type failingNetworks struct {
	noNetworks
	failing, stuck atomic.Bool
	set            chan skerry.NetworkMode
}

func (n *failingNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) {
	return failingLease{networks: n}, nil
}

type failingLease struct {
	noLease
	networks *failingNetworks
}

func (l failingLease) SetNetwork(_ context.Context, _ string, network nodeapi.NetworkSpec) error {
	mode := network.Policy.Mode
	if n := l.networks; n.stuck.Load() || n.failing.Load() && mode != skerry.NetworkDenyAll {
		return errBusy
	}
	l.networks.set <- mode
	return nil
}

// enforces fails the test if the next policy that is enforced is another one.
func (n *failingNetworks) enforces(t *testing.T, want skerry.NetworkMode) {
	t.Helper()
	select {
	case got := <-n.set:
		if got != want {
			t.Fatalf("the lease enforces %s, not %s", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the lease does not enforce %s", want)
	}
}

// TestRecoverWhosePolicyFails takes over a session, from an earlier process and then
// from an earlier controller, whose policy cannot be enforced for a while. It goes
// on with a closed network.
func TestRecoverWhosePolicyFails(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, keep := nodeAfter(t, t.TempDir(), time.Minute, m)
	networks := &failingNetworks{set: make(chan skerry.NetworkMode, 10)}
	n.cfg.Networks, n.networkRetry = networks, time.Millisecond
	for _, from := range []string{"an earlier process", "an earlier controller"} {
		networks.failing.Store(true)
		if adopted, err := n.Recover(t.Context(), keep); err != nil || len(adopted) != 1 || m.hasStopped() {
			t.Fatalf("taken over from %s: %v, %v", from, adopted, err)
		}
		networks.enforces(t, skerry.NetworkDenyAll)
		networks.failing.Store(false)
		networks.enforces(t, skerry.NetworkAllowAll)
	}
	// A session whose network cannot be closed is ended.
	networks.stuck.Store(true)
	if adopted, err := n.Recover(t.Context(), keep); err != nil || len(adopted) != 0 || !m.hasStopped() {
		t.Errorf("with a network that cannot be closed: %v, %v", adopted, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// lostNetworks cannot take over the networks of an earlier process.
type lostNetworks struct{ noNetworks }

func (lostNetworks) Adopt(context.Context, string) (nodeapi.Lease, error) { return nil, errBusy }

// TestRecoverToSave has sessions that cannot be taken over: they are paused and lost,
// and can be saved before they end.
func TestRecoverToSave(t *testing.T) {
	for name, spoil := range map[string]func(n *Node, m *earlier) error{
		"no network": func(n *Node, _ *earlier) error { n.cfg.Networks = lostNetworks{}; return nil },
		"a network that cannot be closed": func(n *Node, _ *earlier) error {
			networks := &failingNetworks{}
			networks.stuck.Store(true)
			n.cfg.Networks = networks
			return nil
		},
		"damaged state": func(n *Node, m *earlier) error {
			return os.WriteFile(filepath.Join(n.cfg.Dir, m.id, stateFile), []byte("{"), 0o600)
		},
		"no state":      func(n *Node, m *earlier) error { return os.Remove(filepath.Join(n.cfg.Dir, m.id, stateFile)) },
		"no output log": func(n *Node, m *earlier) error { return os.Remove(filepath.Join(n.cfg.Dir, m.id, "output")) },
	} {
		t.Run(name, func(t *testing.T) {
			m := &earlier{keys: []string{}}
			n, keep := nodeAfter(t, t.TempDir(), time.Minute, m)
			if err := spoil(n, m); err != nil {
				t.Fatal(err)
			}
			n.cfg.Snapshots = shelf{fails: errBusy}
			if adopted, err := n.Recover(t.Context(), keep); err != nil || !slices.Equal(adopted, []string{m.id}) || !m.stands {
				t.Fatalf("taken over are %v, %v; paused: %t", adopted, err, m.stands)
			}
			loss, err := eventlog.AwaitLoss(t.Context(), n, m.id)
			if err != nil || !loss.Savable || loss.Reason == "" {
				t.Errorf("lost as %+v, %v", loss, err)
			}
			how := nodeapi.Saving{Hold: true, Lease: "lease"}
			if _, err := n.Snapshot(t.Context(), m.id, how); err == nil || !m.stands {
				t.Errorf("a save that fails: %v; paused: %t", err, m.stands)
			}
			n.cfg.Snapshots = shelf{}
			if saved, err := n.Snapshot(t.Context(), m.id, how); err != nil || saved.Manifest == "" {
				t.Errorf("saved as %+v, %v", saved, err)
			}
			if err := n.SetDeadline(t.Context(), m.id, time.Hour); err != nil {
				t.Errorf("a deadline: %v", err)
			}
			if _, err := n.Stop(t.Context(), m.id); err != nil || !m.hasStopped() {
				t.Errorf("stop: %v", err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOwedPolicyIsNotLate has a policy set while an earlier one is owed, which must
// not be enforced afterwards.
func TestOwedPolicyIsNotLate(t *testing.T) {
	m := &earlier{keys: []string{}}
	n, keep := nodeAfter(t, t.TempDir(), time.Minute, m)
	networks := &failingNetworks{set: make(chan skerry.NetworkMode, 10)}
	n.cfg.Networks, n.networkRetry = networks, time.Hour
	networks.failing.Store(true)
	if _, err := n.Recover(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	networks.enforces(t, skerry.NetworkDenyAll)
	s, err := n.find(m.id)
	if err != nil {
		t.Fatal(err)
	}
	owed := s.owed
	if owed == nil {
		t.Fatal("nothing is owed")
	}
	if done, err := s.tryOwed(owed); done || err == nil {
		t.Errorf("an attempt that fails: %v, %v", done, err)
	}
	networks.stuck.Store(true)
	if err := n.SetNetwork(t.Context(), m.id, nodeapi.NetworkSpec{}); err == nil {
		t.Error("a stuck network is closed")
	}
	networks.failing.Store(false)
	networks.stuck.Store(false)
	if done, err := s.tryOwed(owed); !done || err != nil || len(networks.set) != 0 {
		t.Errorf("after a later policy: %v, %v; %d enforced", done, err, len(networks.set))
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func (m *earlier) hasStopped() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}
