package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/guest/wire"
)

// fakeConn is a connection with all received data prepared.
type fakeConn struct{ io.Reader }

func (fakeConn) Write(p []byte) (int, error) { return len(p), nil }
func (fakeConn) Close() error                { return nil }

// recorder records the frames of a hostile agent.
type recorder struct {
	fakeConn
	bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error)  { return 0, io.EOF }
func (r *recorder) Write(p []byte) (int, error) { return r.Buffer.Write(p) }

func say(frames func(l *wire.Link)) []byte {
	r := &recorder{}
	frames(wire.NewLink(transport{r}))
	return r.Bytes()
}

// hear gives b to a client that has a process with id 1, a download with id 2
// and a listing that it waits for with id 3, and returns once the connection has ended.
func hear(b []byte) (*Process, *call, error) {
	conn := &gatedConn{fakeConn: fakeConn{bytes.NewReader(b)}, open: make(chan struct{})}
	c := newClient(conn, false)
	p := &Process{c: c, key: "p", done: make(chan struct{}), in: wire.NewInbox(wire.StreamOut, wire.StreamErr)}
	p.stdin = &Stdin{p: p, gate: wire.NewGate()}
	c.begin(&call{reply: make(chan wire.Reply, 1)}, p)
	cl := &call{reply: make(chan wire.Reply, 1), in: wire.NewInbox(wire.StreamOut)}
	c.begin(cl, nil)
	c.begin(&call{reply: make(chan wire.Reply, 1), listing: true}, nil)
	close(conn.open)
	<-c.conn.Load().received
	return p, cl, c.Err()
}

// gatedConn sends nothing before it is opened.
type gatedConn struct {
	fakeConn
	open chan struct{}
}

func (c *gatedConn) Read(p []byte) (int, error) {
	<-c.open
	return c.fakeConn.Read(p)
}

func TestHostileAgent(t *testing.T) {
	for name, frames := range map[string]func(l *wire.Link){
		"host's frame": func(l *wire.Link) { l.SendJSON(wire.TypeStart, 1, wire.Start{}) },
		"two replies": func(l *wire.Link) {
			l.SendJSON(wire.TypeReply, 2, wire.Reply{})
			l.SendJSON(wire.TypeReply, 2, wire.Reply{})
		},
		"two exits": func(l *wire.Link) {
			l.SendJSON(wire.TypeExit, 1, wire.Exit{})
			l.SendJSON(wire.TypeExit, 1, wire.Exit{})
		},
		"exit code":         func(l *wire.Link) { l.SendJSON(wire.TypeExit, 1, wire.Exit{Code: 256}) },
		"exit before bytes": func(l *wire.Link) { l.SendJSON(wire.TypeExit, 1, wire.Exit{Stdout: 5}) },
		"duration":          func(l *wire.Link) { l.SendJSON(wire.TypeExit, 1, wire.Exit{DurationMicros: 1 << 62}) },
		"bytes after exit": func(l *wire.Link) {
			l.SendJSON(wire.TypeExit, 1, wire.Exit{})
			l.Send(wire.TypeData, wire.StreamOut, 1, []byte("x"), nil)
		},
		"ack of nothing":  func(l *wire.Link) { l.SendOffset(wire.TypeAck, wire.StreamIn, 1, 1) },
		"end elsewhere":   func(l *wire.Link) { l.SendOffset(wire.TypeEOF, wire.StreamOut, 2, 7) },
		"negative offset": func(l *wire.Link) { l.SendOffset(wire.TypeEOF, wire.StreamOut, 2, -1) },
		"data on stdin":   func(l *wire.Link) { l.Send(wire.TypeData, wire.StreamIn, 1, []byte("x"), nil) },
		"no JSON":         func(l *wire.Link) { l.Send(wire.TypeReply, 0, 2, []byte("nope"), nil) },
		"timeout before now": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: []wire.ProcessState{{ID: 3, TimeoutMillis: -1}}})
		},
		"listing of id 0": func(l *wire.Link) { l.SendJSON(wire.TypeListing, 3, wire.Reply{Processes: []wire.ProcessState{{}}}) },
		"negative listing": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: []wire.ProcessState{{ID: 3, Stdout: -1}}})
		},
		"huge listing": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: make([]wire.ProcessState, wire.MaxProcesses+1)})
		},
		"listing of one id twice": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: []wire.ProcessState{{ID: 3, Key: "a"}, {ID: 3, Key: "b"}}})
		},
		"listing of one key twice": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: []wire.ProcessState{{ID: 3, Key: "a"}, {ID: 4, Key: "a"}}})
		},
		"listing of the shortest processes": func(l *wire.Link) {
			l.Send(wire.TypeListing, 0, 3, []byte(`{"processes":[{}`+strings.Repeat(",{}", 1<<20)+"]}"), nil)
		},
		"exit with more killed than are told": func(l *wire.Link) {
			l.Send(wire.TypeExit, 0, 1, manyKilled, nil)
		},
		"listing with a key of no process": func(l *wire.Link) {
			l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 9, Processes: []wire.ProcessState{{ID: 3, Key: strings.Repeat("k", wire.MaxKey+1)}}})
		},
		"listing nobody asked for": func(l *wire.Link) { l.SendJSON(wire.TypeListing, 2, wire.Reply{}) },
		"reply for a listing":      func(l *wire.Link) { l.SendJSON(wire.TypeReply, 3, wire.Reply{}) },
		"flood": func(l *wire.Link) {
			for range wire.Window/wire.MaxData + 1 {
				l.Send(wire.TypeData, wire.StreamOut, 1, make([]byte, wire.MaxData), nil)
			}
		},
	} {
		_, _, err := hear(say(frames))
		if err == nil || strings.Contains(err.Error(), "the agent closed the connection") {
			t.Errorf("%s: not noticed: %v", name, err)
		}
	}
	// Late frames are dropped.
	_, _, err := hear(say(func(l *wire.Link) {
		l.Send(wire.TypeData, wire.StreamOut, 77, []byte("x"), nil)
		l.SendJSON(wire.TypeReply, 77, wire.Reply{})
		l.SendJSON(wire.TypeExit, 77, wire.Exit{})
		l.SendOffset(wire.TypeAck, wire.StreamIn, 77, 5)
	}))
	if err == nil || !strings.Contains(err.Error(), "the agent closed the connection") {
		t.Errorf("frames of unknown calls: %v", err)
	}
}

// TestHostileListingsCostLittle: an agent sends listings that would take many times
// their length in memory, with and without a request.
func TestHostileListingsCostLittle(t *testing.T) {
	payload := []byte(`{"processes":[{}` + strings.Repeat(",{}", 1<<20) + "]}")
	for name, id := range map[string]uint32{"asked": 3, "unasked": 77} {
		b := say(func(l *wire.Link) { l.Send(wire.TypeListing, 0, id, payload, nil) })
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		hear(b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: a listing of %d bytes took %d", name, len(payload), n)
		}
	}
}

// imitated returns a client of a false agent. The agent answers each Start, or none, and
// never reports an end.
func imitated(t *testing.T, answers bool) *Client {
	host, agent := net.Pipe()
	go func() {
		l := wire.NewLink(transport{agent})
		for {
			h, err := l.Receive()
			if err != nil || l.Discard(h.Length) != nil {
				return
			}
			if h.Type == wire.TypeStart && answers && l.SendJSON(wire.TypeReply, h.ID, wire.Reply{}) != nil {
				return
			}
		}
	}()
	c := newClient(host, true)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestEndlessProcessesAreBounded starts processes that are soon abandoned and never end.
func TestEndlessProcessesAreBounded(t *testing.T) {
	for name, answers := range map[string]bool{"that answers": true, "that is silent": false} {
		c := imitated(t, answers)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if !answers {
			cancel() // before the answer
		}
		var discarding sync.WaitGroup
		var err error
		started := 0
		for ; started <= wire.MaxProcesses; started++ {
			var p *Process
			p, err = c.Start(ctx, StartSpec{ID: skerry.NewID(skerry.PrefixCommand), Name: "x"})
			if skerry.CodeOf(err) == skerry.CodeRateLimited {
				break
			}
			if p != nil {
				discarding.Go(func() { p.Discard(context.Background()) })
			}
		}
		if started != wire.MaxProcesses {
			t.Errorf("an agent %s has %d processes: %v", name, started, err)
		}
		c.Close()
		discarding.Wait()
	}
}

// TestLossIsFinalForWhoHearsOfIt: a request that fails because the agent has gone comes
// back when Done says so too, and not while that is still being found out.
func TestLossIsFinalForWhoHearsOfIt(t *testing.T) {
	conn := &gatedConn{fakeConn: fakeConn{strings.NewReader("")}, open: make(chan struct{})}
	c := newClient(conn, true)
	heard := make(chan error)
	go func() {
		if err := c.Ping(t.Context()); skerry.CodeOf(err) != skerry.CodeUnavailable {
			heard <- fmt.Errorf("the request failed with %v", err)
			return
		}
		heard <- c.Err()
	}()
	gone := errors.New("the agent has gone")
	c.conn.Load().link.Fail(gone)
	time.AfterFunc(20*time.Millisecond, func() { close(conn.open) })
	if err := <-heard; !errors.Is(err, gone) {
		t.Errorf("the connection ended with %v, want %v", err, gone)
	}
}

// TestEndedConnectionHoldsNothing: clients of ended sessions, which their owners keep,
// hold no output.
func TestEndedConnectionHoldsNothing(t *testing.T) {
	list := wire.Reply{LastID: 100}
	for id := range uint32(64) {
		list.Processes = append(list.Processes, wire.ProcessState{ID: id + 4, Key: fmt.Sprint(id)})
	}
	b := say(func(l *wire.Link) {
		l.SendJSON(wire.TypeListing, 3, list)
		for _, p := range list.Processes {
			l.Send(wire.TypeData, wire.StreamOut, p.ID, make([]byte, wire.MaxData), nil)
		}
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var ended [8]*Client
	for i := range ended {
		p, _, _ := hear(b)
		ended[i] = p.c
	}
	for range 2 { // the second frees the pools
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	if n := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / int64(len(ended)); n > 16<<10 {
		t.Errorf("an ended connection holds %d bytes", n)
	}
	runtime.KeepAlive(ended)
}

// manyKilled is an exit of 64 KiB with as many killed processes as possible.
var manyKilled = []byte(`{"killed":[{}` + strings.Repeat(",{}", 21_000) + "]}")

// TestHostileExitsCostLittle: an agent sends exits that are too large. Exits are kept as
// long as their session.
func TestHostileExitsCostLittle(t *testing.T) {
	long := strings.Repeat("é", 32_000)
	for name, payload := range map[string][]byte{
		"many killed":  manyKilled,
		"a long name":  []byte(`{"killed":[{"name":"` + long + `"}]}`),
		"what is none": []byte(`{"` + long + `":"` + long[:100] + `"}`),
	} {
		b := say(func(l *wire.Link) { l.Send(wire.TypeExit, 0, 1, payload, nil) })
		const commands = 64
		kept := make([]*Process, commands)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range kept {
			kept[i], _, _ = hear(b)
		}
		// Keep only the processes, not the connection.
		exits := make([]Exit, commands)
		for i, p := range kept {
			exits[i], kept[i] = p.exit, nil
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		for _, exit := range exits {
			if len(exit.Killed) > 0 && len(exit.Killed[0].Name) > wire.MaxVictimName {
				t.Fatalf("%s: a name of %d bytes is kept", name, len(exit.Killed[0].Name))
			}
		}
		if n := int64(after.HeapAlloc-before.HeapAlloc) / commands; n > 4<<10 {
			t.Errorf("%s: an exit of %d bytes takes %d", name, len(payload), n)
		}
		runtime.KeepAlive(exits)
	}
}

func TestFailureMessagesAreMadeFit(t *testing.T) {
	err := failure(&wire.Failure{Code: wire.FailNotFound, Message: "a\x1b[31m\nb\xff" + strings.Repeat("é", 2000)})
	var e *skerry.Error
	if !errors.As(err, &e) || e.Code != skerry.CodeNotFound {
		t.Fatal(err)
	}
	if !strings.HasPrefix(e.Message, "a?[31m?b?é") || len(e.Message) > 1100 {
		t.Errorf("%q", e.Message)
	}
	made := wire.FailureCode("made\nup" + strings.Repeat("é", 20_000))
	if err := failure(&wire.Failure{Code: made, Message: "x"}); skerry.CodeOf(err) != skerry.CodeInternal ||
		len(err.Error()) > 1100 || strings.Contains(err.Error(), "\n") {
		t.Errorf("an unknown code: %d bytes, %.100v", len(err.Error()), err)
	}
}

// FuzzClient receives any bytes from an agent.
func FuzzClient(f *testing.F) {
	f.Add(say(func(l *wire.Link) {
		l.SendJSON(wire.TypeReply, 1, wire.Reply{PID: 5})
		l.Send(wire.TypeData, wire.StreamOut, 1, []byte("out"), nil)
		l.Send(wire.TypeData, wire.StreamErr, 1, []byte("err"), nil)
		l.SendJSON(wire.TypeExit, 1, wire.Exit{Stdout: 3, Stderr: 3})
	}))
	f.Add(say(func(l *wire.Link) {
		l.SendJSON(wire.TypeListing, 3, wire.Reply{LastID: 4, Processes: []wire.ProcessState{{ID: 3, Key: "k", Stdout: 9}}})
		l.SendJSON(wire.TypeAbort, 2, wire.Failure{Code: wire.FailDiskFull})
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, cl, err := hear(b)
		if err == nil {
			t.Fatal("the connection goes on after its end")
		}
		ctx := context.Background()
		// All waits end.
		if exit, err := p.Wait(ctx); err == nil && (exit.Code < 0 || exit.Code > 255 || exit.Duration < 0) {
			t.Fatalf("an exit of %+v", exit)
		}
		for _, next := range []func() error{
			func() error { _, err := p.Next(ctx); return err },
			func() error { _, err := cl.in.Next(ctx); return err },
		} {
			for next() == nil {
			}
		}
	})
}
