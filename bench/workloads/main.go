// Command workloads measures usual work in a sandbox, beside the same work on the
// same files without one (the image's tree on this machine's disk), in turns in one
// run, and prints the ratios of wall time and of CPU time. A sandbox is good for a
// workload if its ratios are small; on a machine that is busy with other things the
// ratio of CPU times says more.
//
// It needs SKERRY_URL and the rest of the SDK's environment, a server on this
// machine, root, fsck.erofs, bwrap, git, and npm and pip, which get the packages
// once. The installs that are measured use no network. The default image's file is
// an argument.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/bench/native"
	"github.com/skerry-dev/skerry/client"
)

func main() {
	b := &bench{}
	flag.IntVar(&b.runs, "runs", 3, "how often each workload is measured, after a first run that does not count")
	flag.StringVar(&b.image, "image", "", "EROFS file of the default image")
	only := flag.String("only", "", "comma-separated words: workloads whose name contains one are measured (default: all)")
	flag.Parse()
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "workloads:", err)
		os.Exit(1)
	}
}

type bench struct {
	runs  int
	image string
	only  []string

	meter *meter.Meter
	sb    *client.Sandbox
	tree  string
}

// run has both sides work in /work, where they have the same inputs.
func (b *bench) run(ctx context.Context) (err error) {
	c, err := client.FromEnvironment()
	if err != nil {
		return err
	}
	defer c.Close()
	var remove func()
	if b.tree, remove, err = native.Unpack(ctx, b.image); err != nil {
		return err
	}
	defer remove()
	persistent := false
	if b.sb, err = c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 2, Timeout: 5 * time.Hour, Persistent: &persistent}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.sb.Delete(context.WithoutCancel(ctx))) }()
	if b.meter, err = meter.New(b.sb.Session().ID); err != nil {
		return err
	}
	if err := b.inputs(ctx); err != nil {
		return fmt.Errorf("make the inputs: %w", err)
	}
	fmt.Printf("load of the machine before: %s\n", meter.Load())
	fmt.Printf("%-44s %10s %10s %7s | %9s %9s %7s\n", "seconds, median", "native", "sandbox", "ratio", "CPU", "CPU", "ratio")
	for _, w := range workloads {
		if !b.wants(w.name) {
			continue
		}
		if err := b.measure(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	fmt.Printf("load of the machine after: %s\n", meter.Load())
	return nil
}

func (b *bench) wants(name string) bool {
	return len(b.only) == 0 || slices.ContainsFunc(b.only, func(word string) bool { return strings.Contains(name, word) })
}

// took is what one run of a workload took.
type took struct{ wall, cpu time.Duration }

func (b *bench) measure(ctx context.Context, w workload) error {
	var sides [2][]took
	for i := range b.runs + 1 {
		for j, side := range []func(context.Context, workload) (took, error){b.native, b.sandbox} {
			t, err := side(ctx, w)
			if err != nil {
				return err
			}
			if i > 0 {
				sides[j] = append(sides[j], t)
			}
		}
	}
	median := func(all []took, of func(took) time.Duration) float64 {
		var times meter.Times
		for _, t := range all {
			times = append(times, of(t))
		}
		return times.At(0.5).Seconds()
	}
	wall := func(t took) time.Duration { return t.wall }
	cpu := func(t took) time.Duration { return t.cpu }
	n, s := median(sides[0], wall), median(sides[1], wall)
	nc, sc := median(sides[0], cpu), median(sides[1], cpu)
	note := ""
	if w.mb > 0 {
		note = fmt.Sprintf("   %.0f and %.0f MB/s", w.mb/n, w.mb/s)
	}
	fmt.Printf("%-44s %10.3f %10.3f %7.2f | %9.3f %9.3f %7.2f%s\n", w.name, n, s, s/n, nc, sc, sc/nc, note)
	return nil
}

// shell is a shell that runs a script in /work.
func shell(script string) []string {
	return []string{"bash", "-ec", `mkdir -p /work; cd /work
export npm_config_update_notifier=false GIT_CONFIG_GLOBAL=/dev/null PATH=/vercel/runtimes/node24/bin:/usr/local/bin:/usr/bin:/bin
` + script}
}

// timed runs the workload and prints the microseconds that it took, so that the time
// of the call is not measured.
func (w workload) timed() []string {
	return shell(`start=$EPOCHREALTIME
{
` + w.run + `
} >/work/out 2>&1 </dev/null || { cat /work/out; exit 1; }
end=$EPOCHREALTIME
echo $(( ${end/./} - ${start/./} ))`)
}

func (b *bench) native(ctx context.Context, w workload) (took, error) {
	if out, err := native.Command(ctx, b.tree, shell(w.prepare)...).CombinedOutput(); err != nil {
		return took{}, fmt.Errorf("prepare without a sandbox: %w: %s", err, out)
	}
	cmd := native.Command(ctx, b.tree, w.timed()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return took{}, fmt.Errorf("without a sandbox: %w: %s", err, out)
	}
	wall, err := micros(out)
	return took{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, err
}

func (b *bench) sandbox(ctx context.Context, w workload) (took, error) {
	if _, err := b.inside(ctx, shell(w.prepare)); err != nil {
		return took{}, fmt.Errorf("prepare in the sandbox: %w", err)
	}
	before, err := b.meter.Session(b.sb.Session().ID)
	if err != nil {
		return took{}, err
	}
	out, err := b.inside(ctx, w.timed())
	if err != nil {
		return took{}, fmt.Errorf("in the sandbox: %w", err)
	}
	after, err := b.meter.Session(b.sb.Session().ID)
	if err != nil {
		return took{}, err
	}
	wall, err := micros(out)
	return took{wall, after - before}, err
}

// inside runs a command as root, as the commands without a sandbox are.
func (b *bench) inside(ctx context.Context, argv []string) ([]byte, error) {
	cmd := b.sb.Command(ctx, argv[0], argv[1:]...)
	cmd.Sudo = true
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return out, nil
}

func micros(out []byte) (time.Duration, error) {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(out)), 10, 64)
	return time.Duration(n) * time.Microsecond, err
}

func output(ctx context.Context, dir string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, out)
	}
	return nil
}
