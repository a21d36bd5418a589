// Package e2e tests a real server with real sandboxes, through the Go SDK.
package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/store/pgtest"
)

// programs is the folder with the programs under test, images the one with
// the default image.
var (
	programs = setting("SKERRY_BIN", "../../bin")
	images   = setting("SKERRY_IMAGES", "/var/lib/skerry/images")
)

// split has each test's server run as two processes: its node, and the rest.
var split = os.Getenv("SKERRY_E2E_SPLIT") != ""

// ahead is the number of sandboxes that servers start ahead, unless their flags say
// otherwise.
var ahead = cmp.Or(os.Getenv("SKERRY_E2E_WARM"), "0")

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
	t      *testing.T
	dir    string
	images string
	// flags are those of serve, files what its starter leaves open for it.
	flags []string
	files []*os.File
	// env is added to the environment of every call of sandboxd.
	env []string
	// database has its data, if it is not in SQLite.
	database *pgtest.Server
	// under is a command that the server is started by, such as setpriv.
	under []string
	// address is where it listens, at each start.
	address string
	// split has it run as two processes.
	split bool
	*client.Client
}

// newServer starts a server that ends with the test, which then looks whether
// anything is left of it.
func newServer(t *testing.T, flags ...string) *server {
	t.Helper()
	s := prepareServer(t, flags...)
	s.start()
	return s
}

// prepareServer does everything that newServer does but the start.
func prepareServer(t *testing.T, flags ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "skerry-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, images: images, flags: flags, address: freeAddress(t), split: split}
	t.Cleanup(func() {
		if s.Client != nil {
			s.Client.Close()
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if s.database != nil {
			if err := s.database.Close(); err != nil {
				t.Error(err)
			}
		}
		s.assertNothingLeft()
		if t.Failed() {
			if log, err := os.ReadFile(s.path("state/sandboxd.log")); err == nil {
				t.Logf("the server's log ends:\n%s", log[max(0, len(log)-6000):])
				for line := range strings.Lines(string(log[:max(0, len(log)-6000)])) {
					if !strings.Contains(line, "level=INFO") {
						t.Logf("before that: %s", line)
					}
				}
			}
		}
		os.RemoveAll(dir)
	})
	if onPostgres {
		s.usePostgres()
	}
	return s
}

// freeAddress returns an address that nobody listens at, and that stays free
// while a server is started again: its port is none that the system gives to
// outgoing connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(9000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			ln.Close()
			return addr
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// in is the server for the eyes of a subtest.
func (s *server) in(t *testing.T) *server {
	sub := *s
	sub.t = t
	return &sub
}

// sandboxd is a call of the program on the server's state.
func (s *server) sandboxd(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, "sandboxd"), append([]string{"--state", s.path("state"), "--images", s.images}, args...)...)
	cmd.Env = append(append(os.Environ(), "XDG_CONFIG_HOME="+s.path("config")), s.env...)
	return cmd
}

// start starts the server and connects to it.
func (s *server) start() {
	s.t.Helper()
	if s.split {
		s.stopNode() // of a server that was ended otherwise than by stop
		s.startNode()
	}
	s.startServe()
}

// args are the flags of both processes.
func (s *server) args() []string {
	// Machines that nobody has asked for would be in the way of tests that count.
	args := append([]string{"--run-dir", s.path("run"), "--listen", s.address, "--background", "--warm", ahead}, s.flags...)
	// What tests fetch from inside sandboxes may stand in a private network.
	if nets := os.Getenv("SKERRY_TEST_PRIVATE"); nets != "" {
		args = append(args, "--allow-private", nets)
	}
	return args
}

// startNode starts the node's process.
func (s *server) startNode() {
	s.t.Helper()
	s.run(append([]string{"node"}, s.args()...))
}

// startServe starts the server, or the half of it that is not the node.
func (s *server) startServe() {
	s.t.Helper()
	args := append([]string{"serve"}, s.args()...)
	if s.split {
		args = append(args, "--node", "unix:"+s.path("state/node/node.sock"))
	}
	b := s.run(args)
	_, after, ok := strings.Cut(b, "listens at ")
	url, _, ok2 := strings.Cut(after, ",")
	if !ok || !ok2 {
		s.t.Fatalf("the server does not say where it listens: %s", b)
	}
	if s.Client != nil {
		s.Client.Close()
	}
	s.Client = s.connect(url, s.config().Token, false)
}

// run runs a command of sandboxd that starts a process in the background, and
// returns what it says.
func (s *server) run(args []string) string {
	s.t.Helper()
	cmd := s.sandboxd(args...)
	if len(s.under) > 0 {
		path, err := exec.LookPath(s.under[0])
		if err != nil {
			s.t.Fatal(err)
		}
		cmd.Path, cmd.Args = path, append(slices.Clone(s.under), cmd.Args...)
	}
	// Into a file: the server would hold a pipe open.
	out, err := os.Create(s.path("serve.out"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = s.files
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(out.Name())
		s.t.Fatalf("start the server: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// connect returns a client that calls itself by a token.
func (s *server) connect(url, token string, noResume bool) *client.Client {
	s.t.Helper()
	conf := s.config()
	c, err := client.New(client.Options{URL: url, Token: token, Team: conf.Team, Project: conf.Project, NoResume: noResume})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
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
	return s.pidIn("state/sandboxd.pid")
}

// nodePID is the process that runs the sandboxes.
func (s *server) nodePID() int {
	s.t.Helper()
	return s.pidIn("state/node.pid")
}

func (s *server) pidIn(file string) int {
	s.t.Helper()
	b, err := os.ReadFile(s.path(file))
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
	pids := []int{s.pid()}
	if s.split {
		pids = append(pids, s.nodePID())
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, pid := range pids {
		s.awaitEnd(pid)
	}
}

// awaitEnd returns when a process has ended. The last of its threads closes its
// files, and with those the port; the first may be a zombie before.
func (s *server) awaitEnd(pid int) {
	s.t.Helper()
	s.waitFor("the process of the server to go", func() bool {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		stat, serr := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || serr != nil || len(threads) <= 1 && bytes.Contains(stat, []byte(") Z"))
	})
}

// stop ends the server and its sandboxes.
func (s *server) stop(flags ...string) error {
	out, err := s.sandboxd(append([]string{"stop"}, flags...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("stop the server: %w: %s", err, out)
	}
	if s.split {
		s.stopNode()
	}
	return nil
}

// stopNode ends the node's process, if it runs. Its sandboxes run on.
func (s *server) stopNode() {
	s.t.Helper()
	if _, err := os.Stat(s.path("state/node.pid")); err != nil {
		return // it was never started
	}
	pid := s.nodePID()
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(args, []byte(s.dir)) {
		return // it has ended
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.t.Fatal(err)
	}
	s.awaitEnd(pid)
}

// waitFor waits until something that happens beside the test has happened. What takes
// longer than a second is looked for less often: to look costs CPU time, which others need.
func (s *server) waitFor(what string, happened func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	long, deadline := time.After(time.Second), time.After(time.Minute)
	for !happened() {
		select {
		case <-tick.C:
		case <-long:
			tick.Reset(50 * time.Millisecond)
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

// get returns a sandbox as the server, perhaps another process by now, knows
// it.
func (s *server) get(name string) *client.Sandbox {
	s.t.Helper()
	sb, err := s.GetSandbox(s.t.Context(), name, client.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return sb
}

// delete removes a sandbox before the end of the test.
func (s *server) delete(sb *client.Sandbox) {
	s.t.Helper()
	if err := sb.Delete(s.t.Context()); err != nil {
		s.t.Error(err)
	}
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

// shell runs a shell script and returns its exit code and output.
func (s *server) shell(sb *client.Sandbox, script string) (int, string) {
	s.t.Helper()
	out, err := sb.Command(s.t.Context(), "sh", "-c", script).CombinedOutput()
	if exit, ok := errors.AsType[*client.ExitError](err); ok {
		return exit.Code, string(out)
	}
	if err != nil {
		s.t.Fatalf("%s: %v", script, err)
	}
	return 0, string(out)
}

// detach starts a shell script that the server sees to its end.
func (s *server) detach(sb *client.Sandbox, script string) *client.Cmd {
	s.t.Helper()
	cmd := sb.Command(s.t.Context(), "sh", "-c", script)
	cmd.Detached = true
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// assertAlive checks that a sandbox still does what is asked of it.
func (s *server) assertAlive(sb *client.Sandbox) {
	s.t.Helper()
	session := sb.Session().ID
	if got := s.output(sb, "sh", "-c", "echo $((6*7))"); got != "42" {
		s.t.Errorf("sandbox %s says %q", sb.Name(), got)
	}
	if now := sb.Session().ID; now != session {
		s.t.Errorf("sandbox %s was started anew: session %s became %s", sb.Name(), session, now)
	}
}
