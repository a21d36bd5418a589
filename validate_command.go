package skerry

import "strings"

// Limits of commands.
const (
	// MaxArgs and MaxArgBytes limit the arguments of a command: how many there
	// are, and how many bytes they have together with the command's name. Linux
	// takes 2 MiB of arguments and environment, with 8 bytes for each string. The
	// environments of the image, the sandbox and the command fit in besides
	// (MaxEnvBytes each).
	MaxArgs     = 16384
	MaxArgBytes = 1 << 20
	// MaxWindow limits the columns and rows of a terminal. No screen has more.
	MaxWindow = 4096
	// MaxSignal is the highest signal of Linux.
	MaxSignal = 64
)

// Validate checks a command.
func (p *CommandParams) Validate() error {
	if err := validateCommand(p.Name, p.Args, p.Cwd); err != nil {
		return err
	}
	if p.Timeout < 0 {
		return ValidatePositive("timeout", p.Timeout)
	}
	return ValidateEnv("env", p.Env)
}

// Validate checks a command on a terminal.
func (p *TerminalParams) Validate() error {
	if err := validateCommand(p.Name, p.Args, p.Cwd); err != nil {
		return err
	}
	if p.Cols > MaxWindow {
		return Invalid("cols", "must be at most %d, is %d", MaxWindow, p.Cols)
	}
	if p.Rows > MaxWindow {
		return Invalid("rows", "must be at most %d, is %d", MaxWindow, p.Rows)
	}
	return validateEnvList("env", p.Env)
}

func validateCommand(name string, args []string, cwd string) error {
	if name == "" {
		return Invalid("command", "must not be empty")
	}
	if strings.ContainsRune(name, 0) {
		return Invalid("command", "must not contain a NUL byte")
	}
	if len(args) > MaxArgs {
		return Invalid("args", "must have at most %d entries, has %d", MaxArgs, len(args))
	}
	total := len(name)
	for _, arg := range args {
		if strings.ContainsRune(arg, 0) {
			return Invalid("args", "must not contain a NUL byte")
		}
		total += len(arg)
	}
	if total > MaxArgBytes {
		return Invalid("args", "must have at most %d bytes in total with the command, has %d", MaxArgBytes, total)
	}
	return ValidatePath("cwd", cwd)
}

// validateEnvList checks an environment that is a list of NAME=value. The list as
// a whole is limited, not only what is left of it when names repeat.
func validateEnvList(field string, list []string) error {
	if len(list) > MaxEnv {
		return Invalid(field, "must have at most %d variables, has %d", MaxEnv, len(list))
	}
	total := 0
	env := make(map[string]string, len(list))
	for i, entry := range list {
		name, value, ok := strings.Cut(entry, "=")
		if !ok {
			return Invalid(at(field, i), "must have the form NAME=value")
		}
		env[name] = value
		total += len(name) + len(value)
	}
	if total > MaxEnvBytes {
		return Invalid(field, "must have at most %d bytes in total, has %d", MaxEnvBytes, total)
	}
	return ValidateEnv(field, env)
}

// ValidateSignal checks the number of a signal.
func ValidateSignal(field string, n int64) error {
	if n < 1 || n > MaxSignal {
		return Invalid(field, "must be a signal from 1 to %d, not %d", MaxSignal, n)
	}
	return nil
}
