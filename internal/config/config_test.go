package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "skerry", "config.json")
	want := Config{URL: "http://127.0.0.1:7700", Token: "secret", Team: "team_1", Project: "prj_1"}
	for range 2 { // the second time over an existing file
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(path)
	if err != nil || got != want {
		t.Fatalf("Load = %+v, %v", got, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %o, want 600", info.Mode().Perm())
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files are left in the directory, want 1 (%v)", len(left), err)
	}
}

func TestLoadMissingAndBroken(t *testing.T) {
	dir := t.TempDir()
	if c, err := Load(filepath.Join(dir, "none.json")); err != nil || c != (Config{}) {
		t.Errorf("a missing file: %+v, %v", c, err)
	}
	for name, content := range map[string]string{
		"truncated":  `{"token":"hush`,
		"wrong type": `{"token":["hush"]}`,
		"too large":  strings.Repeat(" ", maxSize+1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestPath(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	for xdg, want := range map[string]string{
		"":                           filepath.Join(home, ".config", "skerry", "config.json"),
		"relative":                   filepath.Join(home, ".config", "skerry", "config.json"),
		filepath.Join(home, "other"): filepath.Join(home, "other", "skerry", "config.json"),
	} {
		t.Setenv("XDG_CONFIG_HOME", xdg)
		if got, err := Path(); err != nil || got != want {
			t.Errorf("XDG_CONFIG_HOME=%q: %q, %v; want %q", xdg, got, err, want)
		}
	}
}

func TestAnotherTokenTakesNoTeamOfTheFile(t *testing.T) {
	file := Config{URL: "u", Token: "t", Team: "team", Project: "p"}
	for token, want := range map[string]Config{
		"t":     file,
		"other": {URL: "u", Token: "other", Project: "q"},
	} {
		env := map[string]string{"SKERRY_TOKEN": token}
		if token == "other" {
			env["SKERRY_PROJECT"] = "q"
		}
		if got := file.WithEnvironment(func(k string) string { return env[k] }); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestWithEnvironment(t *testing.T) {
	env := map[string]string{"SKERRY_URL": "http://b", "SKERRY_TEAM": "", "SKERRY_PROJECT": "p"}
	got := Config{URL: "http://a", Token: "t", Team: "team"}.WithEnvironment(func(k string) string { return env[k] })
	if want := (Config{URL: "http://b", Token: "t", Team: "team", Project: "p"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
