package node

import (
	"maps"
	"testing"
	"time"
)

func TestTeamFactors(t *testing.T) {
	even := func(weights map[string]float64) map[string]load {
		loads := map[string]load{}
		for team, w := range weights {
			loads[team] = load{w, time.Second}
		}
		return loads
	}
	for _, c := range []struct{ weights, want map[string]float64 }{
		{nil, map[string]float64{}},
		{map[string]float64{"a": 6}, map[string]float64{"a": 1}},
		{map[string]float64{"a": 2, "b": 2}, map[string]float64{"a": 1, "b": 1}},
		{map[string]float64{"a": 12, "b": 2, "c": 4}, map[string]float64{"a": 1, "b": 6, "c": 3}},
		{map[string]float64{"a": 1000, "b": 1}, map[string]float64{"a": 1, "b": maxFactor}},
	} {
		if got := teamFactors(even(c.weights), map[string]float64{}); !maps.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.weights, got, c.want)
		}
	}
}

// TestTeamFactorsCorrect has a kernel that gives a team half of what its weight is worth.
func TestTeamFactorsCorrect(t *testing.T) {
	corrections, loads := map[string]float64{}, map[string]load{"many": {10, time.Second}, "one": {2, time.Second}}
	look := func() (many, one float64) {
		factors := teamFactors(loads, corrections)
		many, one = 10*factors["many"]/2, 2*factors["one"]
		all := float64(2 * time.Second)
		loads = map[string]load{"many": {10, time.Duration(all * many / (many + one))}, "one": {2, time.Duration(all * one / (many + one))}}
		return many, one
	}
	for range 20 {
		look()
	}
	if many, one := look(); many/one < 0.98 || many/one > 1.02 {
		t.Errorf("after some looks they share it as %v to %v", many, one)
	}
	// One that does not compute much takes nothing from the other, however large its factor.
	for range 50 {
		factors := teamFactors(map[string]load{"many": {10, 1900 * time.Millisecond}, "one": {2, 100 * time.Millisecond}}, corrections)
		if factors["one"] > maxFactor || factors["many"] < 1/maxCorrection {
			t.Fatalf("%v", factors)
		}
	}
	if corrections["one"] != maxCorrection || corrections["many"] != 1/maxCorrection {
		t.Errorf("the corrections are %v", corrections)
	}
}

func TestScarceCPU(t *testing.T) {
	parse := func(line string) cpuTimes {
		t.Helper()
		c, err := parseCPUTimes(line)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := parse("cpu  100 0 50 800 50 0 0 0 7 0")
	if first != (cpuTimes{idle: 850, all: 1000}) {
		t.Errorf("%+v", first)
	}
	for line, want := range map[string]bool{
		"cpu  190 0 50 805 54 0 0 0 9 0": true,  // 9 of 99 ticks idle
		"cpu  190 0 50 810 50 0 0 0 9 0": false, // 10 of 100
		"cpu  100 0 50 800 50 0 0 0 7 0": false, // no time has passed
	} {
		if got := parse(line).scarce(first); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
	if first.scarce(cpuTimes{}) {
		t.Error("the first look says that it is scarce")
	}
	for _, bad := range []string{"", "cpu", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3 x 5 6 7 8", "cpu 1 2 3"} {
		if _, err := parseCPUTimes(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
	if now, err := readCPUTimes(); err != nil || now.all == 0 {
		t.Errorf("this machine: %+v, %v", now, err)
	}
}
