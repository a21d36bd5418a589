package share

import (
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	var r Rates[string]
	now := time.Unix(1_000_000, 0)
	take := func(rates ...Rate[string]) (time.Duration, int) { return r.Take(now, rates...) }
	team, project := Rate[string]{"team", 6}, Rate[string]{"project", 3}
	for n := range 3 {
		if wait, _ := take(team, project); wait != 0 {
			t.Fatalf("the %d. has to wait for %v", n+1, wait)
		}
	}
	if wait, which := take(team, project); wait != 20*time.Second || which != 1 {
		t.Errorf("the project's fourth has to wait for %v, because of %d", wait, which)
	}
	// What the project may not do was not counted for the team.
	for n := range 3 {
		if wait, _ := take(team); wait != 0 {
			t.Fatalf("the team's %d. has to wait for %v", n+4, wait)
		}
	}
	if wait, which := take(team, Rate[string]{"other", 3}); wait != 10*time.Second || which != 0 {
		t.Errorf("the team's seventh has to wait for %v, because of %d", wait, which)
	}
	now = now.Add(10 * time.Second)
	if wait, _ := take(team); wait != 0 {
		t.Errorf("after a while it has to wait for %v", wait)
	}
	if wait, _ := take(Rate[string]{"none", 0}); wait != time.Minute {
		t.Errorf("who may do nothing has to wait for %v", wait)
	}
	// Another limit takes effect at once.
	now = now.Add(time.Minute)
	take(team)
	if wait, _ := take(Rate[string]{"team", 1}); wait != 0 {
		t.Errorf("with a lower limit: %v", wait)
	}
	if wait, _ := take(Rate[string]{"team", 1}); wait <= 0 {
		t.Error("a lower limit has no effect")
	}
}

func TestRatesAreForgotten(t *testing.T) {
	var r Rates[int]
	now := time.Unix(1_000_000, 0)
	for h := range 10 * maxIdle {
		now = now.Add(time.Second)
		r.Take(now, Rate[int]{h, 60})
	}
	if n := len(r.limiters); n > maxIdle {
		t.Errorf("%d holders are remembered", n)
	}
}
