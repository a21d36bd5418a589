package guest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest"
	"github.com/skerry-dev/skerry/internal/guest/pipes"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// These tests need root. They run the real agent as init in its own PID, mount, network
// and UTS namespaces, on a copy-on-write view of the files of this machine.

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "enter-sandbox" {
		fmt.Fprintln(os.Stderr, enterSandbox(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	code := m.Run()
	if agentBinary != "" {
		os.RemoveAll(filepath.Dir(agentBinary))
	}
	os.Exit(code)
}

// agentBinary is the agent that buildAgent has built.
var agentBinary string

var buildAgent = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "skerry-agent")
	if err != nil {
		return err
	}
	agentBinary = filepath.Join(dir, "skerry-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agentBinary, "github.com/skerry-dev/skerry/cmd/skerry-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the agent: %w\n%s", err, out)
	}
	return nil
})

// enterSandbox runs as PID 1 of the new namespaces. Its mounts end with them.
func enterSandbox(root, agent string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	binary, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	merged := filepath.Join(root, "root")
	options := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", root, root)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := os.WriteFile(merged+"/.agent", binary, 0o755); err != nil {
		return err
	}
	mounts := []struct{ source, target, fs, data string }{
		{"proc", "/proc", "proc", ""},
		{"tmpfs", "/dev", "tmpfs", "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
		{"tmpfs", "/small", "tmpfs", "mode=1777,size=1m"},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(merged+m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, merged+m.target, m.fs, 0, m.data); err != nil {
			return fmt.Errorf("%s: %w", m.target, err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5} {
		if err := unix.Mknod(merged+"/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
		os.Chmod(merged+"/dev/"+name, 0o666)
	}
	if err := os.Mkdir(merged+"/dev/pts", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("devpts", merged+"/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return fmt.Errorf("devpts: %w", err)
	}
	if err := os.Symlink("pts/ptmx", merged+"/dev/ptmx"); err != nil {
		return err
	}
	if err := unix.Chroot(merged); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Exec("/.agent", []string{"/.agent"}, []string{"PATH=/usr/bin:/bin"})
}

// sandbox is a running agent.
type sandbox struct {
	t     testing.TB
	pid   int
	pipes pipes.Names
}

// boot starts an agent without setting it up.
func boot(t testing.TB) (*sandbox, *wire.Duplex) {
	t.Helper()
	conn, guestEnd, err := pipes.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return bootWith(t, guestEnd), conn
}

// bootWith starts an agent with the guest's ends of its connection.
func bootWith(t testing.TB, guestEnd pipes.Guest) *sandbox {
	t.Helper()
	defer guestEnd.Close()
	names, err := guestEnd.Names()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it makes name spaces and mounts")
	}
	if err := buildAgent(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "enter-sandbox", t.TempDir(), agentBinary)
	cmd.ExtraFiles = []*os.File{guestEnd.In, guestEnd.Out, guestEnd.Door}
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // killed: its error says nothing
		if log.Len() > 0 {
			t.Errorf("the agent had something to say: %s", log.String())
		}
	})
	return &sandbox{t, cmd.Process.Pid, names}
}

// testContext returns a context with the time limit of a test.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// start boots an agent and sets it up.
func start(t testing.TB) (*sandbox, *guest.Client) {
	t.Helper()
	s, conn := boot(t)
	c, info, err := guest.Connect(testContext(t), conn, guest.Setup{
		Hostname: "box", Env: map[string]string{"FROM_SETUP": "yes"},
		Resolv: []string{"nameserver 192.0.2.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if info.PID != 1 || info.User.Name != skerry.DefaultUser {
		t.Fatalf("info: %+v", info)
	}
	return s, c
}

// attach opens a new connection over the agent's pipes. The agent drops the previous
// one.
func (s *sandbox) attach() *wire.Duplex {
	s.t.Helper()
	conn, err := pipes.Take(testContext(s.t), s.pid, s.pipes)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// reattach replaces the connection.
func (s *sandbox) reattach(points ...guest.ResumePoint) (*guest.Client, map[string]*guest.Process) {
	s.t.Helper()
	c, procs, err := guest.Reconnect(testContext(s.t), s.attach(), points)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	byID := make(map[string]*guest.Process)
	for _, p := range procs {
		byID[p.ID()] = p
	}
	return c, byID
}

var (
	idMu   sync.Mutex
	lastID int
)

func newID() string {
	idMu.Lock()
	defer idMu.Unlock()
	lastID++
	return fmt.Sprint("cmd_", lastID)
}

// result is the output and exit of a command.
type result struct {
	guest.Exit
	stdout, stderr string
}

func mustStart(t testing.TB, c *guest.Client, spec guest.StartSpec) *guest.Process {
	t.Helper()
	if spec.ID == "" {
		spec.ID = newID()
	}
	p, err := c.Start(testContext(t), spec)
	if err != nil {
		t.Fatalf("start %s: %v", spec.Name, err)
	}
	return p
}

// finish receives all output of p.
func finish(ctx context.Context, p *guest.Process) (result, error) {
	var out, errs bytes.Buffer
	for {
		c, err := p.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return result{}, err
		}
		if c.Stream == skerry.Stdout {
			out.Write(c.Data)
		} else {
			errs.Write(c.Data)
		}
		if err := p.Ack(c.Stream, c.End()); err != nil {
			return result{}, err
		}
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return result{}, err
	}
	return result{exit, out.String(), errs.String()}, p.Forget()
}

func run(t testing.TB, c *guest.Client, spec guest.StartSpec) result {
	t.Helper()
	r, err := finish(testContext(t), mustStart(t, c, spec))
	if err != nil {
		t.Fatalf("%s: %v", spec.Name, err)
	}
	return r
}

// sh runs a script that must succeed, and returns its output.
func sh(t testing.TB, c *guest.Client, script string) string {
	t.Helper()
	r := run(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", script}})
	if r.Code != 0 {
		t.Fatalf("%s: exit %d: %s", script, r.Code, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

func asRoot(t testing.TB, c *guest.Client, script string) string {
	t.Helper()
	r := run(t, c, guest.StartSpec{Name: "sh", Args: []string{"-c", script}, Root: true})
	if r.Code != 0 {
		t.Fatalf("%s: exit %d: %s", script, r.Code, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}
