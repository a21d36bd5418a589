// Package usage is what both programs have in common in how they are called:
// mistakes, which end them with ExitCode, arguments and durations.
package usage

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ExitCode is that of a program that was called wrongly.
const ExitCode = 2

// Error is a mistake in how a program was called.
type Error struct{ Err error }

func (e Error) Error() string { return e.Err.Error() }
func (e Error) Unwrap() error { return e.Err }

// Errorf returns an Error.
func Errorf(format string, args ...any) error { return Error{fmt.Errorf(format, args...)} }

// FlagError is for cobra's SetFlagErrorFunc. What package strconv says of a
// number is for programmers, so it is said in other words.
func FlagError(_ *cobra.Command, err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return Error{err}
	}
	number, ok := errors.AsType[*strconv.NumError](err)
	if !ok {
		return Error{err}
	}
	wanted := "a whole number"
	switch number.Func {
	case "ParseBool":
		wanted = "true or false"
	case "ParseFloat":
		wanted = "a number"
	}
	if errors.Is(err, strconv.ErrRange) {
		wanted += " that is small enough"
	}
	return Errorf("--%s must be %s, not %q", invalid.GetFlag().Name, wanted, number.Num)
}

// Args says by name which of the arguments in a command's usage is missing, or
// which is one too many. The usage is what it goes by: words in brackets are
// optional.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		err := check(cmd, got)
		if err == nil {
			return nil
		}
		if cmd.HasSubCommands() {
			return unknownCommand(cmd, got[0])
		}
		var needed []string
		accepted := 0
		for _, word := range strings.Fields(cmd.Use)[1:] {
			if word == "[flags]" {
				continue
			}
			accepted++
			if word[0] != '[' {
				needed = append(needed, word)
			}
		}
		switch left := len(needed) - len(got); {
		case left == 1:
			return Errorf("%s is missing", needed[len(got)])
		case left > 1:
			return Errorf("%s are missing", strings.Join(needed[len(got):], " and "))
		}
		return Errorf("%q is one argument too many", got[min(accepted, len(got)-1)])
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(name); len(like) > 0 {
		return Errorf("there is no command %q; did you mean %q?", name, like[0])
	}
	return Errorf("there is no command %q", name)
}

var durationForm = regexp.MustCompile(`^(\d+) ?(ms|milliseconds?|msecs?|s|sec|secs|seconds?|m|min|mins|minutes?|h|hrs?|hours?|d|days?)?$`)

// ParseDuration reads a duration such as 30s, "5 minutes", 2h, 1d or 1h30m. A
// number alone is milliseconds, as in the npm tool.
func ParseDuration(s string) (time.Duration, error) {
	m := durationForm.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		if d, err := time.ParseDuration(s); err == nil && d >= 0 {
			return d, nil
		}
		return 0, fmt.Errorf("%q is not a duration; write a number and a unit, such as 30s, 5m, 2h or 1d", s)
	}
	unit := time.Millisecond
	switch {
	case strings.HasPrefix(m[2], "ms"), strings.HasPrefix(m[2], "mil"), m[2] == "":
	case m[2][0] == 's':
		unit = time.Second
	case m[2][0] == 'm':
		unit = time.Minute
	case m[2][0] == 'h':
		unit = time.Hour
	case m[2][0] == 'd':
		unit = 24 * time.Hour
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("the duration %q is too long", s)
	}
	return time.Duration(n) * unit, nil
}

// Duration is a flag that ParseDuration reads.
type Duration time.Duration

func (d *Duration) String() string { return time.Duration(*d).String() }
func (d *Duration) Type() string   { return "duration" }

// Set takes no number without a unit, but 0.
func (d *Duration) Set(s string) error {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n != 0 {
		return fmt.Errorf("%q has no unit; write a duration such as 30s, 5m, 2h or 1d", s)
	}
	v, err := ParseDuration(s)
	if err == nil {
		*d = Duration(v)
	}
	return err
}
