// Command hostile measures what a sandbox notices of its neighbours: how long
// its commands, its saves and its stops take beside an idle machine, and beside
// sandboxes that are root, do all the harm they can, and are made anew whenever
// they have brought themselves down. It needs SKERRY_URL and the rest of the
// SDK's environment.
//
// The machine's speed drifts, so the two are measured in turns: a round of
// quiet, a round under attack.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/client"
)

//go:embed attack.py
var attackScript []byte

// attacks are the modes of attack.py; each runs in a sandbox of its own, and
// "all" does every one of them at once.
var attacks = []string{"all", "processes", "memory", "shm", "inodes", "files", "dns", "connections", "output", "signals"}

func main() {
	total := flag.Duration("time", 30*time.Minute, "how long it lasts in all")
	round := flag.Duration("round", 2*time.Minute, "how long a round lasts, of quiet or of attack")
	attackers := flag.Int("attackers", 1, "how many hostile sandboxes run at once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *total, *round, *attackers); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, total, round time.Duration, attackers int) error {
	c, err := client.FromEnvironment()
	if err != nil {
		return err
	}
	defer c.Close()
	good, err := c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1, Timeout: total + time.Hour})
	if err != nil {
		return err
	}
	defer good.Delete(context.WithoutCancel(ctx))
	quiet, attacked := newMeter(), newMeter()
	began := 0
	for end := time.Now().Add(total); time.Now().Before(end) && ctx.Err() == nil; {
		if err := quiet.measure(ctx, good, round); err != nil {
			return fmt.Errorf("in a quiet round: %w", err)
		}
		attack, stop := context.WithCancel(ctx)
		var work sync.WaitGroup
		for i := range attackers {
			work.Go(func() { attackAgainAndAgain(attack, c, attacks[(began+i)%len(attacks):]) })
		}
		began += attackers
		err := attacked.measure(ctx, good, round)
		stop()
		work.Wait()
		if err != nil {
			return fmt.Errorf("under attack: %w", err)
		}
	}
	report(quiet, attacked)
	return nil
}

// attackAgainAndAgain runs the modes, one sandbox after the other, until ctx
// ends. What becomes of a hostile sandbox is not asked: that it cannot go on is
// the usual end.
func attackAgainAndAgain(ctx context.Context, c *client.Client, modes []string) {
	for i := 0; ctx.Err() == nil; i++ {
		mode := modes[i%len(modes)]
		fmt.Println(time.Now().Format(time.TimeOnly), "attack:", mode)
		attackOnce(ctx, c, mode)
	}
}

// attackTime is how long one hostile sandbox is given.
const attackTime = 45 * time.Second

func attackOnce(ctx context.Context, c *client.Client, mode string) {
	ctx, cancel := context.WithTimeout(ctx, attackTime)
	defer cancel()
	bad, err := c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 2, Timeout: 2 * attackTime})
	if err != nil {
		fmt.Println("  no sandbox for it:", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
		return
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		start := time.Now()
		// Half of them are stopped, which saves what they have done.
		if mode == "all" || mode == "inodes" || mode == "signals" {
			if _, err := bad.Stop(ctx); err != nil {
				fmt.Printf("  %s: stop after %v: %v\n", mode, time.Since(start).Round(time.Millisecond), err)
			}
		}
		if err := bad.Delete(ctx); err != nil {
			fmt.Printf("  %s: delete after %v: %v\n", mode, time.Since(start).Round(time.Millisecond), err)
		}
	}()
	if err := bad.WriteFile(ctx, "attack.py", attackScript, 0o644); err != nil {
		fmt.Printf("  %s: %v\n", mode, err)
		return
	}
	cmd := bad.Command(ctx, "python3", "attack.py", mode)
	cmd.Sudo = true
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		fmt.Printf("  %s ended: %v\n", mode, err)
	}
}

// meter holds the times of one sandbox's calls.
type meter struct{ times map[string][]time.Duration }

func newMeter() *meter { return &meter{times: map[string][]time.Duration{}} }

// data is a file that is no hole.
var data = bytes.Repeat([]byte("data"), 1<<18)

// measure makes the calls of a well-behaved user for a while.
func (m *meter) measure(ctx context.Context, sb *client.Sandbox, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		for range 20 {
			if err := m.time("command", func() error { return sb.Command(ctx, "true").Run() }); err != nil {
				return err
			}
		}
		err := m.time("write and read 1 MiB", func() error {
			if err := sb.WriteFile(ctx, "data", data, 0o644); err != nil {
				return err
			}
			_, err := sb.ReadFile(ctx, "data")
			return err
		})
		if err != nil {
			return err
		}
		if err := m.time("save and stop", func() error { _, err := sb.Stop(ctx); return err }); err != nil {
			return err
		}
		if err := m.time("resume with a command", func() error { return sb.Command(ctx, "true").Run() }); err != nil {
			return err
		}
	}
	return nil
}

func (m *meter) time(what string, f func() error) error {
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s, after %v: %w", what, time.Since(start).Round(time.Millisecond), err)
	}
	m.times[what] = append(m.times[what], time.Since(start))
	return nil
}

func report(quiet, attacked *meter) {
	fmt.Printf("%-24s %28s %28s %12s\n", "ms", "quiet: median p95 p99 max", "attacked: median p95 p99 max", "max - max")
	for _, what := range []string{"command", "write and read 1 MiB", "save and stop", "resume with a command"} {
		a, b := quantiles(quiet.times[what]), quantiles(attacked.times[what])
		fmt.Printf("%-24s %28s %28s %12d   (%d and %d calls)\n", what, row(a), row(b), (b[3] - a[3]).Milliseconds(), len(quiet.times[what]), len(attacked.times[what]))
	}
}

// quantiles returns median, p95, p99 and the largest.
func quantiles(times []time.Duration) (q [4]time.Duration) {
	if len(times) == 0 {
		return q
	}
	slices.Sort(times)
	n := len(times)
	return [4]time.Duration{times[n/2], times[n*95/100], times[n*99/100], times[n-1]}
}

func row(q [4]time.Duration) string {
	return fmt.Sprintf("%d %d %d %d", q[0].Milliseconds(), q[1].Milliseconds(), q[2].Milliseconds(), q[3].Milliseconds())
}
