package meter

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Times are the durations of an operation.
type Times []time.Duration

// At returns the time that a part of the operations, such as 0.99, did not exceed.
func (t Times) At(part float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(int(float64(len(t))*part), len(t)-1)]
}

// String has the median, the 95th and 99th percentiles and the largest, in milliseconds.
func (t Times) String() string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	return fmt.Sprintf("%6d times: median %8.1f ms, p95 %8.1f ms, p99 %8.1f ms, most %8.1f ms", len(t), ms(t.At(0.5)), ms(t.At(0.95)), ms(t.At(0.99)), ms(t.At(1)))
}

// Load is the machine's load average over 1, 5 and 15 minutes, as text.
func Load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}
