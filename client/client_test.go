package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
	"github.com/skerry-dev/skerry/internal/servertest"
)

func connect(t *testing.T, s *servertest.Server, opts client.Options) *client.Client {
	t.Helper()
	opts.URL, opts.Token = s.URL, s.Token
	c, err := client.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// sandbox returns a running sandbox on a fresh server.
func sandbox(t *testing.T) (*servertest.Server, *client.Sandbox) {
	t.Helper()
	s := servertest.New(t)
	sb, err := connect(t, s, client.Options{}).CreateSandbox(t.Context(), client.CreateOptions{Name: "box"})
	if err != nil {
		t.Fatal(err)
	}
	return s, sb
}

func TestNewRefusesBadOptions(t *testing.T) {
	for _, opts := range []client.Options{
		{URL: "localhost:7700"}, {URL: "ftp://host"}, {URL: "http://"}, {URL: "http://u:p@host"}, {URL: "http://host?x=1"},
		{Token: "two words"}, {Token: "line\n"},
	} {
		if _, err := client.New(opts); err == nil {
			t.Errorf("New(%+v) gave no error", opts)
		}
	}
}

func TestScopeAndCreateBody(t *testing.T) {
	s := servertest.New(t)
	c := connect(t, s, client.Options{Team: "acme", Project: "web"})
	_, err := c.CreateSandbox(t.Context(), client.CreateOptions{
		Runtime: "node24", Timeout: time.Minute, VCPUs: 4, Env: map[string]string{"A": "b"}, Tags: map[string]string{"k": "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"projectId":"web","runtime":"node24","timeout":60000,"resources":{"vcpus":4},"env":{"A":"b"},"tags":{"k":"v"}}`
	if got := s.LastBody("POST /v2/sandboxes?slug=acme"); got != want {
		t.Errorf("body\n%s, want\n%s", got, want)
	}
	c = connect(t, s, client.Options{Team: "team_1", Project: "web"})
	if _, err := c.GetSandbox(t.Context(), "none/such", client.GetOptions{Resume: true}); !client.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
	if got := s.Requests("GET /v2/sandboxes/none%2Fsuch?projectId=web&resume=true&teamId=team_1"); len(got) != 1 {
		t.Errorf("requests %q", s.Requests(""))
	}
	for _, name := range []string{"", ".", ".."} {
		if err := c.DeleteSandbox(t.Context(), name, client.DeleteOptions{}); client.CodeOf(err) != skerry.CodeBadRequest {
			t.Errorf("delete %q: %v", name, err)
		}
	}
	if got := s.Requests("DELETE"); len(got) != 0 {
		t.Errorf("requests were made: %q", got)
	}
}

func TestErrors(t *testing.T) {
	s := servertest.New(t)
	c := connect(t, s, client.Options{})
	_, err := c.CreateSandbox(t.Context(), client.CreateOptions{Ports: []int{3000}})
	var e *client.Error
	if !errors.As(err, &e) || !client.IsNotImplemented(err) || e.Code != skerry.CodeNotImplemented || e.Field != "ports" || !strings.HasPrefix(e.RequestID, "req_") {
		t.Errorf("error %#v", err)
	}
	if !errors.Is(err, &client.Error{Code: skerry.CodeNotImplemented}) || errors.Is(err, &client.Error{Code: skerry.CodeConflict}) {
		t.Errorf("errors.Is does not tell codes apart: %v", err)
	}
	bad, _ := client.New(client.Options{URL: s.URL, Token: "wrong"})
	if _, err := bad.GetSandbox(t.Context(), "box", client.GetOptions{}); !client.IsUnauthorized(err) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %v", err)
	}
}

func TestRetries(t *testing.T) {
	for _, test := range []struct {
		name       string
		status     int
		retryAfter string
		call       func(context.Context, *client.Client) error
		tries      int32
	}{
		{"GET on 503", 503, "", get, 3},
		{"GET on 501", 501, "", get, 1},
		{"GET on 404", 404, "", get, 1},
		{"GET on 429 that asks for too much", 429, "21", get, 1},
		{"create on 500", 500, "", create, 1},
		{"create on 429", 429, "1", create, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := servertest.New(t)
			var tries atomic.Int32
			s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
				tries.Add(1)
				w.Header().Set("Retry-After", test.retryAfter)
				servertest.Refuse(w, test.status, "", "no")
				return true
			}
			err := test.call(t.Context(), connect(t, s, client.Options{}))
			if e := new(client.Error); !errors.As(err, &e) || e.Status != test.status || tries.Load() != test.tries {
				t.Errorf("%d tries, error %v; want %d tries", tries.Load(), err, test.tries)
			}
		})
	}
}

func get(ctx context.Context, c *client.Client) error {
	_, err := c.GetSandbox(ctx, "x", client.GetOptions{})
	return err
}

func create(ctx context.Context, c *client.Client) error {
	_, err := c.CreateSandbox(ctx, client.CreateOptions{})
	return err
}

func TestRetryStopsWithContext(t *testing.T) {
	s := servertest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "20")
		servertest.Refuse(w, 429, "", "slow down")
		time.AfterFunc(10*time.Millisecond, cancel)
		return true
	}
	if err := get(ctx, connect(t, s, client.Options{})); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestListPages(t *testing.T) {
	s := servertest.New(t)
	for i := range 5 {
		s.Add(t, fmt.Sprintf("box-%d", i))
	}
	c := connect(t, s, client.Options{})
	var names []string
	for sb, err := range c.ListSandboxes(t.Context(), client.ListOptions{Limit: 2, SortBy: "name", Ascending: true}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, sb.Name)
	}
	if got := strings.Join(names, " "); got != "box-0 box-1 box-2 box-3 box-4" {
		t.Errorf("names %s", got)
	}
	if n := len(s.Requests("GET /v2/sandboxes?")); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
	for range c.ListSandboxes(t.Context(), client.ListOptions{Limit: 2}) {
		break
	}
	if n := len(s.Requests("GET /v2/sandboxes?")); n != 4 {
		t.Errorf("a sequence that was left went on: %d requests", n)
	}
}

func TestUpdateSendsWhatChanges(t *testing.T) {
	s, sb := sandbox(t)
	snap, err := sb.Snapshot(t.Context(), client.TakeOptions{})
	must(t, err)
	id := snap.ID()
	minute, four, yes := time.Minute, 4, true
	for want, opts := range map[string]client.UpdateOptions{
		`{}`: {},
		`{"resources":{"vcpus":4},"timeout":60000}`:                 {Timeout: &minute, VCPUs: &four},
		`{"keepLastSnapshots":null,"persistent":true}`:              {ClearKeepLastSnapshots: true, Persistent: &yes},
		`{"currentSnapshotId":"` + id + `","snapshotExpiration":0}`: {CurrentSnapshotID: &id, SnapshotExpiration: new(time.Duration)},
		`{"env":{"A":"b"},"tags":{}}`:                               {Env: map[string]string{"A": "b"}, Tags: map[string]string{}},
	} {
		if err := sb.Update(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if body := s.LastBody("PATCH /v2/sandboxes/box"); body != want {
			t.Errorf("body %s, want %s", body, want)
		}
	}
}

func TestLifecycle(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	two, minute := 2, time.Minute
	if err := sb.Update(ctx, client.UpdateOptions{VCPUs: &two, Timeout: &minute, Tags: map[string]string{}}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.LastBody("PATCH"), `{"resources":{"vcpus":2},"tags":{},"timeout":60000}`; got != want {
		t.Errorf("body %s, want %s", got, want)
	}
	before := sb.Session().Timeout
	if err := sb.ExtendTimeout(ctx, time.Minute); err != nil || sb.Session().Timeout-before != skerry.Duration(time.Minute) {
		t.Errorf("the timeout went from %s to %s, %v", before, sb.Session().Timeout, err)
	}
	for range 2 {
		if stopped, err := sb.Stop(ctx); err != nil || stopped.Session.Status != skerry.StatusStopped {
			t.Errorf("stop: %s, %v", stopped.Session.Status, err)
		}
	}
	first := sb.Session().ID
	if out, err := sb.Command(ctx, "echo", "again").Output(); err != nil || string(out) != "again\n" {
		t.Errorf("a command after the stop: %q, %v", out, err)
	}
	if !sb.Resumed() || sb.Session().ID == first {
		t.Error("no new session was started")
	}
	n := 0
	for _, err := range sb.Sessions(ctx, client.SessionOptions{Limit: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	if err := sb.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sb.Refresh(ctx); !client.IsNotFound(err) {
		t.Errorf("after the removal: %v", err)
	}
}

func TestNoResume(t *testing.T) {
	s := servertest.New(t)
	s.AddStopped(t, "box")
	sb, err := connect(t, s, client.Options{NoResume: true}).GetSandbox(t.Context(), "box", client.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Command(t.Context(), "true").Run(); !client.IsStopped(err) {
		t.Errorf("error %v", err)
	}
}

func TestCommand(t *testing.T) {
	_, sb := sandbox(t)
	ctx := t.Context()
	var out, errs strings.Builder
	cmd := sb.Command(ctx, "sh", "-c", `printf 'out\t"\\\033[1m<%s>\n' "$WHO"; printf 'érr\n' >&2; ls -d vercel; exit 3`)
	cmd.Env, cmd.Dir = map[string]string{"WHO": "me"}, "/"
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *client.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("error %v", err)
	}
	if out.String() != "out\t\"\\\x1b[1m<me>\nvercel\n" || errs.String() != "érr\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
	if err := cmd.Run(); err == nil {
		t.Error("a command ran twice")
	}
	if _, err := sb.Command(ctx, "sh", "-c", "echo why >&2; exit 9").Output(); !errors.As(err, &exit) || string(exit.Stderr) != "why\n" {
		t.Errorf("error %v with %q", err, exit.Stderr)
	}
	if b, err := sb.Command(ctx, "sh", "-c", "echo a; echo b >&2").CombinedOutput(); err != nil || len(b) != 4 {
		t.Errorf("combined %q, %v", b, err)
	}
	if err := sb.Command(ctx, "no-such-program").Run(); !client.IsExecutableNotFound(err) {
		t.Errorf("error %v", err)
	}
	slow := sb.Command(ctx, "sleep", "60")
	slow.Timeout = 50 * time.Millisecond
	if err := slow.Run(); !errors.As(err, &exit) || exit.Code != 137 {
		t.Errorf("error %v", err)
	}
}

func TestCommandEndsWithContext(t *testing.T) {
	s, sb := sandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := sb.Command(ctx, "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s.Node.AwaitCommands() // hangs if it was not killed
}

// closedWriter fails as the standard output of a pipeline that has ended does.
type closedWriter struct{}

func (closedWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCommandEndsWhenNobodyTakesItsOutput(t *testing.T) {
	s, sb := sandbox(t)
	cmd := sb.Command(t.Context(), "sh", "-c", "while :; do echo y; sleep 0.01; done")
	cmd.Stdout = closedWriter{}
	if err := cmd.Run(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
	s.Node.AwaitCommands()
}

// What the docs allow while another goroutine is in Wait, for the race
// detector to look at.
func TestCommandIsSharedWhileItRuns(t *testing.T) {
	_, sb := sandbox(t)
	cmd := sb.Command(t.Context(), "sh", "-c", "echo out; sleep 0.2")
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var others sync.WaitGroup
	others.Go(func() {
		for !done.Load() {
			_ = cmd.Kill(t.Context(), 28) // SIGWINCH, which nobody minds; the command may have ended
			if cmd.ID() == "" || cmd.Info().SessionID == "" {
				t.Error("a running command has no id")
			}
		}
	})
	others.Go(func() {
		for _, err := range cmd.Logs(t.Context()) {
			if err != nil {
				t.Error(err)
			}
		}
	})
	err := cmd.Wait()
	done.Store(true)
	others.Wait()
	if err != nil || cmd.Info().ExitCode == nil {
		t.Errorf("%v, %+v", err, cmd.Info())
	}
}

func TestDetached(t *testing.T) {
	_, sb := sandbox(t)
	ctx := t.Context()
	cmd := sb.Command(ctx, "sh", "-c", "exec 2>/dev/null; echo one; trap 'echo two; exit 5' TERM; echo ready; while :; do sleep 0.01; done")
	cmd.Detached = true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found, err := sb.FindCommand(ctx, cmd.ID())
	if err != nil || found.Name != "sh" || found.Info().ExitCode != nil {
		t.Fatalf("found %+v, %v", found, err)
	}
	var logs strings.Builder
	for log, err := range found.Logs(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if log.Stream != skerry.Stdout {
			continue // a shell may say there that its sleep was terminated
		}
		logs.Write(log.Data)
		if strings.HasSuffix(logs.String(), "ready\n") {
			if err := found.Kill(ctx, client.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := logs.String(); got != "one\nready\ntwo\n" {
		t.Errorf("logs %q", got)
	}
	var exit *client.ExitError
	if err := found.Wait(); !errors.As(err, &exit) || exit.Code != 5 {
		t.Errorf("error %v", err)
	}
}

func TestBrokenStream(t *testing.T) {
	for name, body := range map[string]string{
		"cut off":          `{"command":{"id":"cmd_1","exitCode":null}}` + "\n" + `{"stream":"stdout","data":"a"}` + "\n",
		"cut in a line":    `{"command":{"id":"cmd_1","exitCode":null}}` + "\n" + `{"stream":"std`,
		"not a command":    `{"stream":"stdout","data":"a"}` + "\n",
		"empty":            "",
		"not JSON":         "<html>\n",
		"an error in it":   `{"command":{"id":"cmd_1","exitCode":null}}` + "\n" + `{"stream":"error","data":{"code":"sandbox_stopped","message":"gone"}}` + "\n",
		"an unknown event": `{"command":{"id":"cmd_1","exitCode":null}}` + "\n" + `{"stream":"stdin","data":"a"}` + "\n",
	} {
		s := servertest.New(t)
		sb, err := connect(t, s, client.Options{Reattach: -1}).CreateSandbox(t.Context(), client.CreateOptions{Name: "box"})
		if err != nil {
			t.Fatal(err)
		}
		s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case strings.HasSuffix(r.URL.Path, "/kill"):
				t.Errorf("%s: the command was killed", name)
			case !strings.Contains(r.URL.Path, "/cmd"):
				return false
			case r.Method != http.MethodPost:
				http.Error(w, "", http.StatusServiceUnavailable)
				return true
			}
			w.Header().Set("Content-Type", "application/x-ndjson")
			io.WriteString(w, body)
			return true
		}
		cmd := sb.Command(t.Context(), "true")
		cmd.Stdout = io.Discard
		err = cmd.Run()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, lost := errors.AsType[*client.LostError](err); lost != strings.HasPrefix(name, "cut") {
			t.Errorf("%s: error %v", name, err)
		}
		if name == "an error in it" && client.CodeOf(err) != skerry.CodeSandboxStopped {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestFiles(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	binary := string([]byte{0, 255, 254, 10, 13})
	if err := sb.WriteFile(ctx, "a/b.bin", []byte(binary), 0o750); err != nil {
		t.Fatal(err)
	}
	if b, err := sb.ReadFile(ctx, "a/b.bin"); err != nil || string(b) != binary {
		t.Errorf("read %q, %v", b, err)
	}
	if info, err := os.Stat(filepath.Join(s.WorkDir(t, "box"), "a/b.bin")); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := sb.Open(ctx, "none"); !client.IsNotFound(err) {
		t.Errorf("a missing file: %v", err)
	}
	if err := sb.Mkdir(ctx, "new"); err != nil {
		t.Error(err)
	}
	fsys := fstest.MapFS{"x/1": {Data: []byte("one"), Mode: 0o600}, "2": {Data: []byte("two"), Mode: 0o644}}
	if err := sb.WriteFiles(ctx, "new", fsys); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(s.WorkDir(t, "box"), "new/x/1")); err != nil || string(b) != "one" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := sb.WriteFile(ctx, "new", nil, 0o600); client.CodeOf(err) != skerry.CodeBadRequest {
		t.Errorf("error %v", err)
	}
}

func TestUploadAfterStopIsRepeatedWhole(t *testing.T) {
	s, sb := sandbox(t)
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sb.WriteFile(t.Context(), "f", []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(s.WorkDir(t, "box"), "f")); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
}

// kinds records the content types of uploads.
type kinds struct {
	http.RoundTripper
	seen []string
}

func (k *kinds) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.URL.Path, "/fs/write") {
		k.seen = append(k.seen, req.Header.Get("Content-Type"))
	}
	return k.RoundTripper.RoundTrip(req)
}

func TestUploadsAreCompressedUnlessTheServerIsLocal(t *testing.T) {
	s := servertest.New(t)
	server := strings.TrimPrefix(s.URL, "http://")
	for url, kind := range map[string]string{s.URL: "application/x-tar", "http://skerry.example": "application/gzip"} {
		k := &kinds{RoundTripper: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}}}
		c, err := client.New(client.Options{URL: url, Token: s.Token, HTTPClient: &http.Client{Transport: k}})
		must(t, err)
		t.Cleanup(c.Close)
		sb, err := c.CreateSandbox(t.Context(), client.CreateOptions{})
		must(t, err)
		content := []byte(strings.Repeat("some text\n", 100_000))
		must(t, sb.WriteFile(t.Context(), "f", content, 0o644))
		if got, err := sb.ReadFile(t.Context(), "f"); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes came back, %v", url, len(got), err)
		}
		if !slices.Equal(k.seen, []string{kind}) {
			t.Errorf("%s: uploads were of types %q, want %s", url, k.seen, kind)
		}
	}
}

func TestCopy(t *testing.T) {
	s, sb := sandbox(t)
	ctx := t.Context()
	local := t.TempDir()
	src := filepath.Join(local, "src")
	must(t, os.MkdirAll(filepath.Join(src, "deep", "empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "deep", "run.sh"), []byte("#!/bin/sh\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "data"), []byte{0, 1, 255}, 0o640))
	must(t, os.Symlink("deep/run.sh", filepath.Join(src, "link")))

	done, err := sb.CopyTo(ctx, src, "app")
	if err != nil || done.Path != "/vercel/sandbox/app" {
		t.Fatalf("%+v, %v", done, err)
	}
	if done, err = sb.CopyTo(ctx, filepath.Join(src, "data"), "app"); err != nil || done.Path != "/vercel/sandbox/app/data" {
		t.Fatalf("into a directory: %+v, %v", done, err)
	}
	must(t, os.Symlink("/etc/passwd", filepath.Join(s.WorkDir(t, "box"), "app", "evil")))
	back := filepath.Join(local, "back")
	done, err = sb.CopyFrom(ctx, "app", back)
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Skipped) != 1 || done.Skipped[0] != "app/evil (a symbolic link that leads out of the directory: /etc/passwd)" {
		t.Errorf("skipped %q", done.Skipped)
	}
	if b, err := os.ReadFile(filepath.Join(back, "data")); err != nil || string(b) != "\x00\x01\xff" {
		t.Errorf("data %q, %v", b, err)
	}
	if target, err := os.Readlink(filepath.Join(back, "link")); err != nil || target != "deep/run.sh" {
		t.Errorf("link to %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(back, "link")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(back, "deep", "empty")); err != nil || !info.IsDir() {
		t.Errorf("the empty directory: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.WorkDir(t, "box"), "../../tmp/*")); len(left) != 0 {
		t.Errorf("left in the sandbox: %q", left)
	}
	if done, err = sb.CopyFrom(ctx, "app/deep/run.sh", local+"/"); err != nil || done.Path != filepath.Join(local, "run.sh") {
		t.Fatalf("a file: %+v, %v", done, err)
	}
	if info, err := os.Stat(done.Path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", info, err)
	}
	if _, err = sb.CopyFrom(ctx, "none", local); !client.IsNotFound(err) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err = sb.CopyTo(ctx, filepath.Join(local, "none"), "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing local file: %v", err)
	}
}

// A copy between sandboxes is followed by nobody on this machine, so every kind
// of link and pipes stay as they are.
func TestCopyBetween(t *testing.T) {
	s, from := sandbox(t)
	ctx := t.Context()
	s.Add(t, "other")
	to, err := connect(t, s, client.Options{}).GetSandbox(ctx, "other", client.GetOptions{})
	must(t, err)
	_, err = from.Command(ctx, "sh", "-c", `mkdir -p d/sub && echo data >d/sub/f && chmod 750 d/sub/f && ln d/sub/f d/hard && mkfifo d/pipe &&
		ln -s /etc/passwd d/abs && ln -s ../../up d/up && ln -s sub/f d/in`).Output()
	must(t, err)
	done, err := from.CopyBetween(ctx, "d", to, "e")
	if want := (client.Copied{Path: "/vercel/sandbox/e", Bytes: 5}); err != nil || !reflect.DeepEqual(done, want) {
		t.Fatalf("%+v, %v; want %+v", done, err, want)
	}
	out, err := to.Command(ctx, "sh", "-c", `cd e && cat in && readlink abs up in && stat -c '%A %h' pipe hard && test hard -ef sub/f`).Output()
	if want := "data\n/etc/passwd\n../../up\nsub/f\nprw-r--r-- 1\n-rwxr-x--- 2\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	if done, err = from.CopyBetween(ctx, "d/sub/f", to, ""); err != nil || done.Path != "/vercel/sandbox/f" {
		t.Errorf("a file: %+v, %v", done, err)
	}
	if done, err = from.CopyBetween(ctx, "d", to, "e"); err != nil || done.Path != "/vercel/sandbox/e/d" {
		t.Errorf("into a directory: %+v, %v", done, err)
	}
	if _, err = from.CopyBetween(ctx, "none", to, "x"); !client.IsNotFound(err) {
		t.Errorf("a missing file: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Without a command, the terminal is for the shell that the user has.
func TestTerminalShell(t *testing.T) {
	_, sb := sandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir, empty := t.TempDir(), t.TempDir()
	for _, name := range []string{"bash", "mine", "nologin"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho $1 in "+name+"\n"), 0o755))
	}
	sh, err := exec.LookPath("sh")
	must(t, err)
	must(t, os.Symlink(sh, filepath.Join(empty, "sh")))
	must(t, os.WriteFile(filepath.Join(empty, "said"), []byte("echo said in sh"), 0o644))
	for _, test := range []struct{ shell, path, want string }{
		{filepath.Join(dir, "mine"), dir, "in mine"},
		{filepath.Join(dir, "nologin"), dir, "in bash"},
		{filepath.Join(dir, "none"), dir, "in bash"},
		{"", dir, "in bash"},
		{"", empty, "in sh"},
	} {
		term, err := sb.Terminal(ctx, client.TerminalOptions{
			Args: []string{filepath.Join(empty, "said")}, Env: map[string]string{"SHELL": test.shell, "PATH": test.path},
		})
		must(t, err)
		out, err := io.ReadAll(term)
		if err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("SHELL=%s PATH=%s: %q, %v; want %q", test.shell, test.path, out, err, test.want)
		}
		term.Close()
	}
}

func TestTerminal(t *testing.T) {
	_, sb := sandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	term, err := sb.Terminal(ctx, client.TerminalOptions{
		Args: []string{"-c", "stty size; read go; stty size; exit 7"}, Cols: 100, Rows: 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	buf := make([]byte, 1024)
	n, err := term.Read(buf)
	if err != nil || strings.TrimSpace(string(buf[:n])) != "30 100" {
		t.Fatalf("first %q, %v", buf[:n], err)
	}
	must(t, term.Resize(90, 20))
	if _, err := io.WriteString(term, "go\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(term)
	if err != nil || !strings.Contains(string(rest), "20 90") {
		t.Errorf("then %q, %v", rest, err)
	}
	if code, err := term.Wait(); code != 7 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}
