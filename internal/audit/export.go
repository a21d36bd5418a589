package audit

import (
	"slices"
	"time"
)

// Filter chooses records. Zero values choose all.
type Filter struct {
	Since, Until  time.Time
	Team, Sandbox string // an id; a name
}

// Matches reports whether a record is one of those.
func (f *Filter) Matches(r *Record) bool {
	if f.Team != "" && r.Team != f.Team {
		return false
	}
	if f.Sandbox != "" && !slices.ContainsFunc(r.Targets, func(t Target) bool { return t.Kind == TargetSandbox && t.Name == f.Sandbox }) {
		return false
	}
	if f.Since.IsZero() && f.Until.IsZero() {
		return true
	}
	at, err := time.Parse(timeFormat, r.Time)
	return err == nil && !at.Before(f.Since) && (f.Until.IsZero() || at.Before(f.Until))
}

// Check returns the record of a line, or an error if the line is none or was changed. It
// does not look at the lines around it; see Verify.
func Check(line Line) (*Record, error) { return unseal(line.Bytes) }
