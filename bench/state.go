package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// state measures what becomes of files: stop and resume of a persistent
// sandbox with more and more changes, sandboxes from a snapshot, forks, and a
// long chain of snapshots.
func (b *bench) state() error {
	for _, mb := range []int{1, 100, 1000} {
		if err := b.stopAndResume(mb); err != nil {
			return err
		}
	}
	if err := b.fromSnapshot(); err != nil {
		return err
	}
	return b.chain()
}

// fill writes so many megabytes that cannot be compressed.
func (b *bench) fill(sb *client.Sandbox, mb int) error {
	return sb.Command(b.ctx, "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom > data-$$", mb*1_000_000)).Run()
}

// stopAndResume changes so much before each stop.
func (b *bench) stopAndResume(mb int) error {
	runs := 5
	if mb >= 1000 {
		runs = 2
	}
	return b.with(func(sb *client.Sandbox) error {
		var stops, resumes []time.Duration
		for range runs {
			if err := sb.Command(b.ctx, "sh", "-c", "rm -f data-*").Run(); err != nil {
				return err
			}
			if err := b.fill(sb, mb); err != nil {
				return err
			}
			begin := time.Now()
			if _, err := sb.Stop(b.ctx); err != nil {
				return err
			}
			stops = append(stops, time.Since(begin))
			begin = time.Now()
			if err := sb.Command(b.ctx, "true").Run(); err != nil { // resumes
				return err
			}
			resumes = append(resumes, time.Since(begin))
		}
		report(fmt.Sprintf("stop with %d MB of changes", mb), stops)
		report(fmt.Sprintf("resume, then the first command, %d MB", mb), resumes)
		return nil
	})
}

// fromSnapshot compares creating from a snapshot and forking with a plain
// creation, in turn.
func (b *bench) fromSnapshot() error {
	return b.with(func(source *client.Sandbox) error {
		if err := b.fill(source, 10); err != nil {
			return err
		}
		snap, err := source.Snapshot(b.ctx, client.TakeOptions{})
		if err != nil {
			return err
		}
		var plain, from []time.Duration
		for range b.runs {
			for _, o := range []struct {
				times *[]time.Duration
				opts  client.CreateOptions
			}{{&plain, client.CreateOptions{}}, {&from, client.CreateOptions{Source: snap.Source()}}} {
				begin := time.Now()
				sb, err := b.c.CreateSandbox(b.ctx, o.opts)
				if err != nil {
					return err
				}
				*o.times = append(*o.times, time.Since(begin))
				if err := sb.Delete(b.ctx); err != nil {
					return err
				}
			}
		}
		ours, peer := report("create from a snapshot of 10 MB", from), report("  create from the image", plain)
		fmt.Printf("%-44s %9.2fx\n", "  from a snapshot, of from the image", float64(ours)/float64(peer))
		return b.forks(source)
	})
}

// forks makes ten forks at once.
func (b *bench) forks(source *client.Sandbox) error {
	var boxes []*client.Sandbox
	var mu sync.Mutex
	var all sync.WaitGroup
	var failed error
	begin := time.Now()
	for range 10 {
		all.Go(func() {
			fork, err := source.Fork(b.ctx, client.ForkOptions{})
			if err == nil {
				err = fork.Command(b.ctx, "true").Run()
			}
			mu.Lock()
			defer mu.Unlock()
			if fork != nil {
				boxes = append(boxes, fork)
			}
			if err != nil {
				failed = err
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	if err := b.delete(boxes, failed); err != nil {
		return err
	}
	fmt.Printf("%-44s %10s\n", "10 forks at once, then a command in each", ms(took))
	return nil
}

// chain takes one snapshot after the other and resumes from each.
func (b *bench) chain() error {
	const length = 50
	return b.with(func(sb *client.Sandbox) error {
		var resumes []time.Duration
		for range length {
			if err := b.fill(sb, 1); err != nil {
				return err
			}
			if _, err := sb.Stop(b.ctx); err != nil {
				return err
			}
			begin := time.Now()
			if err := sb.Command(b.ctx, "true").Run(); err != nil {
				return err
			}
			resumes = append(resumes, time.Since(begin))
		}
		second, last := report("resume from snapshots 2 to 6 of a chain", resumes[1:6]), report("resume from snapshots 46 to 50", resumes[45:])
		fmt.Printf("%-44s %9.2fx\n", "  the last, of the first", float64(last)/float64(second))
		return nil
	})
}
