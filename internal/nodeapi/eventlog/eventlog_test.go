package eventlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// state is what a node has: the commands of its sessions, and whether they have ended.
type state struct {
	mu  sync.Mutex
	has map[string]map[string]bool
	log *Log
}

func newState(size int) *state {
	s := &state{has: map[string]map[string]bool{}}
	s.log = New(size, s.list)
	return s
}

func (s *state) list(after Place, limit int) []nodeapi.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id := range s.has {
		ids = append(ids, id)
	}
	return Page(ids, after, limit, func(id string) []nodeapi.Event {
		events := []nodeapi.Event{{Kind: nodeapi.SessionRuns, SessionID: id}}
		for cmd, ended := range s.has[id] {
			e := nodeapi.Event{Kind: nodeapi.CommandRuns, SessionID: id, CommandID: cmd}
			if ended {
				e.Kind = nodeapi.CommandEnded
			}
			events = append(events, e)
		}
		return events
	})
}

func (s *state) start(session, cmd string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[session] == nil {
		s.has[session] = map[string]bool{}
	}
	s.has[session][cmd] = false
}

func (s *state) end(session, cmd string) {
	s.mu.Lock()
	s.has[session][cmd] = true
	s.mu.Unlock()
	s.log.Append(nodeapi.Event{Kind: nodeapi.CommandEnded, SessionID: session, CommandID: cmd})
}

// read reads until a batch is empty or ends a list, as a reader that has heard of ended.
func read(t *testing.T, l *Log, at nodeapi.Cursor, ended map[Place]bool) nodeapi.Cursor {
	t.Helper()
	for {
		b, err := l.Events(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if b.Expired {
			at = ""
			continue
		}
		for _, e := range b.Events {
			if e.Kind == nodeapi.CommandEnded {
				ended[PlaceOf(e)] = true
			}
		}
		if at = b.Next; b.Listed || len(b.Events) == 0 {
			return at
		}
	}
}

func TestListThenEvents(t *testing.T) {
	s := newState(4)
	s.log.wait = 0
	for i := range 3 * batchSize / 2 { // three pages: the sessions come after their commands
		s.start("sbx_"+string(rune('a'+i%3)), fmt.Sprintf("cmd_%04d", i))
	}
	s.end("sbx_a", "cmd_0000")
	var all []Place
	var at nodeapi.Cursor
	for pages := 1; ; pages++ {
		b, err := s.log.Events(t.Context(), at)
		if err != nil || b.Expired {
			t.Fatalf("%+v, %v", b, err)
		}
		for _, e := range b.Events {
			all = append(all, PlaceOf(e))
		}
		if pages == 1 {
			s.end("sbx_a", "cmd_0003") // it has been listed as running
		}
		if at = b.Next; b.Listed {
			if pages != 2 {
				t.Errorf("listed in %d pages", pages)
			}
			break
		}
	}
	if len(all) != 3*batchSize/2+3 || !slices.IsSortedFunc(all, Place.Compare) || slices.Index(all, Place{"sbx_a", ""}) != batchSize/2 {
		t.Errorf("%d were listed: %v …", len(all), all[:5])
	}
	ended := map[Place]bool{}
	at = read(t, s.log, at, ended)
	if len(ended) != 1 || !ended[Place{"sbx_a", "cmd_0003"}] {
		t.Errorf("after the list: %v", ended)
	}
	s.end("sbx_b", "cmd_0001")
	if b, err := s.log.Events(t.Context(), at); err != nil || len(b.Events) != 1 || b.Events[0].CommandID != "cmd_0001" {
		t.Errorf("after that: %+v, %v", b, err)
	}
	// The same cursor gives the same events: an answer may be lost.
	if b, err := s.log.Events(t.Context(), at); err != nil || len(b.Events) != 1 {
		t.Errorf("once more: %+v, %v", b, err)
	}
}

func TestExpiredCursors(t *testing.T) {
	s, other := newState(4), newState(4)
	s.log.wait, other.log.wait = 0, 0
	s.start("sbx_a", "cmd_a")
	begin := func(l *Log) nodeapi.Cursor { return read(t, l, "", map[Place]bool{}) }
	at := begin(s.log)
	for name, c := range map[string]nodeapi.Cursor{
		"of another process": begin(other.log), "no cursor": "x", "no number": s.log.format(cursor{}) + "x",
		"a negative one": nodeapi.Cursor(s.log.epoch + ".-1"), "of the future": s.log.format(cursor{seq: 7}),
	} {
		if b, err := s.log.Events(t.Context(), c); err != nil || !b.Expired || b.Next != "" {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
	for range 4 {
		s.end("sbx_a", "cmd_a")
	}
	if b, err := s.log.Events(t.Context(), at); err != nil || len(b.Events) != 4 {
		t.Errorf("as old as it may be: %+v, %v", b, err)
	}
	listing := s.log.format(cursor{seq: 0, listing: true, place: Place{"sbx_a", "cmd_a"}})
	s.end("sbx_a", "cmd_a")
	for _, c := range []nodeapi.Cursor{at, listing} {
		if b, err := s.log.Events(t.Context(), c); err != nil || !b.Expired {
			t.Errorf("too old: %+v, %v", b, err)
		}
	}
	at = begin(s.log)
	s.log.Expire()
	if b, err := s.log.Events(t.Context(), at); err != nil || !b.Expired {
		t.Errorf("after Expire: %+v, %v", b, err)
	}
	at = begin(s.log)
	s.end("sbx_a", "cmd_a")
	if b, err := s.log.Events(t.Context(), at); err != nil || len(b.Events) != 1 {
		t.Errorf("after a list that began after Expire: %+v, %v", b, err)
	}
}

func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(4)
		s.start("sbx_a", "cmd_a")
		at := nodeapi.Cursor("")
		for listed := false; !listed; {
			b, err := s.log.Events(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			at, listed = b.Next, b.Listed
		}
		time.Sleep(time.Minute)
		if got := s.log.Silence(); got != time.Minute {
			t.Errorf("nobody has read for %s", got)
		}
		began := time.Now()
		if b, err := s.log.Events(t.Context(), at); err != nil || len(b.Events) != 0 || b.Next != at || time.Since(began) != nodeapi.EventsWait {
			t.Errorf("after %s: %+v, %v", time.Since(began), b, err)
		}
		got := make(chan nodeapi.Batch)
		call := func(ctx context.Context) {
			go func() {
				b, err := s.log.Events(ctx, at)
				if err != nil && ctx.Err() == nil && skerry.CodeOf(err) != skerry.CodeUnavailable {
					t.Error(err)
				}
				got <- b
			}()
			synctest.Wait()
		}
		call(t.Context())
		time.Sleep(time.Second)
		if got := s.log.Silence(); got != 0 {
			t.Errorf("somebody reads, and it is silent for %s", got)
		}
		s.end("sbx_a", "cmd_a")
		if b := <-got; len(b.Events) != 1 || time.Since(began) != nodeapi.EventsWait+time.Second {
			t.Errorf("told after %s: %+v", time.Since(began), b)
		} else {
			at = b.Next
		}
		call(t.Context())
		s.log.Expire()
		if b := <-got; !b.Expired {
			t.Errorf("%+v", b)
		}
		at = read(t, s.log, "", map[Place]bool{})
		gone, cancel := context.WithCancel(t.Context())
		call(gone)
		cancel()
		<-got
		if _, err := s.log.Events(gone, at); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		call(t.Context())
		s.log.Close()
		<-got
		s.end("sbx_a", "cmd_a") // nobody is told
		for _, c := range []nodeapi.Cursor{"", at} {
			if _, err := s.log.Events(t.Context(), c); skerry.CodeOf(err) != skerry.CodeUnavailable {
				t.Errorf("after the end: %v", err)
			}
		}
	})
}

// TestNothingIsMissed has commands start and end while a reader that is sometimes too
// slow reads.
func TestNothingIsMissed(t *testing.T) {
	s := newState(64)
	s.log.wait = time.Millisecond
	const sessions, commands = 4, 1000
	for i := range sessions * commands {
		s.start(fmt.Sprintf("sbx_%d", i%sessions), fmt.Sprintf("cmd_%d", i))
	}
	var ending sync.WaitGroup
	for i := range sessions {
		ending.Go(func() {
			for j := range commands {
				s.end(fmt.Sprintf("sbx_%d", i), fmt.Sprintf("cmd_%d", j*sessions+i))
				if rand.IntN(50) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	ended := map[Place]bool{}
	var at nodeapi.Cursor
	done := make(chan struct{})
	go func() {
		ending.Wait()
		close(done)
	}()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		at = read(t, s.log, at, ended)
	}
	at = read(t, s.log, at, ended)
	read(t, s.log, at, ended)
	if len(ended) != sessions*commands {
		t.Errorf("%d of %d ends were told", len(ended), sessions*commands)
	}
}
