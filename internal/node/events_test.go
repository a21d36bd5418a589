package node

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/driver/fake"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// endsOf returns how the commands of a session ended that a node lists.
func endsOf(t *testing.T, n *Node, session string) map[string]int {
	t.Helper()
	ends := map[string]int{}
	var at nodeapi.Cursor
	for listed := false; !listed; {
		b, err := n.Events(t.Context(), at)
		if err != nil || b.Unrecovered {
			t.Fatalf("%+v, %v", b, err)
		}
		if b.Expired {
			ends = map[string]int{}
		}
		for _, e := range b.Events {
			if e.SessionID == session && e.Kind == nodeapi.CommandEnded {
				ends[e.CommandID] = e.Exit.Code
			}
		}
		at, listed = b.Next, b.Listed
	}
	return ends
}

// TestEndsSurviveTheNode ends more commands than the agent keeps, and has a later
// process list how they ended.
func TestEndsSurviveTheNode(t *testing.T) {
	d := fakeDriver(t, fake.Config{})
	n := fakeNode(t, d)
	session := startOn(t, n, nodeapi.SessionSpec{})
	want := map[string]int{}
	var dropped string
	for i := range keepSettled + 5 {
		id := skerry.NewID(skerry.PrefixCommand)
		p := skerry.CommandParams{Name: "sh", Args: []string{"-c", fmt.Sprintf("exit %d", i%7)}}
		if _, err := n.Exec(t.Context(), session, nodeapi.CommandSpec{ID: id, CommandParams: p}, false); err != nil {
			t.Fatal(err)
		}
		if exit, err := eventlog.AwaitExit(t.Context(), n, session, id); err != nil || exit.Code != i%7 {
			t.Fatalf("%+v, %v", exit, err)
		}
		want[id] = i % 7
		if i == 0 {
			dropped = id
		}
	}
	// Every process writes the ends that its agent forgets.
	s, err := n.find(session)
	if err != nil {
		t.Fatal(err)
	}
	files := func() int {
		entries, _ := os.ReadDir(s.endsDir()) // none yet
		return len(entries)
	}
	waitFor(t, "the ends to be written", func() bool { return files() == 5 })
	if err := n.Drop(t.Context(), session, dropped); err != nil {
		t.Fatal(err)
	}
	delete(want, dropped)
	if files() != 4 {
		t.Errorf("after Drop there are %d files", files())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := again.Events(t.Context(), ""); err != nil || !b.Unrecovered {
		t.Errorf("before Recover: %+v, %v", b, err)
	}
	if _, err := again.Stop(t.Context(), session); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Errorf("Stop before Recover: %v", err)
	}
	adopted, err := again.Recover(t.Context(), map[string]nodeapi.NetworkSpec{session: {}})
	if err != nil || len(adopted) != 1 {
		t.Fatalf("%v, %v", adopted, err)
	}
	waitFor(t, "the later process to know all ends", func() bool { return len(endsOf(t, again, session)) == len(want) })
	for id, code := range endsOf(t, again, session) {
		if want, ok := want[id]; !ok || code != want {
			t.Errorf("%s ended with %d", id, code)
		}
	}
	if err := again.Forget(t.Context(), session); err != nil {
		t.Error(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestRecoverAgain has a new controller recover a node that runs.
func TestRecoverAgain(t *testing.T) {
	n := fakeNode(t, fakeDriver(t, fake.Config{}))
	kept, other, stopped := startOn(t, n, nodeapi.SessionSpec{}), startOn(t, n, nodeapi.SessionSpec{}), startOn(t, n, nodeapi.SessionSpec{})
	if _, err := n.Stop(t.Context(), stopped); err != nil {
		t.Fatal(err)
	}
	adopted, err := n.Recover(t.Context(), map[string]nodeapi.NetworkSpec{kept: {}, stopped: {}})
	if err != nil || len(adopted) != 1 || adopted[0] != kept {
		t.Errorf("adopted %v, %v", adopted, err)
	}
	if out := runOn(t, n, kept, "echo on"); out != "on\n" {
		t.Errorf("a session that was kept says %q", out)
	}
	if _, err := n.running(other); skerry.CodeOf(err) != skerry.CodeSandboxStopped {
		t.Errorf("a session that was not: %v", err)
	}
}

func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
