package audit

import (
	"syscall"
	"testing"
	"time"
)

// BenchmarkRecord is a change, whose answer waits for its record; the goroutines share
// writes. cpu-µs/op is all CPU time of the process, the kernel's included.
func BenchmarkRecord(b *testing.B) {
	for _, c := range []struct {
		name    string
		callers int
		wait    bool
	}{{"alone", 1, true}, {"32 callers", 32, true}, {"without waiting", 1, false}} {
		b.Run(c.name, func(b *testing.B) {
			o := options(b.TempDir())
			o.MaxBytes = -1
			l := open(b, o)
			e := event(1)
			before := cpu(b)
			b.SetParallelism(c.callers)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					for l.Record(e, c.wait) != nil {
						time.Sleep(time.Millisecond) // the queue is full
					}
				}
			})
			closeLog(b, l)
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpu returns the CPU time of the process.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkVerify is one record.
func BenchmarkVerify(b *testing.B) {
	o := options(b.TempDir())
	l := open(b, o)
	for n := range 5000 {
		for l.Record(event(n), false) != nil {
			time.Sleep(time.Millisecond)
		}
	}
	closeLog(b, l)
	b.ResetTimer()
	for n := 0; n < b.N; n += 5000 {
		if _, err := Verify(o.Dir); err != nil {
			b.Fatal(err)
		}
	}
}
