package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
	"github.com/skerry-dev/skerry/internal/store"
)

var scope = skerry.Scope{TeamID: "team_a", ProjectID: "prj_a"}

// lab is a controller over a real store and a node of real processes.
type lab struct {
	*Controller
	t     *testing.T
	node  *processnode.Node
	store *store.Store
	conf  Config
	// restarted says that the node has seen more than one controller.
	restarted bool
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]skerry.Scope{"a": scope, "b": {TeamID: "team_b", ProjectID: "prj_b"}} {
		err := s.CreateAccount(t.Context(), skerry.Team{ID: in.TeamID, Slug: name}, skerry.Project{ID: in.ProjectID, TeamID: in.TeamID, Name: name})
		if err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{t: t, node: processnode.New(t.TempDir()), store: s}
	l.conf = Config{Store: s, Node: l.node, Collector: l.node, Images: processnode.Images{}, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&l.conf)
	}
	before := runtime.NumGoroutine()
	l.Controller = New(l.conf)
	if err := l.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.node.On(processnode.Stop, nil)
		if report := l.StopAll(context.Background(), true); len(report.Left) != 0 {
			t.Errorf("sessions do not stop: %+v", report)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		l.eventually("the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// restart is what a crash and a new process do to the controller's memory.
func (l *lab) restart() {
	l.t.Helper()
	l.restarted = true
	if err := l.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.Controller = New(l.conf)
	if err := l.Recover(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) eventually(what string, happened func() bool) {
	l.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			l.t.Errorf("waited in vain for %s", what)
			return
		}
	}
}

func (l *lab) create(name string) *skerry.Run {
	l.t.Helper()
	run, err := l.CreateSandbox(l.t.Context(), scope, skerry.CreateParams{Name: name})
	if err != nil {
		l.t.Fatal(err)
	}
	return run
}

func (l *lab) status(name string) skerry.SessionStatus {
	l.t.Helper()
	run, err := l.GetSandbox(l.t.Context(), scope, name, false)
	if err != nil {
		l.t.Fatal(err)
	}
	if run.Sandbox.Status != run.Session.Status {
		l.t.Errorf("the sandbox is %s, its session %s", run.Sandbox.Status, run.Session.Status)
	}
	return run.Session.Status
}

func (l *lab) run(session, name string, args ...string) *skerry.Command {
	l.t.Helper()
	cmd, _, err := l.RunCommand(l.t.Context(), scope, session, skerry.CommandParams{Name: name, Args: args}, false)
	if err != nil {
		l.t.Fatal(err)
	}
	return cmd
}

func wantCode(t *testing.T, what string, err error, want skerry.Code) {
	t.Helper()
	if got := skerry.CodeOf(err); got != want {
		t.Errorf("%s: %v, want code %q", what, err, want)
	}
}

func TestLifeOfASandbox(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	if run.Session.Status != skerry.StatusRunning || run.Session.StartedAt.IsZero() || run.Sandbox.ExpiresAt.IsZero() {
		t.Fatalf("created as %+v", run)
	}
	if run.Session.VCPUs != 2 || run.Session.MemoryMB != 4096 || run.Sandbox.Runtime != "node24" || run.Session.Timeout.Std() != skerry.DefaultTimeout {
		t.Errorf("defaults are %+v", run.Session)
	}
	cmd := l.run(run.Session.ID, "sh", "-c", "exit 3")
	if got, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || got.ID != cmd.ID {
		t.Errorf("GetCommand right after RunCommand: %v, %v", got, err)
	}
	done, err := l.WaitCommand(t.Context(), scope, run.Session.ID, cmd.ID)
	if err != nil || *done.ExitCode != 3 || done.Cwd != skerry.WorkDir {
		t.Errorf("WaitCommand() = %+v, %v", done, err)
	}
	stopped, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{})
	if err != nil || stopped.Session.Status != skerry.StatusStopped || stopped.Session.ActiveCPU.Std() != time.Second || stopped.Sandbox.TotalEgressBytes != 20 {
		t.Errorf("stopped as %+v, %v", stopped, err)
	}
	if past, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || *past.ExitCode != 3 {
		t.Errorf("the command after the stop: %v, %v", past, err)
	}
	_, _, err = l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
	wantCode(t, "a command in a stopped session", err, skerry.CodeSandboxStopped)
	resumed, err := l.GetSandbox(t.Context(), scope, "one", true)
	if err != nil || !resumed.Resumed || resumed.Session.ID == run.Session.ID || resumed.Session.Status != skerry.StatusRunning {
		t.Errorf("resumed as %+v, %v", resumed, err)
	}
	if _, err := l.DeleteSandbox(t.Context(), scope, "one", false); err != nil {
		t.Fatal(err)
	}
	_, err = l.GetSandbox(t.Context(), scope, "one", true)
	wantCode(t, "a deleted sandbox", err, skerry.CodeNotFound)
	_, err = l.StopSession(t.Context(), scope, resumed.Session.ID, skerry.StopParams{})
	wantCode(t, "a deleted sandbox's session", err, skerry.CodeNotFound)
}

func TestOthersSeeNothing(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	other := skerry.Scope{TeamID: "team_b", ProjectID: "prj_b"}
	ctx := t.Context()
	for what, f := range map[string]func() error{
		"sandbox": func() error { _, err := l.GetSandbox(ctx, other, "one", true); return err },
		"delete":  func() error { _, err := l.DeleteSandbox(ctx, other, "one", false); return err },
		"update":  func() error { _, err := l.UpdateSandbox(ctx, other, "one", skerry.UpdateParams{}); return err },
		"session": func() error { _, err := l.GetSession(ctx, other, run.Session.ID); return err },
		"stop":    func() error { _, err := l.StopSession(ctx, other, run.Session.ID, skerry.StopParams{}); return err },
		"extend":  func() error { _, err := l.ExtendTimeout(ctx, other, run.Session.ID, 1000); return err },
		"command": func() error { _, err := l.GetCommand(ctx, other, run.Session.ID, cmd.ID); return err },
		"kill":    func() error { _, err := l.KillCommand(ctx, other, run.Session.ID, cmd.ID, 9); return err },
		"output":  func() error { _, err := l.CommandOutput(ctx, other, run.Session.ID, cmd.ID); return err },
		"exec": func() error {
			_, _, err := l.RunCommand(ctx, other, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
			return err
		},
		"files": func() error { return l.MakeDir(ctx, other, run.Session.ID, "", "x", false) },
	} {
		wantCode(t, what, f(), skerry.CodeNotFound)
	}
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Errorf("the sandbox is %s", got)
	}
}

func TestStopsJoinAndCallsMeanwhileAreRefused(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l.node.On(processnode.Stop, func(context.Context, string) error {
		once.Do(func() { close(reached); <-release })
		return nil
	})
	var stops sync.WaitGroup
	for range 5 {
		stops.Go(func() {
			if r, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil || r.Session.Status != skerry.StatusStopped {
				t.Errorf("StopSession() = %+v, %v", r, err)
			}
		})
	}
	<-reached
	_, _, err := l.RunCommand(t.Context(), scope, run.Session.ID, skerry.CommandParams{Name: "true"}, false)
	wantCode(t, "a command while the session stops", err, skerry.CodeSandboxStopping)
	// Callers that resume meanwhile wait, and share one new session.
	var resumes sync.WaitGroup
	ids := make(chan string, 5)
	for range 5 {
		resumes.Go(func() {
			r, err := l.GetSandbox(t.Context(), scope, "one", true)
			if err != nil {
				t.Error(err)
				return
			}
			ids <- r.Session.ID
		})
	}
	close(release)
	stops.Wait()
	resumes.Wait()
	close(ids)
	seen := map[string]bool{}
	for id := range ids {
		seen[id] = true
	}
	if len(seen) != 1 || seen[run.Session.ID] || l.node.Starts() != 2 {
		t.Errorf("five resumes gave sessions %v, %d were started", seen, l.node.Starts())
	}
	if past, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || *past.ExitCode != 137 {
		t.Errorf("the command that ran: %+v, %v", past, err)
	}
}

func TestFailedCreationLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.node.On(processnode.Start, func(context.Context, string) error { return errors.New("boom") })
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("CreateSandbox() = %v", err)
	}
	l.assertEmpty()
	l.node.On(processnode.Start, nil)
	l.create("one")
}

func (l *lab) assertEmpty() {
	l.t.Helper()
	list, _, err := l.ListSandboxes(l.t.Context(), scope, skerry.SandboxFilter{})
	if err != nil || len(list) != 0 {
		l.t.Errorf("sandboxes are left: %v, %v", list, err)
	}
	if ids, err := l.store.SessionIDs(l.t.Context(), ""); err != nil || len(ids) != 0 {
		l.t.Errorf("sessions are left: %v, %v", ids, err)
	}
	if n := l.node.Running(); n != 0 {
		l.t.Errorf("the node still has %d sessions", n)
	}
}

// TestStartThatTakesTooLong fails the session, and the sandbox can start later.
func TestStartThatTakesTooLong(t *testing.T) {
	l := newLab(t, func(c *Config) { c.StartTimeout = 20 * time.Millisecond })
	l.stop(l.create("one").Session.ID)
	l.node.On(processnode.Start, func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if _, err := l.GetSandbox(t.Context(), scope, "one", true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a start that hangs: %v", err)
	}
	if got := l.status("one"); got != skerry.StatusFailed {
		t.Errorf("the session is %s", got)
	}
	l.conf.StartTimeout = time.Minute
	l.node.On(processnode.Start, nil)
	l.restart()
	l.resume("one")
}

// TestSourceThatTakesTooLong fetches from a server that never answers.
func TestSourceThatTakesTooLong(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l := newLab(t, func(c *Config) { c.SourceTimeout = 100 * time.Millisecond })
	source := &skerry.Source{Type: "tarball", URL: "http://" + silent.Addr().String() + "/x.tar"}
	_, err = l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", Source: source})
	wantCode(t, "a source that never comes", err, skerry.CodeSourceFailed)
	if err == nil || !strings.Contains(err.Error(), "took longer than 100ms") {
		t.Errorf("the error does not say why: %v", err)
	}
	l.assertEmpty()
}

// TestOldSessionsAreForgotten: of a sandbox's ended sessions the newest are kept.
func TestOldSessionsAreForgotten(t *testing.T) {
	l := newLab(t)
	first := l.create("one")
	for range keepSessions {
		l.stop(l.resume("one").Session.ID)
	}
	ids, err := l.store.SessionIDs(t.Context(), first.Sandbox.ID)
	if err != nil || len(ids) != keepSessions || !slices.Contains(ids, first.Session.ID) {
		t.Errorf("%d sessions are kept, %v", len(ids), err)
	}
	l.stop(l.resume("one").Session.ID)
	if _, err := l.GetSession(t.Context(), scope, first.Session.ID); skerry.CodeOf(err) != skerry.CodeNotFound || l.node.Knows(first.Session.ID) {
		t.Errorf("the oldest: %v", err)
	}
	if ids, err := l.store.SessionIDs(t.Context(), first.Sandbox.ID); err != nil || len(ids) != keepSessions {
		t.Errorf("%d sessions are kept, %v", len(ids), err)
	}
}

func TestCreatorGoesAway(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	l.node.On(processnode.Start, func(ctx context.Context, _ string) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if _, err := l.CreateSandbox(ctx, scope, skerry.CreateParams{Name: "one"}); !errors.Is(err, context.Canceled) {
		t.Errorf("CreateSandbox() = %v", err)
	}
	l.assertEmpty()
}

func TestDeleteAndStopWhileStarting(t *testing.T) {
	for _, what := range []string{"delete", "stop"} {
		t.Run(what, func(t *testing.T) {
			l := newLab(t)
			starting := make(chan string, 1)
			l.node.On(processnode.Start, func(ctx context.Context, id string) error {
				starting <- id
				<-ctx.Done()
				return ctx.Err()
			})
			created := make(chan error, 1)
			go func() {
				_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one"})
				created <- err
			}()
			id := <-starting
			var err error
			if what == "delete" {
				_, err = l.DeleteSandbox(t.Context(), scope, "one", false)
			} else {
				_, err = l.StopSession(t.Context(), scope, id, skerry.StopParams{})
			}
			// The creation cleans up after itself, maybe before this call.
			if err != nil && skerry.CodeOf(err) != skerry.CodeNotFound {
				t.Errorf("%s: %v", what, err)
			}
			if err := <-created; err == nil {
				t.Error("the creation succeeded")
			}
			l.assertEmpty()
		})
	}
}

// TestStopBeforeTheStart has a session stopped that is known, and whose start has
// not begun.
func TestStopBeforeTheStart(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	l.node.On(processnode.Start, func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	from, err := l.basisOf(t.Context(), scope, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	next := l.newSession(newRun(&run.Sandbox, skerry.NewID(skerry.PrefixSession), from, skerry.At(time.Now())))
	pending := next.state()
	_, _, err = l.store.AddSession(t.Context(), run.Sandbox.ID, func(sandbox *skerry.Sandbox) (*skerry.Session, error) {
		sandbox.CurrentSessionID = pending.ID
		return &pending, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.admit(t.Context(), next.room), l.spawn(next.reconcile)); err != nil {
		t.Fatal(err)
	}
	l.list(next)
	stop, _, err := next.stop(t.Context(), discarding, false)
	if err != nil {
		t.Fatal(err)
	}
	if !next.tell(func() { next.start(func(ctx context.Context) error { return l.bringUp(ctx, next, from) }) }) {
		t.Fatal("the session has ended before its start")
	}
	if err := l.awaitStart(t.Context(), next); !errors.Is(err, context.Canceled) {
		t.Errorf("the start: %v", err)
	}
	if err := stop.wait(t.Context()); err != nil {
		t.Errorf("the stop: %v", err)
	}
	if got := next.state().Status; got != skerry.StatusStopped {
		t.Errorf("the session is %s", got)
	}
}

func TestNames(t *testing.T) {
	l := newLab(t)
	var wg sync.WaitGroup
	results := make(chan error, 4)
	for range 4 {
		wg.Go(func() {
			_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "same"})
			results <- err
		})
	}
	wg.Wait()
	close(results)
	won := 0
	for err := range results {
		if err == nil {
			won++
			continue
		}
		wantCode(t, "a name that is taken", err, skerry.CodeConflict)
	}
	if won != 1 {
		t.Errorf("%d of four creations of one name succeeded", won)
	}
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{})
	if err != nil || skerry.ValidateName("name", run.Sandbox.Name) != nil || strings.Count(run.Sandbox.Name, "-") != 2 {
		t.Errorf("a generated name: %v, %v", run, err)
	}
}

func TestTimeoutStopsTheSession(t *testing.T) {
	l := newLab(t)
	run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "one", Timeout: skerry.Duration(2 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	long, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "two", Timeout: skerry.Duration(2 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	extended, err := l.ExtendTimeout(t.Context(), scope, long.Session.ID, skerry.Duration(time.Hour))
	if err != nil || extended.Timeout.Std() != time.Hour+2*time.Second {
		t.Errorf("ExtendTimeout() = %+v, %v", extended, err)
	}
	l.eventually("the time to be up", func() bool { return l.status("one") == skerry.StatusStopped })
	if got := l.status("two"); got != skerry.StatusRunning {
		t.Errorf("the extended session is %s", got)
	}
	past, err := l.GetSession(t.Context(), scope, run.Session.ID)
	if err != nil || past.Session.Duration.Std() < 2*time.Second {
		t.Errorf("the session lasted %v, %v", past.Session.Duration, err)
	}
	for _, by := range []skerry.Duration{skerry.Duration(24 * time.Hour), skerry.Duration(1<<63 - 1)} {
		_, err = l.ExtendTimeout(t.Context(), scope, long.Session.ID, by)
		wantCode(t, "beyond the maximum", err, skerry.CodeTimeoutInvalid)
	}
	_, err = l.ExtendTimeout(t.Context(), scope, long.Session.ID, 0)
	wantCode(t, "by nothing", err, skerry.CodeTimeoutInvalid)
}

func TestLostMachineAbortsTheSession(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	l.node.Lose(run.Session.ID, "the power went out")
	l.eventually("the session to be aborted", func() bool { return l.status("one") == skerry.StatusAborted })
	past, err := l.GetSession(t.Context(), scope, run.Session.ID)
	if err != nil || past.Session.Reason != "the power went out" || past.Session.AbortedAt.IsZero() {
		t.Errorf("aborted as %+v, %v", past.Session, err)
	}
	ended, err := l.WaitCommand(t.Context(), scope, run.Session.ID, cmd.ID)
	if err != nil || *ended.ExitCode != 137 {
		t.Errorf("its command: %+v, %v", ended, err)
	}
	if again, err := l.GetSandbox(t.Context(), scope, "one", true); err != nil || again.Session.Status != skerry.StatusRunning {
		t.Errorf("resumed as %+v, %v", again, err)
	}
}

func TestUpdateIsForTheNextSession(t *testing.T) {
	l := newLab(t)
	first := l.create("one")
	vcpus, timeout := 4, skerry.Duration(time.Hour)
	run, err := l.UpdateSandbox(t.Context(), scope, "one", skerry.UpdateParams{VCPUs: &vcpus, Timeout: &timeout, Tags: map[string]string{"a": "b"}})
	if err != nil || run.Sandbox.VCPUs != 4 || run.Sandbox.MemoryMB != 8192 || run.Session.VCPUs != 2 || run.Session.Timeout == timeout {
		t.Errorf("UpdateSandbox() = %+v, %v", run, err)
	}
	if _, err := l.StopSession(t.Context(), scope, first.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	next, err := l.GetSandbox(t.Context(), scope, "one", true)
	if err != nil || next.Session.VCPUs != 4 || next.Session.Timeout != timeout || next.Sandbox.Tags["a"] != "b" {
		t.Errorf("the next session is %+v, %v", next, err)
	}
}

func TestLimitOfSessions(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxSessions = 2 })
	l.create("one")
	two := l.create("two")
	_, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "three"})
	wantCode(t, "one too many", err, skerry.CodeRateLimited)
	if _, err := l.StopSession(t.Context(), scope, two.Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	l.create("three")
}

func TestRecoverAdopts(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sh", "-c", "sleep 0.2; exit 5")
	lost := l.create("lost")
	l.node.Lose(lost.Session.ID, "")
	l.restart()
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Errorf("the adopted session is %s", got)
	}
	if got := l.status("lost"); got != skerry.StatusAborted && got != skerry.StatusStopped {
		t.Errorf("the lost session is %s", got)
	}
	done, err := l.WaitCommand(t.Context(), scope, run.Session.ID, cmd.ID)
	if err != nil || *done.ExitCode != 5 {
		t.Errorf("the adopted command ended as %+v, %v", done, err)
	}
	l.node.Lose(run.Session.ID, "later")
	l.eventually("the adopted session to be watched", func() bool { return l.status("one") == skerry.StatusAborted })
}

func TestRecoverSettlesWhatWasInBetween(t *testing.T) {
	l := newLab(t)
	now := skerry.At(time.Now())
	for _, status := range []skerry.SessionStatus{skerry.StatusPending, skerry.StatusStopping, skerry.StatusRunning} {
		run := &skerry.Session{ID: skerry.NewID(skerry.PrefixSession), Scope: scope, Status: status, CreatedAt: now}
		box := &skerry.Sandbox{ID: skerry.NewID(skerry.PrefixSandbox), Scope: scope, Name: string(status), Status: status, CurrentSessionID: run.ID, CreatedAt: now, StatusUpdatedAt: now}
		run.SandboxID = box.ID
		if err := l.store.CreateSandbox(t.Context(), box, run); err != nil {
			t.Fatal(err)
		}
	}
	l.restart()
	if got := l.status("stopping"); got != skerry.StatusStopped {
		t.Errorf("what was stopping is %s", got)
	}
	if got := l.status("running"); got != skerry.StatusAborted {
		t.Errorf("what was running is %s", got)
	}
	// Nobody was told of a sandbox that was being created.
	_, err := l.GetSandbox(t.Context(), scope, "pending", false)
	wantCode(t, "what was being created", err, skerry.CodeNotFound)
}

func TestOldCommandsAreForgotten(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	live := l.session(run.Session.ID)
	first := l.run(run.Session.ID, "true")
	if _, err := l.WaitCommand(t.Context(), scope, run.Session.ID, first.ID); err != nil {
		t.Fatal(err)
	}
	l.eventually("the command to be retired", func() bool {
		live.commands.mu.Lock()
		defer live.commands.mu.Unlock()
		return len(live.commands.ended) == 1
	})
	// As if a thousand had followed.
	live.commands.mu.Lock()
	for i := range keepCommands - 1 {
		live.commands.ended = append(live.commands.ended, fmt.Sprint("cmd_filler", i))
	}
	live.commands.mu.Unlock()
	last := l.run(run.Session.ID, "true")
	if _, err := l.WaitCommand(t.Context(), scope, run.Session.ID, last.ID); err != nil {
		t.Fatal(err)
	}
	l.eventually("the oldest command to be forgotten", func() bool {
		_, err := l.GetCommand(t.Context(), scope, run.Session.ID, first.ID)
		return skerry.CodeOf(err) == skerry.CodeNotFound
	})
}

func TestClosingEndsWaits(t *testing.T) {
	l := newLab(t)
	run := l.create("one")
	cmd := l.run(run.Session.ID, "sleep", "100")
	waited := make(chan error, 1)
	old := l.Controller
	go func() {
		_, err := old.WaitCommand(context.Background(), scope, run.Session.ID, cmd.ID)
		waited <- err
	}()
	l.restart()
	wantCode(t, "waiting while the service ends", <-waited, skerry.CodeUnavailable)
	if got := l.status("one"); got != skerry.StatusRunning {
		t.Errorf("after the restart the session is %s", got)
	}
}

// TestEndsAreTold has whoever wants that told how each session ended.
func TestEndsAreTold(t *testing.T) {
	type end struct {
		sandbox string
		status  skerry.SessionStatus
		timeUp  bool
	}
	ends := make(chan end, 10)
	l := newLab(t, func(c *Config) {
		c.Ended = func(run skerry.Session, timeUp bool) { ends <- end{run.SandboxName, run.Status, timeUp} }
	})
	if _, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: "late", Timeout: skerry.Duration(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if got := <-ends; got != (end{"late", skerry.StatusStopped, true}) {
		t.Errorf("%+v", got)
	}
	l.node.Lose(l.create("lost").Session.ID, "the power went out")
	if got := <-ends; got != (end{"lost", skerry.StatusAborted, false}) {
		t.Errorf("%+v", got)
	}
	if _, err := l.StopSession(t.Context(), scope, l.create("stopped").Session.ID, skerry.StopParams{}); err != nil {
		t.Fatal(err)
	}
	if got := <-ends; got != (end{"stopped", skerry.StatusStopped, false}) {
		t.Errorf("%+v", got)
	}
}
