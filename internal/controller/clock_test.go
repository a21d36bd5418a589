package controller

import (
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

// TestDeadlineIgnoresJumps: a session whose clock jumps has the time that it was
// given.
func TestDeadlineIgnoresJumps(t *testing.T) {
	lab := newLab(t)
	for _, jump := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		l := lab.newSession(skerry.Session{StartedAt: skerry.At(time.Now()), Timeout: skerry.Duration(time.Hour)})
		l.left()
		run := l.state()
		run.StartedAt = skerry.At(time.Now().Add(-jump)) // so it seems after the jump
		l.believed.Store(&run)
		if left := l.left(); left < 50*time.Minute || left > time.Hour {
			t.Errorf("after a jump by %v, %v are left", jump, left)
		}
	}
	// One that was adopted has what is left of it, and no more than it was given.
	for _, c := range []struct{ ago, least, most time.Duration }{
		{45 * time.Minute, 10 * time.Minute, 15 * time.Minute}, {2 * time.Hour, -time.Minute, 0}, {-2 * time.Hour, 50 * time.Minute, time.Hour},
	} {
		l := lab.newSession(skerry.Session{StartedAt: skerry.At(time.Now().Add(-c.ago)), Timeout: skerry.Duration(time.Hour)})
		if left := l.left(); left < c.least || left > c.most {
			t.Errorf("of a session that started %v ago %v are left", c.ago, left)
		}
	}
}

// TestSteadiness has a clock jump forth, back and for a moment, and be adjusted
// slowly.
func TestSteadiness(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s steadiness
	var counter time.Duration
	var offset time.Duration
	// pass lets minutes go by, with a look in each, and returns the last answer
	// and the sum of the jumps.
	pass := func(minutes int, each time.Duration) (steady bool, jumps time.Duration) {
		for range minutes {
			counter += time.Minute
			offset += each
			var jumped time.Duration
			steady, jumped = s.look(start.Add(counter+offset), counter)
			jumps += jumped
		}
		return steady, jumps
	}
	settle := int(clockSettles / time.Minute)
	check := func(what string, minutes int, each time.Duration, wantSteady bool, wantJumps time.Duration) {
		t.Helper()
		if steady, jumps := pass(minutes, each); steady != wantSteady || jumps != wantJumps {
			t.Errorf("%s: steady %v, jumps %v", what, steady, jumps)
		}
	}
	check("just started", settle, 0, false, 0)
	check("settled", 1, 0, true, 0)
	check("adjusted slowly", 60, 30*time.Millisecond, true, 0)
	check("a year too late", 1, 365*24*time.Hour, false, 365*24*time.Hour)
	check("still", settle-1, 0, false, 0)
	check("back again", 1, -365*24*time.Hour, false, -365*24*time.Hour)
	check("not yet settled", settle-1, 0, false, 0)
	check("settled anew", 1, 0, true, 0)
}
