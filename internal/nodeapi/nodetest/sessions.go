package nodetest

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/nodeapi/eventlog"
)

var sessionTests = map[string]func(*suite){
	"life":        (*suite).life,
	"unknown":     (*suite).unknown,
	"stop fails":  (*suite).stopFails,
	"stops":       (*suite).stops,
	"start fails": (*suite).startFails,
	"start ends":  (*suite).startEnds,
	"lost":        (*suite).lost,
	"pause":       (*suite).pause,
	"meters":      (*suite).meters,
	"recover":     (*suite).recover,
	"retain":      (*suite).retain,
	"network":     (*suite).network,
}

// onSession are calls that need a session.
func (s *suite) onSession(id, command string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Exec": func(ctx context.Context) error {
			_, err := s.Node.Exec(ctx, id, nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: sh("true")}, false)
			return err
		},
		"Exec, attached": func(ctx context.Context) error {
			_, err := s.Node.Exec(ctx, id, nodeapi.CommandSpec{ID: skerry.NewID(skerry.PrefixCommand), CommandParams: sh("true")}, true)
			return err
		},
		"Terminal": func(ctx context.Context) error {
			_, err := s.Node.Terminal(ctx, id, skerry.TerminalParams{Name: "sh"})
			return err
		},
		"WriteFiles": func(ctx context.Context) error {
			return s.Node.WriteFiles(ctx, id, "", bytes.NewReader(archive(s.T, "file", []byte("x"))))
		},
		"ReadFile":    func(ctx context.Context) error { _, err := s.Node.ReadFile(ctx, id, "", "file"); return err },
		"MakeDir":     func(ctx context.Context) error { return s.Node.MakeDir(ctx, id, "", "dir", false) },
		"Dial":        func(ctx context.Context) error { _, err := s.Node.Dial(ctx, id, 80, netip.Addr{}); return err },
		"Pause":       func(ctx context.Context) error { return s.Node.Pause(ctx, id) },
		"Resume":      func(ctx context.Context) error { return s.Node.Resume(ctx, id) },
		"SetDeadline": func(ctx context.Context) error { return s.Node.SetDeadline(ctx, id, time.Hour) },
		"SetIdle":     func(ctx context.Context) error { return s.Node.SetIdle(ctx, id, skerry.IdleNever) },
		"Snapshot":    func(ctx context.Context) error { _, err := s.Node.Snapshot(ctx, id, nodeapi.Saving{}); return err },
	}
}

// life is a session from its start until it is forgotten.
func (s *suite) life() {
	spec := s.spec()
	s.ok(s.Node.Start(s.ctx, spec))
	if !s.lacks(UniqueIDs) {
		s.code("Start with an id in use", s.Node.Start(s.ctx, spec), skerry.CodeConflict)
	}
	id, r := s.exec(spec.ID, sh("echo hello"))
	s.all(r)
	s.exit(spec.ID, id)
	s.stop(spec.ID)
	s.stop(spec.ID)
	for name, call := range s.onSession(spec.ID, id) {
		s.code(name+" in a session that has stopped", call(s.ctx), skerry.CodeSandboxStopped)
	}
	s.code("SetNetwork of a session that has stopped", s.Node.SetNetwork(s.ctx, spec.ID, spec.Network), skerry.CodeSandboxStopped)
	kept, err := s.Node.Output(s.ctx, spec.ID, id)
	s.ok(err)
	if out, _ := s.all(kept); out != "hello\n" {
		s.Errorf("after the session's end, the output of its command is %q", out)
	}
	s.ok(kept.Close())
	s.ok(s.Node.Forget(s.ctx, spec.ID))
	s.ok(s.Node.Forget(s.ctx, spec.ID))
	s.code("Exec in a session that is forgotten", s.onSession(spec.ID, id)["Exec"](s.ctx), skerry.CodeNotFound)
	s.ok(s.Node.Start(s.ctx, spec)) // nothing of it is in the way
}

// unknown has every call meet an unknown session, and those about a command an
// unknown command.
func (s *suite) unknown() {
	nobody, none := skerry.NewID(skerry.PrefixSession), skerry.NewID(skerry.PrefixCommand)
	for name, call := range s.onSession(nobody, none) {
		s.code(name+" in an unknown session", call(s.ctx), skerry.CodeNotFound)
	}
	s.code("SetNetwork of an unknown session", s.Node.SetNetwork(s.ctx, nobody, s.Spec.Network), skerry.CodeNotFound)
	for _, session := range []string{nobody, s.start()} {
		s.nothingOf(session, none)
		_, err := s.Node.WriteStdin(s.ctx, session, none, skerry.StdinParams{Data: []byte("x")})
		s.code("WriteStdin of an unknown command", err, skerry.CodeNotFound)
		s.code("Signal to an unknown command", s.Node.Signal(s.ctx, session, none, 15), skerry.CodeNotFound)
	}
	s.stop(nobody)
	s.ok(s.Node.Forget(s.ctx, nobody))
}

var errStep = &skerry.Error{Code: skerry.CodeDiskFull, Field: "field", Message: "a step failed"}

// stopFails repeats a stop that failed.
func (s *suite) stopFails() {
	id := s.start()
	_, r := s.exec(id, sh("echo on; exec sleep 1000"))
	s.until(r, "on")
	s.Step(Stop, func(string) error { return errStep })
	if _, err := s.Node.Stop(s.ctx, id); err == nil {
		s.Error("a stop that failed is no error")
	} else if e, ok := errors.AsType[*skerry.Error](err); !ok || e.Code != errStep.Code || e.Message != errStep.Message || e.Field != errStep.Field {
		s.Errorf("the stop's error is %v, want that of the step", err)
	}
	s.Step(Stop, nil)
	s.stop(id)
	s.stop(id)
}

// stops are many at once.
func (s *suite) stops() {
	id := s.start()
	s.exec(id, sh("sleep 1000"))
	usage := make([]nodeapi.Usage, 10)
	errs := make([]error, len(usage))
	var wg sync.WaitGroup
	for i := range usage {
		wg.Go(func() { usage[i], errs[i] = s.Node.Stop(s.ctx, id) })
	}
	wg.Wait()
	for i := range usage {
		s.ok(errs[i])
		if usage[i] != usage[0] {
			s.Errorf("one stop says %+v, another %+v", usage[0], usage[i])
		}
	}
}

// startFails leaves nothing of a start that failed.
func (s *suite) startFails() {
	spec := s.spec()
	s.Step(Start, func(string) error { return errStep })
	s.code("Start", s.Node.Start(s.ctx, spec), errStep.Code)
	s.Step(Start, nil)
	s.code("Exec after a start that failed", s.onSession(spec.ID, "")["Exec"](s.ctx), skerry.CodeNotFound)
	s.ok(s.Node.Start(s.ctx, spec))
}

// startEnds ends the context of a start before it and during it.
func (s *suite) startEnds() {
	spec := s.spec()
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	s.ended("Start", ctx, s.Node.Start(ctx, spec))
	s.code("Exec after a start that was cancelled", s.onSession(spec.ID, "")["Exec"](s.ctx), skerry.CodeNotFound)

	ctx, cancel = context.WithCancel(s.ctx)
	s.Step(Start, func(string) error { cancel(); <-ctx.Done(); return nil })
	if err := s.Node.Start(ctx, spec); err != nil {
		s.ended("Start", ctx, err)
		s.Step(Start, nil)
		s.code("Exec after a start that was cancelled", s.onSession(spec.ID, "")["Exec"](s.ctx), skerry.CodeNotFound)
		s.ok(s.Node.Start(s.ctx, spec))
	}
	s.Step(Start, nil)
	if got := s.run(spec.ID, "echo runs"); got != "runs\n" {
		s.Errorf("the session says %q", got)
	}
}

// lost loses a session's machine.
func (s *suite) lost() {
	id := s.start()
	cmd, r := s.exec(id, sh("echo on; exec sleep 1000"))
	s.until(r, "on")
	lost := make(chan nodeapi.Loss, 1)
	go func() {
		loss, err := eventlog.AwaitLoss(s.ctx, s.Node, id)
		if err != nil {
			s.Error(err)
		}
		lost <- loss
	}()
	s.Lose(id)
	if loss := wait(s, "the loss", lost); loss.Reason == "" || loss.Savable {
		s.Errorf("the loss of a machine is %+v", loss)
	}
	s.code("Exec in a session that was lost", s.onSession(id, cmd)["Exec"](s.ctx), skerry.CodeSandboxStopped)
	if loss, err := eventlog.AwaitLoss(s.ctx, s.Node, id); err != nil || loss.Reason == "" {
		s.Errorf("the loss is told again as %+v, %v", loss, err)
	}
	s.stop(id)
}

// pause stops a session's commands for a while.
func (s *suite) pause() {
	id := s.start()
	cmd, r := s.exec(id, skerry.CommandParams{Name: "cat", Stdin: true})
	say := func(text string) {
		_, err := s.Node.WriteStdin(s.ctx, id, cmd, skerry.StdinParams{Data: []byte(text)})
		s.ok(err)
	}
	say("one\n")
	s.until(r, "one\n")
	for range 2 {
		s.ok(s.Node.Pause(s.ctx, id))
	}
	for range 2 {
		s.ok(s.Node.Resume(s.ctx, id))
	}
	say("two\n")
	s.until(r, "two\n")
	s.ok(s.Node.Pause(s.ctx, id))
	s.stop(id) // also one that is paused
}

// meters are of the sessions that run. They only grow, but for the memory.
func (s *suite) meters() {
	one, two := s.start(), s.start()
	s.ok(s.Node.Pause(s.ctx, two))
	before, err := s.Node.Meters(s.ctx)
	s.ok(err)
	id, r := s.exec(one, sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"))
	s.all(r)
	s.exit(one, id)
	after, err := s.Node.Meters(s.ctx)
	s.ok(err)
	for _, id := range []string{one, two} {
		b, bok := before[id]
		a, aok := after[id]
		if !bok || !aok || a.MemoryBytes < 0 || a.ActiveCPU < b.ActiveCPU || a.ResidentMBSeconds < b.ResidentMBSeconds || a.IngressBytes < b.IngressBytes || a.EgressBytes < b.EgressBytes {
			s.Errorf("session %s has used %+v (%v), later %+v (%v)", id, b, bok, a, aok)
		}
	}
	used, err := s.Node.Stop(s.ctx, one)
	s.ok(err)
	if used.ActiveCPU < after[one].ActiveCPU || used.ResidentMBSeconds < after[one].ResidentMBSeconds {
		s.Errorf("at its end session %s had used %+v, before %+v", one, used, after[one])
	}
	left, err := s.Node.Meters(s.ctx)
	s.ok(err)
	if _, is := left[one]; is || len(left) != 1 {
		s.Errorf("after the end of session %s there are meters of %v", one, left)
	}
}

// recover takes over the sessions that are wanted, and ends the others.
func (s *suite) recover() {
	kept, other := s.start(), s.start()
	cmd, r := s.exec(kept, withStdin(sh("echo on; read line; echo $line")))
	s.until(r, "on\n")
	adopted, err := s.Node.Recover(s.ctx, map[string]nodeapi.NetworkSpec{
		kept: s.Spec.Network, skerry.NewID(skerry.PrefixSession): s.Spec.Network,
	})
	s.ok(err)
	if !slices.Equal(adopted, []string{kept}) {
		s.Errorf("adopted are %v, want %s", adopted, kept)
	}
	if err := s.onSession(other, "")["Exec"](s.ctx); err == nil {
		s.Error("a session that was not wanted runs on")
	}
	_, err = s.Node.WriteStdin(s.ctx, kept, cmd, skerry.StdinParams{Data: []byte("still here\n")})
	s.ok(err)
	s.until(r, "still here\n")
	if exit := s.exit(kept, cmd); exit.Code != 0 {
		s.Errorf("the command of an adopted session ended with %d", exit.Code)
	}
}

// retain forgets all sessions but those that are known.
func (s *suite) retain() {
	kept, other, past := s.start(), s.start(), s.start()
	cmd, r := s.exec(past, sh("echo past"))
	s.all(r)
	s.stop(past)
	s.ok(s.Node.Retain(s.ctx, []string{kept, past}))
	s.run(kept, "true")
	s.code("Exec in a session that was not retained", s.onSession(other, "")["Exec"](s.ctx), skerry.CodeNotFound)
	out, err := s.Node.Output(s.ctx, past, cmd)
	s.ok(err)
	s.all(out)
	s.ok(out.Close())
	s.ok(s.Node.Retain(s.ctx, nil))
	s.nothingOf(past, cmd)
}

// network changes what a session may reach.
func (s *suite) network() {
	id := s.start()
	policy := &skerry.NetworkPolicy{
		Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: "example.com"}},
		Deny: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
	}
	s.ok(s.Node.SetNetwork(s.ctx, id, nodeapi.NetworkSpec{Policy: policy, Owner: nodeapi.Owner{TeamID: "team", SandboxName: "box"}}))
	events, err := s.Node.NetworkEvents(s.ctx, id, 1)
	s.ok(err)
	if !s.lacks(NetworkLog) && len(events) != 1 {
		s.Errorf("the newest decision: %+v", events)
	}
}
