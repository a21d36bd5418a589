package top

import (
	"cmp"
	"fmt"
	"time"

	"github.com/skerry-dev/skerry/internal/terminal"
)

// Column is a column of the table.
type Column int

// The columns, from left to right.
const (
	ByName Column = iota
	ByState
	ByCPU
	ByMemory
	ByReceived
	BySent
	ByCommands
	ByAge
)

// column is how a column looks and is sorted.
type column struct {
	title string
	// flag is its name for --sort.
	flag  string
	width int // of a number, to the right; 0 for what takes the rest
	left  bool
	// rank is the order in which a narrow terminal drops columns: the highest first.
	rank  int
	order func(a, b *Row) int
	text  func(*Row) string
}

// dash is shown for unknown values.
const dash = "-"

// most sorts by a number, the largest first.
func most[T cmp.Ordered](of func(*Row) T) func(a, b *Row) int {
	return func(a, b *Row) int { return cmp.Compare(of(b), of(a)) }
}

var columns = [...]column{
	ByName: {title: "NAME", flag: "name", left: true,
		order: func(a, b *Row) int { return cmp.Compare(a.lowerCasedNames, b.lowerCasedNames) },
		text:  func(r *Row) string { return terminal.Clean(r.Name) }},
	ByState: {title: "STATE", flag: "state", width: 12, left: true, rank: 4,
		order: func(a, b *Row) int { return cmp.Compare(a.State, b.State) },
		text:  func(r *Row) string { return terminal.Clean(r.State) }},
	ByCPU: {title: "CPU%", flag: "cpu", width: 6,
		order: most(func(r *Row) float64 { return r.CPUPercent }),
		text:  func(r *Row) string { return known(r.compared, fmt.Sprintf("%.1f", r.CPUPercent)) }},
	ByMemory: {title: "MEMORY", flag: "memory", width: 8, rank: 1,
		order: most(func(r *Row) int64 { return r.MemoryBytes }),
		text:  func(r *Row) string { return known(r.Metered, size(float64(r.MemoryBytes))) }},
	ByReceived: {title: "NET IN/s", flag: "in", width: 9, rank: 6,
		order: most(func(r *Row) float64 { return r.ReceivedPerSec }),
		text:  func(r *Row) string { return known(r.compared, size(r.ReceivedPerSec)) }},
	BySent: {title: "NET OUT/s", flag: "out", width: 9, rank: 7,
		order: most(func(r *Row) float64 { return r.SentPerSec }),
		text:  func(r *Row) string { return known(r.compared, size(r.SentPerSec)) }},
	ByCommands: {title: "COMMANDS", flag: "commands", width: 8, rank: 5,
		order: most(func(r *Row) int { return r.Commands }),
		text:  func(r *Row) string { return fmt.Sprint(r.Commands) }},
	ByAge: {title: "AGE", flag: "age", width: 6, rank: 3,
		order: most(func(r *Row) time.Duration { return r.Age }),
		text:  func(r *Row) string { return age(r.Age) }},
}

// Sorts are the names of the columns.
func Sorts() (names []string) {
	for _, c := range columns {
		names = append(names, c.flag)
	}
	return names
}

// SortBy returns the column of a name.
func SortBy(name string) (Column, bool) {
	for i, c := range columns {
		if c.flag == name {
			return Column(i), true
		}
	}
	return 0, false
}

func known(is bool, s string) string {
	if !is {
		return dash
	}
	return s
}

// size writes a number of bytes with three digits or so, "1.2M".
func size(n float64) string {
	const units = "BKMGTP"
	i := 0
	for n >= 999.5 && i < len(units)-1 {
		n /= 1024
		i++
	}
	if i == 0 || n >= 99.95 {
		return fmt.Sprintf("%.0f%c", n, units[i])
	}
	return fmt.Sprintf("%.1f%c", n, units[i])
}

// age writes a duration with its largest unit or two, "3h12m".
func age(d time.Duration) string {
	d = max(d, 0)
	switch day := 24 * time.Hour; {
	case d >= 100*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
