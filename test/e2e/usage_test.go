package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestMistakes: what is refused is refused with exit code 2, in plain words and
// before anything is made.
func TestMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"serve --disk 0":              "--disk must be 1 to 16384 GiB, not 0\nRun 'sandboxd serve --help' for how to use it.",
		"serve --disk much":           "--disk must be 1 to 16384 GiB, not much\nRun 'sandboxd serve --help' for how to use it.",
		"serve --background --disk 0": "--disk must be 1 to 16384 GiB, not 0\nRun 'sandboxd serve --help' for how to use it.",
		"stop --timeout 0":            "--timeout must be positive, not 0s\nRun 'sandboxd stop --help' for how to use it.",
		"token create":                "NAME is missing\nRun 'sandboxd token create --help' for how to use it.",
		"token creat":                 "there is no command \"creat\"; did you mean \"create\"?\nRun 'sandboxd token --help' for how to use it.",
		"rename":                      "there is no command \"rename\"\nRun 'sandboxd --help' for how to use it.",
	} {
		state := filepath.Join(t.TempDir(), "state")
		cmd := exec.Command(filepath.Join(programs, "sandboxd"), append([]string{"--state", state}, strings.Fields(args)...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 2 || strings.TrimSpace(string(out)) != "sandboxd: "+want {
			t.Errorf("%s: %v, %s", args, err, out)
		}
		if _, err := os.Stat(state); err == nil {
			t.Errorf("%s: there is a state folder", args)
		}
	}
}

// TestUnknownImage: no code and no advice for another command.
func TestUnknownImage(t *testing.T) {
	for args, want := range map[string]string{
		"image path nosuch": `sandboxd: image "nosuch" is not in the image store: run "sandboxd image pull nosuch" on the server`,
		"image rm nosuch":   `sandboxd: there is no image "nosuch"; "sandboxd image ls" shows the images`,
	} {
		out, err := exec.Command(filepath.Join(programs, "sandboxd"), append([]string{"--state", t.TempDir()}, strings.Fields(args)...)...).CombinedOutput()
		if err == nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %v, %s", args, err, out)
		}
	}
}

// TestRelativePaths: a server in the background finds the files that flags name
// relative to the folder in which it was started.
func TestRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("env", []byte("MARK=here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "--sandbox-env", "env")
	out, err := s.create(client.CreateOptions{}).Command(t.Context(), "printenv", "MARK").Output()
	if err != nil || string(out) != "here\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestVersions: both programs are of the same version, which the build has set.
func TestVersions(t *testing.T) {
	var of [2]string
	for i, name := range []string{"sandboxd", "sandbox"} {
		out, err := exec.Command(filepath.Join(programs, name), "--version").Output()
		if err != nil {
			t.Fatal(err)
		}
		of[i] = strings.TrimSpace(strings.TrimPrefix(string(out), name+" version "))
	}
	if of[0] != of[1] || of[0] == "" || of[0] == "dev" {
		t.Errorf("sandboxd is %q, sandbox is %q", of[0], of[1])
	}
}
