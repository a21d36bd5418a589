package usage

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "5 minutes": 5 * time.Minute, "5m": 5 * time.Minute, "2 hours": 2 * time.Hour, "1d": 24 * time.Hour,
		"1500": 1500 * time.Millisecond, "20ms": 20 * time.Millisecond, "1h30m": 90 * time.Minute,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "soon", "-5m", "5 weeks", "99999999999999999999s", "300000000d"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: %s", s, got)
		}
	}
}

// What is wrong with a number is said without the names of functions.
func TestNumbersOfFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--count x":                    `--count must be a whole number, not "x"`,
		"--count 3.5":                  `--count must be a whole number, not "3.5"`,
		"--count 99999999999999999999": `--count must be a whole number that is small enough, not "99999999999999999999"`,
		"-p 1 -p x":                    `--port must be a whole number, not "x"`,
		"--part x":                     `--part must be a number, not "x"`,
		"--on=x":                       `--on must be true or false, not "x"`,
		"--time 5":                     `invalid argument "5" for "--time" flag: "5" has no unit; write a duration such as 30s, 5m, 2h or 1d`,
		"--other":                      "unknown flag: --other",
	} {
		var time Duration
		cmd := &cobra.Command{Use: "test", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error { return nil }}
		cmd.Flags().Int("count", 0, "")
		cmd.Flags().IntSliceP("port", "p", nil, "")
		cmd.Flags().Float64("part", 0, "")
		cmd.Flags().Bool("on", false, "")
		cmd.Flags().Var(&time, "time", "")
		cmd.SetFlagErrorFunc(FlagError)
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.Execute(); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}

func TestDurationFlag(t *testing.T) {
	for s, want := range map[string]time.Duration{"30d": 30 * 24 * time.Hour, "720h": 720 * time.Hour, "0": 0} {
		var d Duration
		if err := d.Set(s); err != nil || time.Duration(d) != want {
			t.Errorf("%q: %s, %v", s, &d, err)
		}
	}
	for _, s := range []string{"30", "-1h", "soon"} {
		var d Duration
		if err := d.Set(s); err == nil {
			t.Errorf("%q: %s", s, &d)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, c := range []struct {
		use   string
		check cobra.PositionalArgs
		got   []string
		want  string
	}{
		{"create NAME", cobra.ExactArgs(1), nil, "NAME is missing"},
		{"fork [flags] SOURCE NAME", cobra.ExactArgs(2), nil, "SOURCE and NAME are missing"},
		{"create NAME", cobra.ExactArgs(1), []string{"a", "b"}, `"b" is one argument too many`},
		{"ls", cobra.NoArgs, []string{"a"}, `"a" is one argument too many`},
		{"import FILE [REFERENCE]", cobra.RangeArgs(1, 2), []string{"a", "b", "c"}, `"c" is one argument too many`},
		{"create NAME", cobra.ExactArgs(1), []string{"a"}, ""},
	} {
		err := Args(c.check)(&cobra.Command{Use: c.use}, c.got)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s with %q: %v, want %q", c.use, c.got, err, c.want)
		}
	}
	root := &cobra.Command{Use: "root"}
	root.AddCommand(&cobra.Command{Use: "create", Run: func(*cobra.Command, []string) {}})
	if err := Args(cobra.NoArgs)(root, []string{"creat"}); err == nil || err.Error() != `there is no command "creat"; did you mean "create"?` {
		t.Errorf("a command that there is not: %v", err)
	}
}
