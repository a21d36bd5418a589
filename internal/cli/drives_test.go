package cli

import (
	"strconv"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/servertest"
)

func TestDrivesGolden(t *testing.T) {
	home(t)
	s := servertest.New(t)
	for i, test := range []struct {
		name string
		tty  bool
		argv []string
	}{
		{"drives-nothing", true, []string{"drives", "list"}},
		{"drives-create", false, []string{"drives", "create", "data", "--max-size", "5GiB"}},
		{"drives-create-tty", true, []string{"drives", "get-or-create", "cache"}},
		{"drives-create-json", false, []string{"drives", "create", "data", "--json"}},
		{"drives-create-bad", false, []string{"drives", "create", "data", "--max-size", "5 apples"}},
		{"drives-create-other-size", false, []string{"drives", "create", "data", "--max-size", "7GiB"}},
		{"drives-table", true, []string{"drives", "ls"}},
		{"drives-lines", false, []string{"drives", "ls", "--sort-order", "asc"}},
		{"drives-prefix", false, []string{"drives", "ls", "--name-prefix", "c"}},
		{"drives-page", false, []string{"drives", "ls", "--limit", "1"}},
		{"drives-json", false, []string{"drives", "ls", "--json"}},
		{"drives-get", true, []string{"drives", "get", "data"}},
		{"drives-get-json", false, []string{"drives", "get", "data", "--json"}},
		{"drives-fork", true, []string{"drives", "fork", "data", "copy"}},
		{"drives-fork-taken", false, []string{"drives", "fork", "data", "cache"}},
		{"drives-fork-get", true, []string{"drives", "get", "copy"}},
		{"drives-get-none", false, []string{"drives", "get", "none"}},
		{"drives-delete", false, []string{"drives", "delete", "data", "cache", "none"}},
		{"drives-delete-attached", false, []string{"drives", "delete", "data"}},
	} {
		if i == 6 {
			// Both sandboxes mount data; the one that runs has it.
			s.Stop(t, s.Create(t, skerry.CreateParams{Name: "stopped", Mounts: map[string]skerry.Mount{"/c": {Drive: "cache"}, "/d": {Drive: "data"}}}).Session.ID)
			s.Create(t, skerry.CreateParams{Name: "demo", Mounts: map[string]skerry.Mount{"/d": {Drive: "data"}}})
		}
		got := invocation{server: s, tty: test.tty}.run(t, test.argv...)
		golden(t, test.name, s.Mask(t, "exit code "+strconv.Itoa(got.code)+"\n--- stdout\n"+got.out+"--- stderr\n"+got.err))
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "1024": 1024, "1K": 1 << 10, "512MiB": 512 << 20, "5G": 5 << 30, "5GB": 5 << 30, "1TiB": 1 << 40, "4096B": 4096,
		"": 0, "0": 0, "-1": 0, "G": 0, "1.5G": 0, "1X": 0, "1 G": 0, "1GiBi": 0, "9223372036854775807": 0, "9000000T": 0, "1iB": 0,
	} {
		if got, err := parseSize(s); got != want || (err == nil) != (want > 0) {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
}
