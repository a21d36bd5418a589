package nodetest

import (
	"context"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

var eventTests = map[string]func(*suite){
	"list":     (*suite).list,
	"continue": (*suite).continued,
	"contexts": (*suite).eventContexts,
	"expired":  (*suite).expired,
}

// listed reads a list to its end, and returns the cursor behind it.
func (s *suite) listed() (list []nodeapi.Event, next nodeapi.Cursor) {
	s.Helper()
	for {
		b, err := s.Node.Events(s.ctx, next)
		s.ok(err)
		if b.Expired || b.Unrecovered {
			s.Fatalf("a list ends with %+v", b)
		}
		list = append(list, b.Events...)
		if next = b.Next; b.Listed {
			return list, next
		}
	}
}

// has reports whether there is an event of a kind, and returns the first.
func has(list []nodeapi.Event, kind nodeapi.EventKind, session, command string) (nodeapi.Event, bool) {
	for _, e := range list {
		if e.Kind == kind && e.SessionID == session && e.CommandID == command {
			return e, true
		}
	}
	return nodeapi.Event{}, false
}

// list has everything that the node has.
func (s *suite) list() {
	id, past := s.start(), s.start()
	ended, r := s.exec(id, sh("exit 5"))
	s.all(r)
	s.exit(id, ended)
	runs, _ := s.exec(id, sh("exec sleep 1000"))
	dropped, r := s.exec(id, sh("true"))
	s.all(r)
	s.exit(id, dropped)
	s.ok(s.Node.Drop(s.ctx, id, dropped))
	s.stop(past)
	list, _ := s.listed()
	if e, ok := has(list, nodeapi.CommandEnded, id, ended); !ok || e.Exit == nil || e.Exit.Code != 5 {
		s.Errorf("the list has no end of a command: %+v", list)
	}
	if _, ok := has(list, nodeapi.CommandRuns, id, runs); !ok {
		s.Errorf("the list has no command that runs: %+v", list)
	}
	if _, ok := has(list, nodeapi.SessionRuns, id, ""); !ok {
		s.Errorf("the list has no session that runs: %+v", list)
	}
	for _, e := range list {
		if e.CommandID == dropped || e.SessionID == past {
			s.Errorf("the list has what is not there any more: %+v", e)
		}
	}
}

// continued follows events after a list, in the order that the contract promises.
func (s *suite) continued() {
	id := s.start()
	_, at := s.listed()
	cmd, r := s.exec(id, withStdin(sh("read line; exit 3")))
	go func() {
		if _, err := s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte("\n"), Close: true}); err != nil {
			s.Error(err)
		}
	}()
	collect := func(kind nodeapi.EventKind, command string) (all []nodeapi.Event) {
		s.Helper()
		for {
			before := at
			b, err := s.Node.Events(s.ctx, at)
			s.ok(err)
			again, err := s.Node.Events(s.ctx, before) // a repetition tells no less
			s.ok(err)
			if len(again.Events) < len(b.Events) {
				s.Errorf("a repetition has %d events, not %d", len(again.Events), len(b.Events))
			}
			all, at = append(all, b.Events...), b.Next
			if _, ok := has(all, kind, id, command); ok {
				return all
			}
		}
	}
	e, _ := has(collect(nodeapi.CommandEnded, cmd), nodeapi.CommandEnded, id, cmd)
	if e.Exit == nil || e.Exit.Code != 3 {
		s.Errorf("the command ended with %+v", e.Exit)
	}
	s.all(r)
	last, _ := s.exec(id, sh("exec sleep 1000"))
	s.stop(id)
	all := collect(nodeapi.SessionStopped, "")
	told := false
	for _, e := range all {
		told = told || e.Kind == nodeapi.CommandEnded && e.CommandID == last
		if e.Kind == nodeapi.SessionStopped && e.SessionID == id && !told {
			s.Errorf("the session's stop is told before the end of its command: %+v", all)
		}
	}
	if e, _ := has(all, nodeapi.CommandEnded, id, last); e.Exit != nil {
		s.Errorf("a command that ended with its session has the exit %+v", e.Exit)
	}
}

// eventContexts end before and during calls.
func (s *suite) eventContexts() {
	_, at := s.listed()
	for _, after := range []time.Duration{0, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(s.ctx, after)
		if _, err := s.Node.Events(ctx, at); err != nil {
			s.ended("Events", ctx, err)
		} else {
			s.Error("Events does not end with its context")
		}
		cancel()
	}
}

// expired is a cursor that the node does not know.
func (s *suite) expired() {
	s.start()
	b, err := s.Node.Events(s.ctx, "of another process")
	if err == nil && !b.Expired {
		s.Errorf("at a cursor that it does not know, the node says %+v", b)
	}
	s.listed()
}
