// Command paths measures what each operation of a running server takes: its
// wall time (median, 95th and 99th percentile) and its CPU time, less what is
// used while idle.
//
// The CPU time of the server and of the sandboxes (sentries and the processes
// that run code for them) is that of their control groups, so it does not depend
// on what else the machine does. On cgroup v1 a sentry starts in the server's
// group and is moved to its own. A server without a group of its own is
// measured as a process, without what it starts. The machine's CPU time has
// also this client, the kernel's threads, and everything else that runs.
//
// With -runsc it runs the same image under runsc itself, in turns with ours:
// what a start takes with nothing around it.
//
// It needs SKERRY_URL and the rest of the SDK's environment, and a server on
// this machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

func main() {
	runs := flag.Int("runs", 30, "how often each operation is measured")
	only := flag.String("only", "", "comma-separated operations to print (default: all)")
	runsc := flag.String("runsc", "", "runsc program to compare a creation with; it needs -image")
	image := flag.String("image", "", "EROFS file of the default image, for runsc")
	flag.Parse()
	p := &paths{runs: *runs, peer: peer{runsc: *runsc, image: *image}}
	if *only != "" {
		p.only = strings.Split(*only, ",")
	}
	if err := p.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

type paths struct {
	c     *client.Client
	runs  int
	only  []string
	peer  peer
	meter *meter.Meter
	rows  []*row
}

// row is what one operation took.
type row struct {
	name  string
	times []time.Duration
	cpu   meter.Sample
}

func (p *paths) run(ctx context.Context) (err error) {
	if p.c, err = client.FromEnvironment(); err != nil {
		return err
	}
	defer p.c.Close()
	if err := p.prepare(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{p.lives, p.commands, p.inside} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	p.print()
	return nil
}

// prepare finds the server and its control group by a first sandbox, which also
// warms the server up, and measures the idle machine.
func (p *paths) prepare(ctx context.Context) error {
	sb, err := p.c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		return err
	}
	p.meter, err = meter.New(sb.Session().ID)
	if derr := sb.Delete(ctx); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	return p.meter.Calibrate(2 * time.Second)
}

// measure runs f and adds what it took to the operation's row.
func (p *paths) measure(name string, f func() error) error {
	before, err := p.meter.Read()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	wall := time.Since(start)
	// What it left to do in the background counts too.
	time.Sleep(settle)
	after, err := p.meter.Read()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(p.rows, func(r *row) bool { return r.name == name })
	if i < 0 {
		i = len(p.rows)
		p.rows = append(p.rows, &row{name: name})
	}
	p.rows[i].times = append(p.rows[i].times, wall)
	p.rows[i].cpu = p.rows[i].cpu.Plus(after.Minus(before).Without(p.meter.Idle, wall+settle))
	return nil
}

// settle is how long the CPU time of an operation is counted after its end.
const settle = 30 * time.Millisecond

func (p *paths) wants(name string) bool { return len(p.only) == 0 || slices.Contains(p.only, name) }

// lives measures sandboxes from creation to deletion, in turns with the peer.
func (p *paths) lives(ctx context.Context) error {
	if !p.wants("lives") {
		return nil
	}
	for i := range p.runs {
		if err := p.life(ctx, i); err != nil {
			return err
		}
		if p.peer.runsc == "" {
			continue
		}
		if err := p.measure("runsc run /bin/true", func() error { return p.peer.run(ctx, p.meter.Service) }); err != nil {
			return err
		}
	}
	return nil
}

// life is one sandbox's. Every other one is stopped before it is deleted, and
// has true as its first command in place of node.
func (p *paths) life(ctx context.Context, i int) (err error) {
	var sb *client.Sandbox
	err = p.measure("create", func() (err error) {
		sb, err = p.c.CreateSandbox(ctx, client.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	deleted := false
	defer func() {
		if !deleted {
			_ = sb.Delete(context.WithoutCancel(ctx)) // the first error is the one to tell
		}
	}()
	kind, first := "delete, running", []string{"node", "-v"}
	if i%2 == 1 {
		kind, first = "delete, stopped", []string{"true"}
	}
	if err := p.measure("first "+strings.Join(first, " "), command(ctx, sb, first...)); err != nil {
		return err
	}
	if i%2 == 1 {
		stop := func() error { _, err := sb.Stop(ctx); return err }
		if err := p.measure("stop", stop); err != nil {
			return err
		}
	}
	deleted = true
	return p.measure(kind, func() error { return sb.Delete(ctx) })
}

func command(ctx context.Context, sb *client.Sandbox, argv ...string) func() error {
	return func() error { return sb.Command(ctx, argv[0], argv[1:]...).Run() }
}

// with runs f with a sandbox that has run each command before.
func (p *paths) with(ctx context.Context, f func(*client.Sandbox) error) (err error) {
	sb, err := p.c.CreateSandbox(ctx, client.CreateOptions{})
	if err != nil {
		return err
	}
	defer func() {
		if derr := sb.Delete(ctx); err == nil {
			err = derr
		}
	}()
	for range 5 {
		if err := sb.Command(ctx, "sh", "-c", "node -v; /bin/true; python3 -c pass").Run(); err != nil {
			return err
		}
	}
	return f(sb)
}

// commands measures commands through the API in a sandbox that is warm.
func (p *paths) commands(ctx context.Context) error {
	if !p.wants("commands") {
		return nil
	}
	return p.with(ctx, func(sb *client.Sandbox) error {
		for range p.runs {
			for _, argv := range [][]string{{"true"}, {"node", "-v"}, {"python3", "-c", "pass"}} {
				if err := p.measure(strings.Join(argv, " ")+", through the API", command(ctx, sb, argv...)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// loops are shell scripts whose every repetition is one operation.
var loops = []struct {
	name, script string
	times        int
}{
	{"/bin/true, in a loop inside", "for i in $(seq 100); do /bin/true; done", 100},
	{"node -v, in a loop inside", "for i in $(seq 10); do node -v; done >/dev/null", 10},
	{"python3 -c pass, in a loop inside", "for i in $(seq 10); do python3 -c pass; done", 10},
	{"1 MB through a pipe, writes of 4 KiB", "dd if=/dev/zero bs=4096 count=24414 2>/dev/null | dd of=/dev/null bs=4096 2>/dev/null", 100},
	{"1 MB through a pipe, yes | head", "yes 0123456789012345678901234567890123456789 | head -c 100000000 >/dev/null", 100},
}

// inside measures loops in a sandbox, so that the API's part vanishes.
func (p *paths) inside(ctx context.Context) error {
	if !p.wants("inside") {
		return nil
	}
	return p.with(ctx, func(sb *client.Sandbox) error {
		for range max(p.runs/3, 1) {
			for _, l := range loops {
				if err := p.measure(l.name, command(ctx, sb, "sh", "-c", l.script)); err != nil {
					return err
				}
			}
		}
		for _, l := range loops {
			p.divide(l.name, l.times)
		}
		return nil
	})
}

// divide makes a row of loops one of their repetitions.
func (p *paths) divide(name string, by int) {
	for _, r := range p.rows {
		if r.name != name {
			continue
		}
		for i := range r.times {
			r.times[i] /= time.Duration(by)
		}
		r.cpu = r.cpu.Divided(by)
	}
}

func (p *paths) print() {
	fmt.Printf("%-38s %4s %8s %8s %8s | %8s = %8s + %10s | %8s %8s\n", "ms", "runs", "median", "p95", "p99", "CPU", "server", "sandboxes", "client", "machine")
	for _, r := range p.rows {
		slices.Sort(r.times)
		n := len(r.times)
		c := r.cpu.Divided(n)
		fmt.Printf("%-38s %4d %8s %8s %8s | %8s = %8s + %10s | %8s %8s\n", r.name, n, ms(r.times[n/2]), ms(r.times[n*95/100]), ms(r.times[n*99/100]),
			ms(c.Server+c.Sandboxes), ms(c.Server), ms(c.Sandboxes), ms(c.Client), ms(c.Machine))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1000) }
