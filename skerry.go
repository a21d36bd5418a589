// Package skerry is the vocabulary of Skerry: sandboxes, sessions and commands with
// their states, the codes of errors, the limits, and the rules for what a client may
// send. It imports only the standard library. All other packages of the project may
// import it.
//
// The JSON form of these types is the wire form of the API. Times are integers in
// milliseconds since the Unix epoch, durations are integers in milliseconds.
package skerry

import (
	"encoding/json"
	"fmt"
	"time"
)

// Limits and defaults of sandboxes and commands. Durations are wall-clock time.
const (
	// DefaultTimeout is the default timeout of a session. The public service has the
	// same.
	DefaultTimeout = 5 * time.Minute
	// MaxTimeout is the maximum timeout, unless the installation sets another.
	MaxTimeout = 24 * time.Hour
	// MinTimeout is the minimum timeout. A shorter one could be over before the start.
	MinTimeout = time.Second
	// DefaultVCPUs is the default number of virtual CPUs, DefaultMaxVCPUs the maximum,
	// unless the installation sets another.
	DefaultVCPUs    = 2
	DefaultMaxVCPUs = 32
	// MemoryPerVCPU is the memory for each virtual CPU, in MiB.
	MemoryPerVCPU = 2048
	// DefaultRuntime is the runtime that is first on PATH by default.
	DefaultRuntime = "node24"
	// MaxNameLength limits the name of a sandbox, a drive or a token, in bytes:
	// enough for the name of a branch or a UUID with words around it, and short
	// enough for URLs and tables.
	MaxNameLength = 128
	// NamePattern is the form of the names of new sandboxes and drives: names that
	// need no escaping in DNS, URLs and shells.
	NamePattern = `^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`
	// MaxTags limits the tags of a sandbox, MaxTagBytes the name and the value of
	// each. A page of a listing has the tags of up to MaxPageSize sandboxes, which
	// are 3 MiB.
	MaxTags     = 64
	MaxTagBytes = 256
	// MaxEnv limits the environment variables of a sandbox or a command,
	// MaxEnvBytes their names and values together, and MaxEnvName each name. See
	// MaxArgBytes for what fits into a start of a program.
	MaxEnv      = 1024
	MaxEnvBytes = 256 << 10
	MaxEnvName  = 256
	// MaxPathLength limits a path, in bytes, with the NUL byte that ends it: it is
	// PATH_MAX of Linux.
	MaxPathLength = 4096
	// MaxImageReference limits the reference of an image, in bytes. Registries
	// allow 255 for the repository and 128 for the tag.
	MaxImageReference = 512
	// MaxPageSize is the maximum number of items on a page of a listing,
	// DefaultPageSize the default.
	MaxPageSize     = 100
	DefaultPageSize = 50
)

// Runtimes are the runtimes of the default image that a sandbox can have first on
// PATH. An image that the installation built earlier may have fewer.
var Runtimes = []string{DefaultRuntime, "node26", "node22", "python3.13"}

// What a sandbox looks like from inside, with any image.
const (
	// DefaultUser is the user of commands without sudo.
	DefaultUser = "vercel-sandbox"
	// DefaultUID and DefaultGID are the ids of DefaultUser in images that do not define
	// this user.
	DefaultUID = 1000
	DefaultGID = 1000
	// WorkDir is the default working directory. Relative paths start there.
	WorkDir = "/vercel/sandbox"
	// Region is the only region of a self-hosted installation.
	Region = "local"
)

// Time is a time whose JSON form is an integer in milliseconds since the Unix epoch.
// The zero Time is "not yet" and is left out with omitzero.
type Time struct{ time.Time }

// At returns t as a Time, truncated to milliseconds.
func At(t time.Time) Time { return Time{t.Truncate(time.Millisecond)} }

// FromMillis returns the Time that is ms milliseconds after the epoch; 0 is the zero
// Time.
func FromMillis(ms int64) Time {
	if ms == 0 {
		return Time{}
	}
	return Time{time.UnixMilli(ms)}
}

// Millis returns the milliseconds since the epoch, 0 for the zero Time.
func (t Time) Millis() int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// MarshalJSON writes integer milliseconds.
func (t Time) MarshalJSON() ([]byte, error) { return json.Marshal(t.Millis()) }

// UnmarshalJSON reads integer milliseconds.
func (t *Time) UnmarshalJSON(b []byte) error {
	var ms int64
	if err := json.Unmarshal(b, &ms); err != nil {
		return fmt.Errorf("a time must be an integer number of milliseconds since the Unix epoch: %w", err)
	}
	*t = FromMillis(ms)
	return nil
}

// Duration is a duration whose JSON form is an integer in milliseconds.
type Duration time.Duration

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Millis returns d in milliseconds.
func (d Duration) Millis() int64 { return time.Duration(d).Milliseconds() }

// String formats d as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes integer milliseconds.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.Millis()) }

// maxMillis keeps a duration in milliseconds from overflowing nanoseconds.
const maxMillis = int64(1<<63-1) / int64(time.Millisecond)

// UnmarshalJSON reads integer milliseconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var ms int64
	if err := json.Unmarshal(b, &ms); err != nil {
		return fmt.Errorf("a duration must be an integer number of milliseconds: %w", err)
	}
	if ms > maxMillis || ms < -maxMillis {
		return fmt.Errorf("a duration of %d ms is out of range", ms)
	}
	*d = Duration(time.Duration(ms) * time.Millisecond)
	return nil
}
