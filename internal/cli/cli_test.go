package cli

import (
	"bytes"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/clienttest"
	"github.com/skerry-dev/skerry/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what an invocation of the tool came to.
type result struct {
	code     int
	out, err string
}

// invocation is how the tool is called in a test.
type invocation struct {
	server *clienttest.Server
	env    map[string]string
	stdin  string
	tty    bool
}

// home is where the invocations of a test find their configuration.
func home(t *testing.T) string {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	return filepath.Join(dir, "skerry", "config.json")
}

func (v invocation) run(t *testing.T, argv ...string) result {
	t.Helper()
	in, err := os.CreateTemp(t.TempDir(), "stdin")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.WriteString(v.stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	if v.server != nil {
		env["SKERRY_URL"], env["SKERRY_TOKEN"] = v.server.URL, clienttest.Token
	}
	for k, value := range v.env {
		env[k] = value
	}
	var out, errs bytes.Buffer
	code := Main(Env{
		Args: argv, In: in, Out: &out, Err: &errs, Version: "test", OutTTY: v.tty, ErrTTY: v.tty,
		Getenv: func(k string) string { return env[k] },
		Now:    func() time.Time { return clienttest.Epoch.Add(4 * time.Minute) },
	})
	return result{code, out.String(), errs.String()}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not as in the golden file (-update writes it anew)\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

// workDir is where a sandbox of the stand-in works.
var workDir = regexp.MustCompile(`"cwd": "[^"]*"`)

// populated returns a server with sandboxes of every kind.
func populated(t *testing.T) *clienttest.Server {
	s := clienttest.New(t)
	s.Add("first", skerry.StatusRunning).Tags = map[string]string{"team": "web", "stage": "test"}
	s.Add("second", skerry.StatusStopped).TotalActiveCPU = skerry.Duration(2500 * time.Millisecond)
	evil := s.Add("evil\x1b[2J", skerry.StatusFailed)
	evil.Image = "registry.example.com/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	evil.TotalEgressBytes, evil.TotalIngressBytes = 1536, 3<<30
	return s
}

func TestGolden(t *testing.T) {
	home(t)
	s := populated(t)
	for _, test := range []struct {
		name string
		tty  bool
		env  map[string]string
		argv []string
	}{
		{"list-table", true, nil, []string{"ls", "--all"}},
		{"list-table-no-color", true, map[string]string{"NO_COLOR": "1"}, []string{"list", "-a"}},
		{"list-lines", false, nil, []string{"ls", "--all"}},
		{"list-running", false, nil, []string{"ls"}},
		{"list-page", false, nil, []string{"ls", "-a", "--limit", "2"}},
		{"list-json", false, nil, []string{"ls", "--name-prefix", "f", "--json"}},
		{"list-none", false, nil, []string{"ls", "--name-prefix", "zzz", "--json"}},
		{"sessions-table", true, nil, []string{"sessions", "ls", "first", "--all"}},
		{"sessions-json", false, nil, []string{"sessions", "list", "first", "--json"}},
		{"config-list", true, nil, []string{"config", "list", "first"}},
		{"config-json", false, nil, []string{"config", "list", "first", "--json"}},
		{"config-tags", false, nil, []string{"config", "tags", "first", "-t", "a=b"}},
		{"config-tags-none", false, nil, []string{"config", "tags", "first"}},
		{"config-timeout", false, nil, []string{"config", "timeout", "first", "1h"}},
		{"config-bad", false, nil, []string{"config", "vcpus", "first", "many"}},
		{"stop", false, nil, []string{"stop", "first", "second", "none", "first"}},
		{"not-found", false, nil, []string{"stop", "none"}},
		{"pause-not-found", false, nil, []string{"pause", "none"}},
		{"create-taken", false, nil, []string{"create", "--name", "first"}},
		{"create-not-implemented", false, nil, []string{"create", "-p", "3000"}},
		{"create-persistent", false, nil, []string{"create", "--persistent"}},
		{"create-json", false, nil, []string{"create", "--name", "new", "--json", "--silent"}},
		{"usage-unknown-flag", false, nil, []string{"ls", "--nonsense"}},
		{"usage-unknown-command", false, nil, []string{"lost"}},
		{"usage-sh", false, nil, []string{"sh", "claude", "--yes"}},
		{"usage-run-tag", false, nil, []string{"run", "-t", "-i", "bash"}},
		{"usage-no-terminal", false, nil, []string{"connect", "first"}},
		{"usage-exclusive", false, nil, []string{"create", "--runtime", "node22", "--image", "x"}},
		{"usage-missing", false, nil, []string{"cp", "x"}},
		{"usage-missing-all", false, nil, []string{"exec"}},
		{"usage-missing-command", false, nil, []string{"exec", "first"}},
		{"usage-too-many", false, nil, []string{"create", "web"}},
		{"usage-unknown-subcommand", false, nil, []string{"config", "time", "first", "1h"}},
		{"usage-url", false, map[string]string{"SKERRY_URL": "server:7700"}, []string{"ls"}},
		{"list-nothing", true, nil, []string{"ls", "--name-prefix", "zzz"}},
		{"list-nothing-all", true, nil, []string{"ls", "--all", "--name-prefix", "zzz"}},
		{"remove", false, nil, []string{"rm", "first", "none"}},
	} {
		got := invocation{server: s, tty: test.tty, env: test.env}.run(t, test.argv...)
		text := "exit code " + strconv.Itoa(got.code) + "\n--- stdout\n" + got.out + "--- stderr\n" + got.err
		golden(t, test.name, workDir.ReplaceAllString(text, `"cwd": "/vercel/sandbox"`))
	}
}

// What the server says of a field is said of the flag that the user knows.
func TestRefusals(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	var body string
	var status int
	s.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
	refusal := func(code, field, message string) string {
		if field == "" {
			return `{"error":{"code":"` + code + `","message":"` + message + `"}}`
		}
		return `{"error":{"code":"` + code + `","field":"` + field + `","message":"` + field + ": " + message + `"}}`
	}
	for _, test := range []struct {
		status     int
		body, want string
		argv       string
	}{
		{400, refusal("bad_request", "resources.vcpus", "must be a power of two"), "--vcpus: must be a power of two\n", "create --vcpus 3"},
		{400, refusal("bad_request", "resources.vcpus", "must be a power of two"), "vcpus: must be a power of two\n", "config vcpus x 3"},
		{501, refusal("not_implemented", "ports", "publishing ports is not supported"), "--publish-port: publishing ports is not supported\n", "create -p 3000"},
		{404, refusal("not_found", "image", "there is no such image"), "--image: there is no such image\n", "create --image x"},
		{409, refusal("conflict", "name", "is taken"), "--name: is taken\nHint: choose another", "create --name x"},
		{403, refusal("forbidden", "slug", "no access to it"), "--scope: no access to it\nHint: leave --scope and --project out", "ls --scope x"},
		{401, refusal("unauthorized", "", "not valid"), "not valid\nHint: log in", "ls"},
	} {
		status, body = test.status, test.body
		if got := (invocation{server: s}).run(t, strings.Fields(test.argv)...); !strings.HasPrefix(got.err, "Error: "+test.want) {
			t.Errorf("%s: %q, want %q", test.argv, got.err, test.want)
		}
	}
	status, body = 401, refusal("unauthorized", "", "not valid")
	got := invocation{env: map[string]string{"SKERRY_URL": s.URL}}.run(t, "ls")
	if !strings.Contains(got.err, "you are not logged in") || !strings.Contains(got.err, "sandbox login") {
		t.Errorf("without a token: %q", got.err)
	}
}

// Bash completes without the package bash-completion, whose functions are not
// there in a shell that reads no start-up files.
func TestBashCompletion(t *testing.T) {
	home(t)
	script := invocation{}.run(t, "completion", "bash").out
	if strings.Count(script, needsPackage) != 1 || !strings.Contains(script, withoutPackage) {
		t.Fatal("cobra's script is not as it was: see needsPackage")
	}
	cmd := exec.Command("bash", "--noprofile", "--norc", "-c", script+`
COMP_LINE="sandbox exec --env=A de" COMP_POINT=${#COMP_LINE}
__sandbox_init_completion -n =:
printf '%s|' "${words[@]}" "$cword" "$cur" "$prev"`)
	out, err := cmd.CombinedOutput()
	if want := "sandbox|exec|--env=A|de|3|de|--env=A|"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	home(t)
	for _, name := range []string{"", "create", "run", "exec", "sh", "connect", "list", "stop", "remove", "copy", "pause", "resume", "sessions list", "logs", "snapshot", "snapshots", "snapshots list", "snapshots get", "snapshots delete", "snapshots tree", "fork", "config", "login", "logout"} {
		got := invocation{}.run(t, append(strings.Fields(name), "--help")...)
		if got.code != 0 || got.err != "" || !strings.Contains(got.out, "Examples:") {
			t.Errorf("%q --help: %+v", name, got)
		}
		golden(t, "help-"+strings.ReplaceAll("sandbox "+name, " ", "-"), got.out)
	}
}

func TestNoServer(t *testing.T) {
	home(t)
	got := invocation{env: map[string]string{"SKERRY_URL": "http://127.0.0.1:1"}}.run(t, "ls")
	if got.code != exitFailure || !strings.Contains(got.err, "no server answers at http://127.0.0.1:1") || !strings.Contains(got.err, "is sandboxd running?") {
		t.Errorf("%+v", got)
	}
	got = invocation{env: map[string]string{"SKERRY_URL": "http://127.0.0.1:1"}}.run(t, "run", "true")
	if got.code != exitOwnFailure {
		t.Errorf("%+v", got)
	}
}

func TestCreate(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	got := invocation{server: s}.run(t, "create", "--name", "x", "--timeout", "5 minutes", "--non-persistent", "-e", "A=1=2", "-e", "HOME", "-e", "UNSET", "-t", "k=v", "--vcpus=4")
	if got.code != 0 || got.out != "x\n" {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(got.err, "UNSET") || !strings.Contains(got.err, "HOME") { // the test's environment has neither
		t.Errorf("no warning: %q", got.err)
	}
	want := `{"name":"x","timeout":300000,"resources":{"vcpus":4},"env":{"A":"1=2"},"tags":{"k":"v"},"persistent":false}`
	if body := s.LastBody("POST /v3/sandboxes"); body != want {
		t.Errorf("body %s, want %s", body, want)
	}
	invocation{server: s}.run(t, "create", "--runtime", "node22", "--network-policy", "deny-all", "--mount", "d:/data:snapshot", "-s", "snap_1",
		"--snapshot-expiration", "none", "--keep-last-snapshots", "3", "--keep-last-snapshots-for", "7d", "--delete-evicted-snapshots", "false")
	want = `{"runtime":"node22","source":{"type":"snapshot","snapshotId":"snap_1"},"networkPolicy":{"mode":"deny-all"},` +
		`"mounts":{"/data":{"drive":"d","mode":"snapshot"}},"snapshotExpiration":0,"keepLastSnapshots":{"count":3,"expiration":604800000,"deleteEvicted":false}}`
	if body := s.LastBody("POST /v2/sandboxes"); body != want {
		t.Errorf("body %s, want %s", body, want)
	}
	if got := (invocation{server: s}).run(t, "create", "--silent"); got != (result{}) {
		t.Errorf("%+v", got)
	}
}

func TestRunAndExec(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	v := invocation{server: s}
	got := v.run(t, "run", "--rm", "--silent", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
	if got != (result{42, "out\n", "err\n"}) {
		t.Errorf("run: %+v", got)
	}
	if n := len(s.Requests("DELETE")); n != 1 {
		t.Errorf("--rm made %d calls", n)
	}
	if body := s.LastBody("POST /v3/sandboxes"); body != `{"persistent":false}` {
		t.Errorf("body %s", body)
	}
	got = v.run(t, "run", "--name", "n", "--stop", "-e", "X=y", "sh", "-c", "echo $X -e")
	if got.code != 0 || got.out != "y -e\n" || len(s.Requests("POST /v2/sandboxes/sessions/")) < 3 {
		t.Errorf("run --stop: %+v", got)
	}
	if strings.Contains(s.LastBody("POST /v3/sandboxes"), "persistent") {
		t.Error("run asks for what is kept or not without being told to")
	}
	got = v.run(t, "run", "--name", "n", "true")
	if got.code != 0 || len(s.Requests("POST /v3/sandboxes")) != 2 {
		t.Errorf("run in an existing sandbox: %+v", got)
	}
	got = v.run(t, "exec", "n", "--env", "X=1", "-w", "/", "--", "sh", "-c", `echo $X $(pwd) "$@"`, "sh", "--", "-w")
	if got != (result{0, "1 / -- -w\n", ""}) {
		t.Errorf("exec: %+v", got)
	}
	if got = v.run(t, "exec", "n", "no-such-program"); got.code != 127 {
		t.Errorf("exec: %+v", got)
	}
	got = v.run(t, "exec", "--timeout", "10ms", "n", "sleep", "60")
	if got.code != 137 {
		t.Errorf("exec --timeout: %+v", got)
	}
	if got = v.run(t, "exec", "n"); got.code != exitOwnFailure || !strings.Contains(got.err, "COMMAND is missing") {
		t.Errorf("exec: %+v", got)
	}
	if got = v.run(t, "exec", "none", "true"); got.code != exitOwnFailure || !strings.Contains(got.err, "sandbox list --all") {
		t.Errorf("exec: %+v", got)
	}
	if got = v.run(t, "run", "--rm", "--stop", "true"); got.code != exitOwnFailure {
		t.Errorf("run: %+v", got)
	}
	if got = v.run(t, "exec", "n", "--help"); got.code != 0 || !strings.Contains(got.out, "Usage:") {
		t.Errorf("exec n --help: %+v", got)
	}
}

func TestCopy(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	s.Add("one", skerry.StatusStopped)
	s.Add("two", skerry.StatusRunning)
	v := invocation{server: s}
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("a:b", []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := v.run(t, "cp", "./a:b", "one:x"); got.code != 0 || got.out != "" || !strings.Contains(got.err, "Copied") {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "cp", "one:x", "two:y"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "copy", "two:y", "."); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if b, err := os.ReadFile("y"); err != nil || string(b) != "data" {
		t.Errorf("read %q, %v", b, err)
	}
	for _, argv := range [][]string{{"a", "b"}, {"one:", "b"}, {":x", "b"}, {"", "one:x"}} {
		if got := v.run(t, append([]string{"cp"}, argv...)...); got.code != exitUsage {
			t.Errorf("cp %q: %+v", argv, got)
		}
	}
	if got := v.run(t, "cp", "one:none", "b"); got.code != exitFailure || !strings.Contains(got.err, "there is no file none in the sandbox one") {
		t.Errorf("%+v", got)
	}
	if got := v.run(t, "cp", "none", "one:b"); got.code != exitFailure {
		t.Errorf("%+v", got)
	}
}

func TestLoginAndLogout(t *testing.T) {
	path := home(t)
	s := clienttest.New(t)
	v := invocation{}
	if got := v.run(t, "login", "--url", s.URL, "--token", "wrong"); got.code != exitFailure || strings.Contains(got.err, "wrong") {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a token that is not accepted was stored")
	}
	if got := v.run(t, "login"); got.code != exitUsage {
		t.Errorf("without a token: %+v", got)
	}
	v.stdin = clienttest.Token + "\n"
	got := v.run(t, "login", "--url", s.URL, "--project", "web")
	if got.code != 0 || strings.Contains(got.err+got.out, clienttest.Token) {
		t.Errorf("%+v", got)
	}
	c, err := config.Load(path)
	if want := (config.Config{URL: s.URL, Token: clienttest.Token, Project: "web"}); err != nil || c != want {
		t.Errorf("stored %+v, %v", c, err)
	}
	v = invocation{}
	if got := v.run(t, "ls"); got.code != 0 || len(s.Requests("GET /v2/sandboxes?limit=50&project=web")) != 1 {
		t.Errorf("%+v, requests %q", got, s.Requests(""))
	}
	for range 2 {
		if got := v.run(t, "logout"); got.code != 0 {
			t.Errorf("%+v", got)
		}
	}
	if c, err := config.Load(path); err != nil || c != (config.Config{URL: s.URL}) {
		t.Errorf("left %+v, %v", c, err)
	}
	if got := v.run(t, "ls"); got.code != exitFailure || !strings.Contains(got.err, "sandbox login") {
		t.Errorf("%+v", got)
	}
}

func TestScopePrecedence(t *testing.T) {
	path := home(t)
	// {"owner_id":"team_oidc","project_id":"prj_oidc"}
	const oidc = "e30.eyJvd25lcl9pZCI6InRlYW1fb2lkYyIsInByb2plY3RfaWQiOiJwcmpfb2lkYyJ9.sig"
	for _, test := range []struct {
		name  string
		file  config.Config
		env   map[string]string
		flags scopeFlags
		want  config.Config
	}{
		{"flags first", config.Config{URL: "a", Token: "b", Team: "c", Project: "d"},
			map[string]string{"SKERRY_TOKEN": "e", "SKERRY_PROJECT": "f"},
			scopeFlags{url: "g", token: "h", scope: "i", team: "x"}, config.Config{URL: "g", Token: "h", Team: "i", Project: "f"}},
		{"the file's team goes with its token", config.Config{URL: "a", Token: "b", Team: "c", Project: "d"}, map[string]string{"SKERRY_TEAM": "e"},
			scopeFlags{token: "h"}, config.Config{URL: "a", Token: "h", Team: "e"}},
		{"the file's own token as a flag", config.Config{Token: "b", Team: "c", Project: "d"}, nil,
			scopeFlags{token: "b"}, config.Config{Token: "b", Team: "c", Project: "d"}},
		{"our file before their token", config.Config{Token: "b"}, map[string]string{"VERCEL_AUTH_TOKEN": "v"},
			scopeFlags{team: "t"}, config.Config{Token: "b", Team: "t"}},
		{"their tokens in turn", config.Config{}, map[string]string{"VERCEL_AUTH_TOKEN": "v", "VERCEL_OIDC_TOKEN": oidc},
			scopeFlags{}, config.Config{Token: "v"}},
		{"what an OIDC token names", config.Config{}, map[string]string{"VERCEL_OIDC_TOKEN": oidc},
			scopeFlags{project: "p"}, config.Config{Token: oidc, Team: "team_oidc", Project: "p"}},
	} {
		if err := test.file.Save(path); err != nil {
			t.Fatal(err)
		}
		a := &app{Env: Env{Getenv: func(k string) string { return test.env[k] }}, flags: test.flags}
		o, err := a.options()
		if got := (config.Config{URL: o.URL, Token: o.Token, Team: o.Team, Project: o.Project}); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.name, got, err, test.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	home(t)
	v := invocation{server: populated(t)}
	got := v.run(t, "__complete", "exec", "f")
	if got.code != 0 || !strings.HasPrefix(got.out, "first\n:") {
		t.Errorf("%+v", got)
	}
	if got = v.run(t, "__complete", "rm", "first", ""); strings.Contains(got.out, "first\n") || !strings.Contains(got.out, "second\n") {
		t.Errorf("%+v", got)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := v.run(t, "completion", shell); got.code != 0 || len(got.out) < 1000 {
			t.Errorf("completion %s: exit code %d, %d bytes", shell, got.code, len(got.out))
		}
	}
}

func TestCompletionIsBounded(t *testing.T) {
	home(t)
	s := clienttest.New(t)
	s.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	}
	begin := time.Now()
	got := invocation{server: s}.run(t, "__complete", "exec", "")
	if took := time.Since(begin); got.code != 0 || took > 5*completeWait {
		t.Errorf("%+v after %s", got, took)
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "5 minutes": 5 * time.Minute, "5m": 5 * time.Minute, "2 hours": 2 * time.Hour, "1d": 24 * time.Hour,
		"1500": 1500 * time.Millisecond, "20ms": 20 * time.Millisecond, "1h30m": 90 * time.Minute,
	} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "soon", "-5m", "5 weeks", "99999999999999999999s", "300000000d"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("%q: %s", s, got)
		}
	}
}

func TestAbout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 seconds", time.Second: "1 second", 59400 * time.Millisecond: "59 seconds", 59900 * time.Millisecond: "1 minute",
		89 * time.Second: "1 minute", 59*time.Minute + 40*time.Second: "1 hour", 47 * time.Hour: "2 days", 45 * 24 * time.Hour: "2 months",
		800 * 24 * time.Hour: "2 years",
	} {
		if got := about(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		350 * time.Millisecond: "350ms", 4200 * time.Millisecond: "4.2s", 5 * time.Minute: "5m", time.Hour: "1h", 90 * time.Minute: "1h30m", 61 * time.Second: "1m1s",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}
