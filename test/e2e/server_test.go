// Package e2e tests a real server with real sandboxes, through the Go SDK.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crypto/sha256"
	"encoding/hex"

	"github.com/skerry-dev/skerry/client"
)

// programs is the folder with the programs under test, images the one with
// the default image.
var (
	programs = setting("SKERRY_BIN", "../../bin")
	images   = setting("SKERRY_IMAGES", "/var/lib/skerry/images")
)

func setting(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		otherwise = v
	}
	abs, err := filepath.Abs(otherwise)
	if err != nil {
		panic(err)
	}
	return abs
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests start sandboxes and must be run as root")
		os.Exit(1)
	}
	out, err := exec.Command(filepath.Join(programs, "sandboxd"), "--images", images, "image", "build").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "no default image: %v\n%s(build the programs with make build)\n", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// server is a sandboxd of one test's own.
type server struct {
	t     *testing.T
	dir   string
	flags []string
	*client.Client
}

// newServer starts a server that ends with the test, which then looks whether
// anything is left of it.
func newServer(t *testing.T, flags ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "skerry-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, flags: flags}
	t.Cleanup(func() {
		if s.Client != nil {
			s.Client.Close()
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		s.assertNothingLeft()
		if t.Failed() {
			if log, err := os.ReadFile(s.path("state/sandboxd.log")); err == nil {
				t.Logf("the server's log ends:\n%s", log[max(0, len(log)-4000):])
			}
		}
		os.RemoveAll(dir)
	})
	s.start()
	return s
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// sandboxd is a call of the program on the server's state.
func (s *server) sandboxd(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, "sandboxd"), append([]string{"--state", s.path("state"), "--images", images}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+s.path("config"))
	return cmd
}

// start starts the server and connects to it.
func (s *server) start() {
	s.t.Helper()
	args := append([]string{"serve", "--run-dir", s.path("run"), "--listen", "127.0.0.1:0", "--background"}, s.flags...)
	cmd := s.sandboxd(args...)
	// Into a file: the server would hold a pipe open.
	out, err := os.Create(s.path("serve.out"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(out.Name())
		s.t.Fatalf("start the server: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	// Port 0 is another port at every start.
	_, after, ok := strings.Cut(string(b), "listens at ")
	url, _, ok2 := strings.Cut(after, ",")
	if !ok || !ok2 {
		s.t.Fatalf("the server does not say where it listens: %s", b)
	}
	conf := s.config()
	if s.Client != nil {
		s.Client.Close()
	}
	s.Client, err = client.New(client.Options{URL: url, Token: conf.Token, Team: conf.Team, Project: conf.Project})
	if err != nil {
		s.t.Fatal(err)
	}
}

type config struct{ URL, Token, Team, Project string }

// config is what the server wrote at its first start.
func (s *server) config() config {
	s.t.Helper()
	var c config
	b, err := os.ReadFile(s.path("config/skerry/config.json"))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *server) pid() int {
	s.t.Helper()
	b, err := os.ReadFile(s.path("state/sandboxd.pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// kill ends the server as a crash does.
func (s *server) kill() {
	s.t.Helper()
	pid := s.pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.waitFor("the killed server to go", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		return err != nil
	})
}

// stop ends the server and its sandboxes.
func (s *server) stop(flags ...string) error {
	out, err := s.sandboxd(append([]string{"stop"}, flags...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("stop the server: %w: %s", err, out)
	}
	return nil
}

// instance is what the server calls its cgroups and running files.
func (s *server) instance() string {
	sum := sha256.Sum256([]byte(s.path("state")))
	return "skerry-" + hex.EncodeToString(sum[:4])
}

// sentries lists the processes of the server's sandboxes.
func (s *server) sentries() []int {
	s.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.t.Fatal(err)
	}
	var pids []int
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), "--root="+s.path("run")+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// groups lists the cgroups of the server's sandboxes.
func (s *server) groups() []string {
	s.t.Helper()
	var names []string
	for _, pattern := range []string{"/sys/fs/cgroup/%s/*/cgroup.procs", "/sys/fs/cgroup/memory/%s/*/cgroup.procs"} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, s.instance()))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range found {
			names = append(names, filepath.Base(filepath.Dir(f)))
		}
	}
	return names
}

// mounts lists what is mounted below the server's folder.
func (s *server) mounts() []string {
	s.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, s.dir) {
			found = append(found, line)
		}
	}
	return found
}

func (s *server) assertNothingLeft() {
	s.t.Helper()
	if pids := s.sentries(); len(pids) > 0 {
		s.t.Errorf("sandboxes still run: %v", pids)
	}
	if groups := s.groups(); len(groups) > 0 {
		s.t.Errorf("cgroups are left: %v", groups)
	}
	if mounts := s.mounts(); len(mounts) > 0 {
		s.t.Errorf("mounts are left: %v", mounts)
	}
	run := s.path("run/" + s.instance())
	for _, sub := range []string{"machines", "netns"} {
		if entries, err := os.ReadDir(filepath.Join(run, sub)); err == nil && len(entries) > 0 {
			s.t.Errorf("%s is not empty: %v", sub, entries)
		}
	}
	if disks, err := os.ReadDir(s.path("state/disks")); err == nil && len(disks) > 0 {
		s.t.Errorf("disks are left: %v", disks)
	}
}

// waitFor waits until something that happens beside the test has happened.
func (s *server) waitFor(what string, happened func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// create makes a sandbox.
func (s *server) create(opts client.CreateOptions) *client.Sandbox {
	s.t.Helper()
	sb, err := s.CreateSandbox(s.t.Context(), opts)
	if err != nil {
		s.t.Fatal(err)
	}
	return sb
}

// output runs a command that must succeed and returns what it printed.
func (s *server) output(sb *client.Sandbox, name string, args ...string) string {
	s.t.Helper()
	out, err := sb.Command(s.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// exitCode runs a shell script and returns its exit code and output.
func (s *server) exitCode(ctx context.Context, sb *client.Sandbox, script string) (int, string) {
	s.t.Helper()
	out, err := sb.Command(ctx, "sh", "-c", script).CombinedOutput()
	if exit, ok := errors.AsType[*client.ExitError](err); ok {
		return exit.Code, string(out)
	}
	if err != nil {
		s.t.Fatalf("%s: %v", script, err)
	}
	return 0, string(out)
}
