package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/clienttest"
)

// history returns a server with a sandbox "demo" that has been saved three
// times, and "twin" that was made from the first of these.
func history(t *testing.T) *clienttest.Server {
	t.Helper()
	s := clienttest.New(t)
	v := invocation{server: s}
	for i, argv := range [][]string{
		{"create", "--name", "demo", "--tag", "team=web"},
		{"stop", "demo"},
		{"create", "--name", "twin", "--snapshot", "snap_000000000000000000000001", "--snapshot-expiration", "none"},
		{"exec", "demo", "true"},
		{"snapshot", "--stop", "--expiration", "5m", "demo"},
		{"stop", "twin"},
		{"exec", "demo", "true"},
		{"stop", "demo"},
		{"create", "--name", "fresh", "--non-persistent"},
	} {
		if i == 1 {
			if err := os.WriteFile(filepath.Join(s.WorkDir("demo"), "data"), make([]byte, 5000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := v.run(t, argv...); got.code != 0 {
			t.Fatalf("%q: %+v", argv, got)
		}
	}
	return s
}

func TestSnapshotsGolden(t *testing.T) {
	home(t)
	s := history(t)
	const first, second, last = "snap_000000000000000000000001", "snap_000000000000000000000002", "snap_000000000000000000000004"
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
		golden(t, test.name, "exit code "+strconv.Itoa(got.code)+"\n--- stdout\n"+got.out+"--- stderr\n"+got.err)
	}
}

func TestRetentionKeepsWhatIsNotChanged(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	s.Add("box", skerry.StatusRunning)
	v := invocation{server: s}
	for _, test := range []struct{ setting, value, want string }{
		{"keep-last-snapshots", "3", `{"keepLastSnapshots":{"count":3}}`},
		{"keep-last-snapshots-for", "none", `{"keepLastSnapshots":{"count":3,"expiration":0}}`},
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
	s := clienttest.New(t)
	v := invocation{server: s}
	v.run(t, "create", "--name", "box", "--silent")
	got := v.run(t, "fork", "--live", "box", "--name", "copy", "--timeout", "1h", "--vcpus", "4", "-e", "A=b", "-t", "k=v",
		"--non-persistent", "--keep-last-snapshots", "2", "--snapshot-expiration", "7d", "--memory", "--silent")
	if got != (result{}) {
		t.Errorf("%+v", got)
	}
	want := `{"name":"copy","timeout":3600000,"resources":{"vcpus":4},"env":{"A":"b"},"tags":{"k":"v"},"persistent":false,` +
		`"snapshotExpiration":604800000,"keepLastSnapshots":{"count":2},"live":true,"memory":true}`
	if body := s.LastBody("POST /v2/sandboxes/box/fork"); body != want {
		t.Errorf("body %s, want %s", body, want)
	}
	got = v.run(t, "snapshot", "--stop", "--expiration", "0", "--json", "box")
	var snap skerry.Snapshot
	if err := json.Unmarshal([]byte(got.out), &snap); err != nil || snap.SandboxName != "box" || !snap.ExpiresAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if got := v.run(t, "fork", "box", "--memory", "--json"); got.code != 0 || !strings.Contains(got.out, `"sourceSnapshotId": "`+snap.ID) {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "rm", "--delete-orphan-snapshots", "copy"); got.code != 0 || len(s.Requests("DELETE /v2/sandboxes/copy?deleteOrphanSnapshots=true")) != 1 {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "__complete", "snapshots", "rm", "snap_"); !strings.HasPrefix(got.out, snap.ID+"\t") {
		t.Errorf("%+v", got)
	}
}
