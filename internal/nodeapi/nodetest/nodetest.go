// Package nodetest is the conformance suite of package nodeapi: Run holds a node to
// what nodeapi's documentation says.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

// Fixture is a node to test, and what the suite needs beside it. Commands of its
// sessions have sh and the usual programs, and begin in the working directory.
type Fixture struct {
	Node      nodeapi.Node
	Collector nodeapi.Collector
	// Spec is what sessions are started with. The suite sets what a test is about.
	Spec nodeapi.SessionSpec
	// Listen listens at a port of a session.
	Listen func(t *testing.T, sessionID string) (net.Listener, int)
	// Step sets what happens before the node does the first thing of an operation,
	// nil for nothing: it may wait, and if it returns an error, the operation fails.
	Step func(p Point, f func(sessionID string) error)
	// Lose ends a session's machine as a crash does.
	Lose func(sessionID string)
	// Lacks names what the implementation cannot do, with the reason.
	Lacks map[Capability]string
}

// Point is a place where Fixture.Step steps in.
type Point string

// The points.
const (
	Start Point = "start"
	Stop  Point = "stop"
	Save  Point = "save"
)

// Capability is something that an implementation for tests may lack.
type Capability string

// The capabilities.
const (
	// Memory is snapshots with memory, and forks.
	Memory Capability = "memory"
	// Forks are sessions that go on from the files of a running one.
	Forks Capability = "forks"
	// Bytes is arguments, variables and paths that are not UTF-8.
	Bytes Capability = "bytes"
	// LostDrives is that a drive which is not there fails the start.
	LostDrives Capability = "lost drives"
	// NetworkLog is decisions about what a session reaches.
	NetworkLog Capability = "network log"
	// ReadCut is that the content of a large file takes longer than its call.
	ReadCut Capability = "read cut"
	// UniqueIDs is that an id in use is refused.
	UniqueIDs Capability = "unique ids"
)

// patience bounds each test of the suite. It is for what hangs.
const patience = 2 * time.Minute

// tests are the suite, by noun.
var tests = map[string]map[string]func(*suite){
	"sessions": sessionTests,
	"saving":   savingTests,
	"drives":   driveTests,
	"commands": commandTests,
	"files":    fileTests,
	"ports":    portTests,
	"events":   eventTests,
}

// Run runs the suite. Each test has a fixture of its own, which ends with it.
func Run(t *testing.T, fixture func(t *testing.T) Fixture) {
	lacks := fixture(t).Lacks
	for _, c := range slices.Sorted(maps.Keys(lacks)) {
		// Beyond the log, which is shown only if a test fails.
		fmt.Fprintf(os.Stderr, "nodetest: %s: not tested: %s: %s\n", t.Name(), c, lacks[c])
	}
	for _, noun := range slices.Sorted(maps.Keys(tests)) {
		t.Run(noun, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(tests[noun])) {
				t.Run(name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					s := &suite{T: t, Fixture: fixture(t), ctx: ctx}
					s.Node = &checked{Node: s.Node, t: t}
					tests[noun][name](s)
				})
			}
		})
	}
}

// suite is a test of the suite.
type suite struct {
	*testing.T
	Fixture
	ctx context.Context
	// round is the last collection.
	round string
}

// lacks skips a test of what the implementation cannot do, which Run has told.
func (s *suite) lacks(c Capability) bool {
	why, is := s.Lacks[c]
	if is {
		s.Logf("not tested: %s: %s", c, why)
	}
	return is
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// code checks the code of an error.
func (s *suite) code(what string, err error, want skerry.Code) {
	s.Helper()
	if got := skerry.CodeOf(err); got != want {
		s.Errorf("%s: %v (code %q), want code %q", what, err, got, want)
	}
	if errors.Is(err, nodeapi.ErrUnreachable) {
		s.Errorf("%s: the node is unreachable: %v", what, err)
	}
}

// ended checks the error of a call whose context ended.
func (s *suite) ended(what string, ctx context.Context, err error) {
	s.Helper()
	if !errors.Is(err, ctx.Err()) && !errors.Is(err, nodeapi.ErrUnreachable) {
		s.Errorf("%s with a context that ended: %v", what, err)
	}
}

// start starts a session, which ends with the test.
func (s *suite) start(change ...func(*nodeapi.SessionSpec)) string {
	s.Helper()
	spec := s.spec(change...)
	s.ok(s.Node.Start(s.ctx, spec))
	return spec.ID
}

// spec returns what a session is started with. The session is forgotten with the test.
func (s *suite) spec(change ...func(*nodeapi.SessionSpec)) nodeapi.SessionSpec {
	spec := s.Spec
	spec.ID = skerry.NewID(skerry.PrefixSession)
	for _, f := range change {
		f(&spec)
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Node.Forget(ctx, spec.ID); err != nil {
			s.Errorf("forget session %s: %v", spec.ID, err)
		}
	})
	return spec
}

// stop stops a session.
func (s *suite) stop(id string) {
	s.Helper()
	_, err := s.Node.Stop(s.ctx, id)
	s.ok(err)
}

func sh(script string) skerry.CommandParams {
	return skerry.CommandParams{Name: "sh", Args: []string{"-c", script}}
}

// exec starts a command and returns its id and a reader of its output, which is
// closed with the test.
func (s *suite) exec(session string, p skerry.CommandParams) (string, skerry.OutputReader) {
	s.Helper()
	id := skerry.NewID(skerry.PrefixCommand)
	r, err := s.Node.Exec(s.ctx, session, nodeapi.CommandSpec{ID: id, CommandParams: p}, true)
	s.ok(err)
	s.Cleanup(func() { r.Close() })
	return id, r
}

// all reads an output to its end.
func (s *suite) all(r skerry.OutputReader) (stdout, stderr string) {
	s.Helper()
	var got [2]strings.Builder
	for {
		o, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got[0].String(), got[1].String()
		}
		s.ok(err)
		b := &got[0]
		if o.Stream == skerry.Stderr {
			b = &got[1]
		}
		if o.Offset != int64(b.Len()) {
			s.Fatalf("%s goes on at %d, after %d bytes", o.Stream, o.Offset, b.Len())
		}
		b.Write(o.Data)
	}
}

// until reads an output until it has a text.
func (s *suite) until(r skerry.OutputReader, text string) {
	s.Helper()
	var got strings.Builder
	for !strings.Contains(got.String(), text) {
		o, err := r.Next()
		if err != nil {
			s.Fatalf("waited for %q: %q, %v", text, got.String(), err)
		}
		got.Write(o.Data)
	}
}

// exit waits for the end of a command.
func (s *suite) exit(session, id string) nodeapi.Exit {
	s.Helper()
	exit, err := eventlog.AwaitExit(s.ctx, s.Node, session, id)
	s.ok(err)
	if exit == nil {
		s.Fatalf("command %s ended with its session", id)
	}
	return *exit
}

// run runs a script that must succeed, and returns what it prints.
func (s *suite) run(session, script string) string {
	s.Helper()
	id, r := s.exec(session, sh(script))
	out, errs := s.all(r)
	if exit := s.exit(session, id); exit.Code != 0 {
		s.Fatalf("%s: exit code %d: %s", script, exit.Code, errs)
	}
	return out
}

// wait waits for something that another goroutine does.
func wait[T any](s *suite, what string, c <-chan T) T {
	s.Helper()
	select {
	case v := <-c:
		return v
	case <-s.ctx.Done():
		s.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
