package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

const unitFile = "../../deploy/systemd/skerry.service"

// unitSetting returns a setting of the unit file.
func unitSetting(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", unitFile, name)
	return ""
}

// asService has the server started as the unit file has it: with its capabilities
// and no way to more, all files read-only but its own, and a mount namespace that is
// new at each start. What the unit cannot be followed in is who starts it.
func (s *server) asService() {
	s.t.Helper()
	if unitSetting(s.t, "NoNewPrivileges") != "yes" || unitSetting(s.t, "ProtectSystem") != "strict" {
		s.t.Fatalf("%s is not as this test has it", unitFile)
	}
	var caps []string
	for name := range strings.FieldsSeq(unitSetting(s.t, "CapabilityBoundingSet")) {
		caps = append(caps, "+"+strings.ToLower(strings.TrimPrefix(name, "CAP_")))
	}
	const readOnly = `set -e; umask "$1"; shift
for writable in "$1" "$2"; do mount --bind "$writable" "$writable"; done
mount -o remount,bind,ro /
shift 2
exec "$@"`
	s.under = []string{"unshare", "--mount", "--propagation", "slave", "sh", "-c", readOnly, "sh", unitSetting(s.t, "UMask"), s.dir, s.images,
		// The unit's rank is lower, which not every machine lets its root set.
		"choom", "-n", "300", "--", "setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all," + strings.Join(caps, ",")}
}

// TestService does one of everything on a server with the unit's privileges, and
// again on the next one, which has to find the sandboxes of the first.
func TestService(t *testing.T) {
	s := prepareServer(t, "--ready-networks", "1")
	s.asService()
	s.address = "127.53.7.1:443" // a port that takes a capability
	s.start()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(s.pid()) + "/status")
	if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1") || strings.Contains(string(status), "CapBnd:\t000001ffffffffff") {
		t.Fatalf("the server is not confined: %v\n%s", err, status)
	}
	if f, err := os.OpenFile("/proc/"+strconv.Itoa(s.pid())+"/root/etc/skerry-test", os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
		os.Remove(f.Name())
		t.Error("the server can write to /etc")
	}

	s.drive("data", 64<<20)
	sb := s.create(client.CreateOptions{Name: "box", Ports: []int{8080}, Mounts: map[string]client.Mount{"/data": {Drive: "data"}}})
	session := sb.Session().ID
	const everything = `set -e
sudo sh -c 'id -u; echo kept > /data/file; chown 1234:5678 /data/file; 
	chmod 6755 /data/file; touch -d @1000 /data/file; ln -s file /data/link; chown -h 1:2 /data/link
	stat -c %u:%g:%a:%Y /data/file; mknod /tmp/null c 1 3; umount /dev/shm'
echo memory > file; cat file`
	if got, want := s.output(sb, "sh", "-c", everything), "0\n1234:5678:6755:1000\nmemory"; got != want {
		t.Errorf("in the sandbox: %q, want %q", got, want)
	}
	source := s.create(client.CreateOptions{Name: "source"})
	s.output(source, "sh", "-c", "echo memory > file")
	twin, err := source.Fork(t.Context(), client.ForkOptions{Name: "twin", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.output(twin, "cat", "file"); got != "memory" {
		t.Errorf("the fork has %q", got)
	}
	for process, pid := range map[string]int{"sentry": s.sentry(session), "gofer": s.gofer(session)} {
		score, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
		if err != nil || string(score) != "0\n" {
			t.Errorf("the %s has the server's rank when memory runs out: %s, %v", process, score, err)
		}
	}
	for how, leave := range leave {
		leave(s)
		s.start()
		sb, twin = s.get("box"), s.get("twin")
		if got := s.output(sb, "sh", "-c", "cat file /data/file"); got != "memory\nkept" || sb.Session().ID != session {
			t.Errorf("%s and started: %q in %s, want session %s", how, got, sb.Session().ID, session)
		}
		s.assertAlive(twin)
		s.assertAlive(source)
	}
	s.stopSaved(twin)
	s.stopSaved(sb)
	if got := s.output(sb, "cat", "file", "/data/file"); got != "memory\nkept" {
		t.Errorf("resumed: %q", got)
	}
}

// TestUnitFile has systemd look at the unit.
func TestUnitFile(t *testing.T) {
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "skerry.service")
	here := strings.ReplaceAll(string(b), "/usr/local/bin/sandboxd", filepath.Join(programs, "sandboxd"))
	if err := os.WriteFile(unit, []byte(here), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"verify", unit},
		// In tenths: what needs CAP_SYS_ADMIN and CAP_NET_ADMIN, and shares the
		// host's network, cannot be much less exposed.
		{"security", "--offline=true", "--threshold=80", unit},
	} {
		if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}
