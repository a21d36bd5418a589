package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/servertest"
)

// history returns a server with a sandbox "demo" that has been saved three
// times, and "twin" that was made from the first of these, with the snapshots.
func history(t *testing.T) (s *servertest.Server, snapshots []string) {
	t.Helper()
	s = servertest.New(t)
	v := invocation{server: s}
	run := func(argv ...string) {
		t.Helper()
		if got := v.run(t, argv...); got.code != 0 {
			t.Fatalf("%q: %+v", argv, got)
		}
	}
	run("create", "--name", "demo", "--tag", "team=web")
	if err := os.WriteFile(filepath.Join(s.WorkDir(t, "demo"), "data"), make([]byte, 5000), 0o644); err != nil {
		t.Fatal(err)
	}
	saved := func(name string) {
		t.Helper()
		s.Edit(t, name, func(sb *skerry.Sandbox, session *skerry.Session) {
			session.Duration = skerry.Duration(90 * time.Second)
			snapshots = append(snapshots, sb.CurrentSnapshotID)
			s.Mask(t, session.ID+" "+sb.CurrentSnapshotID) // numbered in this order
		})
	}
	run("stop", "demo")
	saved("demo")
	run("create", "--name", "twin", "--snapshot", snapshots[0], "--snapshot-expiration", "none")
	run("exec", "demo", "true")
	run("snapshot", "--stop", "--expiration", "5m", "demo")
	saved("demo")
	_, err := s.Store.UpdateSnapshot(t.Context(), snapshots[1], func(snap *skerry.Snapshot) error {
		snap.ExpiresAt = skerry.At(s.Started.Add(later + 2*time.Minute))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	run("stop", "twin")
	saved("twin")
	run("exec", "demo", "true")
	run("stop", "demo")
	saved("demo")
	run("create", "--name", "fresh", "--non-persistent")
	return s, snapshots
}

func TestSnapshotsGolden(t *testing.T) {
	home(t)
	s, snapshots := history(t)
	first, second, last := snapshots[0], snapshots[1], snapshots[3]
	for _, test := range []struct {
		name string
		tty  bool
		argv []string
	}{
		{"snapshots-table", true, []string{"snapshots", "list"}},
		{"snapshots-lines", false, []string{"snapshots", "ls", "--name", "demo", "--sort-order", "asc"}},
		{"snapshots-page", false, []string{"snapshots", "ls", "--limit", "1"}},
		{"snapshots-json", false, []string{"snapshots", "ls", "--name", "twin", "--json"}},
		{"snapshots-nothing", true, []string{"snapshots", "ls", "--name", "none"}},
		{"snapshots-none-json", false, []string{"snapshots", "ls", "--name", "none", "--json"}},
		{"snapshots-get", true, []string{"snapshots", "get", second}},
		{"snapshots-get-json", false, []string{"snapshots", "get", first, "--json"}},
		{"snapshots-get-none", false, []string{"snapshots", "get", "snap_none"}},
		{"snapshots-get-bad", false, []string{"snapshots", "get", "demo"}},
		{"tree-drawn", true, []string{"snapshots", "tree", "demo"}},
		{"tree-lines", false, []string{"snapshots", "tree", "demo"}},
		{"tree-json", false, []string{"snapshots", "tree", "demo", "--json", "--limit", "1"}},
		{"tree-page", true, []string{"snapshots", "tree", "demo", "--limit", "1"}},
		{"tree-further", true, []string{"snapshots", "tree", "demo", "--limit", "1", "--sort-order", "desc", "--cursor", second}},
		{"tree-descendants", true, []string{"snapshots", "tree", "demo", "--sort-order", "asc", "--cursor", first}},
		{"tree-nothing", true, []string{"snapshots", "tree", "fresh"}},
		{"tree-no-cursor", false, []string{"snapshots", "tree", "demo", "--sort-order", "asc"}},
		{"sessions-from", true, []string{"sessions", "ls", "demo", "--all"}},
		{"snapshot-unconfirmed", false, []string{"snapshot", "fresh"}},
		{"snapshot-stopped", false, []string{"snapshot", "--stop", "demo"}},
		{"fork", false, []string{"fork", "demo", "--name", "attempt"}},
		{"fork-running", true, []string{"fork", "fresh", "--name", "from-image"}},
		{"fork-live", false, []string{"fork", "--live", "attempt", "--name", "copy"}},
		{"fork-none", false, []string{"fork", "none"}},
		{"exec-resumes", true, []string{"exec", "demo", "echo", "hello"}},
		{"snapshot", false, []string{"snapshot", "--stop", "--expiration", "none", "attempt"}},
		{"snapshot-tty", true, []string{"snapshot", "--stop", "copy"}},
		{"stop-saves", false, []string{"stop", "demo", "fresh"}},
		{"retention-none", false, []string{"config", "keep-last-snapshots-for", "demo", "7d"}},
		{"retention-bad", false, []string{"config", "keep-last-snapshots", "demo", "11"}},
		{"retention", false, []string{"config", "keep-last-snapshots", "demo", "2"}},
		{"retention-for", false, []string{"config", "keep-last-snapshots-for", "demo", "7d"}},
		{"retention-evicted", false, []string{"config", "delete-evicted-snapshots", "demo", "false"}},
		{"expiration", false, []string{"config", "snapshot-expiration", "demo", "none"}},
		{"current-snapshot", false, []string{"config", "current-snapshot", "demo", first}},
		{"current-snapshot-none", false, []string{"config", "current-snapshot", "demo", "snap_none"}},
		{"config-state", true, []string{"config", "list", "demo"}},
		{"snapshots-delete", false, []string{"snapshots", "rm", last, "snap_none"}},
		{"snapshots-deleted", true, []string{"snapshots", "get", last}},
		{"create-gone", false, []string{"create", "--snapshot", last}},
		{"create-exclusive", false, []string{"create", "--snapshot", last, "--image", "alpine:3"}},
	} {
		got := invocation{server: s, tty: test.tty}.run(t, test.argv...)
		golden(t, test.name, s.Mask(t, "exit code "+strconv.Itoa(got.code)+"\n--- stdout\n"+got.out+"--- stderr\n"+got.err))
	}
}

func TestRetentionKeepsWhatIsNotChanged(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.Add(t, "box")
	v := invocation{server: s}
	for _, test := range []struct{ setting, value, want string }{
		{"keep-last-snapshots", "3", `{"keepLastSnapshots":{"count":3}}`},
		{"keep-last-snapshots-for", "none", `{"keepLastSnapshots":{"count":3,"expiration":0,"deleteEvicted":true}}`},
		{"delete-evicted-snapshots", "false", `{"keepLastSnapshots":{"count":3,"expiration":0,"deleteEvicted":false}}`},
		{"keep-last-snapshots", "5", `{"keepLastSnapshots":{"count":5,"expiration":0,"deleteEvicted":false}}`},
		{"keep-last-snapshots", "0", `{"keepLastSnapshots":null}`},
		{"persistent", "false", `{"persistent":false}`},
		{"snapshot-expiration", "2d", `{"snapshotExpiration":172800000}`},
	} {
		if got := v.run(t, "config", test.setting, "box", test.value); got.code != 0 {
			t.Errorf("%s %s: %+v", test.setting, test.value, got)
		}
		if body := s.LastBody("PATCH"); body != test.want {
			t.Errorf("%s %s: body %s, want %s", test.setting, test.value, body, test.want)
		}
	}
}

func TestForkAndSnapshotBodies(t *testing.T) {
	home(t)
	s := servertest.New(t)
	v := invocation{server: s}
	v.run(t, "create", "--name", "box", "--silent")
	got := v.run(t, "fork", "--live", "box", "--name", "copy", "--timeout", "1h", "--vcpus", "2", "-e", "A=b", "-t", "k=v",
		"--non-persistent", "--keep-last-snapshots", "2", "--snapshot-expiration", "7d", "--memory", "--silent")
	if got != (result{}) {
		t.Errorf("%+v", got)
	}
	want := `{"name":"copy","timeout":3600000,"resources":{"vcpus":2},"env":{"A":"b"},"tags":{"k":"v"},"persistent":false,` +
		`"snapshotExpiration":604800000,"keepLastSnapshots":{"count":2},"live":true,"memory":true}`
	if body := s.LastBody("POST /v2/sandboxes/box/fork"); body != want {
		t.Errorf("body %s, want %s", body, want)
	}
	got = v.run(t, "snapshot", "--stop", "--expiration", "0", "--json", "box")
	var snap skerry.Snapshot
	if err := json.Unmarshal([]byte(got.out), &snap); err != nil || snap.SandboxName != "box" || !snap.ExpiresAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if got := v.run(t, "fork", "box", "--json"); got.code != 0 || !strings.Contains(got.out, `"sourceSnapshotId": "`+snap.ID) {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "rm", "--delete-orphan-snapshots", "copy"); got.code != 0 || len(s.Requests("DELETE /v2/sandboxes/copy?deleteOrphanSnapshots=true")) != 1 {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "__complete", "snapshots", "rm", "snap_"); !strings.HasPrefix(got.out, snap.ID+"\t") {
		t.Errorf("%+v", got)
	}
}
