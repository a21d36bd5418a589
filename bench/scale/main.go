// Command scale measures a running server with many sandboxes of which few are
// used: how fast they are made, the memory of each, what they use while nothing
// happens, and how long a command takes while a part of them is active.
//
// By default it waits until the server has paused all (serve --idle-pause); with
// -live it measures sandboxes that are not (serve --idle-pause 0). A command in
// the first sandbox, before the others are made, is what the active ones are
// compared with. It makes fewer sandboxes than it is told when the machine's
// memory gets short.
//
// It needs SKERRY_URL and the rest of the SDK's environment, a server on this
// machine whose limits leave room (--max-sandboxes, --overcommit-cpu,
// --overcommit-memory), and root to read the sandboxes' memory. SKERRY_METRICS, the
// URL of /metrics, adds the number of goroutines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

func main() {
	s := &scale{}
	flag.IntVar(&s.count, "n", 1000, "number of sandboxes")
	flag.Float64Var(&s.active, "active", 0.05, "part of them that runs commands")
	flag.DurationVar(&s.every, "every", time.Second, "time between two commands in an active sandbox")
	flag.DurationVar(&s.window, "window", time.Minute, "how long idle sandboxes, and then active ones, are measured")
	flag.IntVar(&s.parallel, "parallel", 2, "number of sandboxes that are made at once")
	flag.BoolVar(&s.live, "live", false, "do not wait until the sandboxes are paused")
	reserve := flag.Int64("reserve", 2048, "memory of the machine to leave available, in MiB")
	flag.Parse()
	s.reserve = *reserve << 20
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

type scale struct {
	count, parallel int
	active          float64
	every, window   time.Duration
	live            bool
	reserve         int64

	c      *client.Client
	meter  *meter.Meter
	prefix string

	mu    sync.Mutex
	boxes []*client.Sandbox
}

func (s *scale) run(ctx context.Context) (err error) {
	if s.c, err = client.FromEnvironment(); err != nil {
		return err
	}
	defer s.c.Close()
	s.prefix = fmt.Sprintf("scale-%d-", os.Getpid())
	defer func() {
		if derr := s.delete(); err == nil {
			err = derr
		}
	}()
	fmt.Printf("load of the machine before: %s\n", meter.Load())
	for _, step := range []func(context.Context) error{s.first, s.create, s.settle, s.memory, s.idle, s.busy} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// first makes one sandbox, and measures commands in it while it is the only one.
func (s *scale) first(ctx context.Context) (err error) {
	if err := s.one(ctx, 0); err != nil {
		return err
	}
	if s.meter, err = meter.New(s.boxes[0].Session().ID); err != nil {
		return err
	}
	if err := s.printServer(ctx, "server, one sandbox"); err != nil {
		return err
	}
	return s.commands(ctx, "true, alone", s.boxes[:1], min(s.window, 20*time.Second))
}

// one makes a sandbox and runs a command in it, so that it is one that was used.
func (s *scale) one(ctx context.Context, i int) error {
	persistent := false
	sb, err := s.c.CreateSandbox(ctx, client.CreateOptions{Name: fmt.Sprint(s.prefix, i), VCPUs: 1, Timeout: 3 * time.Hour, Persistent: &persistent})
	if err != nil {
		return fmt.Errorf("create sandbox %d: %w", i+1, err)
	}
	s.mu.Lock()
	s.boxes = append(s.boxes, sb)
	s.mu.Unlock()
	if err := sb.Command(ctx, "true").Run(); err != nil {
		return fmt.Errorf("first command of sandbox %d: %w", i+1, err)
	}
	return nil
}

var errMemory = errors.New("the machine's memory is short")

// create makes the other sandboxes.
func (s *scale) create(ctx context.Context) error {
	before, err := meter.Available()
	if err != nil {
		return err
	}
	cpu, err := s.meter.Read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	numbers := make(chan int)
	var times meter.Times
	var all sync.WaitGroup
	begin := time.Now()
	for range s.parallel {
		all.Go(func() {
			for i := range numbers {
				start := time.Now()
				if err := s.one(ctx, i); err != nil {
					cancel(err)
					return
				}
				s.mu.Lock()
				times = append(times, time.Since(start))
				s.mu.Unlock()
			}
		})
	}
	for i := 1; i < s.count && ctx.Err() == nil; i++ {
		if free, err := meter.Available(); err != nil || free < s.reserve {
			cancel(errors.Join(err, errMemory))
			break
		}
		select {
		case numbers <- i:
		case <-ctx.Done():
		}
	}
	close(numbers)
	all.Wait()
	took := time.Since(begin)
	if err := context.Cause(ctx); errors.Is(err, errMemory) {
		fmt.Printf("THE MEMORY IS SHORT: %d sandboxes, and not %d, are measured\n", len(s.boxes), s.count)
	} else if err != nil {
		return err
	}
	after, err := s.meter.Read()
	if err != nil {
		return err
	}
	free, err := meter.Available()
	if err != nil {
		return err
	}
	made := max(len(times), 1)
	each := after.Minus(cpu).Divided(made)
	fmt.Printf("create, then true            %v\n", times)
	fmt.Printf("  %d in %.0f s, %.1f a second, %d at once; CPU each: server %.0f ms, sandbox %.0f ms\n", len(times), took.Seconds(),
		float64(len(times))/took.Seconds(), s.parallel, each.Server.Seconds()*1e3, each.Sandboxes.Seconds()*1e3)
	fmt.Printf("  the machine has %.1f MB less for each\n", meter.MB(before-free)/float64(made))
	return nil
}

// settle waits until the server has paused all sandboxes, unless they are to stay live.
func (s *scale) settle(ctx context.Context) error {
	if s.live {
		return wait(ctx, 10*time.Second)
	}
	begin := time.Now()
	for {
		paused := 0
		for sb, err := range s.c.ListSandboxes(ctx, client.ListOptions{Limit: 100, SortBy: "name", NamePrefix: s.prefix}) {
			if err != nil {
				return err
			}
			if sb.IdleState == skerry.IdlePaused {
				paused++
			}
		}
		if paused == len(s.boxes) {
			fmt.Printf("all are paused after %.0f s\n", time.Since(begin).Seconds())
			return nil
		}
		if time.Since(begin) > 3*time.Minute {
			return fmt.Errorf("only %d of %d sandboxes are paused after %v", paused, len(s.boxes), time.Since(begin).Round(time.Second))
		}
		if err := wait(ctx, 2*time.Second); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *scale) printServer(ctx context.Context, name string) error {
	server, err := s.meter.Server(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-28s %v\n", name, server)
	return nil
}

// memory adds up the memory of each sandbox.
func (s *scale) memory(ctx context.Context) error {
	var sum int64
	all := make([]int64, 0, len(s.boxes))
	for _, sb := range s.boxes {
		pss, err := s.meter.PSS(sb.Session().ID)
		if err != nil {
			return err
		}
		sum += pss
		all = append(all, pss)
	}
	slices.Sort(all)
	n := len(all)
	fmt.Printf("PSS of a sandbox             mean %.1f MB, median %.1f MB, p95 %.1f MB, most %.1f MB, together %.0f MB\n",
		meter.MB(sum)/float64(n), meter.MB(all[n/2]), meter.MB(all[n*95/100]), meter.MB(all[n-1]), meter.MB(sum))
	return s.printServer(ctx, fmt.Sprintf("server, %d sandboxes", n))
}

// idle measures the CPU time while nobody does anything.
func (s *scale) idle(ctx context.Context) error {
	before, err := s.meter.Read()
	if err != nil {
		return err
	}
	if err := wait(ctx, s.window); err != nil {
		return err
	}
	after, err := s.meter.Read()
	if err != nil {
		return err
	}
	s.printCPU("CPU, nobody does anything", after.Minus(before), s.window)
	return nil
}

func (s *scale) printCPU(name string, c meter.Sample, t time.Duration) {
	part := func(d time.Duration) float64 { return 100 * d.Seconds() / t.Seconds() }
	fmt.Printf("%-28s of a core in %.0f s: server %.1f %%, sandboxes %.1f %%, client %.1f %%; the whole machine %.1f %% (load %s)\n", name, t.Seconds(),
		part(c.Server), part(c.Sandboxes), part(c.Client), part(c.Machine), meter.Load())
}

// busy measures commands while a part of the sandboxes is active.
func (s *scale) busy(ctx context.Context) error {
	n := min(max(int(float64(len(s.boxes))*s.active), 1), len(s.boxes))
	// Those that are used are spread over the order in which they were made.
	var boxes []*client.Sandbox
	for i := range n {
		boxes = append(boxes, s.boxes[i*len(s.boxes)/n])
	}
	var wakes meter.Times
	for _, sb := range boxes {
		start := time.Now()
		if err := sb.Command(ctx, "true").Run(); err != nil {
			return err
		}
		wakes = append(wakes, time.Since(start))
	}
	fmt.Printf("true, first after idle time  %v\n", wakes)
	if err := s.commands(ctx, fmt.Sprintf("true, %d of %d active", n, len(s.boxes)), boxes, s.window); err != nil {
		return err
	}
	return s.printServer(ctx, "server, afterwards")
}

// commands runs true again and again in each of the sandboxes.
func (s *scale) commands(ctx context.Context, name string, boxes []*client.Sandbox, t time.Duration) error {
	before, err := s.meter.Read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var times meter.Times
	var all sync.WaitGroup
	begin := time.Now()
	for i, sb := range boxes {
		all.Go(func() {
			// Their first commands are spread over the interval.
			next := begin.Add(s.every * time.Duration(i) / time.Duration(len(boxes)))
			for ; next.Before(begin.Add(t)); next = next.Add(s.every) {
				if wait(ctx, time.Until(next)) != nil {
					return
				}
				// A client that is late is late for the next command too: a slow server
				// must not lower the load on it.
				if err := sb.Command(ctx, "true").Run(); err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				times = append(times, time.Since(next))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := s.meter.Read()
	if err != nil {
		return err
	}
	used := after.Minus(before)
	each := used.Divided(max(len(times), 1))
	fmt.Printf("%-28s %v\n", name, times)
	fmt.Printf("  CPU each: server %.1f ms, sandbox %.1f ms, client %.1f ms\n", each.Server.Seconds()*1e3, each.Sandboxes.Seconds()*1e3, each.Client.Seconds()*1e3)
	s.printCPU("  CPU, together", used, took)
	return nil
}

// delete deletes all sandboxes.
func (s *scale) delete() error {
	if len(s.boxes) == 0 {
		return nil
	}
	boxes := make(chan *client.Sandbox, len(s.boxes))
	for _, sb := range s.boxes {
		boxes <- sb
	}
	close(boxes)
	var times meter.Times
	var errs []error
	var all sync.WaitGroup
	begin := time.Now()
	for range max(s.parallel, 4) {
		all.Go(func() {
			for sb := range boxes {
				start := time.Now()
				err := sb.Delete(context.Background()) // also after an interrupt
				s.mu.Lock()
				times = append(times, time.Since(start))
				errs = append(errs, err)
				s.mu.Unlock()
			}
		})
	}
	all.Wait()
	fmt.Printf("delete                       %v\n  %d in %.0f s\n", times, len(times), time.Since(begin).Seconds())
	return errors.Join(errs...)
}
