package cli

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller/controllertest"
	"github.com/skerry-dev/skerry/internal/servertest"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLink(t *testing.T) {
	home(t)
	s := servertest.New(t)
	dir := t.TempDir()
	t.Chdir(dir)
	v := invocation{env: map[string]string{"SKERRY_URL": s.URL, "SKERRY_TOKEN": s.Token}}

	if got := v.run(t, "env", "pull"); got.code != exitFailure || !strings.Contains(got.err, `run "sandbox link" first`) {
		t.Errorf("before link: %+v", got)
	}
	write(t, ".gitignore", "node_modules\n/.vercel/")
	got := v.run(t, "link")
	if got.code != 0 || !strings.Contains(got.err, "Linked to acme/web") || !strings.Contains(got.err, "VERCEL_OIDC_TOKEN is in .env.local, good until ") || got.out != "" {
		t.Fatalf("%+v", got)
	}
	var linked link
	if err := json.Unmarshal([]byte(readFile(t, linkFile)), &linked); err != nil || linked != (link{controllertest.Project.ID, controllertest.Team.ID, "web"}) {
		t.Errorf("linked to %+v, %v", linked, err)
	}
	if now := readFile(t, ".gitignore"); now != "node_modules\n/.vercel/\n.env*.local\n" {
		t.Errorf(".gitignore is %q", now)
	}
	first := readFile(t, ".env.local")
	token, ok := strings.CutPrefix(strings.TrimSuffix(first, "\"\n"), `VERCEL_OIDC_TOKEN="`)
	if info, err := os.Stat(".env.local"); !ok || err != nil || info.Mode() != 0o600 || strings.Contains(got.err, token) {
		t.Errorf("the file is %q, %v", first, info.Mode())
	}
	// The token alone is enough.
	only := invocation{env: map[string]string{"SKERRY_URL": s.URL, "VERCEL_OIDC_TOKEN": token}}
	if got := only.run(t, "create", "--name", "box"); got.code != 0 {
		t.Errorf("with the token: %+v", got)
	}
	if got := only.run(t, "env", "pull"); got.code != exitFailure || !strings.Contains(got.err, "use an access token") {
		t.Errorf("a token made with one: %+v", got)
	}

	if got := v.run(t, "env", "pull", "--project", "other"); got.code != exitUsage || !strings.Contains(got.err, "that this folder is linked to") {
		t.Errorf("for another project: %+v", got)
	}

	// It is refreshed from a folder below, and all else in the file stays.
	write(t, "other.env", "A=1\n# VERCEL_OIDC_TOKEN=no\nexport VERCEL_OIDC_TOKEN=old\r\nB='2'")
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir("sub")
	if got := v.run(t, "env", "pull", "../other.env"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	t.Chdir(dir)
	if now := readFile(t, "other.env"); !regexp.MustCompile(`\AA=1\n# VERCEL_OIDC_TOKEN=no\nVERCEL_OIDC_TOKEN="ey[^"]+"\r\nB='2'\z`).MatchString(now) {
		t.Errorf("the file is %q", now)
	}
	if info, err := os.Stat("other.env"); err != nil || info.Mode() != 0o600 { // it has a secret now
		t.Errorf("%v, %v", info.Mode(), err)
	}
	write(t, ".env.local", "C=3")
	if got := v.run(t, "env", "pull"); got.code != 0 || !strings.HasPrefix(readFile(t, ".env.local"), "C=3\nVERCEL_OIDC_TOKEN=") || strings.Contains(readFile(t, ".env.local"), token) {
		t.Errorf("%+v: %q", got, readFile(t, ".env.local"))
	}

	// A link that came with a repository is not followed: what it leads to is neither changed nor
	// copied to where it would be committed.
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "theirs\n")
	for name, command := range map[string][]string{".env.local": {"env", "pull"}, ".gitignore": {"link"}, linkFile: {"env", "pull"}} {
		kept := readFile(t, name)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(secret, name); err != nil {
			t.Fatal(err)
		}
		if got := v.run(t, command...); got.code != exitFailure || !strings.Contains(got.err, "is not a regular file") || readFile(t, secret) != "theirs\n" {
			t.Errorf("%s is a link: %+v", name, got)
		}
		if to, err := os.Readlink(name); err != nil || to != secret {
			t.Errorf("%s was replaced: %v", name, err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		write(t, name, kept)
	}
	if err := os.Rename(".vercel", ".kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), ".vercel"); err != nil {
		t.Fatal(err)
	}
	if got := v.run(t, "link"); got.code != exitFailure || !strings.Contains(got.err, ".vercel is not a folder") {
		t.Errorf(".vercel is a link: %+v", got)
	}
	if err := errors.Join(os.Remove(".vercel"), os.Rename(".kept", ".vercel")); err != nil {
		t.Fatal(err)
	}

	write(t, linkFile, `{"projectId":"prj_none","orgId":"`+controllertest.Team.ID+`"}`)
	if got := v.run(t, "env", "pull"); got.code != exitFailure {
		t.Errorf("with a project that does not exist: %+v", got)
	}
	write(t, linkFile, `{}`)
	if got := v.run(t, "env", "pull"); got.code != exitFailure || !strings.Contains(got.err, "does not name a project") {
		t.Errorf("without a project: %+v", got)
	}
	if _, err := s.Accounts.CreateProject(t.Context(), controllertest.Team.ID, "second"); err != nil {
		t.Fatal(err)
	}
	all, _, err := s.Accounts.CreateToken(t.Context(), skerry.TokenParams{Name: "all", TeamID: controllertest.Team.ID, Role: skerry.RoleDeveloper})
	if err != nil {
		t.Fatal(err)
	}
	v.env["SKERRY_TOKEN"] = all
	if got := v.run(t, "link"); got.code != exitUsage || !strings.Contains(got.err, "name one with --project: second, web") {
		t.Errorf("with two projects: %+v", got)
	}
	if got := v.run(t, "link", "--project", "second"); got.code != 0 || !strings.Contains(readFile(t, linkFile), `"projectName": "second"`) {
		t.Errorf("with one of two: %+v", got)
	}
	if got := v.run(t, "link", "--scope", "globex"); got.code != exitFailure || !strings.Contains(got.err, `not for the team "globex"`) {
		t.Errorf("with another team: %+v", got)
	}
}

func TestIgnores(t *testing.T) {
	for content, want := range map[string]bool{
		"": false, ".env*.local": true, "a\n/.env*.local/\r\nb\n": true, "# .env*.local\n": false, "x.env*.local\n": false,
		".env*.local\n!.env.local\n": false, "!.env.local\n.env*.local\n": true,
	} {
		if got := ignores(content, ".env*.local"); got != want {
			t.Errorf("%q: %v", content, got)
		}
	}
}

// TestTokenThatWouldBeCommitted has a repository whose .gitignore or index has the file.
func TestTokenThatWouldBeCommitted(t *testing.T) {
	home(t)
	s := servertest.New(t)
	t.Chdir(t.TempDir())
	v := invocation{env: map[string]string{"SKERRY_URL": s.URL, "SKERRY_TOKEN": s.Token}}
	git := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	warned := func(got result) bool { return strings.Contains(got.err, "do not commit it") }
	if got := v.run(t, "link"); got.code != 0 || warned(got) {
		t.Errorf("outside of a repository: %+v", got)
	}
	git("init", "--quiet")
	if got := v.run(t, "env", "pull"); got.code != 0 || warned(got) {
		t.Errorf("in a file that is ignored: %+v", got)
	}
	if got := v.run(t, "env", "pull", "secrets.env"); got.code != 0 || !warned(got) {
		t.Errorf("in a file that is not ignored: %+v", got)
	}
	git("add", "--force", ".env.local")
	if got := v.run(t, "env", "pull"); got.code != 0 || !warned(got) {
		t.Errorf("in a file that is tracked: %+v", got)
	}
}
