package main

import (
	"regexp"
	"strings"
	"testing"
)

// runner returns what runs sandboxd on a state folder and returns what it prints.
func runner(t *testing.T, state string) func(args ...string) string {
	return func(args ...string) string {
		t.Helper()
		out, err := sandboxd(t.Context(), state, args...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
}

func TestQuotaCommand(t *testing.T) {
	state := t.TempDir()
	t.Setenv("SKERRY_DATABASE", "")
	run := runner(t, state)
	fails := func(says string, args ...string) {
		t.Helper()
		if out, err := sandboxd(t.Context(), state, args...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %q, %v; want %s", args, out, err, says)
		}
	}
	has := func(out string, rows ...string) {
		t.Helper()
		for _, row := range rows {
			if !regexp.MustCompile(`(?m)^` + row + `$`).MatchString(out) {
				t.Errorf("no %q in\n%s", row, out)
			}
		}
	}
	has(run("quota", "show"), "running sandboxes +- +none", "requests in a minute +- +none")
	run("quota", "set", "--defaults", "--sandboxes", "10", "--vcpus", "20")
	has(run("quota", "set", "--sandboxes", "30", "--memory", "65536"), "running sandboxes +- +30", "vCPUs of running sandboxes +- +20 .default.", "MB of memory of running sandboxes +- +65536")
	has(run("quota", "set", "--vcpus", "none"), "running sandboxes +- +30", "vCPUs of running sandboxes +- +none")
	has(run("quota", "set", "--project", "default", "--starts-per-minute", "5"), "running sandboxes +- +none", "starts of sandboxes in a minute +- +5")
	has(run("quota", "show", "--defaults"), "running sandboxes +- +10")
	fails("there is no limit to set", "quota", "set")
	fails("must be a number", "quota", "set", "--sandboxes", "-1")
	fails("must be a number", "quota", "set", "--sandboxes", "many")
	fails("sandboxes: must be from 0", "quota", "set", "--sandboxes", "2000000000")
	fails("there is no team", "quota", "set", "--team", "none", "--sandboxes", "1")
	fails("project", "quota", "set", "--project", "none", "--sandboxes", "1")
	fails("exclude each other", "quota", "show", "--team", "default", "--defaults")
	fails("exclude each other", "quota", "set", "--project", "default", "--defaults", "--sandboxes", "1")
	has(run("quota", "show"), "running sandboxes +- +30", "vCPUs of running sandboxes +- +none")
}

func TestKeyCommand(t *testing.T) {
	state := t.TempDir()
	t.Setenv("SKERRY_DATABASE", "")
	run := runner(t, state)
	first := strings.Fields(run("key", "ls"))
	if len(first) != 6 || first[4] != "signing" {
		t.Fatalf("the first key: %q", first)
	}
	if out := run("key", "rotate"); !strings.Contains(out, first[3]) || !strings.Contains(out, " next ") {
		t.Errorf("rotated: %s", out)
	}
	if _, err := sandboxd(t.Context(), state, "key", "rotate"); err == nil || !strings.Contains(err.Error(), "is the next one already") {
		t.Errorf("rotated twice: %v", err)
	}
	if out := run("key", "rotate", "--revoke"); strings.Contains(out, first[3]) || !strings.Contains(out, " signing ") || strings.Contains(out, " next ") {
		t.Errorf("revoked: %s", out)
	}
}
