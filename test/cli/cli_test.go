// Package cli tests the built command-line tool against a real server. It
// needs SKERRY_CLI, the path of the tool, and SKERRY_URL and SKERRY_TOKEN of
// the server; without them it fails, since a test that is not run proves
// nothing.
package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// result is what a call of the tool came to.
type result struct {
	code     int
	out, err string
}

func command(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	for _, name := range []string{"SKERRY_CLI", "SKERRY_URL", "SKERRY_TOKEN"} {
		if os.Getenv(name) == "" {
			t.Fatalf("%s is not set; these tests need the tool and a server", name)
		}
	}
	cmd := exec.CommandContext(t.Context(), os.Getenv("SKERRY_CLI"), argv...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	return cmd
}

func sandbox(t *testing.T, argv ...string) result {
	t.Helper()
	cmd := command(t, argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	return result{code(t, cmd.Run()), out.String(), errs.String()}
}

func code(t *testing.T, err error) int {
	t.Helper()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if err != nil && !ok {
		t.Fatal(err)
	}
	if ok {
		return exit.ExitCode()
	}
	return 0
}

// create returns the name of a sandbox that is removed after the test.
func create(t *testing.T, argv ...string) string {
	t.Helper()
	got := sandbox(t, append([]string{"create", "--timeout", "5m"}, argv...)...)
	name := strings.TrimSpace(got.out)
	if got.code != 0 || name == "" {
		t.Fatalf("create: %+v", got)
	}
	t.Cleanup(func() { remove(t, name) })
	return name
}

// remove removes a sandbox, which may be gone, with its snapshots. It is for
// clean-ups, when the test's context has ended.
func remove(t *testing.T, name string) {
	t.Helper()
	out, err := exec.Command(os.Getenv("SKERRY_CLI"), "rm", "--delete-orphan-snapshots", name).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte(name)) {
		t.Errorf("rm: %v: %s", err, out)
	}
}

func TestRun(t *testing.T) {
	got := sandbox(t, "run", "--rm", "--silent", "--", "sh", "-c", "echo out; echo err >&2; id -un; pwd; exit 42")
	if got.code != 42 || got.out != "out\nvercel-sandbox\n/vercel/sandbox\n" || got.err != "err\n" {
		t.Errorf("%+v", got)
	}
	got = sandbox(t, "run", "--rm", "node", "-e", "console.log(process.version)")
	if got.code != 0 || !strings.HasPrefix(got.out, "v24.") {
		t.Errorf("%+v", got)
	}
}

// TestOddNames: a name is not accepted that a shell, a URL or DNS would read
// otherwise.
func TestOddNames(t *testing.T) {
	for _, name := range []string{"a b", "a!", "a$b", "ä", "a/b"} {
		for what, argv := range map[string][]string{
			"--name": {"create", "--name", name},
			"name":   {"drives", "create", name},
		} {
			got := sandbox(t, argv...)
			if want := "Error: " + what + ": must contain only letters, digits and the characters - _ ."; got.code != 1 || !strings.HasPrefix(got.err, want) {
				t.Errorf("%q: %+v, want %s", argv, got, want)
			}
		}
	}
}

func TestLifecycle(t *testing.T) {
	name := create(t, "--env", "GREETING=hello", "--tag", "suite=cli")
	for _, test := range []struct {
		argv []string
		code int
		out  string
	}{
		{[]string{"exec", name, "sh", "-c", "echo $GREETING"}, 0, "hello\n"},
		{[]string{"exec", "-e", "GREETING=bye", "-w", "/tmp", name, "--", "sh", "-c", "echo $GREETING; pwd"}, 0, "bye\n/tmp\n"},
		{[]string{"exec", "--sudo", name, "id", "-un"}, 0, "root\n"},
		{[]string{"exec", name, "no-such-program"}, 127, ""},
		{[]string{"exec", "--timeout", "200ms", name, "sleep", "60"}, 137, ""},
		{[]string{"exec", name + "-none", "true"}, 125, ""},
	} {
		if got := sandbox(t, test.argv...); got.code != test.code || got.out != test.out {
			t.Errorf("%q: %+v", test.argv, got)
		}
	}
	if got := sandbox(t, "config", "tags", name, "--tag", "suite=other"); got.code != 0 {
		t.Errorf("config tags: %+v", got)
	}
	var list struct {
		Sandboxes []struct{ Name, Status string }
	}
	got := sandbox(t, "ls", "--tag", "suite=other", "--json")
	if err := json.Unmarshal([]byte(got.out), &list); err != nil || len(list.Sandboxes) == 0 {
		t.Errorf("ls: %+v, %v", got, err)
	}
	if got := sandbox(t, "stop", name); got.code != 0 || !strings.Contains(got.err, "Stopped "+name) {
		t.Errorf("stop: %+v", got)
	}
	if got := sandbox(t, "exec", name, "echo", "again"); got.code != 0 || got.out != "again\n" {
		t.Errorf("exec after stop: %+v", got)
	}
	got = sandbox(t, "sessions", "ls", name, "--all")
	if got.code != 0 || strings.Count(got.out, "sbx_") != 2 {
		t.Errorf("sessions: %+v", got)
	}
	if got := sandbox(t, "rm", "--delete-orphan-snapshots", name); got.code != 0 {
		t.Errorf("rm: %+v", got)
	}
	if got := sandbox(t, "rm", name); got.code != 1 || !strings.Contains(got.err, name) {
		t.Errorf("rm again: %+v", got)
	}
}

func TestCopy(t *testing.T) {
	name := create(t)
	dir := t.TempDir()
	content := bytes.Repeat([]byte{0, 1, 254, 255, '\n'}, 200_000)
	if err := os.MkdirAll(filepath.Join(dir, "src", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "src", "deep", "blob"), content, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"cp", filepath.Join(dir, "src"), name + ":app"},
		{"exec", name, "ln", "-s", "/etc/passwd", "app/evil"},
		{"cp", name + ":app", filepath.Join(dir, "back")},
		{"cp", name + ":app/deep/blob", filepath.Join(dir, "one")},
	} {
		if got := sandbox(t, argv...); got.code != 0 {
			t.Fatalf("%q: %+v", argv, got)
		}
	}
	for _, file := range []string{"back/deep/blob", "one"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s has %d bytes, %v", file, len(b), err)
		}
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "back", "evil")); err == nil {
		t.Error("a link out of the directory was copied")
	}
	if got := sandbox(t, "exec", name, "sh", "-c", "ls /tmp/tmp.* 2>/dev/null"); got.out != "" {
		t.Errorf("left in the sandbox: %q", got.out)
	}
}

// TestCopyExact: attributes, FIFOs, holes and times survive both ways.
func TestCopyExact(t *testing.T) {
	name := create(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	when := time.Unix(1700000000, 123456789)
	const hole = 32 << 20
	file := filepath.Join(src, "file")
	// A file that may not be written has attributes too.
	for _, err := range []error{
		os.Mkdir(src, 0o755), os.WriteFile(file, nil, 0o644), os.Truncate(file, hole),
		unix.Setxattr(file, "user.skerry", []byte("a\x00b"), 0), os.Chmod(file, 0o444),
		os.Chtimes(file, when, when), unix.Mkfifo(filepath.Join(src, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := sandbox(t, "cp", src, name+":exact"); got.code != 0 {
		t.Fatalf("up: %+v", got)
	}
	must(t, "exec", name, "ln", "-s", "/etc/passwd", "exact/abs")
	other := create(t)
	if got := must(t, "cp", name+":exact", other+":"); strings.Contains(got.err, "left out") {
		t.Errorf("to another sandbox: %+v", got)
	}
	if got := must(t, "exec", other, "readlink", "exact/abs"); got.out != "/etc/passwd\n" {
		t.Errorf("to another sandbox: %+v", got)
	}
	for _, name := range []string{name, other} {
		got := sandbox(t, "exec", name, "stat", "-c", "%F %s %a %.9Y", "exact/fifo", "exact/file")
		if !strings.HasPrefix(got.out, "fifo ") || !strings.Contains(got.out, "regular file 33554432 444 1700000000.123456789") {
			t.Errorf("inside: %+v", got)
		}
		const attribute = `import os; print(os.getxattr("exact/file", "user.skerry"))`
		if got := sandbox(t, "exec", name, "python3", "-c", attribute); got.code != 0 || got.out != "b'a\\x00b'\n" {
			t.Errorf("attribute: %+v", got)
		}
	}
	if got := sandbox(t, "cp", file, name+":/root/x"); got.code != 1 || !strings.Contains(got.err, "Error: /root/x: permission denied") {
		t.Errorf("into a directory of root's: %+v", got)
	}
	if got := sandbox(t, "cp", name+":exact", filepath.Join(dir, "back")); !strings.Contains(got.err, "fifo") {
		t.Errorf("down, the FIFO is not named: %+v", got)
	}
	back := filepath.Join(dir, "back", "file")
	value := make([]byte, 16)
	n, err := unix.Getxattr(back, "user.skerry", value)
	if err != nil || string(value[:n]) != "a\x00b" {
		t.Errorf("attribute of the copy: %q, %v", value[:max(n, 0)], err)
	}
	var st unix.Stat_t
	if err := unix.Stat(back, &st); err != nil || st.Size != hole || st.Blocks*512 > hole/2 || st.Mode&0o777 != 0o444 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("copy: %+v, %v", st, err)
	}
}

func TestInterrupt(t *testing.T) {
	cmd := command(t, "run", "--rm", "--silent", "sh", "-c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()
	ready := make([]byte, len("ready\n"))
	if _, err := out.Read(ready); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := code(t, cmd.Wait()); got != 9 {
		t.Errorf("exit code %d", got)
	}
}

// TestPortAndPolicy publishes a port, opens its URL, and takes the way out away.
func TestPortAndPolicy(t *testing.T) {
	name := strings.TrimSpace(must(t, "create", "-p", "3000").out)
	defer func() { must(t, "rm", name) }()
	must(t, "exec", name, "--", "sh", "-c", "echo a page > index.html; nohup python3 -m http.server 3000 >/dev/null 2>&1 & "+
		"until curl -sf http://127.0.0.1:3000 >/dev/null; do sleep 0.1; done")
	url := strings.TrimSpace(must(t, "url", name, "3000").out)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "a page\n" {
		t.Errorf("%s: %d %q, %v", url, resp.StatusCode, body, err)
	}
	must(t, "config", "network-policy", name, "--network-policy", "deny-all")
	if got := must(t, "config", "list", name); !strings.Contains(got.out, "deny-all") {
		t.Errorf("config list: %s", got.out)
	}
	if got := must(t, "config", "ports", name); !strings.Contains(got.out, "3000\tpublic\t"+url) {
		t.Errorf("config ports: %s", got.out)
	}
	must(t, "config", "ports", name, "--none")
	// The connection of before is told so, a new one is refused.
	if again, err := http.Get(url); err == nil {
		again.Body.Close()
		if again.StatusCode != http.StatusNotFound {
			t.Errorf("a port that is not published any more answers with %d", again.StatusCode)
		}
	}
}
