// Command bench measures a running server and prints medians and 95th
// percentiles beside the same work under chroot and bubblewrap on the same
// machine, in the same run: machines differ and are noisy, ratios less so.
//
// It needs SKERRY_URL and the rest of the SDK's environment, root (for the
// peers and to read the sandboxes' memory), bwrap and fsck.erofs, and the
// default image's file as its argument.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/bench/native"
	"github.com/skerry-dev/skerry/client"
)

func main() {
	runs := flag.Int("runs", 20, "how often each short operation is measured")
	image := flag.String("image", "", "EROFS file of the default image, for the peers")
	flag.Parse()
	if err := run(context.Background(), *runs, *image); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// node is Node.js in the default image.
const node = "/vercel/runtimes/node24/bin/node"

func run(ctx context.Context, runs int, image string) error {
	c, err := client.FromEnvironment()
	if err != nil {
		return err
	}
	defer c.Close()
	tree, remove, err := native.Unpack(ctx, image)
	if err != nil {
		return err
	}
	defer remove()

	b := &bench{ctx: ctx, c: c, tree: tree, runs: runs}
	fmt.Printf("%-44s %10s %10s\n", "", "median", "p95")
	for _, step := range []func() error{b.start, b.exec, b.files, b.output, b.memory, b.state} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type bench struct {
	ctx  context.Context
	c    *client.Client
	tree string
	runs int
}

// measure runs f so many times, one warm-up apart, and prints the times.
func (b *bench) measure(name string, runs int, f func() error) (median time.Duration, err error) {
	var times []time.Duration
	for i := range runs + 1 {
		start := time.Now()
		if err := f(); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if i > 0 {
			times = append(times, time.Since(start))
		}
	}
	return report(name, times), nil
}

// report prints the median and the 95th percentile, and returns the median.
func report(name string, times []time.Duration) (median time.Duration) {
	slices.Sort(times)
	median = times[len(times)/2]
	fmt.Printf("%-44s %10s %10s\n", name, ms(median), ms(times[len(times)*95/100]))
	return median
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

// peers measures a command under chroot and bubblewrap and prints how many
// times as long ours took.
func (b *bench) peers(ours time.Duration, command ...string) error {
	chroot, err := b.measure("  chroot", b.runs, func() error {
		return exec.CommandContext(b.ctx, "chroot", append([]string{b.tree}, command...)...).Run()
	})
	if err != nil {
		return err
	}
	bwrap, err := b.measure("  bwrap --unshare-all", b.runs, func() error {
		args := []string{"--unshare-all", "--ro-bind", b.tree, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"}
		return exec.CommandContext(b.ctx, "bwrap", append(args, command...)...).Run()
	})
	if err != nil {
		return err
	}
	fmt.Printf("%-44s %9.1fx %9.1fx\n", "  ours is (of chroot, of bwrap)", float64(ours)/float64(chroot), float64(ours)/float64(bwrap))
	return nil
}

// start measures a sandbox's creation and its first command.
func (b *bench) start() error {
	var boxes []*client.Sandbox
	ours, err := b.measure("create, then the first node -v", b.runs, func() error {
		sb, err := b.c.CreateSandbox(b.ctx, client.CreateOptions{})
		if err != nil {
			return err
		}
		boxes = append(boxes, sb)
		return sb.Command(b.ctx, "node", "-v").Run()
	})
	if err := b.delete(boxes, err); err != nil {
		return err
	}
	return b.peers(ours, node, "-v")
}

func (b *bench) delete(boxes []*client.Sandbox, err error) error {
	for _, sb := range boxes {
		if derr := sb.Delete(b.ctx); err == nil {
			err = derr
		}
	}
	return err
}

// with runs f with a sandbox of its own.
func (b *bench) with(f func(*client.Sandbox) error) error {
	sb, err := b.c.CreateSandbox(b.ctx, client.CreateOptions{})
	if err != nil {
		return err
	}
	return b.delete([]*client.Sandbox{sb}, f(sb))
}

// exec measures commands in a sandbox that runs.
func (b *bench) exec() error {
	return b.with(func(sb *client.Sandbox) error {
		ours, err := b.measure("true, through the API", 5*b.runs, func() error { return sb.Command(b.ctx, "true").Run() })
		if err != nil {
			return err
		}
		if err := b.peers(ours, "/bin/true"); err != nil {
			return err
		}
		ours, err = b.measure("node -v, through the API", b.runs, func() error { return sb.Command(b.ctx, "node", "-v").Run() })
		if err != nil {
			return err
		}
		return b.peers(ours, node, "-v")
	})
}

// files measures a file of 100 MB in and out.
func (b *bench) files() error {
	const size = 100_000_000
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	return b.with(func(sb *client.Sandbox) error {
		if _, err := b.measure("100 MB file in", 5, func() error { return sb.WriteFile(b.ctx, "in", data, 0o644) }); err != nil {
			return err
		}
		_, err := b.measure("100 MB file out", 5, func() error {
			r, err := sb.Open(b.ctx, "in")
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, r)
			if n != size && err == nil {
				err = fmt.Errorf("%d bytes came out", n)
			}
			if cerr := r.Close(); err == nil {
				err = cerr
			}
			return err
		})
		if err != nil {
			return err
		}
		_, err = b.measure("  cp of the same on the host", 5, func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(b.tree), "copy"), data, 0o644)
		})
		return err
	})
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// output measures how fast a command's output comes: of one program that
// writes large pieces, and of a pipeline whose pieces are a few kilobytes and
// which is therefore the slower part itself.
func (b *bench) output() error {
	const (
		size     = 500_000_000
		pipeline = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c 500000000"
		file     = "/tmp/output"
	)
	return b.with(func(sb *client.Sandbox) error {
		write := pipeline + " > " + file
		if err := sb.Command(b.ctx, "sh", "-c", write).Run(); err != nil {
			return err
		}
		if err := exec.CommandContext(b.ctx, "chroot", b.tree, "sh", "-c", write).Run(); err != nil {
			return err
		}
		if err := b.throughput(sb, size, "cat FILE", "cat "+file); err != nil {
			return err
		}
		return b.throughput(sb, size, "yes LINE | head", pipeline)
	})
}

// throughput measures a script that prints size bytes.
func (b *bench) throughput(sb *client.Sandbox, size counter, name, script string) error {
	ours, err := b.measure("500 MB of output, "+name, 5, func() error {
		var n counter
		cmd := sb.Command(b.ctx, "sh", "-c", script)
		cmd.Stdout = &n
		if err := cmd.Run(); err != nil {
			return err
		}
		if n != size {
			return fmt.Errorf("%d bytes came", n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	peer, err := b.measure("  the same under chroot, into a pipe", 5, func() error {
		cmd := exec.CommandContext(b.ctx, "chroot", b.tree, "sh", "-c", script)
		cmd.Stdout = new(counter)
		return cmd.Run()
	})
	if err != nil {
		return err
	}
	fmt.Printf("%-44s %5.0f MB/s %5.0f MB/s\n", "  throughput (ours, chroot)", float64(size)/1e6/ours.Seconds(), float64(size)/1e6/peer.Seconds())
	return nil
}

// memory measures idle sandboxes: the proportional set size of all processes
// of each.
func (b *bench) memory() error {
	const count = 8
	var boxes []*client.Sandbox
	err := func() error {
		for range count {
			sb, err := b.c.CreateSandbox(b.ctx, client.CreateOptions{})
			if err != nil {
				return err
			}
			boxes = append(boxes, sb)
			if err := sb.Command(b.ctx, "true").Run(); err != nil {
				return err
			}
		}
		m, err := meter.New(boxes[0].Session().ID)
		if err != nil {
			return err
		}
		var all []int64
		for _, sb := range boxes {
			pss, err := m.PSS(sb.Session().ID)
			if err != nil {
				return err
			}
			all = append(all, pss)
		}
		slices.Sort(all)
		fmt.Printf("%-44s %7.1f MB %7.1f MB\n", fmt.Sprintf("PSS of an idle sandbox, of %d", count), meter.MB(all[count/2]), meter.MB(all[count-1]))
		return nil
	}()
	return b.delete(boxes, err)
}
