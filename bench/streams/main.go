// Command streams measures what flows through a running server: the lines of many
// commands that are followed at once, the output of one command that prints as
// fast as it can, and a large file up and down. It watches the memory of the server
// and of the sandbox, which must not grow with what flows.
//
// Beside each, in the same run, is a plain HTTP server of net/http over loopback
// that runs the same program without a sandbox, or keeps the same file.
//
// It needs SKERRY_URL and the rest of the SDK's environment, a server on this
// machine, and root to read the sandboxes' memory. -tool adds the command-line tool.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

func main() {
	s := &streams{}
	flag.IntVar(&s.follow, "follow", 200, "number of commands that are followed at once")
	flag.IntVar(&s.boxes, "boxes", 10, "number of sandboxes that they run in")
	flag.DurationVar(&s.every, "every", 200*time.Millisecond, "time between two lines of a command")
	flag.DurationVar(&s.window, "window", time.Minute, "how long the lines are measured")
	flag.Int64Var(&s.output, "output", 10000, "output of the one command, in MB")
	flag.Int64Var(&s.file, "file", 1000, "size of the file, in MB")
	flag.StringVar(&s.tool, "tool", "", "command-line tool to measure too (bin/sandbox)")
	only := flag.String("only", "lines,output,files", "comma-separated measurements")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.run(ctx, strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "streams:", err)
		os.Exit(1)
	}
}

type streams struct {
	follow, boxes int
	every, window time.Duration
	output, file  int64
	tool          string

	c     *client.Client
	meter *meter.Meter
}

func (s *streams) run(ctx context.Context, only []string) (err error) {
	if s.c, err = client.FromEnvironment(); err != nil {
		return err
	}
	defer s.c.Close()
	err = s.with(ctx, 1, func(boxes []*client.Sandbox) (err error) {
		s.meter, err = meter.New(boxes[0].Session().ID)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("load of the machine before: %s\n", meter.Load())
	for _, step := range []struct {
		name string
		f    func(context.Context) error
	}{{"lines", s.lines}, {"output", s.outputs}, {"files", s.files}} {
		if !slices.Contains(only, step.name) {
			continue
		}
		if err := step.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	fmt.Printf("load of the machine after: %s\n", meter.Load())
	return nil
}

// with runs f with new sandboxes.
func (s *streams) with(ctx context.Context, n int, f func([]*client.Sandbox) error) error {
	var boxes []*client.Sandbox
	err := func() error {
		for range n {
			persistent := false
			sb, err := s.c.CreateSandbox(ctx, client.CreateOptions{Timeout: time.Hour, Persistent: &persistent})
			if err != nil {
				return err
			}
			boxes = append(boxes, sb)
		}
		return f(boxes)
	}()
	for _, sb := range boxes {
		err = errors.Join(err, sb.Delete(context.WithoutCancel(ctx)))
	}
	return err
}

// flow is what one measurement moved, and what it took.
type flow struct {
	wall                                  time.Duration
	cpu                                   meter.Sample
	serverBefore, serverPeak, sandboxPeak int64
}

// watch runs f and watches the memory of the server, and of a session's sandbox.
func (s *streams) watch(session string, f func() error) (r flow, err error) {
	if r.serverBefore, err = s.meter.RSS(); err != nil {
		return r, err
	}
	before, err := s.meter.Read()
	if err != nil {
		return r, err
	}
	server := meter.Peak(100*time.Millisecond, s.meter.RSS)
	sandbox := meter.Peak(time.Second, func() (int64, error) { return s.meter.PSS(session) })
	start := time.Now()
	err = f()
	r.wall = time.Since(start)
	var errs [2]error
	r.serverPeak, errs[0] = server()
	r.sandboxPeak, errs[1] = sandbox()
	if err = errors.Join(err, errs[0], errs[1]); err != nil {
		return r, err
	}
	after, err := s.meter.Read()
	r.cpu = after.Minus(before)
	return r, err
}

func (r flow) memory() string {
	return fmt.Sprintf("server %.0f MB before, %.0f MB at most; sandbox %.0f MB at most", meter.MB(r.serverBefore), meter.MB(r.serverPeak), meter.MB(r.sandboxPeak))
}

func (r flow) print(name string, bytes int64, peer time.Duration) {
	gb := float64(bytes) / 1e9
	fmt.Printf("%-40s %7.0f MB/s, %.2f of the peer; CPU per GB: server %.2f s, sandbox %.2f s, client %.2f s\n", name, rate(bytes, r.wall),
		peer.Seconds()/r.wall.Seconds(), r.cpu.Server.Seconds()/gb, r.cpu.Sandboxes.Seconds()/gb, r.cpu.Client.Seconds()/gb)
	fmt.Printf("  %s\n", r.memory())
}

func rate(bytes int64, t time.Duration) float64 { return float64(bytes) / 1e6 / t.Seconds() }
