package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxFailures is the number of failures after which the soak gives up.
const maxFailures = 20

// fail records a failure and prints what led to it.
func (s *soak) fail(b *box, what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, past, session := "", "", ""
	if b != nil {
		name, past = " of "+b.name, "\n  history:\n    "+b.past()
		session, _ = b.live()
	}
	text := fmt.Sprintf("%s%s: %v", what, name, err)
	s.failures = append(s.failures, text)
	fmt.Printf("%s FAILURE: %s%s\n", time.Now().Format("15:04:05.000"), text, past)
	for _, f := range s.faults.during(session, time.Now().Add(-time.Minute), time.Now()) {
		fmt.Printf("  fault in the last minute: %s\n", &f)
	}
	if lines := s.server.logTail(session); len(lines) > 0 {
		fmt.Printf("  the server's log ends with:\n    %s\n", strings.Join(lines, "\n    "))
	}
	if len(s.failures) >= maxFailures {
		fmt.Println("too many failures")
		s.stop()
	}
}

// maxTail is the number of lines of the server's log that a failure prints.
const maxTail = 30

// logTail returns the last lines of the server's log that are about a session, or about
// anything if there is no session.
func (s *server) logTail(session string) []string {
	b, _ := os.ReadFile(filepath.Join(s.state(), "sandboxd.log"))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	lines = without(lines, func(line string) bool { return line == "" || !strings.Contains(line, session) })
	return lines[max(0, len(lines)-maxTail):]
}

// enter begins a phase.
func (s *soak) enter(phase string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = phase
}

// sampleEvery is the time between two samples.
const sampleEvery = 5 * time.Second

// sample writes the curves.
func (s *soak) sample(ctx context.Context) {
	counted := map[string]int{}
	for pause(ctx, sampleEvery) == nil {
		all := s.faults.counts()
		fresh := map[string]int{}
		for kind, n := range all {
			if n > counted[kind] {
				fresh[kind] = n - counted[kind]
			}
		}
		counted = all
		s.mu.Lock()
		phase := s.phase
		s.mu.Unlock()
		times, finished := s.recorder.take()
		if err := s.curves.sample(phase, fresh, times, finished, s.server.gauge()); err != nil {
			s.fail(nil, "write the curves", err)
		}
	}
}

// summarize prints what was done, and returns an error if anything failed or was never
// done.
func (s *soak) summarize() error {
	fmt.Printf("\n%-28s %8s %8s %8s\n", "operation", "done", "excused", "failed")
	for _, op := range append(slices.Clone(operations), resumeOperation) {
		t := s.recorder.op(op.name)
		fmt.Printf("%-28s %8d %8d %8d\n", op.name, t.done, t.excused, t.failed)
		if t.done == 0 {
			s.fail(nil, op.name, fmt.Errorf("was never done"))
		}
	}
	fmt.Printf("\n%-36s %8s %9s %9s %9s %9s\n", "call (ms)", "calls", "p50", "p95", "p99", "max")
	for _, kind := range slices.Sorted(maps.Keys(s.recorder.all)) {
		times := s.recorder.all[kind]
		fmt.Printf("%-36s %8d %9s %9s %9s %9s\n", kind, len(times), milliseconds(percentile(times, 50)), milliseconds(percentile(times, 95)),
			milliseconds(percentile(times, 99)), milliseconds(slices.Max(times)))
	}
	fmt.Printf("\n%-28s %8s\n", "fault", "injected")
	counts := s.faults.counts()
	for _, kind := range kinds {
		fmt.Printf("%-28s %8d\n", kind, counts[kind])
		if counts[kind] == 0 {
			s.fail(nil, kind, fmt.Errorf("was never injected"))
		}
	}
	fmt.Printf("\n%-34s %14s", "checkpoint", "baseline")
	shown := s.settled[max(0, len(s.settled)-5):]
	for i := range shown {
		fmt.Printf(" %14d", len(s.settled)-len(shown)+i+1)
	}
	fmt.Println()
	for _, l := range limits {
		if s.base == nil {
			break
		}
		fmt.Printf("%-34s %14d", l.what, s.base.numbers[l.what])
		for _, r := range shown {
			fmt.Printf(" %14d", r.numbers[l.what])
		}
		fmt.Println()
	}
	fmt.Printf("\nseed %d, %d checkpoints, %d failures\n", s.seed, len(s.settled), len(s.failures))
	if len(s.failures) > 0 {
		return fmt.Errorf("%d failures; the first: %s", len(s.failures), s.failures[0])
	}
	return nil
}
