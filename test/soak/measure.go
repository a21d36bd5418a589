package main

import (
	"encoding/csv"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// recorder counts operations and measures calls.
type recorder struct {
	mu  sync.Mutex
	ops map[string]*tally
	// all has the times of each kind of call, recent those since the last sample.
	all, recent map[string][]time.Duration
	finished    int // operations since the last sample
}

// tally counts the operations of a kind by how they ended.
type tally struct{ done, excused, failed int }

func newRecorder() *recorder {
	return &recorder{ops: map[string]*tally{}, all: map[string][]time.Duration{}, recent: map[string][]time.Duration{}}
}

func (r *recorder) op(name string) *tally {
	if r.ops[name] == nil {
		r.ops[name] = &tally{}
	}
	return r.ops[name]
}

// done counts an operation. One that failed counts as failed until a fault excuses it.
func (r *recorder) done(name string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished++
	if ok {
		r.op(name).done++
	} else {
		r.op(name).failed++
	}
}

func (r *recorder) excused(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.op(name).failed--
	r.op(name).excused++
}

func (r *recorder) took(kind string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[kind] = append(r.all[kind], d)
	r.recent[kind] = append(r.recent[kind], d)
}

// take returns what was measured since the last call.
func (r *recorder) take() (times map[string][]time.Duration, finished int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	times, finished = r.recent, r.finished
	r.recent, r.finished = map[string][]time.Duration{}, 0
	return times, finished
}

// percentile returns the time that p percent of the calls do not exceed.
func percentile(times []time.Duration, p int) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64)
}

// calls are the kinds of calls, each with three columns of the curves.
var calls = []string{
	"create", "create, one vCPU", "exec", "exec, detached", "write", "read", "stop", "resume", "snapshot", "create from a snapshot",
	"snapshot with memory", "create from a snapshot with memory", "fork", "fork, live", "fork with memory", "pause", "wake by a command",
	"set policy", "request to a port", "list", "delete",
}

// gauges are the columns of the curves that are read from the host and the server.
var gauges = []string{
	"server_rss", "server_heap", "server_fds", "server_goroutines", "sandboxes", "processes", "netns", "mounts", "interfaces", "cgroups",
	"disk_used", "records", "sandboxes_memory", "host_used",
}

// gauge reads the gauges. What the server does not answer is missing.
func (s *server) gauge() map[string]float64 {
	g := map[string]float64{}
	if pid, err := s.pid(); err == nil && processArgs(pid) != nil {
		g["server_rss"] = float64(statusKB(fmt.Sprintf("/proc/%d/status", pid), "VmRSS"))
		g["server_fds"] = float64(openFiles(pid))
	}
	if m, err := metrics(); err == nil {
		g["server_heap"] = m["go_memstats_heap_inuse_bytes"]
		g["server_goroutines"] = m["go_goroutines"]
		for name, v := range m {
			if strings.HasPrefix(name, "skerry_sessions{") {
				g["sandboxes"] += v
			}
		}
	}
	g["processes"] = float64(len(processes()))
	if points, err := mounts(s.dir); err == nil {
		g["mounts"] = float64(len(points))
	}
	if points, err := netnsMounts(s.dir); err == nil {
		g["netns"] = float64(len(points))
	}
	if names, err := interfaces(); err == nil {
		g["interfaces"] = float64(len(names))
	}
	dirs, memory := s.cgroups()
	g["cgroups"], g["sandboxes_memory"], g["host_used"] = float64(len(dirs)), float64(memory), float64(hostUsed())
	if used, _, err := s.disk.usage(); err == nil {
		g["disk_used"] = float64(used)
	}
	_, records := s.stateFiles()
	g["records"] = float64(records)
	return g
}

// curves writes samples to a CSV file.
type curves struct {
	file  *os.File
	csv   *csv.Writer
	begin time.Time
	last  time.Time
}

func newCurves(file string) (*curves, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	c := &curves{file: f, csv: csv.NewWriter(f), begin: time.Now(), last: time.Now()}
	head := append([]string{"seconds", "phase", "faults", "operations_per_second"}, gauges...)
	for _, kind := range calls {
		head = append(head, kind+" p50 ms", kind+" p95 ms", kind+" p99 ms")
	}
	return c, c.csv.Write(head)
}

// sample writes one line.
func (c *curves) sample(phase string, faults map[string]int, times map[string][]time.Duration, finished int, g map[string]float64) error {
	now := time.Now()
	happened := slices.Sorted(maps.Keys(faults))
	row := []string{
		strconv.FormatFloat(now.Sub(c.begin).Seconds(), 'f', 1, 64), phase, strings.Join(happened, "; "),
		strconv.FormatFloat(float64(finished)/now.Sub(c.last).Seconds(), 'f', 2, 64),
	}
	c.last = now
	for _, name := range gauges {
		if v, ok := g[name]; ok {
			row = append(row, strconv.FormatFloat(v, 'f', -1, 64))
		} else {
			row = append(row, "")
		}
	}
	for _, kind := range calls {
		for _, p := range []int{50, 95, 99} {
			if len(times[kind]) == 0 {
				row = append(row, "")
			} else {
				row = append(row, milliseconds(percentile(times[kind], p)))
			}
		}
	}
	if err := c.csv.Write(row); err != nil {
		return err
	}
	c.csv.Flush()
	return c.csv.Error()
}

func (c *curves) Close() error { return c.file.Close() }
