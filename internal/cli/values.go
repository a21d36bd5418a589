package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/internal/usage"
)

// duration is a flag such as 30s, "5 minutes", 2h, 1d or 1h30m. A number alone
// is milliseconds, as in the npm tool.
type duration struct {
	d   time.Duration
	set bool
	// none accepts "none" for 0.
	none bool
}

func (v *duration) String() string {
	if !v.set {
		return ""
	}
	return v.d.String()
}

func (v *duration) Type() string { return "duration" }

func (v *duration) Set(s string) error {
	if v.none && s == "none" {
		v.d, v.set = 0, true
		return nil
	}
	d, err := usage.ParseDuration(s)
	if err == nil {
		v.d, v.set = d, true
	}
	return err
}

// pairs is a flag key=value that may be given many times.
type pairs struct {
	m map[string]string
	// getenv gives the value of a key without one, if that is allowed.
	getenv  func(string) string
	missing []string
}

func (v *pairs) String() string { return "" }
func (v *pairs) Type() string   { return "key=value" }

func (v *pairs) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if key == "" {
		return fmt.Errorf("%q has no name before the =", s)
	}
	if !ok {
		if v.getenv == nil {
			return fmt.Errorf("%q is not of the form key=value", s)
		}
		if value = v.getenv(key); value == "" {
			v.missing = append(v.missing, key)
			return nil
		}
	}
	if v.m == nil {
		v.m = map[string]string{}
	}
	v.m[key] = value
	return nil
}

// choice is a flag with few values.
type choice struct {
	value   string
	choices []string
}

func (v *choice) String() string { return v.value }
func (v *choice) Type() string   { return strings.Join(v.choices, "|") }

func (v *choice) Set(s string) error {
	for _, c := range v.choices {
		if s == c {
			v.value = s
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", s, strings.Join(v.choices, ", "))
}

// warnMissing says which variables --env named that are not set here.
func (a *app) warnMissing(v *pairs) {
	if len(v.missing) > 0 {
		fmt.Fprintf(a.Err, "%s not set here, so not passed on: %s\n", a.err.yellow("Warning:"), strings.Join(v.missing, ", "))
	}
}
