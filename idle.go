package skerry

import "slices"

// IdleMode says when the server pauses a session that nobody uses. API calls, attached
// streams, and packets on its network use a session. The next use resumes it.
type IdleMode string

// The idle modes of a sandbox, and of a server for sandboxes with IdleDefault.
const (
	// IdleDefault is the server's mode for a sandbox. For a server, it pauses sessions in
	// which nothing runs except the guest agent; if they stay paused they may hibernate.
	IdleDefault IdleMode = "default"
	// IdleNever pauses no session.
	IdleNever IdleMode = "never"
	// IdlePause also pauses sessions with processes, if they use almost no CPU time and
	// have no open connections to the outside. They are resumed for the timers of their
	// processes.
	IdlePause IdleMode = "pause"
	// IdleHibernate is IdlePause, and sessions that stay paused may hibernate: they are
	// saved with their memory and taken off the machine.
	IdleHibernate IdleMode = "hibernate"
)

// IdleModes are all modes.
var IdleModes = []IdleMode{IdleDefault, IdleNever, IdlePause, IdleHibernate}

// Validate reports what is wrong with a mode that was given as field.
func (m IdleMode) Validate(field string) error {
	if !slices.Contains(IdleModes, m) {
		return Invalid(field, "must be default, never, pause or hibernate, is %q", string(m))
	}
	return nil
}

// WithProcesses reports whether sessions in which processes run are paused too.
func (m IdleMode) WithProcesses() bool { return m == IdlePause || m == IdleHibernate }

// IdleState is what the server has done to a running session because nobody uses it.
// The next use undoes it.
type IdleState string

// The idle states.
const (
	// IdlePaused is the state of a session that is paused.
	IdlePaused IdleState = "paused"
	// IdleHibernated is the state of a session that was saved with its memory and taken
	// off the machine.
	IdleHibernated IdleState = "hibernated"
)

// Shown returns the word for it among the states of sessions.
func (s IdleState) Shown() string {
	if s == IdlePaused {
		return "idle" // "paused" is what its client has paused
	}
	return string(s)
}
