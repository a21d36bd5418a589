// Package pgtest starts a server of PostgreSQL for tests.
package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

const (
	// startTime is what a machine under load may take to start or end the server.
	startTime = time.Minute
	// startPoll is how often it is looked at meanwhile.
	startPoll = 20 * time.Millisecond
	// superuser is the name of the server's only user.
	superuser = "skerry"
)

// Server is a server of PostgreSQL in a temporary folder. It listens at a Unix
// socket there, and no other user can connect.
type Server struct {
	dir string
	// as is the user that it runs as, since it refuses to run as root; nil for
	// the test's own.
	as   *syscall.Credential
	flag []string

	process *os.Process
	ended   chan struct{}
}

// New starts a server that ends with the test. It writes nothing durably unless
// it is told so by flags, which are those of postgres.
func New(t testing.TB, flags ...string) *Server {
	t.Helper()
	NotShort(t)
	s, err := Start(flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// NotShort leaves a test out under -short, which is how "make check" runs: these
// tests repeat on PostgreSQL what SQLite's say, and "make test" runs them.
func NotShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("PostgreSQL is left out under -short")
	}
}

// Start starts a server until Close.
func Start(flags ...string) (*Server, error) {
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, flag: flags}
	if err := s.create(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.Start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) create() error {
	if err := s.drop(); err != nil {
		return err
	}
	cmd, err := s.command("initdb", "--pgdata", s.path("data"), "--username", superuser, "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions")
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// drop gives the folder to an unprivileged user if the test is root's.
func (s *Server) drop() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) command(name string, args ...string) (*exec.Cmd, error) {
	program, err := find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	return cmd, nil
}

// find returns a program of PostgreSQL. Debian has most of them outside PATH.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("PostgreSQL's %s is missing: scripts/install-deps --test installs it", name)
	}
	return found[len(found)-1], nil
}

// Start starts the server again that Stop or Kill ended.
func (s *Server) Start() error {
	args := append([]string{"-D", s.path("data"), "-k", s.dir, "-c", "listen_addresses=", "-c", "unix_socket_permissions=0700",
		"-c", "fsync=off", "-c", "max_connections=200", "-c", "shared_buffers=16MB"}, s.flag...)
	cmd, err := s.command("postgres", args...)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// It ends with the test, however that ends: with the thread that started it.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for the test
	s.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the log tells
			close(s.ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	s.process = cmd.Process
	for deadline := time.Now().Add(startTime); ; {
		if _, err := s.Query("postgres", "SELECT 1"); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("postgres does not answer: %w: %s", err, s.logged())
		}
		select {
		case <-s.ended:
			return fmt.Errorf("postgres did not start: %s", s.logged())
		case <-time.After(startPoll):
		}
	}
}

func (s *Server) logged() []byte {
	b, _ := os.ReadFile(s.path("log"))
	return bytes.TrimSpace(b[max(0, len(b)-4096):])
}

// Stop ends the server in an orderly way: it closes all connections.
func (s *Server) Stop() error { return s.end(syscall.SIGINT) }

// Kill ends the server as a crash does.
func (s *Server) Kill() error { return s.end(syscall.SIGQUIT) }

func (s *Server) end(sig syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		s.process = nil
		return nil
	case <-time.After(startTime):
		return fmt.Errorf("postgres does not end: %s", s.logged())
	}
}

// Close ends the server and removes its folder.
func (s *Server) Close() error { return errors.Join(s.Kill(), os.RemoveAll(s.dir)) }

// Query runs statements in a database, and returns what they return, as text.
func (s *Server) Query(database, statements string) (string, error) {
	cmd, err := s.command("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1",
		"--host", s.dir, "--username", superuser, "--dbname", database, "--command", statements)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(bytes.TrimSpace(stdout.Bytes())), nil
}

// Create makes an empty database.
func (s *Server) Create(database string) error {
	_, err := s.Query("postgres", "CREATE DATABASE "+database)
	return err
}

// URL names a database of the server.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: url.Values{"host": {s.dir}}.Encode()}
	return u.String()
}

// Dir is the server's folder.
func (s *Server) Dir() string { return s.dir }
