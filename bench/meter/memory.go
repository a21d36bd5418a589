package meter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// MB is a number of bytes in units of 2^20.
func MB(n int64) float64 { return float64(n) / (1 << 20) }

// PSS adds up the memory of a session's processes on this machine, which are those
// in its control group, in bytes. Pages that several processes have count in parts.
func (m *Meter) PSS(session string) (total int64, err error) {
	pids, err := os.ReadFile(filepath.Join(m.sandboxes, session, "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		n, err := field("/proc/"+pid+"/smaps_rollup", "Pss")
		if errors.Is(err, os.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// Server is what the server's process has.
type Server struct {
	RSS            int64 // bytes
	Files, Threads int
	Goroutines     int // 0 if there are no metrics
}

func (s Server) String() string {
	return fmt.Sprintf("%.0f MB resident, %d files, %d threads, %d goroutines", MB(s.RSS), s.Files, s.Threads, s.Goroutines)
}

// Server looks at the server's process. The number of goroutines comes from its
// metrics, which SKERRY_METRICS names.
func (m *Meter) Server(ctx context.Context) (s Server, err error) {
	if s.RSS, err = m.RSS(); err != nil {
		return s, err
	}
	proc := fmt.Sprintf("/proc/%d", m.PID)
	for _, d := range []struct {
		dir   string
		count *int
	}{{"fd", &s.Files}, {"task", &s.Threads}} {
		entries, err := os.ReadDir(filepath.Join(proc, d.dir))
		if err != nil {
			return s, err
		}
		*d.count = len(entries)
	}
	if url := os.Getenv("SKERRY_METRICS"); url != "" {
		var n float64
		n, err = Metric(ctx, url, "go_goroutines")
		s.Goroutines = int(n)
	}
	return s, err
}

// RSS is the server's resident memory in bytes.
func (m *Meter) RSS() (int64, error) { return field(fmt.Sprintf("/proc/%d/status", m.PID), "VmRSS") }

// Available is the machine's memory in bytes that programs can have without swapping.
func Available() (int64, error) { return field("/proc/meminfo", "MemAvailable") }

// field reads a line "NAME: NUMBER kB" of a file in /proc.
func field(file, name string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == name+":" {
			kb, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kb << 10, err
		}
	}
	// A process that has ended, but was not waited for, has no memory.
	return 0, fmt.Errorf("%s has no %s: %w", file, name, os.ErrNotExist)
}

// Metric reads a metric of the server, by its name with labels, from its metrics' address.
func Metric(ctx context.Context, url, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == name {
			return strconv.ParseFloat(string(f[1]), 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}

// Peak calls measure again and again until it is asked for the largest value.
func Peak(every time.Duration, measure func() (int64, error)) (stop func() (int64, error)) {
	type result struct {
		most int64
		err  error
	}
	done, results := make(chan struct{}), make(chan result)
	go func() {
		var r result
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			n, err := measure()
			r.most = max(r.most, n)
			if r.err == nil {
				r.err = err
			}
			select {
			case <-ticker.C:
			case <-done:
				results <- r
				return
			}
		}
	}()
	return func() (int64, error) {
		close(done)
		r := <-results
		return r.most, r.err
	}
}
