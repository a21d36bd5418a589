// Command memory measures a running server's memory forks: from the call to the
// end of the first command in the fork, of an idle sandbox, and of one with a warm Python
// and a warm Node.js process; beside it, in the same run, a plain creation with its
// first command. With -resume it measures resumes of stopped sandboxes in the same
// way, with -stall how long the source of a fork stands still, with -together forks that
// are asked for at once. It needs SKERRY_URL and the rest of the SDK's environment, and
// SKERRY_METRICS to count saves.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

// warm are processes with something in memory.
var warm = [][]string{
	{"python3", "-c", "import json, http.server, time; heap = bytearray(20 << 20); open('/tmp/python', 'w'); time.sleep(1e6)"},
	{"node", "-e", "heap = Array.from({length: 2e5}, (_, i) => ({i})); require('fs').writeFileSync('/tmp/node', ''); setInterval(() => {}, 1e6)"},
}

type bench struct {
	c    *client.Client
	runs int
	// pause is the time before each measurement.
	pause time.Duration
	// together is the number of forks at once, 0 for one after the other.
	together int
}

func main() {
	var b bench
	flag.IntVar(&b.runs, "runs", 20, "how often each is measured")
	flag.DurationVar(&b.pause, "pause", 0, "time before each measurement, in which the server can make machines ready")
	sizes := flag.String("resume", "", "MB of changes, comma-separated: measure resumes in place of forks")
	stall := flag.Bool("stall", false, "measure how long the source of a fork stands still, in place of forks")
	flag.IntVar(&b.together, "together", 0, "number of forks that are asked for at once, in place of one")
	flag.Parse()
	if err := b.run(context.Background(), *sizes, *stall); err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, sizes string, stall bool) (err error) {
	if b.c, err = client.FromEnvironment(); err != nil {
		return err
	}
	defer b.c.Close()
	if sizes != "" {
		return b.resumes(ctx, strings.Split(sizes, ","))
	}
	source, err := b.c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1, Timeout: time.Hour})
	if err != nil {
		return err
	}
	defer source.Delete(context.WithoutCancel(ctx))
	for _, command := range warm {
		cmd := source.Command(ctx, command[0], command[1:]...)
		cmd.Detached = true
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	if err := source.Command(ctx, "sh", "-c", "until [ -e /tmp/python ] && [ -e /tmp/node ]; do sleep 0.1; done").Run(); err != nil {
		return err
	}
	if stall {
		return b.stalls(ctx, source)
	}
	return b.forks(ctx, source)
}

// row is one measurement.
type row struct {
	name  string
	begin func() (*client.Sandbox, error)
	// end follows each measurement; nil deletes the sandbox.
	end   func(*client.Sandbox) error
	times []time.Duration
}

// turns measures rows in turns, so that all meet the same noise.
func (b *bench) turns(ctx context.Context, rows []row) error {
	for range b.runs {
		for i := range rows {
			time.Sleep(b.pause)
			if err := rows[i].measure(ctx); err != nil {
				return err
			}
		}
	}
	for _, r := range rows {
		r.print()
	}
	return nil
}

// measure measures from the beginning of a sandbox to the end of a command in it.
func (r *row) measure(ctx context.Context) error {
	start := time.Now()
	sb, err := r.begin()
	if err != nil {
		return err
	}
	if err := sb.Command(ctx, "true").Run(); err != nil {
		return err
	}
	r.times = append(r.times, time.Since(start))
	if r.end != nil {
		return r.end(sb)
	}
	return sb.Delete(ctx)
}

func (r *row) print() {
	slices.Sort(r.times)
	n := len(r.times)
	fmt.Printf("%-46s median %4d ms, p95 %4d ms, best %4d ms\n", r.name, r.times[n/2].Milliseconds(),
		r.times[n*95/100].Milliseconds(), r.times[0].Milliseconds())
}

func (b *bench) forks(ctx context.Context, source *client.Sandbox) error {
	create := func() (*client.Sandbox, error) { return b.c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1}) }
	fork := func(of *client.Sandbox) func() (*client.Sandbox, error) {
		return func() (*client.Sandbox, error) { return of.Fork(ctx, client.ForkOptions{Memory: true}) }
	}
	idle, err := create()
	if err != nil {
		return err
	}
	defer idle.Delete(context.WithoutCancel(ctx))
	if b.together > 0 {
		return b.crowds(ctx, map[string]*client.Sandbox{"idle": idle, "warm": source})
	}
	return b.turns(ctx, []row{
		{name: "create → first command", begin: create},
		{name: "memory fork, idle source → first command", begin: fork(idle)},
		{name: "memory fork, warm source → first command", begin: fork(source)},
	})
}

// crowds measures forks that are asked for at once, from the first call to the end of the
// first command in the last one.
func (b *bench) crowds(ctx context.Context, sources map[string]*client.Sandbox) error {
	for name, source := range sources {
		r := row{name: fmt.Sprintf("%d memory forks at once, %s source", b.together, name)}
		saves, err := b.saves(ctx)
		if err != nil {
			return err
		}
		for range b.runs {
			time.Sleep(b.pause)
			all, ctx := errgroup.WithContext(ctx)
			forks := make([]*client.Sandbox, b.together)
			start := time.Now()
			for i := range forks {
				all.Go(func() (err error) {
					if forks[i], err = source.Fork(ctx, client.ForkOptions{Memory: true}); err != nil {
						return err
					}
					return forks[i].Command(ctx, "true").Run()
				})
			}
			err := all.Wait()
			r.times = append(r.times, time.Since(start))
			for _, fork := range forks {
				if fork != nil {
					err = errors.Join(err, fork.Delete(context.WithoutCancel(ctx)))
				}
			}
			if err != nil {
				return err
			}
		}
		r.print()
		after, err := b.saves(ctx)
		if err != nil {
			return err
		}
		if after > 0 {
			fmt.Printf("  %.1f saves for each %d forks\n", (after-saves)/float64(b.runs), b.together)
		}
	}
	return nil
}

// saves returns how many saves the server has made, 0 if its metrics are not known.
func (b *bench) saves(ctx context.Context) (float64, error) {
	url := os.Getenv("SKERRY_METRICS")
	if url == "" {
		return 0, nil
	}
	return meter.Metric(ctx, url, `skerry_phase_duration_seconds_count{phase="save.machine",result="ok"}`)
}

// resumes measures resumes of stopped sandboxes with so many MB of changes.
func (b *bench) resumes(ctx context.Context, sizes []string) error {
	var rows []row
	for _, size := range sizes {
		if _, err := strconv.Atoi(size); err != nil {
			return err
		}
		sb, err := b.c.CreateSandbox(ctx, client.CreateOptions{Timeout: time.Hour})
		if err != nil {
			return err
		}
		defer sb.Delete(context.WithoutCancel(ctx))
		if err := sb.Command(ctx, "sh", "-c", "mkdir data; head -c "+size+"M /dev/urandom | split -b 1M - data/").Run(); err != nil {
			return err
		}
		stop := func(*client.Sandbox) error {
			_, err := sb.Stop(ctx)
			return err
		}
		if err := stop(sb); err != nil {
			return err
		}
		rows = append(rows, row{
			name: "resume with " + size + " MB of changes → first command", end: stop,
			begin: func() (*client.Sandbox, error) { return sb, nil }, // the command resumes it
		})
	}
	return b.turns(ctx, rows)
}

// ticker writes the longest time in ms for which it did not run, and begins anew when its file
// is removed.
const ticker = `
import os, time
name, most, last = '/tmp/most', 0, time.monotonic()
while True:
    time.sleep(0.001)
    now = time.monotonic()
    if not os.path.exists(name): most = 0
    if now - last > most or most == 0:
        most = now - last
        with open(name + '.new', 'w') as f: f.write(str(most * 1000))
        os.rename(name + '.new', name)
    last = now
`

// stalls measures how long a program in the source of a fork does not run, with forks and
// without.
func (b *bench) stalls(ctx context.Context, source *client.Sandbox) error {
	cmd := source.Command(ctx, "python3", "-c", ticker)
	cmd.Detached = true
	if err := cmd.Start(); err != nil {
		return err
	}
	longest := func(during func() error) (time.Duration, error) {
		if err := source.Command(ctx, "rm", "-f", "/tmp/most").Run(); err != nil {
			return 0, err
		}
		time.Sleep(100 * time.Millisecond)
		if err := during(); err != nil {
			return 0, err
		}
		out, err := source.Command(ctx, "cat", "/tmp/most").Output()
		if err != nil {
			return 0, err
		}
		ms, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		return time.Duration(ms * float64(time.Millisecond)), err
	}
	rows := []row{{name: "longest stall of the source, without a fork"}, {name: "longest stall of the source, with one"}}
	for range b.runs {
		for i, during := range []func() error{
			func() error { time.Sleep(300 * time.Millisecond); return nil },
			func() error {
				fork, err := source.Fork(ctx, client.ForkOptions{Memory: true})
				if err != nil {
					return err
				}
				return fork.Delete(ctx)
			},
		} {
			time.Sleep(b.pause)
			d, err := longest(during)
			if err != nil {
				return err
			}
			rows[i].times = append(rows[i].times, d)
		}
	}
	for _, r := range rows {
		r.print()
	}
	return nil
}
