package top

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// sample returns one at a time, in seconds, after half of which the busy sandbox has used
// the CPU.
func sample(seconds int, sandboxes ...Sandbox) *Sample {
	return &Sample{Clock: time.Duration(seconds) * time.Second, CPUs: 2, MemoryBytes: 8 << 30, Sandboxes: sandboxes}
}

func busy(seconds int) Sandbox {
	return Sandbox{
		Name: "busy", Session: "sbx_1", State: "running", Age: 3*time.Hour + 12*time.Minute, Commands: 2, Metered: true,
		CPU: time.Duration(seconds) * time.Second / 2, MemoryBytes: 300 << 20, ReceivedBytes: int64(seconds) * 2048, SentBytes: int64(seconds) * 100,
	}
}

var (
	idle     = Sandbox{Name: "Idle", Session: "sbx_2", State: "paused", Age: 49 * time.Hour, Metered: true, CPU: time.Second, MemoryBytes: 20 << 20}
	starting = Sandbox{Name: "new\x1b[2J\r\n" + strings.Repeat("y", 60), Session: "sbx_3", State: "pending", Age: 50 * time.Millisecond}
)

func TestCompare(t *testing.T) {
	again := idle
	again.Session = "sbx_4" // it was stopped and resumed
	for _, c := range []struct {
		what        string
		before, now *Sample
		percent     []float64
		compared    []bool
	}{
		{"nothing before", nil, sample(10, busy(10)), []float64{0}, []bool{false}},
		{"two seconds", sample(10, busy(10), idle), sample(12, busy(12), idle), []float64{50, 0}, []bool{true, true}},
		{"another session", sample(10, idle), sample(12, again), []float64{0}, []bool{false}},
		{"it was starting", sample(10, starting), sample(12, busy(12), starting), []float64{0, 0}, []bool{false, false}},
		{"no time", sample(10, busy(10)), sample(10, busy(12)), []float64{0}, []bool{false}},
		{"the server was started again", sample(10, busy(10)), sample(1, busy(12)), []float64{0}, []bool{false}},
		{"its counters too", sample(10, busy(10)), sample(12, busy(1)), []float64{0}, []bool{true}},
	} {
		table := Compare(c.before, c.now)
		for i, r := range table.Rows {
			if r.CPUPercent != c.percent[i] || r.compared != c.compared[i] || r.ReceivedPerSec < 0 {
				t.Errorf("%s: %s uses %v %%, compared %v", c.what, r.Name, r.CPUPercent, r.compared)
			}
		}
	}
	if r := Compare(sample(10, busy(10)), sample(12, busy(12))).Rows[0]; r.ReceivedPerSec != 2048 || r.SentPerSec != 100 {
		t.Errorf("%v bytes in, %v out per second", r.ReceivedPerSec, r.SentPerSec)
	}
}

func TestSort(t *testing.T) {
	equal := idle
	equal.Name, equal.Session = "also", "sbx_9"
	table := Compare(sample(10, busy(10), idle, equal, starting), sample(12, idle, starting, busy(12), equal))
	for _, c := range []struct {
		by      string
		reverse bool
		want    string
	}{
		{"cpu", false, "busy also Idle new"}, {"cpu", true, "also Idle new busy"}, {"name", false, "also busy Idle new"}, {"name", true, "new Idle busy also"},
		{"memory", false, "busy also Idle new"}, {"age", false, "also Idle busy new"}, {"commands", false, "busy also Idle new"},
		{"state", false, "also Idle new busy"}, {"in", false, "busy also Idle new"}, {"out", true, "also Idle new busy"},
	} {
		by, ok := SortBy(c.by)
		if !ok {
			t.Fatal(c.by)
		}
		table.Sort(by, c.reverse)
		var got []string
		for _, r := range table.Rows {
			got = append(got, r.Name[:min(len(r.Name), 4)])
		}
		for i := range got {
			got[i] = strings.TrimRight(got[i], "\x1b")
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("by %s, reverse %v: %q, want %s", c.by, c.reverse, got, c.want)
		}
	}
	if _, ok := SortBy("luck"); ok {
		t.Error("there is a column luck")
	}
}

func TestLines(t *testing.T) {
	table := Compare(sample(10, busy(10), idle, starting), sample(12, busy(12), idle, starting))
	table.Sort(ByCPU, false)
	for _, c := range []struct {
		view View
		want string
	}{
		{View{Width: 90, Plain: true}, `
3 sandboxes: 1 running, 1 paused, 1 pending
CPU 50.0% of 200%   memory 320M of 8.0G   net in 2.0K/s, out 100B/s   commands 2

NAME                      STATE          CPU%   MEMORY  NET IN/s NET OUT/s COMMANDS    AGE
busy                      running        50.0     300M      2.0K      100B        2  3h12m
Idle                      paused          0.0    20.0M        0B        0B        0   2d1h
new�[2J��yyyyyyyyyyyyyyy… pending           -        -         -         -        0     0s`},
		{View{Width: 45, Plain: true}, `
3 sandboxes: 1 running, 1 paused, 1 pending
CPU 50.0% of 200%   memory 320M of 8.0G   ne…

NAME                     CPU%   MEMORY    AGE
busy                     50.0     300M  3h12m
Idle                      0.0    20.0M   2d1h
new�[2J��yyyyyyyyyyyy…      -        -     0s`},
		{View{Width: 24, Height: 4}, bold + `3 sandboxes: 1 running,…` + normal + `
NAME              ` + inverse + `  CPU%` + normal + `
busy                50.0
Idle                 0.0`},
		{View{Width: 30, Height: 7, First: 9, By: ByAge, Trouble: "no answer: the server is not running"}, bold + `3 sandboxes: 1 running, 1 pau…` + normal + `
CPU 50.0% of 200%   memory 32…
` + red + `no answer: the server is not …` + normal + `
NAME               CPU% ` + inverse + `   AGE` + normal + `
Idle                0.0   2d1h
new�[2J��yyyyyy…      -     0s
q quit   left/right sort   r …`},
	} {
		if c.view.By == ByName {
			c.view.By = ByCPU
		}
		got, want := strings.Join(c.view.Lines(&table), "\n"), strings.TrimPrefix(c.want, "\n")
		if got != want {
			t.Errorf("%d by %d:\n%s\nwant\n%s", c.view.Width, c.view.Height, got, want)
		}
	}
}

// TestLinesFit has no line be wider, and no table higher, than any terminal.
func TestLinesFit(t *testing.T) {
	var many []Sandbox
	for range 50 {
		many = append(many, busy(3), starting)
	}
	tables := []Table{Compare(nil, sample(0)), Compare(nil, sample(3, many...))}
	painting := strings.NewReplacer(bold, "", inverse, "", red, "", normal, "")
	for width := 1; width < 130; width += 3 {
		for height := 1; height < 30; height++ {
			for i := range tables {
				for by := range columns {
					v := View{Width: width, Height: height, By: Column(by), First: 7, Trouble: strings.Repeat("t", height%2)}
					lines := v.Lines(&tables[i])
					if len(lines) > height {
						t.Fatalf("%d by %d: %d lines", width, height, len(lines))
					}
					for _, line := range lines {
						if n := utf8.RuneCountInString(painting.Replace(line)); n > width {
							t.Fatalf("%d by %d: %d characters: %q", width, height, n, line)
						}
					}
				}
			}
		}
	}
	if v := (View{Width: Wide(&tables[1]), Plain: true}); strings.Contains(strings.Join(v.Lines(&tables[1]), ""), "…") {
		t.Error("a table is cut that has the width that it needs")
	}
}

// TestDrawKeepsTheLastLine: nothing is cleared after the last line, as the cursor may
// still be on its last character.
func TestDrawKeepsTheLastLine(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s := Screen{Out: out, table: Compare(nil, sample(1, idle)), view: View{Width: 40, Height: 4}}
	if err := s.draw(); err != nil {
		t.Fatal(err)
	}
	drawn, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.LastIndex(string(drawn), "\x1b[J"); i < 0 || !strings.HasPrefix(string(drawn[i+3:]), "Idle ") || !strings.HasSuffix(string(drawn), " 2d1h") {
		t.Errorf("drawn %q", drawn)
	}
}

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		sent []string
		want []key
	}{
		{[]string{"q"}, []key{keyQuit}}, {[]string{"\x03"}, []key{keyQuit}}, {[]string{"xyz"}, nil},
		{[]string{"\x1b[C\x1b[D"}, []key{keyRight, keyLeft}}, {[]string{"\x1bOA", "\x1bOB"}, []key{keyUp, keyDown}},
		{[]string{"\x1b", "[", "5", "~", "r"}, []key{keyPageUp, keyReverse}}, {[]string{"\x1b[6~\x1b[H\x1b[4~"}, []key{keyPageDown, keyHome, keyEnd}},
		{[]string{"\x1b[1;5C", "q"}, []key{keyQuit}}, // what is not known is no key, nor a part of it
		{[]string{"\x1b[" + strings.Repeat("1;", 40), "q"}, nil},
		{[]string{"\x1b\x1b[C"}, []key{keyRight}},
	} {
		var k keyboard
		var got []key
		for _, s := range c.sent {
			got = append(got, k.keys([]byte(s))...)
		}
		if c.want == nil && len(got) > 0 && !slices.Contains(got, keyQuit) || c.want != nil && !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, want %v", c.sent, got, c.want)
		}
		if len(k.sequence) > longestSequence {
			t.Errorf("%q: %d bytes are kept", c.sent, len(k.sequence))
		}
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[float64]string{0: "0B", 999: "999B", 1000: "1.0K", 1024: "1.0K", 100 << 10: "100K", 1023 << 10: "1.0M", 1.5 * (1 << 30): "1.5G", 5 << 60: "5120P"} {
		if got := size(n); got != want {
			t.Errorf("%v is %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 25 * time.Hour: "1d1h", 2400 * time.Hour: "100d"} {
		if got := age(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}
