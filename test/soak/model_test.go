package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

func TestDiffers(t *testing.T) {
	want := tree{"a": "1", "b": "2", "c": unsure}
	for _, tt := range []struct {
		have tree
		says string
	}{
		{tree{"a": "1", "b": "2"}, ""},
		{tree{"a": "1", "b": "2", "c": "any"}, ""},
		{tree{"a": "1"}, "b is missing"},
		{tree{"a": "1", "b": "3"}, "b has checksum 3, not 2"},
		{tree{"a": "1", "b": "2", "d": "4"}, "d should not exist"},
	} {
		if says := want.differs(tt.have); says != tt.says {
			t.Errorf("%v: %q, want %q", tt.have, says, tt.says)
		}
	}
}

// TestChoose: the files of a new session tell how it began, and if they do not tell
// whether its memory was saved, the web server is not asked.
func TestChoose(t *testing.T) {
	before, after := saved{files: tree{"a": "1"}}, saved{files: tree{"a": "2"}, token: "t"}
	for _, tt := range []struct {
		name  string
		saved []saved
		have  tree
		token string
		fails bool
	}{
		{"the earlier one", []saved{before, after}, tree{"a": "1"}, "", false},
		{"the later one", []saved{before, after}, tree{"a": "2"}, "t", false},
		{"neither", []saved{before, after}, tree{"a": "3"}, "", true},
		{"with or without memory", []saved{before, {files: tree{"a": "1"}, token: "t"}}, tree{"a": "1"}, unsure, false},
	} {
		b := &box{saved: tt.saved}
		if err := b.choose(tt.have); (err != nil) != tt.fails || b.token != tt.token {
			t.Errorf("%s: %v, token %q", tt.name, err, b.token)
		}
	}
}

func TestExcuses(t *testing.T) {
	api := func(code skerry.Code, status int) error { return &client.Error{Code: code, Status: status} }
	broken := io.ErrUnexpectedEOF
	for _, tt := range []struct {
		kind    string
		err     error
		excused bool
	}{
		{serverKilled, broken, true},
		{serverKilled, api(skerry.CodeUnavailable, 503), true},
		{serverKilled, api(skerry.CodeInternal, 500), false},
		{serverKilled, api(skerry.CodeSandboxStopped, 410), false},
		{serverKilled, &exitError{code: 137}, false},
		{serverKilled, wrongf("a byte is lost"), false},
		{serverKilled, &client.LostError{Err: broken}, false},
		{serverKilled, unwritten{api(skerry.CodeNotFound, 404)}, true},
		{serverKilled, api(skerry.CodeNotFound, 404), false},
		{serverRestarted, unwritten{api(skerry.CodeNotFound, 404)}, false},
		{diskFilled, api(skerry.CodeDiskFull, 422), true},
		{diskFilled, api(skerry.CodeSandboxStopped, 410), true},
		{diskFilled, api(skerry.CodeInternal, 500), false},
		{diskFilled, broken, false},
		{diskFilled, &exitError{code: 1, stderr: "seq: write error: No space left on device\n"}, true},
		{sentryKilled, api(skerry.CodeConflict, 409), true},
		{sentryKilled, api(skerry.CodeInternal, 500), false},
		{sentryKilled, &exitError{code: 137}, true},
		{sentryKilled, &exitError{code: 1}, false},
		{sentryKilled, broken, false},
		{sentryKilled, wrongf("a byte is lost"), false},
	} {
		if got := (&fault{kind: tt.kind}).excuses(tt.err); got != tt.excused {
			t.Errorf("%s excuses %v: %v, want %v", tt.kind, tt.err, got, tt.excused)
		}
	}
}

// TestDuring: a fault explains only what happens at its time and to its session.
func TestDuring(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l := &faultLog{all: []*fault{
		{kind: sentryKilled, session: "one", from: at(100)},
		{kind: serverKilled, from: at(200), to: at(210)},
	}}
	for _, tt := range []struct {
		session  string
		from, to int
		kinds    string
	}{
		{"one", 90, 99, ""},
		{"one", 90, 101, sentryKilled},
		{"two", 90, 101, ""},
		{"two", 205, 206, serverKilled},
		{"two", 211, 213, serverKilled}, // within the grace
		{"two", 213, 220, ""},
		{"one", 150, 205, sentryKilled + serverKilled},
	} {
		var kinds strings.Builder
		for _, f := range l.during(tt.session, at(tt.from), at(tt.to)) {
			kinds.WriteString(f.kind)
		}
		if kinds.String() != tt.kinds {
			t.Errorf("session %s from %d to %d: %q, want %q", tt.session, tt.from, tt.to, &kinds, tt.kinds)
		}
	}
}

// TestOf: what has ended a session is what was done to it, and a disk that was full.
func TestOf(t *testing.T) {
	l := &faultLog{all: []*fault{{kind: sentryKilled, session: "one"}, {kind: agentKilled, session: "two"}, {kind: serverKilled}, {kind: diskFilled}}}
	var kinds []string
	for _, f := range l.of("one") {
		kinds = append(kinds, f.kind)
	}
	if want := []string{sentryKilled, diskFilled}; !slices.Equal(kinds, want) {
		t.Errorf("%q, want %q", kinds, want)
	}
}

func TestExceeds(t *testing.T) {
	pool := func(n int64) []string { return make([]string, n) }
	base := &reading{numbers: map[string]int64{"processes": 1, "server's open files": 40}, warm: pool(2), blank: pool(1), ready: 1}
	for _, tt := range []struct {
		processes, files, kept, warm, blank, ready int64
		excess                                     string
	}{
		{1, 40, 0, 2, 1, 1, ""},
		{1, 48, 0, 2, 1, 1, ""},
		{1, 49, 0, 2, 1, 1, "server's open files"},
		{1, 60, 0, 3, 1, 1, ""}, // one more sandbox of the pool
		{1, 60, 0, 2, 2, 2, ""},
		{1, 60, 0, 3, 0, 0, "server's open files"},
		{1, 40, 0, 2, 0, 0, ""},
		{2, 40, 0, 2, 1, 1, "processes"},
		{0, 40, 0, 2, 1, 1, "processes"},
		{1, 40, 0, 1, 1, 1, "warm sandboxes"},
		{1, 40, 0, 2, 2, 1, "blank sandboxes"}, // one of them belongs to nobody
		{1, 40, 0, 2, 0, 1, "blank sandboxes"},
		{1, 40, 1, 2, 1, 1, keptFiles},
	} {
		r := &reading{
			numbers: map[string]int64{"processes": tt.processes, "server's open files": tt.files, keptFiles: tt.kept},
			warm:    pool(tt.warm), blank: pool(tt.blank), ready: tt.ready,
		}
		got := ""
		for _, e := range r.exceeds(base, false) {
			got += e.what
		}
		if got != tt.excess {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// TestVigil: only what changes in what is counted exactly keeps a vigil going.
func TestVigil(t *testing.T) {
	v := newVigil()
	look := func(processes string, goroutines int64) bool {
		r := &reading{numbers: map[string]int64{"server's goroutines": goroutines}, names: map[string][]string{"processes": {processes}}}
		return v.look(r, []excess{{"processes", processes}})
	}
	if look("one", 1) {
		t.Error("stuck at the first look")
	}
	v.change = v.change.Add(-2 * settling)
	if !look("one", 2) {
		t.Error("not stuck, and only a measurement has changed")
	}
	if look("two", 2) {
		t.Error("stuck, and something has changed")
	}
	if got := v.String(); got != "processes 0 s" {
		t.Errorf("waited for %q", got)
	}
}

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := 100; i > 0; i-- {
		times = append(times, time.Duration(i))
	}
	for p, want := range map[int]time.Duration{0: 1, 50: 51, 99: 100, 100: 100} {
		if got := percentile(times, p); got != want {
			t.Errorf("percentile %d is %d, want %d", p, got, want)
		}
	}
	if got := percentile(nil, 50); got != 0 {
		t.Errorf("the percentile of nothing is %d", got)
	}
}

func TestFirstDifference(t *testing.T) {
	if d := firstDifference("1\n2\n", sequence(1, 2)); d != "" {
		t.Error(d)
	}
	if d := firstDifference("1\n", sequence(1, 2)); !strings.Contains(d, "from byte 2 on") {
		t.Error(d)
	}
	if _, is := errors.AsType[wrong](wrongf("x")); !is {
		t.Error("a wrong answer is not one")
	}
}
