package controller

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
)

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"mine": "mine", "My Box": "my-box", "--x--": "x", "日本": "sandbox", strings.Repeat("a", 100): strings.Repeat("a", 63), "a_b.c": "a-b-c",
	} {
		if got := hostname(name); got != want {
			t.Errorf("hostname(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestRuntimePath(t *testing.T) {
	got := runtimePath("python3.13", []string{"node24", "python3.13"})
	if want := "/vercel/runtimes/python/bin:/vercel/runtimes/node24/bin:" + systemPath; got != want {
		t.Errorf("PATH is %s, want %s", got, want)
	}
}

// TestRuntimesHaveADirectory: every runtime that a client may choose can be put on
// PATH.
func TestRuntimesHaveADirectory(t *testing.T) {
	for _, runtime := range skerry.Runtimes {
		if runtimeDirs[runtime] == "" {
			t.Errorf("%s has no directory", runtime)
		}
	}
	if len(runtimeDirs) != len(skerry.Runtimes) {
		t.Errorf("there are directories for %d runtimes, and %d runtimes", len(runtimeDirs), len(skerry.Runtimes))
	}
}
