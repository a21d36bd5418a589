package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// must runs the tool, which has to succeed, and returns what it printed.
func must(t *testing.T, argv ...string) result {
	t.Helper()
	got := sandbox(t, argv...)
	if got.code != 0 {
		t.Fatalf("%q: %+v", argv, got)
	}
	return got
}

// sh runs a script in a sandbox and returns what it printed.
func sh(t *testing.T, name, script string) string {
	t.Helper()
	return strings.TrimSpace(must(t, "exec", name, "--", "sh", "-c", script).out)
}

func TestFilesSurviveAStop(t *testing.T) {
	name := create(t)
	sh(t, name, "echo kept > file")
	if got := must(t, "stop", name); !strings.Contains(got.err, " as snap_") {
		t.Errorf("stop: %+v", got)
	}
	if got := sh(t, name, "cat file"); got != "kept" {
		t.Errorf("after the stop: %q", got)
	}
	clean := create(t, "--non-persistent")
	sh(t, clean, "echo lost > file")
	if got := must(t, "stop", clean); strings.Contains(got.err, "snap_") {
		t.Errorf("stop: %+v", got)
	}
	if got := sh(t, clean, "ls"); got != "" {
		t.Errorf("not persistent, after the stop: %q", got)
	}
}

// What is made for one command is not saved when it is removed.
func TestRunAndRemoveSavesNothing(t *testing.T) {
	name := fmt.Sprintf("removed-%d-%d", os.Getpid(), time.Now().UnixNano())
	must(t, "run", "--rm", "--silent", "--name", name, "--", "sh", "-c", "echo x > file")
	if left := must(t, "snapshots", "ls", "--name", name).out; strings.Contains(left, "snap_") {
		t.Errorf("a snapshot is left: %s", left)
	}
}

func TestSnapshots(t *testing.T) {
	name := create(t, "--snapshot-expiration", "7d")
	sh(t, name, "echo first > file")
	if got := sandbox(t, "snapshot", name); got.code != 2 || !strings.Contains(got.err, "--stop") {
		t.Errorf("without --stop: %+v", got)
	}
	first := strings.TrimSpace(must(t, "snapshot", "--stop", name).out)
	if !strings.HasPrefix(first, "snap_") {
		t.Fatalf("the id is %q", first)
	}
	if got := sandbox(t, "snapshot", "--stop", name); got.code != 1 || !strings.Contains(got.err, first) {
		t.Errorf("of a stopped sandbox: %+v", got)
	}
	sh(t, name, "echo second > file")
	must(t, "stop", name)

	copied := create(t, "--snapshot", first)
	if got := sh(t, copied, "cat file"); got != "first" {
		t.Errorf("created from the snapshot: %q", got)
	}
	must(t, "snapshot", "--stop", "--silent", copied)

	var list struct {
		Snapshots []struct{ ID, SandboxName, ParentID string }
	}
	if err := json.Unmarshal([]byte(must(t, "snapshots", "ls", "--name", name, "--json").out), &list); err != nil || len(list.Snapshots) != 2 {
		t.Fatalf("snapshots ls: %+v, %v", list, err)
	}
	second := list.Snapshots[0].ID
	if list.Snapshots[0].ParentID != first || list.Snapshots[1].ID != first {
		t.Errorf("snapshots ls: %+v", list)
	}
	tree := must(t, "snapshots", "tree", name).out
	for _, want := range []string{second + "\t" + first + "\tcurrent", first + "\t-\tline"} {
		if !strings.Contains(tree, want) {
			t.Errorf("the tree has no line %q: %s", want, tree)
		}
	}
	if strings.Count(tree, "\tsibling\t") != 1 {
		t.Errorf("the tree: %s", tree)
	}

	must(t, "config", "current-snapshot", name, first)
	if got := sh(t, name, "cat file"); got != "first" {
		t.Errorf("after going back: %q", got)
	}
	must(t, "config", "persistent", name, "false")
	must(t, "config", "keep-last-snapshots", name, "2")
	must(t, "config", "delete-evicted-snapshots", name, "false")
	if got := must(t, "config", "list", name).out; !strings.Contains(got, "Keep last snapshots\t2, the others expire") {
		t.Errorf("config list: %s", got)
	}
	must(t, "snapshots", "rm", second)
	if got := must(t, "snapshots", "get", second).out; !strings.Contains(got, "Status\tdeleted") {
		t.Errorf("snapshots get: %s", got)
	}
	if got := sandbox(t, "create", "--snapshot", second); got.code != 1 || !strings.Contains(got.err, "--snapshot: snapshot "+second+" was deleted") {
		t.Errorf("create from a deleted one: %+v", got)
	}
}

func TestFork(t *testing.T) {
	name := create(t, "--env", "FROM=source")
	sh(t, name, "echo unsaved > file")
	fork := func(argv ...string) string {
		t.Helper()
		forked := strings.TrimSpace(must(t, append([]string{"fork", name}, argv...)...).out)
		t.Cleanup(func() { remove(t, forked) })
		return forked
	}
	if got := sh(t, fork("--live", "--env", "FROM=fork"), "cat file; echo $FROM"); got != "unsaved\nfork" {
		t.Errorf("a live fork: %q", got)
	}
	if got := sh(t, fork("--non-persistent"), "ls; echo $FROM"); got != "source" {
		t.Errorf("a fork of what was never saved: %q", got)
	}
	must(t, "stop", name)
	if got := sh(t, fork("--tag", "a=b"), "cat file; echo $FROM"); got != "unsaved\nsource" {
		t.Errorf("a fork of what was saved: %q", got)
	}
	if got := sandbox(t, "fork", name+"-none"); got.code != 1 {
		t.Errorf("a fork of nothing: %+v", got)
	}
}
