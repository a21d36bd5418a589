// Package eventlog implements nodeapi.Events for nodes: a bounded log of the newest
// events, and lists of what a node has for readers that come too late for it.
package eventlog

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// Size is the usual number of events that a log keeps.
const Size = 8192

// batchSize is the maximum number of events in a batch.
const batchSize = 512

// List returns what a node has, ordered by Compare: at most limit events after a
// place, or the first ones if after is the zero Place. Fewer than limit are the last.
// Events that are appended must be in the lists by then.
type List func(after Place, limit int) []nodeapi.Event

// Place is the place of a session or a command in a list.
type Place struct{ SessionID, CommandID string }

// PlaceOf returns the place of an event.
func PlaceOf(e nodeapi.Event) Place { return Place{e.SessionID, e.CommandID} }

// Compare orders places by session. The commands of a session, ordered by id, come
// before the session itself.
func (p Place) Compare(q Place) int {
	if c := strings.Compare(p.SessionID, q.SessionID); c != 0 {
		return c
	}
	switch {
	case p.CommandID == q.CommandID:
		return 0
	case p.CommandID == "":
		return 1
	case q.CommandID == "":
		return -1
	}
	return strings.Compare(p.CommandID, q.CommandID)
}

// Log is the events of one process of a node.
type Log struct {
	epoch string
	list  List
	size  int
	wait  time.Duration

	mu sync.Mutex
	// ring has the newest events; ring[i%size] is the i-th of the process, for i from
	// first to next-1. A cursor before floor is too old.
	ring               []nodeapi.Event
	first, next, floor int64
	// more is closed, and replaced, when there are more events, or cursors expire.
	more   chan struct{}
	closed bool
	// read is when Events last was called or returned; reading is the number of
	// calls in progress.
	read    time.Time
	reading int
}

// New returns an empty log that keeps size events.
func New(size int, list List) *Log {
	return &Log{
		epoch: newEpoch(), list: list, size: size, wait: nodeapi.EventsWait,
		ring: make([]nodeapi.Event, size), more: make(chan struct{}), read: time.Now(),
	}
}

func newEpoch() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// Append adds an event. It never waits. After Close it does nothing: that the node
// lets go of a session is not the session's end.
func (l *Log) Append(e nodeapi.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.ring[l.next%int64(l.size)] = e
	l.next++
	if l.next-l.first > int64(l.size) {
		l.first++
	}
	l.floor = max(l.floor, l.first)
	l.wake()
}

// Expire makes all readers list again.
func (l *Log) Expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// No cursor that was given out is as high.
	l.next++
	l.first, l.floor = l.next, l.next
	l.wake()
}

// Close ends the log: no event is told any more.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wake()
}

func (l *Log) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

// Silence returns for how long nobody has read the events.
func (l *Log) Silence() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reading > 0 {
		return 0
	}
	return time.Since(l.read)
}

// Events implements nodeapi.Events.
func (l *Log) Events(ctx context.Context, after nodeapi.Cursor) (nodeapi.Batch, error) {
	l.mu.Lock()
	l.reading++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.reading--
		l.read = time.Now()
		l.mu.Unlock()
	}()
	at, ok := l.parse(after)
	if !ok {
		return nodeapi.Batch{Expired: true}, nil
	}
	if at.listing {
		return l.listFrom(at)
	}
	wait := time.NewTimer(l.wait)
	defer wait.Stop()
	for {
		batch, more, err := l.newer(at)
		if err != nil || batch.Expired || len(batch.Events) > 0 {
			return batch, err
		}
		select {
		case <-more:
		case <-wait.C:
			return batch, nil
		case <-ctx.Done():
			return nodeapi.Batch{}, ctx.Err()
		}
	}
}

// newer returns what was appended after a cursor, and a channel that is closed when
// there is more.
func (l *Log) newer(at cursor) (nodeapi.Batch, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nodeapi.Batch{}, nil, errClosed()
	case at.seq < l.floor || at.seq > l.next:
		return nodeapi.Batch{Expired: true}, nil, nil
	}
	end := min(l.next, at.seq+batchSize)
	events := make([]nodeapi.Event, 0, end-at.seq)
	for i := at.seq; i < end; i++ {
		events = append(events, l.ring[i%int64(l.size)])
	}
	return nodeapi.Batch{Events: events, Next: l.format(cursor{seq: end})}, l.more, nil
}

// listFrom returns a part of a list. A list that began before cursors expired is
// worthless.
func (l *Log) listFrom(at cursor) (nodeapi.Batch, error) {
	l.mu.Lock()
	closed, expired := l.closed, at.seq < l.floor
	l.mu.Unlock()
	if closed {
		return nodeapi.Batch{}, errClosed()
	}
	if expired {
		return nodeapi.Batch{Expired: true}, nil
	}
	events := l.list(at.place, batchSize)
	if len(events) < batchSize {
		return nodeapi.Batch{Events: events, Next: l.format(cursor{seq: at.seq}), Listed: true}, nil
	}
	at.place = PlaceOf(events[len(events)-1])
	return nodeapi.Batch{Events: events, Next: l.format(at)}, nil
}

func errClosed() error {
	return skerry.Errorf(skerry.CodeUnavailable, "the server is shutting down")
}

// cursor is what a nodeapi.Cursor means.
type cursor struct {
	// seq is the number of events that the reader has, or does not need after the
	// list.
	seq int64
	// listing is set during a list, of which the reader has what comes up to place.
	listing bool
	place   Place
}

func (l *Log) format(c cursor) nodeapi.Cursor {
	s := fmt.Sprintf("%s.%d", l.epoch, c.seq)
	if c.listing {
		s += "." + c.place.SessionID + "." + c.place.CommandID
	}
	return nodeapi.Cursor(s)
}

// parse returns what a cursor means. It reports false if it is not one of this log.
func (l *Log) parse(text nodeapi.Cursor) (cursor, bool) {
	if text == "" {
		l.mu.Lock()
		defer l.mu.Unlock()
		return cursor{seq: l.next, listing: true}, true
	}
	parts := strings.Split(string(text), ".")
	if (len(parts) != 2 && len(parts) != 4) || parts[0] != l.epoch {
		return cursor{}, false
	}
	seq, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || seq < 0 {
		return cursor{}, false
	}
	c := cursor{seq: seq}
	if len(parts) == 4 {
		c.listing, c.place = true, Place{parts[2], parts[3]}
	}
	return c, true
}

// Page makes a page of a list from the ids of a node's sessions, in any order, and the
// events of each, in any order.
func Page(sessionIDs []string, after Place, limit int, of func(sessionID string) []nodeapi.Event) []nodeapi.Event {
	slices.Sort(sessionIDs)
	from, _ := slices.BinarySearch(sessionIDs, after.SessionID)
	var page []nodeapi.Event
	for _, id := range sessionIDs[from:] {
		events := of(id)
		slices.SortFunc(events, func(a, b nodeapi.Event) int { return PlaceOf(a).Compare(PlaceOf(b)) })
		for _, e := range events {
			if after != (Place{}) && PlaceOf(e).Compare(after) <= 0 {
				continue
			}
			if page = append(page, e); len(page) == limit {
				return page
			}
		}
	}
	return page
}
