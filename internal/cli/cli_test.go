package cli

import (
	"bytes"
	"context"
	"errors"
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

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/config"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
	"github.com/skerry-dev/skerry/internal/nodeapi/processnode"
	"github.com/skerry-dev/skerry/internal/servertest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what an invocation of the tool came to.
type result struct {
	code     int
	out, err string
}

// invocation is how the tool is called in a test.
type invocation struct {
	server *servertest.Server
	env    map[string]string
	stdin  string
	tty    bool
	width  int       // of the terminal
	out    io.Writer // in place of what the result has
}

// home is where the invocations of a test find their configuration.
func home(t *testing.T) string {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	return filepath.Join(dir, "skerry", "config.json")
}

// spinning is what the spinner draws if something takes longer.
var spinning = regexp.MustCompile(`\r[^\r\n]*?\x1b\[K`)

// later is how long after the start of its server the tool seems to be called. The
// time that a test takes does not change what is "2 hours ago".
const later = 2 * time.Hour

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
	env, now := map[string]string{}, servertest.Epoch
	if v.server != nil {
		now = v.server.Started.Add(later)
		env["SKERRY_URL"], env["SKERRY_TOKEN"] = v.server.URL, v.server.Token
	}
	for k, value := range v.env {
		env[k] = value
	}
	var out, errs bytes.Buffer
	stdout := io.Writer(&out)
	if v.out != nil {
		stdout = v.out
	}
	code := Main(Env{
		Args: argv, In: in, Out: stdout, Err: &errs, Version: "test", OutTTY: v.tty, ErrTTY: v.tty, OutWidth: v.width,
		Getenv: func(k string) string { return env[k] },
		Now:    func() time.Time { return now },
	})
	return result{code, out.String(), spinning.ReplaceAllString(errs.String(), "")}
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

// populated returns a server with sandboxes of every kind.
func populated(t *testing.T) *servertest.Server {
	s := servertest.New(t)
	s.Create(t, skerry.CreateParams{
		Name: "first", Tags: map[string]string{"team": "web", "stage": "test"}, Timeout: skerry.Duration(2 * later), Persistent: new(bool),
	})
	s.AddStopped(t, "second")
	s.Edit(t, "second", func(sb *skerry.Sandbox, _ *skerry.Session) {
		sb.TotalActiveCPU, sb.TotalEgressBytes, sb.TotalIngressBytes = skerry.Duration(2500*time.Millisecond), 0, 0
	})
	s.Stop(t, s.Create(t, skerry.CreateParams{Name: "broken"}).Session.ID)
	s.Node.On(processnode.Start, func(context.Context, string) error { return errors.New("the machine does not start") })
	if _, err := s.GetSandbox(t.Context(), controllertest.Scope, "broken", true); err == nil {
		t.Fatal("the sandbox starts")
	}
	s.Node.On(processnode.Start, nil)
	s.Edit(t, "broken", func(sb *skerry.Sandbox, _ *skerry.Session) {
		sb.Image = "registry.example.com/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
		sb.TotalActiveCPU, sb.TotalEgressBytes, sb.TotalIngressBytes = 0, 1536, 3<<30
	})
	return s
}

// What a sandbox is called does not move the cursor of a terminal. A server refuses
// such names today, and may have them from before.
func TestHostileNames(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		io.WriteString(w, `{"sandboxes":[{"name":"evil\u001b[2J\u202e","status":"running","runtime":"\u001b]0;x","tags":{"\u0007":"\u009b"}}],"pagination":{"count":1}}`)
		return true
	}
	for _, tty := range []bool{false, true} {
		got := invocation{server: s, tty: tty, env: map[string]string{"NO_COLOR": "1"}}.run(t, "ls", "--all")
		if got.code != 0 || !strings.Contains(got.out, "evil\uFFFD[2J") || strings.ContainsAny(got.out, "\x1b\a\u009b\u202e") {
			t.Errorf("%+v", got)
		}
	}
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
		{"config-tags-show", true, nil, []string{"config", "tags", "first"}},
		{"config-tags-none", false, nil, []string{"config", "tags", "first", "--none"}},
		{"config-timeout", false, nil, []string{"config", "timeout", "first", "1h"}},
		{"config-bad", false, nil, []string{"config", "vcpus", "first", "many"}},
		{"stop", false, nil, []string{"stop", "first", "second", "none", "first"}},
		{"not-found", false, nil, []string{"stop", "none"}},
		{"stop-stopped", false, nil, []string{"stop", "--force", "second"}},
		{"pause-stopped", false, nil, []string{"pause", "second"}},
		{"help-unknown", false, nil, []string{"help", "nosuch"}},
		{"help-unknown-subcommand", false, nil, []string{"help", "config", "nosuch"}},
		{"help-subcommand", false, nil, []string{"help", "config", "tags"}},
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
		golden(t, test.name, s.Mask(t, text))
	}
}

// A list that is not given is shown and stays; it takes --none to remove it.
func TestConfigShowsWithoutFlags(t *testing.T) {
	home(t)
	s := servertest.New(t, func(c *controller.Config) { c.Ingress = servertest.Ports{} })
	v := invocation{server: s}
	for _, argv := range []string{
		"drives create data", "drives create cache",
		"create --name box --non-persistent -t team=web -t stage=test -p 3000 --private-port 8080 --mount data:/data:snapshot --mount cache:/cache " +
			"--allowed-domain a.example --allowed-domain *.b.example --allowed-cidr 192.0.2.0/24 --denied-cidr 192.0.2.1/32 --denied-cidr 198.51.100.0/24",
	} {
		if got := v.run(t, strings.Fields(argv)...); got.code != 0 {
			t.Fatalf("%s: %+v", argv, got)
		}
	}
	s.AddStopped(t, "bare")
	golden(t, "config-lists", invocation{server: s, tty: true, env: map[string]string{"NO_COLOR": "1"}}.run(t, "config", "list", "box").out)
	for _, test := range []struct{ what, shown, nothing, flags string }{
		{"tags", "TAG\tVALUE\nstage\ttest\nteam\tweb\n", "bare has no tags.\n", "--tag a=b"},
		{"ports", "PORT\tACCESS\tURL\n3000\tpublic\thttps://3000.example\n8080\tprivate\thttps://8080.example\n",
			"bare has no published ports.\n", "--private-port 1"},
		{"mounts", "PATH\tDRIVE\tMODE\n/cache\tcache\tread-write\n/data\tdata\tsnapshot\n", "bare has no mounts.\n", "--mount a:/b"},
	} {
		if got := v.run(t, "config", test.what, "box"); got != (result{0, test.shown, ""}) {
			t.Errorf("config %s box: %+v", test.what, got)
		}
		if got := (invocation{server: s, tty: true}).run(t, "config", test.what, "bare"); got != (result{0, "", test.nothing}) {
			t.Errorf("config %s bare: %+v", test.what, got)
		}
		got := v.run(t, append([]string{"config", test.what, "box", "--none"}, strings.Fields(test.flags)...)...)
		if got.code != exitUsage || !strings.Contains(got.err, "--none cannot be combined with --") {
			t.Errorf("config %s box --none %s: %+v", test.what, test.flags, got)
		}
		if n := len(s.Requests("PATCH")); n != 0 {
			t.Fatalf("config %s changed the sandbox", test.what)
		}
	}
	for _, test := range []struct{ what, said, body string }{
		{"tags", "no tags", `{"tags":{}}`},
		{"ports", "no published ports", `{"ports":[],"privatePorts":[]}`},
		{"mounts", "no mounts", `{"mounts":{}}`},
	} {
		got := v.run(t, "config", test.what, "box", "--none")
		if body := s.LastBody("PATCH"); got.code != 0 || !strings.Contains(got.err, "Updated box: "+test.said+"\n") || body != test.body {
			t.Errorf("config %s box --none: %+v, body %s", test.what, got, body)
		}
	}
}

// A policy that lists only what it denies allows nothing, which is said.
func TestDenyingPolicyHints(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.AddStopped(t, "source")
	for _, command := range []string{"create", "fork source", "config network-policy source", "run true"} {
		for flags, hint := range map[string]bool{
			"--denied-cidr 198.51.100.0/24":                             true,
			"--denied-cidr 198.51.100.0/24 --allowed-domain *":          false,
			"--denied-cidr 198.51.100.0/24 --allowed-cidr 192.0.2.0/24": false,
			"--network-policy deny-all":                                 false,
		} {
			argv := append(strings.Fields(command), strings.Fields(flags)...)
			if command == "run true" {
				argv = append(append([]string{"run"}, strings.Fields(flags)...), "true")
			}
			got := invocation{server: s}.run(t, argv...)
			if got.code != 0 || strings.Contains(got.err, "Hint: this policy denies everything") != hint {
				t.Errorf("%q: %+v", argv, got)
			}
		}
	}
}

// A flag's text is read alone: the flags are sorted, so none can refer to the one
// that was registered before it.
func TestFlagTextsStandAlone(t *testing.T) {
	refers := regexp.MustCompile(`(?i)\bthe same,|\bthe same if|\bthose are|\bthe others\b|\bthat key\b`)
	root := (&app{Env: Env{Getenv: os.Getenv}}).root()
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if refers.MatchString(f.Usage) {
				t.Errorf("%s --%s: %s", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
		for _, sub := range cmd.Commands() {
			look(sub)
		}
	}
	look(root)
}

// A command is shown as it would be typed into a shell.
func TestQuoted(t *testing.T) {
	for want, argv := range map[string][]string{
		`sh -c 'echo a; sleep 1'`:       {"sh", "-c", "echo a; sleep 1"},
		`echo '' 'it'\''s' '$HOME' '~'`: {"echo", "", "it's", "$HOME", "~"},
		`ls -la --x=1 ./a_b/c.d`:        {"ls", "-la", "--x=1", "./a_b/c.d"},
	} {
		if got := quoted(argv); got != want {
			t.Errorf("%q: %s, want %s", argv, got, want)
		}
		out, err := exec.Command("sh", "-c", `printf '%s\0' `+want).Output()
		if err != nil || string(out) != strings.Join(argv, "\x00")+"\x00" {
			t.Errorf("a shell reads %s as %q, %v", want, out, err)
		}
	}
}

// What a listing and a stop say beyond a sandbox's status.
func TestPausedAndUnsaved(t *testing.T) {
	home(t)
	s := servertest.New(t)
	if _, err := s.PauseSession(t.Context(), controllertest.Scope, s.Add(t, "paused").Session.ID); err != nil {
		t.Fatal(err)
	}
	s.Create(t, skerry.CreateParams{Name: "forced"})
	s.Stop(t, s.Create(t, skerry.CreateParams{Name: "stopped"}).Session.ID)
	v := invocation{server: s}
	if got := v.run(t, "ls"); !strings.Contains(got.out, "paused\tpaused\t") || !strings.Contains(got.out, "forced\trunning\t") {
		t.Errorf("ls: %q", got.out)
	}
	got := v.run(t, "stop", "--force", "forced", "stopped")
	if strings.Count(got.err, "its changes were not saved") != 1 || !strings.Contains(got.err, "Stopped forced (its changes were not saved") {
		t.Errorf("stop --force: %q", got.err)
	}
}

// TestIdle: a sandbox that the server has paused because nobody uses it is listed as
// idle, and its mode can be set.
func TestIdle(t *testing.T) {
	home(t)
	s := servertest.New(t)
	v := invocation{server: s}
	v.run(t, "create", "--name", "one", "--idle", "pause")
	run, err := s.GetSandbox(t.Context(), controllertest.Scope, "one", false)
	if err != nil || run.Sandbox.Idle != skerry.IdlePause {
		t.Fatalf("created %+v, %v", run, err)
	}
	s.Node.Sleep(run.Session.ID, skerry.IdlePaused)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(v.run(t, "ls").out, "one\tidle\t"); {
		if time.Now().After(deadline) {
			t.Fatalf("ls: %q", v.run(t, "ls").out)
		}
	}
	if got := v.run(t, "sessions", "list", "one"); !strings.Contains(got.out, "\tidle\t") {
		t.Errorf("sessions: %+v", got)
	}
	s.Node.Sleep(run.Session.ID, skerry.IdleHibernated)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(v.run(t, "ls").out, "one\thibernated\t"); {
		if time.Now().After(deadline) {
			t.Fatalf("ls: %q", v.run(t, "ls").out)
		}
	}
	if got := v.run(t, "config", "idle", "one", "never"); got.code != 0 {
		t.Errorf("config idle: %+v", got)
	}
	if got := v.run(t, "config", "list", "one"); !strings.Contains(got.out, "never") {
		t.Errorf("config list: %q", got.out)
	}
	if got := v.run(t, "config", "idle", "one", "often"); got.code != 2 || !strings.Contains(got.err, "default, never, pause, hibernate") {
		t.Errorf("a mode that is none: %+v", got)
	}
	if got := v.run(t, "fork", "one", "--name", "two", "--idle", "default"); got.code != 0 {
		t.Errorf("fork: %+v", got)
	}
	if run, err = s.GetSandbox(t.Context(), controllertest.Scope, "two", false); err != nil || run.Sandbox.Idle != skerry.IdleDefault {
		t.Errorf("the fork is %+v, %v", run, err)
	}
}

// What the server says of a field is said of the flag that the user knows.
func TestRefusals(t *testing.T) {
	home(t)
	s := servertest.New(t)
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
	about := func(resource, refusal string) string {
		return strings.Replace(refusal, `{"code"`, `{"resource":"`+resource+`","code"`, 1)
	}
	for _, test := range []struct {
		status     int
		body, want string
		argv       string
	}{
		// What to do depends on what the error is about, never on its words.
		{404, about("drive", refusal("not_found", "", "gone")), "gone\nHint: 'sandbox drives list'", "drives get d"},
		{404, about("drive", refusal("not_found", "", "gone")), "gone\nHint: 'sandbox drives list'", "exec x true"},
		{404, about("sandbox", refusal("not_found", "", "gone")), "gone\nHint: 'sandbox list --all'", "exec x true"},
		{404, about("snapshot", refusal("not_found", "", "gone")), "gone\nHint: 'sandbox snapshots list'", "snapshots get snap_1"},
		{404, refusal("not_found", "", "gone"), "gone\nHint: 'sandbox list --all'", "exec x true"},
		{404, refusal("not_found", "", "gone"), "gone\nHint: 'sandbox drives list'", "drives get d"},
		{409, about("drive", refusal("conflict", "", "busy")), "busy\nHint: stop that sandbox first", "drives rm d"},
		{409, about("drive", refusal("conflict", "", "busy")), "busy\nHint: stop that sandbox, or mount a snapshot", "create --mount d:/d"},
		{409, refusal("conflict", "", "drive of the past"), "drive of the past\n", "exec x true"},
		{409, refusal("conflict", "name", "taken"), "taken\n", "drives fork a b"},
		{400, refusal("bad_request", "resources.vcpus", "must be a power of two"), "--vcpus: must be a power of two\n", "create --vcpus 3"},
		{400, refusal("bad_request", "resources.vcpus", "must be a power of two"), "vcpus: must be a power of two\n", "config vcpus x 3"},
		{501, refusal("not_implemented", "ports", "publishing ports is not supported"), "--publish-port: publishing ports is not supported\n", "create -p 3000"},
		{404, refusal("not_found", "image", "there is no such image"), "--image: there is no such image\n", "create --image x"},
		{400, about("drive", refusal("bad_request", "mounts", "there is no drive named d")), "--mount: there is no drive named d\nHint: 'sandbox drives create' creates it; 'sandbox drives list'", "create --mount d:/d"},
		{400, about("drive", refusal("bad_request", "mounts", "there is no drive named d")), "mount: there is no drive named d\nHint: 'sandbox drives create' creates it; 'sandbox config mounts NAME", "exec x true"},
		{409, refusal("conflict", "name", "is taken"), "--name: is taken\nHint: choose another", "create --name x"},
		{403, refusal("forbidden", "", "this takes the role developer"), "this takes the role developer\nHint: an owner of the team", "ls"},
		{403, refusal("forbidden", "slug", "no access to it"), "--scope: no access to it\nHint: leave --scope and --project out", "ls --scope x"},
		{401, refusal("unauthorized", "", "not valid"), "not valid\nHint: log in", "ls"},
		{400, refusal("bad_request", "ports[1]", "must be from 1 to 65535, is 0"), "--publish-port: must be from 1 to 65535, is 0\n", "create -p 1 -p 0"},
		{400, refusal("bad_request", "ports[0]", "must be from 1 to 65535, is 0"), "--private-port: must be from 1 to 65535, is 0\n", "create --private-port 0"},
		{400, refusal("bad_request", "networkPolicy.allow.http://[x", "is bad"), "--allowed-domain: is bad\n", "create --allowed-domain http://[x"},
		{400, refusal("bad_request", "mounts./d.mode", "is bad"), "--mount: is bad\n", "create --mount d:/d:rw"},
		{400, refusal("bad_request", "networkPolicy.subnets.deny[0]", "is bad"), "--denied-cidr: is bad\n", "create --denied-cidr x"},
		{400, refusal("bad_request", "resources.memory", "must be at most 24105 MiB on this server, is 65536 MiB"),
			"--vcpus: their memory must be at most 24105 MiB on this server, is 65536 MiB\n", "create --vcpus 32"},
		{400, refusal("bad_request", "resources.memory", "must be at most 24105 MiB on this server, is 65536 MiB"),
			"vcpus: their memory must be at most 24105 MiB on this server, is 65536 MiB\n", "config vcpus x 32"},
		{400, refusal("bad_request", "memory", "needs a running sandbox"), "--memory: needs a running sandbox\n", "fork --memory x"},
		{400, refusal("bad_request", "maxSizeBytes", "must be from 16777216 to 1099511627776 bytes, is 1000"),
			"--max-size: must be from 16 MiB to 1 TiB, is 1000 bytes\n", "drives create x --max-size 1000"},
		{400, refusal("bad_request", "snapshotExpiration", "must be 0 (no expiration) or at least 60000 ms, is 5000"),
			"--snapshot-expiration: must be 0 (no expiration) or at least 1m, is 5s\n", "create --snapshot-expiration 5s"},
		{400, refusal("bad_request", "timeout", "must be at most 24h (86400000 ms), is 90000000 ms"),
			"--timeout: must be at most 24h, is 25h\n", "create --timeout 25h"},
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
	for _, name := range []string{"", "create", "run", "exec", "sh", "connect", "list", "stop", "remove", "copy", "pause", "resume", "sessions list", "logs", "snapshot", "snapshots", "snapshots list", "snapshots get", "snapshots delete", "snapshots tree", "fork", "config", "config tags", "config ports", "config mounts", "login", "logout", "whoami", "link", "env pull"} {
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
	s := servertest.New(t)
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

// An empty or zero value is not the same as none: it comes from a script whose
// variable is not set.
func TestEmptyValuesAreRefused(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.Add(t, "source")
	for _, command := range [][]string{{"create"}, {"fork", "source"}, {"run", "true"}} {
		for _, flag := range []string{"--name=", "--region=", "--failover-regions=", "--network-id=", "--vcpus=0", "--timeout=0",
			"--keep-last-snapshots=0", "--keep-last-snapshots=11"} {
			argv := append([]string{command[0], flag}, command[1:]...)
			name, _, _ := strings.Cut(flag, "=")
			if got := (invocation{server: s}).run(t, argv...); !strings.HasPrefix(got.err, "Error: "+name+" ") || !strings.Contains(got.err, "--help") {
				t.Errorf("%q: %+v", argv, got)
			}
		}
	}
	if n := len(s.Requests("POST")); n != 0 {
		t.Errorf("%d sandboxes were created", n)
	}
}

func TestRunAndExec(t *testing.T) {
	home(t)
	s := servertest.New(t)
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
	got = v.run(t, "exec", "n", "--env", "X=1", "-w", "/", "--", "sh", "-c", `echo $X $(ls -d vercel) "$@"`, "sh", "--", "-w")
	if got != (result{0, "1 vercel -- -w\n", ""}) {
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
	if got = v.run(t, "create", "--snapshot", ""); got.code == 0 || !strings.Contains(got.err, "--snapshot is empty") {
		t.Errorf("create from nothing: %+v", got)
	}
	if got = v.run(t, "run", "--rm", "--stop", "true"); got.code != exitOwnFailure {
		t.Errorf("run: %+v", got)
	}
	if got = v.run(t, "exec", "n", "--help"); got.code != 0 || !strings.Contains(got.out, "Usage:") {
		t.Errorf("exec n --help: %+v", got)
	}
}

// TestLostCommandMayRunOn: the tool says so, and kills nothing.
func TestLostCommandMayRunOn(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.Add(t, "box")
	s.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/cmd") {
			return false
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/cmd") { // and then the connection breaks
			io.WriteString(w, `{"command":{"id":"cmd_1","sessionId":"s","exitCode":null}}`+"\n")
		} else {
			io.WriteString(w, "not what was asked for\n")
		}
		return true
	}
	got := invocation{server: s}.run(t, "exec", "box", "true")
	if got.code != 125 || !strings.Contains(got.err, "sandbox attach box cmd_1") {
		t.Errorf("%+v", got)
	}
	for _, r := range s.Requests("POST") {
		if strings.Contains(r, "/kill") {
			t.Errorf("the command was killed: %s", r)
		}
	}
}

func TestCopy(t *testing.T) {
	home(t)
	s := servertest.New(t)
	s.AddStopped(t, "one")
	s.Add(t, "two")
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
	if got := v.run(t, "cp", "y", "one:"); got.code != 0 || !strings.Contains(got.err, "Copied y to one:/vercel/sandbox/y (4 B)") {
		t.Errorf("into the work folder: %+v", got)
	}
	for _, dir := range []string{s.WorkDir(t, "one"), "."} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Symlink("/etc/passwd", filepath.Join(dir, "d", "abs"))); err != nil {
			t.Fatal(err)
		}
	}
	if got := v.run(t, "cp", "./none", "one:"); got.code != 1 || got.err != "Error: there is no file ./none on this machine\n" {
		t.Errorf("a file that is not there: %+v", got)
	}
	if got := v.run(t, "cp", "one:d", "two:"); got.code != 0 || strings.Contains(got.err, "left out") {
		t.Errorf("between sandboxes: %+v", got)
	}
	if got := v.run(t, "cp", "one:d", "out"); got.code != 0 || !strings.Contains(got.err, "left out: d/abs (a symbolic link that leads out of the directory: /etc/passwd)") {
		t.Errorf("out of a sandbox: %+v", got)
	}
	for _, argv := range [][]string{{"a", "b"}, {":x", "b"}, {"", "one:x"}} {
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
	s := servertest.New(t)
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
	v.stdin = s.Token + "\n"
	got := v.run(t, "login", "--url", s.URL, "--project", "web")
	if got.code != 0 || strings.Contains(got.err+got.out, s.Token) {
		t.Errorf("%+v", got)
	}
	c, err := config.Load(path)
	if want := (config.Config{URL: s.URL, Token: s.Token, Project: "web"}); err != nil || c != want {
		t.Errorf("stored %+v, %v", c, err)
	}
	v = invocation{}
	if got := v.run(t, "ls"); got.code != 0 || len(s.Requests("GET /v2/sandboxes?limit=100&project=web")) != 1 {
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

// TestLoginChooses logs in with a token for more than one project, and one for several teams.
func TestLoginChooses(t *testing.T) {
	path := home(t)
	s := servertest.New(t)
	ctx := t.Context()
	alice, err := s.Accounts.AddMember(ctx, controllertest.Team.ID, "alice", skerry.RoleOwner)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := s.Accounts.CreateToken(ctx, skerry.TokenParams{Name: "hers", UserID: alice.User.ID, Role: skerry.RoleOwner})
	if err != nil {
		t.Fatal(err)
	}
	v := invocation{}
	if got := v.run(t, "login", "--url", s.URL, "--token", token); got.code != 0 {
		t.Fatalf("with one project: %+v", got)
	}
	if c, err := config.Load(path); err != nil || c != (config.Config{URL: s.URL, Token: token, Project: controllertest.Project.Name}) {
		t.Errorf("stored %+v, %v", c, err)
	}
	if _, err := s.Accounts.CreateProject(ctx, controllertest.Team.ID, "other"); err != nil {
		t.Fatal(err)
	}
	if got := v.run(t, "login", "--url", s.URL, "--token", token); got.code != exitUsage || !strings.Contains(got.err, "name one with --project: other, web") {
		t.Errorf("with two projects: %+v", got)
	}
	globex, err := s.Accounts.CreateTeam(ctx, "globex", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Accounts.AddMember(ctx, globex.ID, "alice", skerry.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if got := v.run(t, "login", "--url", s.URL, "--token", token); got.code != exitUsage || !strings.Contains(got.err, "name one with --scope: acme, globex") {
		t.Errorf("with two teams: %+v", got)
	}
	if got := v.run(t, "login", "--url", s.URL, "--token", token, "--scope", "globex"); got.code != exitFailure || !strings.Contains(got.err, "a team without a project") {
		t.Errorf("with a team that has none: %+v", got)
	}
	if got := v.run(t, "login", "--url", s.URL, "--token", token, "--scope", "acme", "--project", "other"); got.code != 0 {
		t.Errorf("with both: %+v", got)
	}
	if c, err := config.Load(path); err != nil || c != (config.Config{URL: s.URL, Token: token, Team: "acme", Project: "other"}) {
		t.Errorf("stored %+v, %v", c, err)
	}
	v = invocation{}
	if got := v.run(t, "whoami"); got.code != 0 || !strings.Contains(got.out, "alice") || !strings.Contains(got.out, "owner  (used)") || !strings.Contains(got.out, "globex") ||
		!strings.Contains(got.out, "viewer\n") || !regexp.MustCompile(`project  other +prj_\w+  \(used\)`).MatchString(got.out) {
		t.Errorf("whoami: %+v", got)
	}
	admin, _, err := s.Accounts.CreateToken(ctx, skerry.TokenParams{Name: "admin", Role: skerry.RoleAdmin})
	if err != nil {
		t.Fatal(err)
	}
	if got := v.run(t, "login", "--url", s.URL, "--token", admin); got.code != exitFailure || !strings.Contains(got.err, "managing teams") {
		t.Errorf("with an administrator's token: %+v", got)
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
	s := servertest.New(t)
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
