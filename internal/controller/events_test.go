package controller

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
)

// told records what is told of the commands and sessions that were expected.
type told struct {
	*expected
	got []string
}

func (x *told) start(session, cmd string) {
	x.command(session, cmd, func(exit *nodeapi.Exit) {
		code := -1
		if exit != nil {
			code = exit.Code
		}
		x.got = append(x.got, fmt.Sprintf("%s %d", cmd, code))
	})
}

func (x *told) open(session string) {
	x.session(session,
		func(loss nodeapi.Loss) { x.got = append(x.got, session+" "+loss.Reason) },
		func() { x.got = append(x.got, session+" overdue") }, func(skerry.IdleState) {})
}

func (x *told) wants(t *testing.T, what string, want ...string) {
	t.Helper()
	slices.Sort(x.got)
	if !slices.Equal(x.got, want) {
		t.Errorf("%s: told %q, want %q", what, x.got, want)
	}
	x.got = nil
}

func ended(session, cmd string, code int) nodeapi.Event {
	return nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: session, CommandID: cmd, Exit: &nodeapi.Exit{Code: code}}
}

func lost(session, why string) nodeapi.Event {
	return nodeapi.Event{Kind: nodeapi.SessionLost, SessionID: session, Loss: nodeapi.Loss{Reason: why}}
}

func TestEndsAreToldOnce(t *testing.T) {
	x := &told{expected: newExpected()}
	x.open("s")
	x.start("s", "quick")
	x.tell(ended("s", "quick", 1))
	x.tell(lost("s", "early"))
	x.wants(t, "before anything is confirmed")
	x.confirmCommand("quick")
	x.confirmSession("s")
	x.wants(t, "what came early", "quick 1", "s early")
	x.start("s", "slow")
	x.confirmCommand("slow")
	x.start("s", "failed")
	x.forgetCommand("failed")
	x.tell(ended("other", "slow", 3)) // a command of another session
	x.tell(ended("s", "failed", 3))
	x.wants(t, "what nobody expects")
	for range 2 {
		x.tell(ended("s", "slow", 2))
		x.tell(ended("s", "quick", 1))
		x.tell(lost("s", "again"))
		x.confirmCommand("slow")
		x.confirmSession("s")
	}
	x.wants(t, "again", "slow 2")
	x.open("other")
	x.start("other", "runs")
	x.confirmCommand("runs")
	x.start("s", "untold")
	x.confirmCommand("untold")
	x.forgetSession("s")
	x.tell(lost("s", "again"))
	x.confirmSession("s")
	x.tell(ended("s", "untold", 1))
	x.wants(t, "after the end")
	if len(x.commands) != 1 {
		t.Errorf("%d commands are expected, want that of the other session", len(x.commands))
	}
	x.tell(ended("other", "runs", 1))
	x.wants(t, "of the other session", "runs 1")
}

func TestWhatAListDoesNotHave(t *testing.T) {
	x := &told{expected: newExpected()}
	for _, s := range []string{"runs", "attaches", "gone", "starting"} {
		x.open(s)
		x.start(s, s+"-a")
		x.start(s, s+"-b")
		if s != "starting" {
			x.confirmSession(s)
			x.confirmCommand(s + "-a")
			x.confirmCommand(s + "-b")
		}
	}
	list := func() {
		x.tell(nodeapi.Event{Kind: nodeapi.CommandRuns, SessionID: "runs", CommandID: "runs-a"})
		x.tell(nodeapi.Event{Kind: nodeapi.SessionRuns, SessionID: "runs"})
		x.tell(nodeapi.Event{Kind: nodeapi.SessionAttaching, SessionID: "attaches"})
	}
	x.beginList()
	list()
	x.start("runs", "later")
	x.confirmCommand("later") // it was started after the list had passed
	x.endList()
	x.wants(t, "at the end of a list", "gone it was lost", "gone-a -1", "gone-b -1", "runs-b -1")
	select {
	case <-x.sessions["gone"].over:
	default:
		t.Error("the end of a session that is gone is still waited for")
	}
	x.beginList() // and is interrupted: nothing follows from that
	x.wants(t, "at the beginning of a list")
	x.beginList()
	list()
	x.endList()
	x.wants(t, "at the end of the next list", "later -1")
	x.tell(nodeapi.Event{Kind: nodeapi.SessionStopped, SessionID: "runs"})
	x.tell(nodeapi.Event{Kind: nodeapi.SessionStopped, SessionID: "runs"})
	<-x.sessions["runs"].over
}

// hiding is a node whose events a test can replace.
type hiding struct {
	*processnode.Node
	mu sync.Mutex
	// events, if set, takes the place of the node's.
	events func(context.Context, nodeapi.Cursor) (nodeapi.Batch, error)
	// calls that wait end when changed is closed, which is then replaced.
	changed chan struct{}
	kept    map[string]nodeapi.NetworkSpec
	// silent, if set, is called after the next Recover, whose answer is lost.
	silent func()
}

func (n *hiding) set(events func(context.Context, nodeapi.Cursor) (nodeapi.Batch, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = events
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *hiding) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	n.mu.Lock()
	events, changed := n.events, n.changed
	n.mu.Unlock()
	if events == nil {
		events = n.Node.Events
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	b, err := events(ctx, after)
	if err != nil && ctx.Err() != nil {
		return b, nodeapi.Unreachable(err)
	}
	return b, err
}

func (n *hiding) Recover(ctx context.Context, keep map[string]nodeapi.NetworkSpec) ([]string, error) {
	n.mu.Lock()
	n.kept = keep
	silent := n.silent
	n.silent = nil
	n.mu.Unlock()
	adopted, err := n.Node.Recover(ctx, keep)
	if silent != nil {
		silent()
		return nil, nodeapi.Unreachable(err)
	}
	return adopted, err
}

// TestNodeRecoversWithoutAnAnswer has a node that was restarted recover, and the
// answer be lost. It is told again what to keep, with what has started since then.
func TestNodeRecoversWithoutAnAnswer(t *testing.T) {
	n := &hiding{changed: make(chan struct{})}
	l := newLab(t, func(cfg *Config) {
		n.Node = cfg.Node.(*processnode.Node)
		cfg.Node, cfg.firstRetry = n, time.Millisecond
	})
	one := l.create("one").Session.ID
	started := make(chan string, 1)
	n.mu.Lock()
	n.silent = func() {
		reached, release := make(chan struct{}), make(chan struct{})
		l.node.On(processnode.Start, func(context.Context, string) error {
			close(reached)
			<-release
			return nil
		})
		go func() { started <- l.create("two").Session.ID }()
		<-reached
		l.node.On(processnode.Start, nil)
		time.AfterFunc(20*time.Millisecond, func() { close(release) })
	}
	n.mu.Unlock()
	if err := l.recoverRestarted(); err != nil {
		t.Fatal(err)
	}
	two := <-started
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range []string{one, two} {
		if _, kept := n.kept[id]; !kept {
			t.Errorf("the node was not told to keep session %s", id)
		}
	}
}

// TestNodeRestarts has the node begin anew: it must recover, does not know one of two
// commands any more, and then not one of two sessions.
func TestNodeRestarts(t *testing.T) {
	n := &hiding{changed: make(chan struct{})}
	l := newLab(t, func(cfg *Config) {
		n.Node = cfg.Node.(*processnode.Node)
		cfg.Node, cfg.firstRetry = n, time.Millisecond
	})
	one, two := l.create("one").Session.ID, l.create("two").Session.ID
	kept, gone := l.run(one, "sleep", "1000"), l.run(one, "sleep", "1000")
	list := []nodeapi.Event{
		{Kind: nodeapi.CommandRuns, SessionID: one, CommandID: kept.ID},
		{Kind: nodeapi.SessionRuns, SessionID: one}, {Kind: nodeapi.SessionRuns, SessionID: two},
	}
	calls := 0
	restarted := func(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
		calls++
		switch {
		case after != "" && after != "new":
			return nodeapi.Batch{Expired: true}, nil
		case calls == 2:
			return nodeapi.Batch{Unrecovered: true}, nil
		case after == "":
			return nodeapi.Batch{Events: list, Next: "new", Listed: true}, nil
		}
		<-ctx.Done()
		return nodeapi.Batch{}, ctx.Err()
	}
	n.mu.Lock()
	n.kept = nil
	n.mu.Unlock()
	n.set(restarted)
	cmd, err := l.WaitCommand(t.Context(), scope, one, gone.ID)
	if err != nil || cmd.ExitCode == nil || *cmd.ExitCode != lostExitCode {
		t.Errorf("a command that the node has lost: %+v, %v", cmd, err)
	}
	n.mu.Lock()
	if len(n.kept) != 2 {
		t.Errorf("the node was told to keep %v", n.kept)
	}
	n.mu.Unlock()
	if cmd, err := l.GetCommand(t.Context(), scope, one, kept.ID); err != nil || cmd.Finished() {
		t.Errorf("a command that runs on: %+v, %v", cmd, err)
	}
	if got := l.status("two"); got != skerry.StatusRunning {
		t.Errorf("session two is %s", got)
	}
	n.set(nil)
}

// TestLostSessionOfAList has a list without a session that should be there.
func TestLostSessionOfAList(t *testing.T) {
	n := &hiding{changed: make(chan struct{})}
	l := newLab(t, func(cfg *Config) {
		n.Node = cfg.Node.(*processnode.Node)
		cfg.Node, cfg.firstRetry = n, time.Millisecond
	})
	l.create("one")
	n.set(func(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
		switch after {
		case "":
			return nodeapi.Batch{Next: "new", Listed: true}, nil
		case "new":
			<-ctx.Done()
			return nodeapi.Batch{}, ctx.Err()
		}
		return nodeapi.Batch{Expired: true}, nil
	})
	l.eventually("the session to be ended", func() bool { return l.status("one") == skerry.StatusAborted })
}

// TestEndBeforeStop has a command end by itself just before its session is stopped:
// its own exit is recorded.
func TestEndBeforeStop(t *testing.T) {
	l := newLab(t)
	for i := range 10 {
		run, err := l.CreateSandbox(t.Context(), scope, skerry.CreateParams{Name: fmt.Sprint("box", i), Persistent: new(bool)})
		if err != nil {
			t.Fatal(err)
		}
		cmd := l.run(run.Session.ID, "sh", "-c", "while [ ! -e go ]; do sleep 0.001; done; exit 7")
		root := filepath.Join(l.node.Root(run.Session.ID), skerry.WorkDir)
		l.node.On(processnode.Stop, func(ctx context.Context, _ string) error {
			if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
				return err
			}
			return l.node.WaitCommands(ctx, run.Session.ID)
		})
		if _, err := l.StopSession(t.Context(), scope, run.Session.ID, skerry.StopParams{}); err != nil {
			t.Fatal(err)
		}
		l.node.On(processnode.Stop, nil)
		if cmd, err := l.GetCommand(t.Context(), scope, run.Session.ID, cmd.ID); err != nil || cmd.ExitCode == nil || *cmd.ExitCode != 7 {
			t.Errorf("the command is %+v, %v", cmd, err)
		}
	}
}
