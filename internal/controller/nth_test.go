package controller

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// This file has a store fail at its first, second, … call during each transition,
// until one passes untouched, in the manner of SQLite's tests of memory that runs
// out. It fails once, or for some calls, or it does what it is asked and its answer
// is lost. Afterwards no call hangs, the next call or a restart succeeds, and the
// store, the node and the memory agree.

// transition is something that the store is told of.
type transition struct {
	name string
	// prepare makes what it begins with.
	prepare func(l *lab)
	// act is a call. It is repeated until it succeeds.
	act func(ctx context.Context, l *lab) error
	// done checks what a success leaves.
	done func(l *lab)
}

const denied = skerry.NetworkDenyAll

// current is the id of the current session of the sandbox "one".
func (l *lab) current() string {
	sandbox, err := l.store.SandboxByName(l.t.Context(), scope, "one")
	if err != nil {
		l.t.Fatal(err)
	}
	return sandbox.CurrentSessionID
}

func (l *lab) wantStatus(want skerry.SessionStatus) {
	l.t.Helper()
	l.eventually("the sandbox to be "+string(want), func() bool { return l.status("one") == want })
}

// unless takes an error for a success: an attempt before did what this one was to
// do.
func unless(err error, codes ...skerry.Code) error {
	if slices.Contains(codes, skerry.CodeOf(err)) {
		return nil
	}
	return err
}

// one makes the sandbox "one", and stops it if it is to be stopped.
func one(stopped bool, p skerry.CreateParams) func(*lab) {
	return func(l *lab) {
		p := p
		p.Name = "one"
		run := l.createWith(p)
		l.sh(run.Session.ID, "echo kept > file")
		if stopped {
			l.stop(run.Session.ID)
		}
	}
}

func gone(ctx context.Context, l *lab) bool {
	_, err := l.store.SandboxByName(ctx, scope, "one")
	return skerry.CodeOf(err) == skerry.CodeNotFound
}

// ends waits until the session that ran has ended.
func ends(ctx context.Context, l *lab, id string, meanwhile func()) error {
	for {
		meanwhile()
		run, err := l.GetSession(ctx, scope, id)
		if err != nil || run.Session.Status.Ended() {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var (
	running = one(false, skerry.CreateParams{})
	halted  = one(true, skerry.CreateParams{})
	ten     = 10 * time.Minute
)

func transitions() []transition {
	drive := func(l *lab) { l.drive("data") }
	var lost string
	return []transition{
		{"create", nil, func(ctx context.Context, l *lab) error {
			_, err := l.CreateSandbox(ctx, scope, skerry.CreateParams{Name: "one", Ports: []int{80}})
			return err
		}, func(l *lab) { l.wantStatus(skerry.StatusRunning) }},
		{"create with a drive", drive, func(ctx context.Context, l *lab) error {
			_, err := l.CreateSandbox(ctx, scope, skerry.CreateParams{Name: "one", Mounts: map[string]skerry.Mount{"/data": {Drive: "data"}}})
			return err
		}, func(l *lab) { l.wantStatus(skerry.StatusRunning) }},
		{"get or create", nil, func(ctx context.Context, l *lab) error {
			_, err := l.GetSandbox(ctx, scope, "one", true)
			if skerry.CodeOf(err) == skerry.CodeNotFound {
				_, err = l.CreateSandbox(ctx, scope, skerry.CreateParams{Name: "one"})
			}
			return err
		}, func(l *lab) { l.wantStatus(skerry.StatusRunning) }},
		{"exec", running, func(ctx context.Context, l *lab) error {
			id := l.current()
			cmd, _, err := l.RunCommand(ctx, scope, id, skerry.CommandParams{Name: "sh", Args: []string{"-c", "exit 3"}}, false)
			if err != nil {
				return err
			}
			if _, err := l.WaitCommand(ctx, scope, id, cmd.ID); err != nil {
				return err
			}
			_, _, err = l.ListCommands(ctx, scope, id, skerry.Page{})
			return err
		}, func(l *lab) {
			list, _, err := l.store.ListCommands(l.t.Context(), l.current(), skerry.Page{})
			if err != nil || len(list) == 0 || !list[0].Finished() {
				l.t.Errorf("commands in the store: %+v, %v", list, err)
			}
		}},
		{"extend", running, func(ctx context.Context, l *lab) error {
			_, err := l.ExtendTimeout(ctx, scope, l.current(), skerry.Duration(time.Minute))
			return err
		}, nil},
		{"pause", running, func(ctx context.Context, l *lab) error {
			_, err := l.PauseSession(ctx, scope, l.current())
			return err
		}, func(l *lab) {
			if !l.node.Paused(l.current()) {
				l.t.Error("the session is not paused")
			}
		}},
		{"resume a pause", func(l *lab) {
			running(l)
			if _, err := l.PauseSession(l.t.Context(), scope, l.current()); err != nil {
				l.t.Fatal(err)
			}
		}, func(ctx context.Context, l *lab) error {
			_, err := l.ResumeSession(ctx, scope, l.current())
			return err
		}, func(l *lab) {
			if l.node.Paused(l.current()) {
				l.t.Error("the session is paused")
			}
		}},
		{"resume", halted, func(ctx context.Context, l *lab) error {
			_, err := l.GetSandbox(ctx, scope, "one", true)
			return err
		}, func(l *lab) {
			if code := l.sh(l.current(), "grep -q kept file"); code != 0 {
				l.t.Error("the file did not come back")
			}
		}},
		{"resume with a drive", func(l *lab) {
			drive(l)
			one(true, skerry.CreateParams{Mounts: map[string]skerry.Mount{"/data": {Drive: "data"}}})(l)
		}, func(ctx context.Context, l *lab) error {
			_, err := l.GetSandbox(ctx, scope, "one", true)
			return err
		}, nil},
		{"snapshot", running, func(ctx context.Context, l *lab) error {
			_, err := l.CreateSnapshot(ctx, scope, l.current(), skerry.SnapshotParams{})
			return unless(err, skerry.CodeSandboxStopped, skerry.CodeSandboxStopping)
		}, func(l *lab) { l.wantStatus(skerry.StatusStopped) }},
		{"stop", running, func(ctx context.Context, l *lab) error {
			run, err := l.StopSession(ctx, scope, l.current(), skerry.StopParams{})
			if err == nil && (run.Session.Status != skerry.StatusStopped || run.Sandbox.CurrentSnapshotID == "") {
				return fmt.Errorf("a stop that succeeded left %+v", run)
			}
			return err
		}, func(l *lab) {
			sandbox, err := l.store.SandboxByName(l.t.Context(), scope, "one")
			// A server that ends between the stop and its record loses the usage.
			if err != nil || !l.restarted && (sandbox.TotalActiveCPU.Std() != time.Second || sandbox.TotalEgressBytes != 20) || sandbox.TotalEgressBytes > 20 {
				l.t.Errorf("one session came to %+v, %v", sandbox, err)
			}
		}},
		{"stop of a sandbox that is not persistent", func(l *lab) {
			persistent := false
			one(false, skerry.CreateParams{Persistent: &persistent})(l)
		}, func(ctx context.Context, l *lab) error {
			_, err := l.StopSession(ctx, scope, l.current(), skerry.StopParams{})
			return err
		}, func(l *lab) { l.wantStatus(skerry.StatusStopped) }},
		{"stop by force", running, func(ctx context.Context, l *lab) error {
			_, err := l.StopSession(ctx, scope, l.current(), skerry.StopParams{Force: true})
			return err
		}, func(l *lab) { l.wantStatus(skerry.StatusStopped) }},
		{"deadline", running, func(ctx context.Context, l *lab) error {
			id := l.current()
			return ends(ctx, l, id, func() {
				if s := l.session(id); s != nil && s.state().Status == skerry.StatusRunning {
					s.tell(s.timeUp)
				}
			})
		}, func(l *lab) { l.wantStatus(skerry.StatusStopped) }},
		{"loss", running, func(ctx context.Context, l *lab) error {
			id := l.current()
			if l.node.Running() > 0 {
				l.node.Lose(id, "it was lost")
			}
			return ends(ctx, l, id, func() {})
		}, func(l *lab) { l.wantStatus(skerry.StatusAborted) }},
		{"loss of the agent", running, func(ctx context.Context, l *lab) error {
			id := l.current()
			if l.node.Running() > 0 && lost != id {
				lost = id
				l.node.LoseAgent(id, "its agent was lost")
			}
			return ends(ctx, l, id, func() {})
		}, func(l *lab) { l.wantStatus(skerry.StatusAborted) }},
		{"fork", halted, fork(skerry.ForkParams{}), nil},
		{"fork of what runs", running, fork(skerry.ForkParams{Live: true}), nil},
		{"fork with memory", running, fork(skerry.ForkParams{Memory: true}), func(l *lab) {
			l.stop(l.forked().CurrentSessionID)
			l.resume("two") // from the snapshot that is made afterwards
		}},
		{"delete", running, func(ctx context.Context, l *lab) error {
			_, err := l.DeleteSandbox(ctx, scope, "one", true)
			return unless(err, skerry.CodeNotFound)
		}, nil},
		{"delete with snapshots", halted, func(ctx context.Context, l *lab) error {
			_, err := l.DeleteSandbox(ctx, scope, "one", true)
			return unless(err, skerry.CodeNotFound)
		}, func(l *lab) {
			if !gone(l.t.Context(), l) {
				l.t.Error("a deleted sandbox is there")
			}
		}},
		{"make a drive", nil, func(ctx context.Context, l *lab) error {
			_, _, err := l.GetOrCreateDrive(ctx, scope, skerry.DriveParams{Name: "data"})
			return err
		}, nil},
		{"fork a drive", drive, func(ctx context.Context, l *lab) error {
			_, err := l.ForkDrive(ctx, scope, "data", "copy")
			return unless(err, skerry.CodeConflict)
		}, func(l *lab) {
			if _, err := l.GetDrive(l.t.Context(), scope, "copy"); err != nil {
				l.t.Error(err)
			}
		}},
		{"delete a drive", drive, func(ctx context.Context, l *lab) error {
			_, err := l.DeleteDrive(ctx, scope, "data")
			return unless(err, skerry.CodeNotFound)
		}, nil},
		{"ports", running, func(ctx context.Context, l *lab) error {
			_, err := l.UpdateSandbox(ctx, scope, "one", skerry.UpdateParams{Ports: []int{80, 8080}})
			return err
		}, nil},
		{"settings", halted, func(ctx context.Context, l *lab) error {
			timeout := skerry.Duration(ten)
			_, err := l.UpdateSandbox(ctx, scope, "one", skerry.UpdateParams{Timeout: &timeout})
			return err
		}, nil},
		{"policy of a session", running, func(ctx context.Context, l *lab) error {
			_, err := l.SetNetworkPolicy(ctx, scope, l.current(), &skerry.NetworkPolicy{Mode: denied})
			return err
		}, wantDenied},
		{"policy of a sandbox", running, func(ctx context.Context, l *lab) error {
			_, err := l.UpdateSandbox(ctx, scope, "one", skerry.UpdateParams{Policy: &skerry.NetworkPolicy{Mode: denied}})
			return err
		}, wantDenied},
		{"retention", func(l *lab) {
			one(true, skerry.CreateParams{Retention: &skerry.Retention{Count: 1}})(l)
			l.resume("one")
		}, func(ctx context.Context, l *lab) error {
			_, err := l.StopSession(ctx, scope, l.current(), skerry.StopParams{})
			return err
		}, func(l *lab) {
			l.eventually("the older snapshot to be deleted", func() bool {
				known, err := l.store.BeginCollection(l.t.Context(), skerry.At(time.Now()))
				return err == nil && len(named(known)) == 1
			})
		}},
		{"delete a snapshot", halted, func(ctx context.Context, l *lab) error {
			list, _, err := l.ListSnapshots(ctx, scope, skerry.SnapshotFilter{})
			for _, snap := range list {
				_, derr := l.DeleteSnapshot(ctx, scope, snap.ID)
				err = firstError(err, derr)
			}
			return err
		}, nil},
		{"expiration", func(l *lab) {
			halted(l)
			list, _, err := l.ListSnapshots(l.t.Context(), scope, skerry.SnapshotFilter{})
			for _, snap := range list {
				_, uerr := l.store.UpdateSnapshot(l.t.Context(), snap.ID, func(s *skerry.Snapshot) error { s.ExpiresAt = skerry.FromMillis(1); return nil })
				err = firstError(err, uerr)
			}
			if err != nil {
				l.t.Fatal(err)
			}
		}, func(ctx context.Context, l *lab) error {
			err := l.expire(ctx)
			_, cerr := l.collect(ctx)
			return firstError(err, cerr)
		}, nil},
		{"restart", func(l *lab) {
			running(l)
			for _, name := range []string{"paused", "lost", "stopped"} {
				id := l.create(name).Session.ID
				l.run(id, "sleep", "100")
				switch name {
				case "paused":
					if _, err := l.PauseSession(l.t.Context(), scope, id); err != nil {
						l.t.Fatal(err)
					}
				case "stopped":
					l.stop(id)
				}
			}
		}, func(ctx context.Context, l *lab) error {
			if lost := l.sessionOf(l.idOf("lost")); lost != nil && l.node.Running() == 3 {
				if err := l.Close(); err != nil {
					return err
				}
				l.node.Lose(lost.id, "")
			} else if err := l.Close(); err != nil {
				return err
			}
			l.Controller, l.restarted = New(l.conf), true
			return l.Recover(ctx)
		}, func(l *lab) {
			l.eventually("the loss to be recorded", func() bool { return l.status("lost") == skerry.StatusAborted })
		}},
	}
}

func (l *lab) idOf(name string) string {
	sandbox, err := l.store.SandboxByName(l.t.Context(), scope, name)
	if err != nil {
		l.t.Fatal(err)
	}
	return sandbox.ID
}

func wantDenied(l *lab) {
	if got := l.node.Network(l.current()).Policy; got == nil || got.Mode != denied {
		l.t.Errorf("the policy is %+v", got)
	}
}

func fork(p skerry.ForkParams) func(context.Context, *lab) error {
	p.Name = "two"
	return func(ctx context.Context, l *lab) error {
		_, err := l.ForkSandbox(ctx, scope, "one", p)
		return err
	}
}

func (l *lab) forked() *skerry.Sandbox {
	sandbox, err := l.store.SandboxByName(l.t.Context(), scope, "two")
	if err != nil {
		l.t.Fatal(err)
	}
	return sandbox
}

// named are the manifests of snapshots that are not deleted.
func named(known nodeapi.Records) (names []string) {
	for _, m := range known.Manifests {
		if !m.Deleted {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// way is one in which a store fails: so many calls, or a write whose answer is lost.
type way struct {
	name   string
	calls  int
	lost   bool
	starts bool // the server starts again after the first failure
}

func TestStoreFailsOnce(t *testing.T) { failEverywhere(t, way{"once", 1, false, false}) }
func TestStoreFailsForAWhile(t *testing.T) {
	notShort(t)
	failEverywhere(t, way{"for a while", 4, false, false})
}
func TestStoreLosesAnswer(t *testing.T) { failEverywhere(t, way{"after the write", 1, true, false}) }
func TestStoreFailsBeforeRestart(t *testing.T) {
	notShort(t)
	failEverywhere(t, way{"once, then a restart", 1, false, true})
}
func TestStoreLosesAnswerBeforeRestart(t *testing.T) {
	notShort(t)
	failEverywhere(t, way{"after the write, then a restart", 1, true, true})
}

// notShort leaves out of "make check" what goes through the same calls again.
func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("the store fails once and loses answers; the other ways are left out under -short")
	}
}

// failEverywhere goes through the transitions.
func failEverywhere(t *testing.T, w way) {
	total, counts := 0, ""
	for _, tr := range transitions() {
		t.Run(tr.name, func(t *testing.T) {
			ingress := &listIngress{ports: map[string][]skerry.PublishedPort{}}
			l, f := newFaultyLab(t, func(c *Config) { c.Ingress = ingress })
			n := 0
			for failed := true; failed && !t.Failed(); {
				n++
				failed = failAt(l, f, ingress, tr, w, n)
			}
			total += n - 1
			counts += fmt.Sprintf(" %s %d,", tr.name, n-1)
		})
	}
	t.Logf("the store failed %s at %d calls of %d transitions:%s", w.name, total, len(transitions()), counts)
}

// failAt has the store fail at the n-th call of a transition. It returns false if
// there was no such call.
func failAt(l *lab, f *faultyStore, ingress *listIngress, tr transition, w way, n int) (failed bool) {
	t := l.t
	if tr.prepare != nil {
		tr.prepare(l)
	}
	before := f.arm(n, n+w.calls-1, w.lost)
	act := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := tr.act(ctx, l)
		if ctx.Err() != nil {
			t.Errorf("%s: a call hangs", tr.name)
		}
		return err
	}
	err := act()
	if w.starts {
		f.arm(0, 0, false)
		if tr.name != "restart" {
			l.restart()
		}
	}
	l.insist(tr.name, func() error {
		if err == nil {
			return nil
		}
		err = act()
		return err
	})
	l.settle(f, ingress)
	failed = f.arm(0, 0, false) != before
	if tr.done != nil && !t.Failed() {
		tr.done(l)
	}
	l.clear()
	if t.Failed() {
		t.Logf("the store had failed %s, at call %d", w.name, n)
	}
	return failed
}

// settle waits until the store, the node and the memory agree.
func (l *lab) settle(f *faultyStore, ingress *listIngress) {
	l.t.Helper()
	var why string
	l.eventually("the store, the node and the memory to agree", func() bool {
		why = l.disagreement(ingress)
		return why == ""
	})
	if why != "" {
		l.t.Error(why)
	}
}

// disagreement says what the store, the node and the memory do not agree on, or "".
func (l *lab) disagreement(ingress *listIngress) string {
	ctx := l.t.Context()
	stored, err := l.store.LiveSessions(ctx)
	if err != nil {
		return err.Error()
	}
	l.registry.Lock()
	known := len(l.byID)
	l.registry.Unlock()
	if known != len(stored) || l.node.Running() != len(stored) {
		return fmt.Sprintf("%d sessions are stored, %d in memory, %d on the node", len(stored), known, l.node.Running())
	}
	for _, run := range stored {
		s := l.session(run.ID)
		if s == nil || !l.node.Knows(run.ID) {
			return "session " + run.ID + " is stored and not known"
		}
		believed := s.state()
		if believed.Status != run.Status || believed.PausedAt != run.PausedAt || believed.Timeout != run.Timeout || believed.Policy.Mode != run.Policy.Mode {
			return fmt.Sprintf("session %s is stored as %+v, believed as %+v", run.ID, run, believed)
		}
		if l.node.Paused(run.ID) == run.PausedAt.IsZero() {
			return fmt.Sprintf("session %s is paused on the node: %v", run.ID, l.node.Paused(run.ID))
		}
		if got := l.node.Network(run.ID).Policy; got.Mode != run.Policy.Mode {
			return fmt.Sprintf("the node enforces %s for session %s, not %s", got.Mode, run.ID, run.Policy.Mode)
		}
	}
	sandboxes, _, err := l.store.ListSandboxes(ctx, scope, skerry.SandboxFilter{})
	if err != nil {
		return err.Error()
	}
	for i := range sandboxes {
		b, err := l.store.Sandbox(ctx, sandboxes[i].ID)
		if err != nil {
			return err.Error()
		}
		run, err := l.store.Session(ctx, scope, b.CurrentSessionID)
		if err != nil || run.Status != b.Status || run.PausedAt != b.PausedAt {
			return fmt.Sprintf("the sandbox is %s, its session %+v, %v", b.Status, run, err)
		}
		if got := ingress.of(b.ID); !slices.Equal(got, numbers(b.Ports, false)) {
			return fmt.Sprintf("ports %v are published, %v stored", got, numbers(b.Ports, false))
		}
		commands, _, err := l.store.ListCommands(ctx, b.CurrentSessionID, skerry.Page{})
		for _, cmd := range commands {
			if err == nil && run.Status.Ended() && !cmd.Finished() {
				return "a command of a session that has ended runs"
			}
		}
	}
	if n := ingress.count(); n > len(sandboxes) {
		return fmt.Sprintf("ports of %d sandboxes are published, there are %d", n, len(sandboxes))
	}
	ids, err := l.store.DriveIDs(ctx)
	made := l.node.DriveIDs()
	slices.Sort(ids)
	slices.Sort(made)
	if err != nil || !slices.Equal(ids, made) {
		return fmt.Sprintf("drives %v are stored, %v made, %v", ids, made, err)
	}
	if _, err := l.collect(ctx); err != nil {
		return err.Error()
	}
	saves, err := l.store.BeginCollection(ctx, skerry.At(time.Now()))
	if err == nil && len(saves.Active) > 0 {
		return fmt.Sprintf("saves are under way: %v", saves.Active)
	}
	saved := l.node.SavedFiles()
	slices.Sort(saved)
	names := named(saves)
	if err != nil || !slices.Equal(names, saved) {
		return fmt.Sprintf("snapshots %v are stored, %v saved, %v", names, saved, err)
	}
	return ""
}

// clear deletes everything.
func (l *lab) clear() {
	ctx := l.t.Context()
	sandboxes, _, err := l.store.ListSandboxes(ctx, scope, skerry.SandboxFilter{})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, b := range sandboxes {
		l.insist("a deletion", func() error {
			_, err := l.DeleteSandbox(ctx, scope, b.Name, true)
			return unless(err, skerry.CodeNotFound)
		})
	}
	drives, _, err := l.store.ListDrives(ctx, scope, skerry.DriveFilter{})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range drives {
		if _, err := l.DeleteDrive(ctx, scope, d.Name); err != nil {
			l.t.Error(err)
		}
	}
	snaps, _, err := l.store.ListSnapshots(ctx, scope, skerry.SnapshotFilter{})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, snap := range snaps {
		if _, err := l.DeleteSnapshot(ctx, scope, snap.ID); err != nil {
			l.t.Error(err)
		}
	}
	l.eventually("everything to be given back", l.holdsNothing)
}

// listIngress is an Ingress that only remembers what is published.
type listIngress struct {
	mu    sync.Mutex
	ports map[string][]skerry.PublishedPort
}

func (i *listIngress) Publish(id string, ports []skerry.PublishedPort) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ports[id] = slices.Clone(ports); len(ports) == 0 {
		delete(i.ports, id)
	}
	return nil
}

func (i *listIngress) Restore(id string, ports []skerry.PublishedPort) error {
	for j := range ports {
		ports[j].HostPort++ // none gets the one that it had
	}
	return i.Publish(id, ports)
}

func (i *listIngress) Withdraw(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.ports, id)
}

func (i *listIngress) URL(p skerry.PublishedPort) string            { return "http://" + p.Subdomain }
func (i *listIngress) Token(skerry.PublishedPort, time.Time) string { return "token" }
func (i *listIngress) count() int                                   { i.mu.Lock(); defer i.mu.Unlock(); return len(i.ports) }
func (i *listIngress) of(id string) []int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return numbers(i.ports[id], false)
}
