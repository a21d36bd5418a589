// Package audit keeps the audit log: who did what to which sandbox, from where, and with
// what result. docs/audit.md describes it for operators.
//
// The log is a chain of JSON lines in files that only grow. Each line has the SHA-256
// hash of itself and of the line before, so a line that was changed, removed, inserted or
// moved is found. One goroutine of a Log writes them. Copies, to a file or to a
// collector, read the log's own files: they may be slow or fail, and nothing waits for
// them or is kept in memory for them.
//
// Events have no arguments, environments, bodies, queries or file contents. Whoever makes
// an Event sees to it that there is no secret in it.
package audit

import (
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kinds of actors.
const (
	ActorToken    = "token"
	ActorUser     = "user"
	ActorOIDC     = "oidc"
	ActorOperator = "operator" // root on the server's machine
	ActorServer   = "server"   // the server itself
)

// Kinds of targets.
const (
	TargetSandbox  = "sandbox"
	TargetSession  = "session"
	TargetCommand  = "command"
	TargetSnapshot = "snapshot"
	TargetDrive    = "drive"
	TargetPort     = "port"
	TargetToken    = "token"
	TargetTeam     = "team"
	TargetProject  = "project"
	TargetMember   = "member"
	TargetIssuer   = "issuer"
	TargetRule     = "rule"
	TargetKey      = "key"
)

// Phases of what takes long. Other events have none.
const (
	PhaseOpened = "opened"
	PhaseClosed = "closed"
)

// Actor is who did something.
type Actor struct {
	Kind string `json:"kind"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	// Token is the id of the token, if ID is another one.
	Token string `json:"token,omitempty"`
	// Development says that it was a development token that was made with the token.
	Development bool `json:"development,omitempty"`
}

// Target is what something was done to.
type Target struct {
	Kind string `json:"kind"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// Event is something that was done, or refused. Strings may come from clients: the log
// cuts them and replaces what is not printable.
type Event struct {
	// Time is when it began; now by default.
	Time      time.Time
	RequestID string
	// Operation is the operationId of the API, or an operator's, such as token.create.
	Operation string
	Phase     string
	Actor     Actor
	Team      string // id
	Project   string // id
	Targets   []Target
	// Role is the one that a member, a token or a rule was given.
	Role string
	// Program is the name of the program of a command, without its arguments.
	Program string
	// Remote is the address of the client. Via is that of the trusted proxy that named
	// Remote, if there was one.
	Remote    string
	Via       string
	UserAgent string
	Status    int    // HTTP status
	Code      string // of an error
	Took      time.Duration
	// Refused marks a failed authentication or authorization. Their number is limited:
	// anybody can cause them. Those beyond the limit are counted.
	Refused bool
}

// Record is a line of the log.
type Record struct {
	Seq        int64    `json:"seq"`
	Time       string   `json:"time"` // RFC 3339, UTC, with milliseconds
	RequestID  string   `json:"requestId,omitempty"`
	Operation  string   `json:"operation"`
	Phase      string   `json:"phase,omitempty"`
	Actor      *Actor   `json:"actor,omitempty"`
	Team       string   `json:"team,omitempty"`
	Project    string   `json:"project,omitempty"`
	Targets    []Target `json:"targets,omitempty"`
	Role       string   `json:"role,omitempty"`
	Program    string   `json:"program,omitempty"`
	Remote     string   `json:"remote,omitempty"`
	Via        string   `json:"via,omitempty"`
	UserAgent  string   `json:"userAgent,omitempty"`
	Status     int      `json:"status,omitempty"`
	Code       string   `json:"code,omitempty"`
	DurationMs int64    `json:"durationMs,omitempty"`
	Log        *Note    `json:"log,omitempty"`
	// Prev is the hash of the line before, Hash that of this one; see seal.
	Prev string `json:"prev"`
	Hash string `json:"hash,omitempty"`
}

// Operations of the log itself. Their records have a Note.
const (
	opOpened     = "audit.opened"     // a process began to write
	opClosed     = "audit.closed"     // it ended in an orderly way
	opTorn       = "audit.torn"       // the end of a file was not whole, and was moved aside
	opMissing    = "audit.missing"    // records that were on disk are gone
	opRemoved    = "audit.removed"    // an old file is removed
	opLost       = "audit.lost"       // records could not be written
	opSuppressed = "audit.suppressed" // refused calls beyond the limit
)

// Note is what the log says about itself.
type Note struct {
	Instance string `json:"instance,omitempty"`
	Version  string `json:"version,omitempty"`
	File     string `json:"file,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`
	// Through and Hash are the last record of a removed file, or of those missing.
	Through int64  `json:"through,omitempty"`
	Hash    string `json:"hash,omitempty"`
	// Count is the number of records that the note stands for, since Since.
	Count int64    `json:"count,omitempty"`
	Since string   `json:"since,omitempty"`
	From  []Source `json:"from,omitempty"`
}

// Source is where refused calls came from: an address or a token.
type Source struct {
	From  string `json:"from"`
	Count int64  `json:"count"`
}

// Limits of the strings of an Event, in bytes.
const (
	maxWord    = 64 // an id, an operation, an address, a code
	maxName    = 128
	maxAgent   = 256
	maxTargets = 8
)

const timeFormat = "2006-01-02T15:04:05.000Z"

func formatTime(t time.Time) string { return t.UTC().Format(timeFormat) }

// bounded returns an Event that keeps nothing of what it was made of, and is not large.
func (e Event) bounded() Event {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	for _, s := range []*string{
		&e.RequestID, &e.Operation, &e.Phase, &e.Actor.Kind, &e.Actor.ID, &e.Actor.Token, &e.Role, &e.Team, &e.Project, &e.Program, &e.Remote, &e.Via, &e.Code,
	} {
		*s = printable(*s, maxWord)
	}
	e.Actor.Name, e.UserAgent = printable(e.Actor.Name, maxName), printable(e.UserAgent, maxAgent)
	targets := make([]Target, min(len(e.Targets), maxTargets))
	for i := range targets {
		t := e.Targets[i]
		targets[i] = Target{Kind: printable(t.Kind, maxWord), ID: printable(t.ID, maxName), Name: printable(t.Name, maxName)}
	}
	e.Targets = targets
	return e
}

func (e *Event) record() Record {
	r := Record{
		Time: formatTime(e.Time), RequestID: e.RequestID, Operation: e.Operation, Phase: e.Phase, Team: e.Team, Project: e.Project,
		Targets: e.Targets, Role: e.Role, Program: e.Program, Remote: e.Remote, Via: e.Via, UserAgent: e.UserAgent,
		Status: e.Status, Code: e.Code, DurationMs: e.Took.Milliseconds(),
	}
	if e.Actor.Kind != "" {
		actor := e.Actor
		r.Actor = &actor
	}
	return r
}

// printable returns a copy of s, valid UTF-8 of at most most bytes, with U+FFFD for what
// cannot be printed.
func printable(s string, most int) string {
	plain := len(s) <= most
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return strings.Clone(s)
	}
	var b strings.Builder
	for _, r := range s {
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > most {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Redacted stands for a credential.
const Redacted = "[redacted]"

// tokenLike matches what looks like a token: one of the server's own, or a JWT.
var tokenLike = regexp.MustCompile(`sk(erry|[a-z])?_[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)*`)

// Redact removes what looks like a token: one may have been given where a name belongs.
func Redact(s string) string {
	if strings.Contains(s, "sk") || strings.Contains(s, "eyJ") {
		return tokenLike.ReplaceAllString(s, Redacted)
	}
	return s
}
