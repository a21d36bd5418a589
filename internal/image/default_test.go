package image

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

// TestDefaultImage makes the default image in the installation's own store, or
// takes the one that is there, and runs what is in it.
func TestDefaultImage(t *testing.T) {
	state := os.Getenv("SKERRY_STATE")
	if state == "" {
		state = "/var/lib/skerry"
	}
	s, err := Open(Options{Dir: filepath.Join(state, "images")})
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.BuildDefault(t.Context(), func(stage string, percent int) { t.Log(percent, stage) })
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.BuildDefault(t.Context(), nil)
	if err != nil || again.Digest != m.Digest || !again.CreatedAt.Equal(m.CreatedAt) {
		t.Errorf("a second build made %+v, %v, want %+v", again, err, m)
	}
	found, err := s.Resolve(t.Context(), "")
	if err != nil || found.Digest != m.Digest || found.Name != "" || found.Runtimes[0] != skerry.DefaultRuntime {
		t.Errorf("the default image resolves to %+v, %v", found, err)
	}
	root := mount(t, s, m.Digest)
	for _, dir := range expectedDirs {
		if st, err := os.Stat(filepath.Join(root, dir)); err != nil || !st.IsDir() {
			t.Errorf("a folder that packages expect: %v, %v", st, err)
		}
	}
	tests := []struct{ path, command, says string }{
		{"node24", "node -v", "v24."},
		{"node24", "npm -v && npx -v && pnpm -v && npm config get prefix", "/vercel/runtimes/node24"},
		{"node26", "node -v", "v26."},
		{"node26", "npm -v && npx -v && pnpm -v && npm config get prefix", "/vercel/runtimes/node26"},
		{"node22", "node -v", "v22."},
		{"node22", "npm -v && npx -v && pnpm -v", "."},
		{"python", "python -V && python3 -V", "Python 3.13"},
		{"python", "pip --version && uv --version && test -x $(command -v uvx)", "uv 0."},
		{"python", "python -c 'import ssl, sqlite3, venv, zoneinfo; print(zoneinfo.ZoneInfo(\"Europe/Rome\"))'", "Europe/Rome"},
		{"node24", "bash -lc 'node -v && echo $LANG && locale -a'", "C.utf8"},
		{"node24", "sudo -n id -u && sudo -n node -v", "v24."},
		{"node24", "id -un && echo ~ && stat -c '%U %a' /vercel/sandbox /tmp", "vercel-sandbox\n/home/vercel-sandbox\nvercel-sandbox 755\nroot 1777"},
		{"node24", "exec 2>/dev/null; LAB=kept sudo -n printenv LAB && sudo -n sh -c 'echo $HOME'", "kept\n/root"},
		{"node24", "readlink /etc/mtab", "../proc/self/mounts"},
		{"node24", "ls -l /usr/bin/ping", "-rwsr-xr-x"},
		{"node24", "for c in dig bzip2 find git gzip openssl ps tar unzip which whois zip zstd curl wget less nano vi file jq xz ssh nc ip; do command -v $c || exit 1; done", "/usr/bin/git"},
		{"node24", "apt-config dump APT::Sandbox::User && cat /etc/apt/sources.list.d/*", "trixie"},
		{"node24", "ls /usr/lib/python3*/EXTERNALLY-MANAGED || echo none", "none"},
		{"node24", "cat /etc/hostname /etc/hosts && stat -c %U /vercel/runtimes/node24/bin", "vercel-sandbox"},
	}
	for _, tt := range tests {
		cmd := exec.CommandContext(t.Context(), "chroot", "--userspec=1000:1000", root, "/bin/sh", "-ec", tt.command)
		cmd.Env = []string{
			"HOME=/home/vercel-sandbox", "LANG=" + m.Env["LANG"],
			"PATH=/vercel/runtimes/" + tt.path + "/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
		}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), tt.says) {
			t.Errorf("%s: %v, want %q in\n%s", tt.command, err, tt.says, out)
		}
	}
}

func TestBuildDefaultFails(t *testing.T) {
	nowhere := httptest.NewServer(http.NotFoundHandler())
	defer nowhere.Close()
	s, err := Open(Options{Dir: t.TempDir(), Mirror: nowhere.URL + "/debian"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BuildDefault(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "mmdebstrap") {
		t.Errorf("building from no mirror answered %v", err)
	}
	wantClean(t, s)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer hanging.Close()
	s.opt.Mirror = hanging.URL + "/debian"
	if _, err := s.BuildDefault(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a build that was canceled answered %v", err)
	}
	wantClean(t, s)
}

func TestRecipeDecides(t *testing.T) {
	key := func(opt Options) string {
		r, err := (&Store{opt: opt}).recipe()
		if err != nil {
			t.Fatal(err)
		}
		k, err := r.key()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	one := Options{Mirror: "http://one.example/debian"}
	again := Options{Mirror: one.Mirror}
	if key(one) != key(again) || key(one) == key(Options{Mirror: "http://two.example/debian"}) {
		t.Error("the key of a recipe does not follow from it")
	}
}

func TestMachineMirrors(t *testing.T) {
	tests := []struct{ name, id, list, sources, main, security string }{
		{"none", "debian", "", "", debianMirror, debianMirror + "-security"},
		{"list", "debian", "# deb http://no.example/debian x\ndeb http://a.example/debian/ bookworm main\ndeb http://a.example/debian-security x main\n", "",
			"http://a.example/debian", "http://a.example/debian-security"},
		{"deb822", "debian", "", "Types: deb\nURIs: https://b.example/debian\nSuites: x\n", "https://b.example/debian", debianMirror + "-security"},
		{"others", "debian", "deb https://c.example/node y main\n", "", debianMirror, debianMirror + "-security"},
		{"ubuntu", "ubuntu", "deb http://a.example/debian x main\n", "", debianMirror, debianMirror + "-security"},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		files := map[string]string{
			"os-release": "ID=" + tt.id + "\n", "apt/sources.list": tt.list, "apt/sources.list.d/debian.sources": tt.sources,
		}
		writeAll(t, dir, files)
		main, security := machineMirrors(filepath.Join(dir, "os-release"), filepath.Join(dir, "apt"))
		if main != tt.main || security != tt.security {
			t.Errorf("%s: %s and %s, want %s and %s", tt.name, main, security, tt.main, tt.security)
		}
	}
}

func writeAll(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRefresh: an image that is there is built anew when that is asked for, and
// the newest of a recipe is the one that is used.
func TestRefresh(t *testing.T) {
	nowhere := httptest.NewServer(http.NotFoundHandler())
	defer nowhere.Close()
	s, err := Open(Options{Dir: t.TempDir(), Mirror: nowhere.URL + "/debian"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.recipe()
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.key()
	if err != nil {
		t.Fatal(err)
	}
	var newest Meta
	for _, content := range []string{"first", "second", "third"} {
		packed := filepath.Join(t.TempDir(), "packed")
		if err := os.WriteFile(packed, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if newest, err = s.add(t.Context(), packed, Meta{Source: "recipe:" + key}, defaultRef); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := s.BuildDefault(t.Context(), nil); err != nil || m.Digest != newest.Digest {
		t.Errorf("an image that is there: %+v, %v, want %s", m, err, newest.Digest)
	}
	if _, err := s.RefreshDefault(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "mmdebstrap") {
		t.Errorf("a refresh from no mirror answered %v", err)
	}
	if m, err := s.Resolve(t.Context(), ""); err != nil || m.Digest != newest.Digest {
		t.Errorf("after a refresh that failed the default image is %+v, %v", m, err)
	}
}
