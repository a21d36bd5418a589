// Package top shows what the sandboxes of a server use, as a live table.
package top

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Sample is a measurement of a server's sandboxes.
type Sample struct {
	// Clock is the time since the server started, by its monotonic clock.
	Clock time.Duration `json:"clockNanos"`
	// CPUs and MemoryBytes are those of the machine.
	CPUs        int       `json:"cpus"`
	MemoryBytes int64     `json:"memoryBytes"`
	Sandboxes   []Sandbox `json:"sandboxes"`
}

// Sandbox is a sandbox that has a session, with what the session has used so far.
type Sandbox struct {
	Name    string `json:"name"`
	Project string `json:"project"`
	Session string `json:"session"`
	State   string `json:"state"`
	VCPUs   int    `json:"vcpus"`
	// MemoryLimitBytes is the memory that it sees.
	MemoryLimitBytes int64 `json:"memoryLimitBytes"`
	// Age is the time since its session was asked for.
	Age      time.Duration `json:"ageNanos"`
	Commands int           `json:"commands"`
	// Metered reports whether the fields below are known.
	Metered       bool          `json:"metered"`
	CPU           time.Duration `json:"cpuNanos"`
	MemoryBytes   int64         `json:"memoryBytes"`
	ReceivedBytes int64         `json:"receivedBytes"`
	SentBytes     int64         `json:"sentBytes"`
}

// Row is a sandbox with what it used between two samples.
type Row struct {
	Sandbox
	// CPUPercent is of one CPU; Received and Sent are bytes per second.
	CPUPercent      float64 `json:"cpuPercent"`
	ReceivedPerSec  float64 `json:"receivedPerSecond"`
	SentPerSec      float64 `json:"sentPerSecond"`
	compared        bool
	lowerCasedNames string
}

// Table is the content of the screen.
type Table struct {
	CPUs        int   `json:"cpus"`
	MemoryBytes int64 `json:"memoryBytes"`
	Rows        []Row `json:"sandboxes"`
}

// Compare makes a table of a sample and an earlier one, which may be nil. A sandbox that
// has another session than before is compared with nothing.
func Compare(before, now *Sample) Table {
	t := Table{CPUs: now.CPUs, MemoryBytes: now.MemoryBytes, Rows: make([]Row, 0, len(now.Sandboxes))}
	earlier, seconds := map[string]*Sandbox{}, 0.0
	if before != nil {
		seconds = (now.Clock - before.Clock).Seconds()
		for i := range before.Sandboxes {
			earlier[before.Sandboxes[i].Session] = &before.Sandboxes[i]
		}
	}
	for _, s := range now.Sandboxes {
		r := Row{Sandbox: s, lowerCasedNames: strings.ToLower(s.Name)}
		if e := earlier[s.Session]; e != nil && e.Metered && s.Metered && seconds > 0 {
			// A server that was started again begins its clock anew, and counters too.
			r.compared = true
			r.CPUPercent = max(0, 100*(s.CPU-e.CPU).Seconds()/seconds)
			r.ReceivedPerSec = max(0, float64(s.ReceivedBytes-e.ReceivedBytes)/seconds)
			r.SentPerSec = max(0, float64(s.SentBytes-e.SentBytes)/seconds)
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// Sort orders the rows by a column: the largest first, names and states by letters.
// Those that are equal follow their names. reverse turns that around.
func (t *Table) Sort(by Column, reverse bool) {
	slices.SortFunc(t.Rows, func(a, b Row) int {
		order := columns[by].order(&a, &b)
		if reverse {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.lowerCasedNames, b.lowerCasedNames), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Session, b.Session))
	})
}
