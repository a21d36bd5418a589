package node

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// How a command ended is in three places: in memory (session.ends) until Drop, or the
// stop of its session; in the guest agent, which keeps the last keepSettled, for the
// case that this process ends; and of older ones in a file, before the agent forgets
// them. So a list of a later process has the ends of this one.

// Events implements nodeapi.Node.
func (n *Node) Events(ctx context.Context, after nodeapi.Cursor) (_ nodeapi.Batch, err error) {
	defer edge(ctx, &err)
	if !n.hasRecovered() { // it would list nothing
		return nodeapi.Batch{Unrecovered: true}, nil
	}
	return n.events.Events(ctx, after)
}

// listEvents is the node's eventlog.List.
func (n *Node) listEvents(after eventlog.Place, limit int) []nodeapi.Event {
	sessions := map[string]*session{}
	var ids []string
	for _, s := range n.all() {
		sessions[s.id] = s
		ids = append(ids, s.id)
	}
	return eventlog.Page(ids, after, limit, func(id string) []nodeapi.Event { return sessions[id].list() })
}

// all returns the known sessions.
func (n *Node) all() []*session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.sessions))
}

// list returns the state of the session and of its commands.
func (s *session) list() []nodeapi.Event {
	attaching := s.attaching()
	s.mu.Lock()
	defer s.mu.Unlock()
	own := nodeapi.Event{Kind: nodeapi.SessionRuns, SessionID: s.id}
	switch {
	case s.released:
		return nil
	case attaching:
		own.Kind = nodeapi.SessionAttaching
		return []nodeapi.Event{own}
	case s.lost():
		own.Kind, own.Loss = nodeapi.SessionLost, nodeapi.Loss{Reason: s.reason, Savable: s.agentLost}
	case s.overdue:
		own.Kind = nodeapi.SessionOverdue
	}
	events := []nodeapi.Event{own}
	if s.idle.asleep {
		events = append(events, nodeapi.Event{Kind: nodeapi.SessionAsleep, SessionID: s.id, Hibernated: s.idle.hibernated})
	}
	for id, exit := range s.ends {
		events = append(events, nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: s.id, CommandID: id, Exit: &exit})
	}
	for id, c := range s.commands {
		if _, ended := s.ends[id]; !ended && !c.over() {
			events = append(events, nodeapi.Event{Kind: nodeapi.CommandRuns, SessionID: s.id, CommandID: id})
		}
	}
	return events
}

// lost reports whether the session has ended by itself. mu is held.
func (s *session) lost() bool {
	select {
	case <-s.ended:
		return s.reason != ""
	default:
		return false
	}
}

// tellLoss tells that the session has ended by itself.
func (s *session) tellLoss() {
	s.mu.Lock()
	loss := nodeapi.Loss{Reason: s.reason, Savable: s.agentLost}
	s.mu.Unlock()
	s.node.events.Append(nodeapi.Event{Kind: nodeapi.SessionLost, SessionID: s.id, Loss: loss})
}

// endCommand records and tells how a command ended.
func (s *session) endCommand(c *command, exit nodeapi.Exit) {
	s.mu.Lock()
	s.ends[c.id] = exit
	s.mu.Unlock()
	c.end()
	s.node.events.Append(nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: s.id, CommandID: c.id, Exit: &exit})
}

// loseCommand tells that a command ended with its session. After Close that is not
// so, and nobody is told.
func (s *session) loseCommand(c *command) {
	c.end()
	s.node.events.Append(nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: s.id, CommandID: c.id})
}

// endsDir has a file for each end that the agent does not keep any more.
func (s *session) endsDir() string { return filepath.Join(s.dir, "ends") }

// savedEnd is the content of such a file.
type savedEnd struct {
	Code   int   `json:"code"`
	Micros int64 `json:"us"`
}

// saveEnd writes a file with a command's end, unless it was dropped.
func (s *session) saveEnd(c *command) {
	s.mu.Lock()
	exit, kept := s.ends[c.id]
	s.mu.Unlock()
	if !kept {
		return
	}
	b, err := json.Marshal(savedEnd{Code: exit.Code, Micros: exit.Duration.Microseconds()})
	if err == nil {
		path := filepath.Join(s.endsDir(), c.id)
		if err = os.WriteFile(path, b, 0o600); errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(s.endsDir(), 0o700); err == nil {
				err = os.WriteFile(path, b, 0o600)
			}
		}
	}
	if err != nil {
		s.node.cfg.Log.Error("cannot keep how a command ended", "session", s.id, "command", c.id, "error", err)
	}
}

// dropEnd forgets how a command ended.
func (s *session) dropEnd(id string) error {
	s.mu.Lock()
	delete(s.ends, id)
	s.mu.Unlock()
	if !skerry.ValidID(skerry.PrefixCommand, id) {
		return nil
	}
	if err := os.Remove(filepath.Join(s.endsDir(), id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loadEnds reads the ends that an earlier process wrote. Nobody else has the session
// yet.
func (s *session) loadEnds() {
	entries, err := os.ReadDir(s.endsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	for _, e := range entries {
		var b []byte
		var end savedEnd
		if b, err = os.ReadFile(filepath.Join(s.endsDir(), e.Name())); err == nil {
			err = json.Unmarshal(b, &end)
		}
		if err != nil {
			break
		}
		s.ends[e.Name()] = nodeapi.Exit{Code: end.Code, Duration: time.Duration(end.Micros) * time.Microsecond}
	}
	if err != nil {
		// Commands whose end is not known count as lost.
		s.node.cfg.Log.Error("cannot read how commands ended", "session", s.id, "error", err)
	}
}
