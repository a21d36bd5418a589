package nodeapi

import (
	"context"
	"time"
)

// Events tells what happens to sessions and commands by itself, above all their ends,
// as one stream that can be continued after an interruption.
//
// It works like list and watch. A reader begins with the empty cursor and gets a list
// of all that the node has, in batches, the last of which is marked; then what happens
// after the list began. Each batch has the cursor to continue with. If the node cannot
// continue there, because the cursor is of another process of the node or too old, it
// says so, and the reader begins again with the empty cursor.
//
// An event may be told more than once, and those of a list in any order. But the end
// of a command is told before the stop of its session, and what is neither in a list
// that began after it had been started, nor told later, is not on the node.
//
// The node keeps a bounded number of events and no state of its readers: a slow reader
// delays nobody, and lists again when it comes too late. A list has the end of a
// command until Drop, or Stop of its session, and the loss of a session until Stop.
type Events interface {
	// Events returns what happened after a cursor. It waits for that, for at most
	// EventsWait; then it returns an empty batch. The batch of an empty cursor may
	// be empty too.
	Events(ctx context.Context, after Cursor) (Batch, error)
}

// EventsWait is the maximum time that Events waits. A node that has not answered after
// twice that time is unreachable.
const EventsWait = 20 * time.Second

// Cursor is a place in the events of a node, which gives it its meaning. The empty
// cursor is before everything.
type Cursor string

// Batch is a number of consecutive events.
type Batch struct {
	Events []Event
	// Next is the cursor of the following batch.
	Next Cursor
	// Listed marks the end of the list that began with the empty cursor.
	Listed bool
	// Expired means that the node cannot continue at the cursor. Next is empty.
	Expired bool
	// Unrecovered means that the node has been started and waits for Recover; until
	// then it can tell nothing. Next is empty.
	Unrecovered bool
}

// Event is something that happened to a session or a command or, in a list, the state
// that it is in.
type Event struct {
	Kind      EventKind
	SessionID string
	// CommandID is the command that the event is about, "" if it is about the
	// session.
	CommandID string
	// Exit is how a command ended. It is nil if that is not known, because its
	// session ended.
	Exit *Exit
	// Loss is how a session was lost.
	Loss Loss
	// Hibernated: of SessionAsleep, that the session is off the machine; of SessionAwake,
	// that it was.
	Hibernated bool
	// Took is how long resuming a session that was asleep took, or saving one that
	// hibernates.
	Took time.Duration
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	// CommandRuns is told in lists only.
	CommandRuns EventKind = "command_runs"
	// CommandEnded: all output of the command has been taken in.
	CommandEnded EventKind = "command_ended"
	// SessionRuns is told in lists only. The list has all its commands.
	SessionRuns EventKind = "session_runs"
	// SessionAttaching is told in lists only: the node still takes the session over
	// from an earlier process. It does not know the session's commands yet. The
	// cursor expires when it does.
	SessionAttaching EventKind = "session_attaching"
	// SessionLost: nothing can run in the session any more. It still holds
	// resources until Stop.
	SessionLost EventKind = "session_lost"
	// SessionOverdue: the node has paused the session, because its time is up and
	// nobody read the events. Stop, or SetDeadline with time left, or Resume follows.
	SessionOverdue EventKind = "session_overdue"
	// SessionAsleep: the node has paused the session, because nobody uses it. Its status
	// is still running: every use resumes it first. It may be told again with Hibernated.
	SessionAsleep EventKind = "session_asleep"
	// SessionAwake: the session is not asleep any more.
	SessionAwake EventKind = "session_awake"
	// SessionStopped: Stop has succeeded. It is the session's last event. Lists do
	// not have sessions that have stopped.
	SessionStopped EventKind = "session_stopped"
)

// Loss says how a session was lost.
type Loss struct {
	// Reason is a sentence that says why.
	Reason string
	// Savable says that its machine still ran then: Snapshot works.
	Savable bool
}
