package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// Fixed addresses: the network namespace is the soak's own.
const (
	apiAddress     = "127.0.0.1:7700"
	metricsAddress = "127.0.0.1:7702"
	pprofAddress   = "127.0.0.1:7703"
)

const (
	// warm is the number of warm sandboxes. Their memory is limited to what these need, so
	// that the pool does not grow after bursts, and a checkpoint finds the same number.
	warm       = 2
	warmMemory = warm * 64
	// idlePause and idleHibernate are short, so that sandboxes are paused, or off the
	// machine, between two operations.
	idlePause     = 2 * time.Second
	idleHibernate = 4 * time.Second
	// diskReserve is small, because the disk is.
	diskReserve = 256
)

// server is the sandboxd under test.
type server struct {
	bin, images, dir string
	disk             *disk
}

func (s *server) state() string { return s.disk.dir }

func (s *server) sandboxd(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, "sandboxd"), append([]string{"--state", s.state(), "--images", s.images}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(s.dir, "config"))
	return cmd
}

// start starts the server, and returns when it serves.
func (s *server) start() error {
	cmd := s.sandboxd("serve", "--background", "--run-dir", filepath.Join(s.dir, "run"), "--listen", apiAddress,
		"--metrics-listen", metricsAddress, "--pprof-listen", pprofAddress,
		"--warm", strconv.Itoa(warm), "--warm-memory", strconv.Itoa(warmMemory), "--idle-pause", idlePause.String(), "--idle-hibernate", idleHibernate.String(),
		"--disk", "2", "--disk-reserve", strconv.Itoa(diskReserve), "--snapshot-cache", "1",
		"--resolver", gatewayIP, "--allow-private", worldNets, "--sandbox-ca", "none")
	// Into a file: the server would hold a pipe open.
	out, err := os.Create(filepath.Join(s.dir, "serve.out"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(out.Name())
		return fmt.Errorf("start the server: %w: %s", err, b)
	}
	return nil
}

// stop ends the server, with its sandboxes unless they are kept.
func (s *server) stop(flags ...string) error {
	if out, err := s.sandboxd(append([]string{"stop"}, flags...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("stop the server: %w: %s", err, out)
	}
	return nil
}

// kill ends the server as a crash does, and returns when it has ended.
func (s *server) kill() error {
	pid, err := s.pid()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill the server: %w", err)
	}
	// A process without arguments may still have its sockets. One that is gone has none.
	return waitUntil(time.Minute, "the killed server to end", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return errors.Is(err, fs.ErrNotExist)
	})
}

func (s *server) pid() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.state(), "sandboxd.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// connect returns a client with the token of the server's first start. Its calls fail on
// a stopped sandbox: the model knows which sandboxes are stopped.
func (s *server) connect(via http.RoundTripper) (*client.Client, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "config/skerry/config.json"))
	if err != nil {
		return nil, err
	}
	var conf struct{ URL, Token, Team, Project string }
	if err := json.Unmarshal(b, &conf); err != nil {
		return nil, err
	}
	opts := client.Options{URL: conf.URL, Token: conf.Token, Team: conf.Team, Project: conf.Project, NoResume: true}
	if via != nil {
		opts.HTTPClient = &http.Client{Transport: via}
	}
	return client.New(opts)
}

// sentry returns the process that is a session's kernel: the first one of its PID
// namespace. It returns 0 if there is none.
func (s *server) sentry(session string) int {
	machine := session
	var state struct {
		Machine string `json:"machine"`
	}
	b, err := os.ReadFile(filepath.Join(s.state(), "sessions", session, "session.json"))
	if err != nil || json.Unmarshal(b, &state) != nil {
		return 0
	}
	if state.Machine != "" {
		machine = state.Machine
	}
	for _, pid := range processes() {
		args := processArgs(pid)
		isRoot := func(a string) bool { return strings.HasPrefix(a, "--root=") && filepath.Base(a) == machine }
		if !slices.Contains(args, "boot") || !slices.ContainsFunc(args, isRoot) {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok && len(strings.Fields(ids)) > 1 && slices.Index(strings.Fields(ids), "1") > 0 {
				return pid
			}
		}
	}
	return 0
}

// page returns a page of the server's metrics or profiles.
func page(url string) ([]byte, error) {
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// metrics returns the values of the server's metrics without labels.
func metrics() (map[string]float64, error) {
	b, err := page("http://" + metricsAddress + "/metrics")
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for line := range bytes.Lines(b) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values, nil
}

// goroutines returns the stacks of the server's goroutines, those that are alike together.
func goroutines() string {
	b, err := page("http://" + pprofAddress + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

var errWaited = errors.New("waited in vain")

// waitUntil waits for something that happens beside the soak.
func waitUntil(most time.Duration, what string, happened func() bool) error {
	for end := time.Now().Add(most); !happened(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%w %v for %s", errWaited, most, what)
		}
	}
	return nil
}
