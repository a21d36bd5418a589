// Command memory measures a running server's memory forks: from the call to the
// end of the first command in the fork, of a sandbox with a warm Python and a
// warm Node.js process; beside it, in the same run, a plain creation with its
// first command. It needs SKERRY_URL and the rest of the SDK's environment.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// warm are processes with something in memory.
var warm = [][]string{
	{"python3", "-c", "import json, http.server, time; heap = bytearray(20 << 20); open('/tmp/python', 'w'); time.sleep(1e6)"},
	{"node", "-e", "heap = Array.from({length: 2e5}, (_, i) => ({i})); require('fs').writeFileSync('/tmp/node', ''); setInterval(() => {}, 1e6)"},
}

const mark = 200 * time.Millisecond

func main() {
	runs := flag.Int("runs", 20, "how often each is measured")
	flag.Parse()
	if err := run(context.Background(), *runs); err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int) error {
	c, err := client.FromEnvironment()
	if err != nil {
		return err
	}
	defer c.Close()
	source, err := c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1, Timeout: time.Hour})
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
	plain := func() (*client.Sandbox, error) { return c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1}) }
	fork := func() (*client.Sandbox, error) { return source.Fork(ctx, client.ForkOptions{Memory: true}) }
	var times [2][]time.Duration
	for range runs { // in turns, so that both meet the same noise
		for i, begin := range []func() (*client.Sandbox, error){plain, fork} {
			d, err := first(ctx, begin)
			if err != nil {
				return err
			}
			times[i] = append(times[i], d)
		}
	}
	for i, name := range []string{"create → first command", "memory fork → first command"} {
		slices.Sort(times[i])
		fmt.Printf("%-30s median %4d ms, p95 %4d ms, best %4d ms\n", name, times[i][runs/2].Milliseconds(),
			times[i][runs*95/100].Milliseconds(), times[i][0].Milliseconds())
	}
	fmt.Printf("%-30s %.2f of a creation; the mark is %v\n", "a memory fork takes", float64(times[1][runs/2])/float64(times[0][runs/2]), mark)
	return nil
}

// first measures from the beginning of a sandbox to the end of a command in it.
func first(ctx context.Context, begin func() (*client.Sandbox, error)) (time.Duration, error) {
	start := time.Now()
	sb, err := begin()
	if err != nil {
		return 0, err
	}
	if err := sb.Command(ctx, "true").Run(); err != nil {
		return 0, err
	}
	d := time.Since(start)
	return d, sb.Delete(ctx)
}
