// Package skerry is the vocabulary of Skerry: what a sandbox, a session and a
// command are, the states they pass through and the errors that name what
// went wrong. It imports the standard library alone; every other package of
// the project imports it.
//
// The JSON form of these types is the wire form of the API: times are integer
// milliseconds since the Unix epoch, durations are integer milliseconds.
package skerry

import (
	"encoding/json"
	"fmt"
	"time"
)

// Limits and defaults of the service. Durations are wall-clock time.
const (
	// DefaultTimeout is how long a session lives when its creator does not say.
	DefaultTimeout = 5 * time.Minute
	// MaxTimeout is the longest a session may live unless the installation
	// sets another maximum.
	MaxTimeout = 24 * time.Hour
	// MinTimeout is the shortest session timeout that is accepted.
	MinTimeout = time.Second
	// DefaultVCPUs is the number of virtual CPUs of a sandbox whose creator
	// does not say.
	DefaultVCPUs = 2
	// MemoryPerVCPU is the memory, in MiB, that comes with each virtual CPU.
	MemoryPerVCPU = 2048
	// DefaultRuntime is the runtime of the default image that is first on
	// PATH when the creator does not choose one.
	DefaultRuntime = "node24"
	// MaxNameLength bounds a sandbox name, in bytes.
	MaxNameLength = 128
	// MaxTags bounds how many tags a sandbox carries.
	MaxTags = 64
	// MaxEnv bounds how many environment variables a sandbox or a command
	// carries, MaxEnvBytes their names and values together.
	MaxEnv      = 1024
	MaxEnvBytes = 256 << 10
	// MaxPathLength bounds a path that a client names, in bytes (Linux
	// PATH_MAX).
	MaxPathLength = 4096
	// MaxPageSize and DefaultPageSize bound one page of a listing.
	MaxPageSize     = 100
	DefaultPageSize = 50
)

// What every sandbox looks like from inside, whatever its image.
const (
	// DefaultUser runs every command that does not ask for root.
	DefaultUser = "vercel-sandbox"
	// DefaultUID and DefaultGID are the numeric ids of DefaultUser in images
	// that do not define it themselves.
	DefaultUID = 1000
	DefaultGID = 1000
	// WorkDir is the working directory of every command and the directory
	// that relative paths start from.
	WorkDir = "/vercel/sandbox"
	// Region is the only region of a self-hosted installation.
	Region = "local"
)

// Time is a moment that is written on the wire as integer milliseconds since
// the Unix epoch. The zero Time is "not yet" and is left out with omitzero.
type Time struct{ time.Time }

// At returns t as a Time, cut to the millisecond precision of the wire.
func At(t time.Time) Time { return Time{t.Truncate(time.Millisecond)} }

// FromMillis returns the Time ms milliseconds after the epoch; 0 is the zero
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
		return fmt.Errorf("a time is integer milliseconds since the epoch: %w", err)
	}
	*t = FromMillis(ms)
	return nil
}

// Duration is a span that is written on the wire as integer milliseconds.
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
		return fmt.Errorf("a duration is integer milliseconds: %w", err)
	}
	if ms > maxMillis || ms < -maxMillis {
		return fmt.Errorf("a duration of %d ms is out of range", ms)
	}
	*d = Duration(time.Duration(ms) * time.Millisecond)
	return nil
}
