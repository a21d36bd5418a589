// Command soak uses an installation of its own for a long time, with several clients at
// once and with faults, and compares every answer with a model of what each sandbox must
// contain. At checkpoints everything is deleted, and what the server holds on its host
// must be what it held at the beginning.
//
//	soak -bin bin -duration 4h
//
// It must be run as root. It runs in namespaces of its own, see isolate.go. Its choices
// follow from -seed; when faults happen to interrupt them does not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/skerry-dev/skerry/client"
)

type options struct {
	duration, round time.Duration
	seed            uint64
	clients         int
	bin, images     string
	out             string
	shared          bool
}

func main() {
	var o options
	flag.DurationVar(&o.duration, "duration", 30*time.Minute, "how long it lasts, without the first baseline")
	flag.DurationVar(&o.round, "round", 5*time.Minute, "time between two checkpoints")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "what the choices of the clients and the faults follow from")
	flag.IntVar(&o.clients, "clients", 4, "number of clients")
	flag.StringVar(&o.bin, "bin", "bin", "folder with sandboxd")
	flag.StringVar(&o.images, "images", "/var/lib/skerry/images", "folder with the default image")
	flag.StringVar(&o.out, "out", "build/soak", "folder for curves.csv, and for the server's log after a failure")
	flag.BoolVar(&o.shared, "shared", false, "other programs use the machine too, so the host's memory is only recorded")
	flag.Parse()
	code, err := start(&o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		code = 1
	}
	os.Exit(code)
}

// start is the program in each of its three processes.
func start(o *options) (int, error) {
	for _, path := range []*string{&o.bin, &o.images, &o.out} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return 0, err
		}
		*path = abs
	}
	switch os.Getenv(stageEnv) {
	case stageInitialize:
		return initialize()
	case stageRun:
		return 0, run(o, os.Getenv(dirEnv))
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("the soak starts sandboxes and must be run as root")
	}
	dir, err := os.MkdirTemp("", "skerry-soak-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir) // the mount below it has ended with its namespace
	if err := os.Setenv(dirEnv, dir); err != nil {
		return 0, err
	}
	// The seed of the three processes is the same.
	os.Args = append(os.Args[:1:1], append([]string{fmt.Sprintf("-seed=%d", o.seed)}, os.Args[1:]...)...)
	return isolate()
}

// dirEnv has the folder of the soak.
const dirEnv = "SKERRY_SOAK_DIR"

// soak is the whole run.
type soak struct {
	options
	server   *server
	recorder *recorder
	faults   faultLog
	live     boxes
	workers  []*worker
	injector *injector
	curves   *curves
	// web makes the requests to published ports.
	web     *http.Client
	base    *reading
	settled []*reading

	mu       sync.Mutex
	phase    string
	failures []string
	stop     context.CancelFunc
}

// diskSize is enough for what the clients write, and little to fill.
const diskSize = 6 << 30

func run(o *options, dir string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("soak of %v with %d clients, seed %d\n", o.duration, o.clients, o.seed)
	if err := errors.Join(os.MkdirAll(o.out, 0o755), newWorld()); err != nil {
		return err
	}
	d, err := newDisk(filepath.Join(dir, "disk"), filepath.Join(dir, "state"), diskSize)
	if err != nil {
		return err
	}
	s := &soak{
		options: *o, server: &server{bin: o.bin, images: o.images, dir: dir, disk: d}, recorder: newRecorder(), live: boxes{all: map[string]*box{}}, stop: stop,
		web: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	if s.curves, err = newCurves(filepath.Join(o.out, "curves.csv")); err != nil {
		return err
	}
	defer s.curves.Close()
	if err := s.server.start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.end())
	}()
	if err := s.connect(); err != nil {
		return err
	}
	sampling, stopSampling := context.WithCancel(ctx)
	var samples sync.WaitGroup
	samples.Go(func() { s.sample(sampling) })
	err = s.rounds(ctx)
	stopSampling()
	samples.Wait()
	return errors.Join(err, s.summarize())
}

// connect makes the clients.
func (s *soak) connect() error {
	random := rand.New(rand.NewPCG(s.seed, 0))
	for id := range s.clients {
		fast, err := s.server.connect(nil)
		if err != nil {
			return err
		}
		slow, err := s.server.connect(slowTransport())
		if err != nil {
			return err
		}
		s.workers = append(s.workers, &worker{soak: s, id: id, random: rand.New(rand.NewPCG(random.Uint64(), uint64(id))), client: fast, slow: slow})
	}
	c, err := s.server.connect(nil)
	s.injector = &injector{soak: s, random: rand.New(rand.NewPCG(random.Uint64(), 1)), client: c}
	return err
}

// rounds runs the clients and the faults, with a checkpoint after each round.
func (s *soak) rounds(ctx context.Context) error {
	s.enter("baseline")
	// Each operation once: what the server makes at its first use is part of the baseline.
	w := s.workers[0]
	for _, op := range operations {
		if op.anew {
			w.perform(ctx, op, nil)
		} else if op != deleteOperation {
			w.on(ctx, op, 0)
		}
	}
	w.deleteAll(ctx)
	if err := s.clear(ctx); err != nil {
		return err
	}
	base, err := s.baseline()
	if err != nil {
		return err
	}
	s.base = base
	fmt.Printf("%s baseline: %v\n", time.Now().Format(time.TimeOnly), base.numbers)
	for begin := time.Now(); ctx.Err() == nil && time.Since(begin) < s.duration; {
		s.enter("load")
		round := min(s.round, s.duration-time.Since(begin))
		s.load(ctx, round)
		if ctx.Err() != nil {
			break
		}
		s.enter("checkpoint")
		from := time.Now()
		waited, err := s.checkpoint(ctx)
		if err != nil && ctx.Err() == nil {
			s.fail(nil, "checkpoint", err)
			continue
		}
		fmt.Printf("%s checkpoint %d: as at the baseline after %v; waited for: %s\n",
			time.Now().Format(time.TimeOnly), len(s.settled), time.Since(from).Round(100*time.Millisecond), waited)
	}
	return nil
}

// load has the clients work, and faults happen, for a round.
func (s *soak) load(ctx context.Context, round time.Duration) {
	var clients, faults sync.WaitGroup
	harmed := make(chan struct{})
	faults.Go(func() { defer close(harmed); s.injector.harm(ctx, round) })
	for _, w := range s.workers {
		clients.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-harmed:
					return
				default:
					w.step(ctx)
				}
			}
		})
	}
	clients.Wait()
	faults.Wait()
}

// checkpoint looks at all sandboxes a last time, deletes everything, and waits for the
// baseline. It returns what it waited for.
func (s *soak) checkpoint(ctx context.Context) (waited string, err error) {
	var clients sync.WaitGroup
	for _, w := range s.workers {
		clients.Go(func() { w.deleteAll(ctx) })
	}
	clients.Wait()
	if err := s.clear(ctx); err != nil {
		return "", err
	}
	return s.settle()
}

// clear deletes what is left: victims of faults, and snapshots. No client's sandbox may be.
func (s *soak) clear(ctx context.Context) error {
	c := s.injector.client
	for sb, err := range c.ListSandboxes(ctx, client.ListOptions{}) {
		if err != nil {
			return err
		}
		s.fail(nil, "checkpoint", wrongf("sandbox %s (%s) exists, and was deleted", sb.Name, sb.Status))
		if err := c.DeleteSandbox(ctx, sb.Name, client.DeleteOptions{OrphanSnapshots: true}); err != nil {
			return err
		}
	}
	for snap, err := range c.ListSnapshots(ctx, client.SnapshotOptions{}) {
		if err != nil {
			return err
		}
		if _, err := c.DeleteSnapshot(ctx, snap.ID); err != nil {
			return err
		}
	}
	for _, w := range s.workers {
		w.client.Close()
		w.slow.Close()
	}
	c.Close()
	return nil
}

// end stops the server and checks that nothing is left of it.
func (s *soak) end() error {
	if len(s.failures) > 0 {
		if log, err := os.ReadFile(filepath.Join(s.server.state(), "sandboxd.log")); err == nil {
			_ = os.WriteFile(filepath.Join(s.out, "sandboxd.log"), log, 0o644)
		}
	}
	if err := s.server.stop(); err != nil {
		return err
	}
	groups, _ := s.server.cgroups()
	rules, err := nftRules()
	if err != nil {
		return err
	}
	for what, left := range map[string]int{"processes": len(processes()), "cgroups": len(groups), "rules": len(rules)} {
		if left > 0 {
			err = errors.Join(err, fmt.Errorf("%d %s are left after the end of the server", left, what))
		}
	}
	return err
}
