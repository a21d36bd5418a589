package cli

import (
	"os"
	"strings"
	"testing"
)

// What cannot be written is a failure, also if nothing else failed.
func TestFullOutput(t *testing.T) {
	home(t)
	s := populated(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, test := range []struct {
		argv string
		code int
	}{
		{"ls", exitFailure}, {"ls --json", exitFailure}, {"config list first", exitFailure}, {"create", exitFailure}, {"--help", exitFailure},
		{"--version", exitFailure}, {"stop --json first", exitFailure}, {"completion bash", exitFailure},
		{"exec first echo", exitOwnFailure}, {"exec first --help", exitOwnFailure}, {"exec first false", 1},
	} {
		got := invocation{server: s, out: full}.run(t, strings.Fields(test.argv)...)
		if got.code != test.code || (test.argv != "exec first false" && !strings.Contains(got.err, "no space left on device")) {
			t.Errorf("%s: %+v", test.argv, got)
		}
	}
}
