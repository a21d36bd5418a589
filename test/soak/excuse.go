package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// fault is something that was done to the installation or to one session. An operation
// at the same time may fail because of it, in the ways that excuses describes, and in no
// other.
type fault struct {
	kind string
	// session is empty if the fault concerns the whole installation.
	session string
	from    time.Time
	// to is zero until the fault is over. The faults that end a session are never over.
	to time.Time
}

func (f *fault) String() string {
	return fmt.Sprintf("%s %s (%s to %s)", f.kind, f.session, f.from.Format("15:04:05.000"), f.to.Format("15:04:05.000"))
}

// The kinds of faults.
const (
	sentryKilled    = "sentry killed"
	agentKilled     = "agent killed"
	agentGarbled    = "agent garbled"
	memoryExhausted = "memory exhausted"
	serverKilled    = "server killed"
	serverRestarted = "server restarted"
	diskFilled      = "disk filled"
)

// reasons are what the reason of a session that a fault ended contains.
var reasons = map[string][]string{
	// The next server does not know who killed it.
	sentryKilled: {"killed by signal 9", "guest agent ended", "did not survive the restart"},
	agentKilled:  {"guest agent ended", "did not survive the restart", "connection to the sandbox's guest agent was lost"},
	// The server stops to trust the agent; the files are saved first.
	agentGarbled:    {"connection to the sandbox's guest agent was lost"},
	memoryExhausted: {"memory"},
	// A session loads its files while it runs.
	diskFilled: {"the snapshot that the sandbox started from could not be read"},
}

// faultLog has all faults so far.
type faultLog struct {
	mu  sync.Mutex
	all []*fault
}

func (l *faultLog) begin(kind, session string) *fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &fault{kind: kind, session: session, from: time.Now()}
	l.all = append(l.all, f)
	return f
}

func (l *faultLog) end(f *fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.to = time.Now()
}

// grace is how long the consequences of a fault may last: a call that failed is noticed
// a little later.
const grace = 2 * time.Second

// during returns the faults of the installation and of a session in a period.
func (l *faultLog) during(session string, from, to time.Time) (list []fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.all {
		if (f.session == "" || f.session == session) && f.from.Before(to) && (f.to.IsZero() || f.to.Add(grace).After(from)) {
			list = append(list, *f)
		}
	}
	return list
}

// of returns the faults that were done to a session, and those of the installation that may
// have ended it.
func (l *faultLog) of(session string) (list []fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.all {
		if f.session == session || f.kind == diskFilled {
			list = append(list, *f)
		}
	}
	return list
}

func (l *faultLog) counts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for _, f := range l.all {
		counts[f.kind]++
	}
	return counts
}

// wrong is an answer that no fault excuses: wrong bytes, a missing file.
type wrong struct{ error }

func wrongf(format string, args ...any) error { return wrong{fmt.Errorf(format, args...)} }

// exitError is the end of a command that should have ended otherwise.
type exitError struct {
	code, want int
	stderr     string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("exit code %d, not %d; standard error ends with %.300q", e.code, e.want, e.stderr[max(0, len(e.stderr)-300):])
}

// unwritten is the error of a command that the server does not know, and had confirmed. It
// writes commands to its database in the background.
type unwritten struct{ error }

func (e unwritten) Unwrap() error { return e.error }

// statusError is an answer of a published port that is not of the program in the sandbox.
type statusError struct {
	status int
	code   string
}

func (e *statusError) Error() string { return fmt.Sprintf("the port answered %d %s", e.status, e.code) }

// What programs say about a full disk: a file cannot be written, or a part of a file of a
// snapshot that is only loaded when it is read.
const (
	noSpace = "No space left on device"
	ioError = "Input/output error"
)

// excuses reports whether an error can be the consequence of the fault.
func (f *fault) excuses(err error) bool {
	if _, is := errors.AsType[wrong](err); is {
		return false
	}
	if _, is := errors.AsType[*client.LostError](err); is {
		return false // a client attaches again, as long as it takes
	}
	api, isAPI := errors.AsType[*client.Error](err)
	exit, isExit := errors.AsType[*exitError](err)
	status, isStatus := errors.AsType[*statusError](err)
	if _, is := errors.AsType[unwritten](err); is {
		return f.kind == serverKilled
	}
	switch f.kind {
	case serverKilled, serverRestarted:
		// There is no server, or its connection broke, or it is not ready. Commands go on.
		return isAPI && api.Code == skerry.CodeUnavailable || isStatus && status.status == http.StatusServiceUnavailable || !isAPI && !isExit && !isStatus
	case diskFilled:
		// No room for a save, a start, the database, or a file in a sandbox. A session that
		// could not load its files is over.
		lost := api != nil && api.Code == skerry.CodeConflict && strings.Contains(err.Error(), reasons[diskFilled][0])
		return isAPI && (api.Code == skerry.CodeDiskFull || api.Code == skerry.CodeUnavailable || client.IsStopped(err) || lost) ||
			isExit && (strings.Contains(exit.stderr, noSpace) || strings.Contains(exit.stderr, ioError))
	case memoryExhausted, sentryKilled, agentKilled, agentGarbled:
		// The session is over, or about to be. Its commands were killed with it.
		return isAPI && (client.IsStopped(err) || api.Code == skerry.CodeConflict || api.Code == skerry.CodeUnavailable) ||
			isExit && exit.code == 137 || isStatus && status.status >= 500
	}
	return false
}
