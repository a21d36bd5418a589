// Command wake measures how long a sandbox that nobody used takes to answer: one that is
// paused, and one that hibernates. A program in each, with 64 MiB of memory, answers HTTP
// requests at a port. Beside each request is one to the same sandbox while it is awake.
//
// It needs SKERRY_URL and the rest of the SDK's environment, and a server with
// --idle-pause 1s --idle-hibernate 1s.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

const program = `
import http.server
heap = bytearray(range(256)) * (64 << 12)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(sum(heap[::4096])).encode())
    def log_message(self, *args):
        pass
http.server.HTTPServer(("", 8000), Handler).serve_forever()
`

func main() {
	n := flag.Int("n", 40, "number of wakes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *n); err != nil {
		fmt.Fprintln(os.Stderr, "wake:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n int) error {
	c, err := client.FromEnvironment()
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Printf("load of the machine before: %s\n", meter.Load())
	for _, of := range []struct {
		state skerry.IdleState
		mode  skerry.IdleMode
	}{{skerry.IdlePaused, skerry.IdlePause}, {skerry.IdleHibernated, skerry.IdleHibernate}} {
		woken, awake, err := wakes(ctx, c, n, of.state, of.mode)
		if err != nil {
			return err
		}
		fmt.Printf("%-10s %s\n%-10s %s\n", of.state, woken, "awake", awake)
	}
	return nil
}

// wakes measures requests to a sandbox in an idle state, and right after each of them.
func wakes(ctx context.Context, c *client.Client, n int, state skerry.IdleState, mode skerry.IdleMode) (woken, awake meter.Times, err error) {
	sb, err := c.CreateSandbox(ctx, client.CreateOptions{VCPUs: 1, Ports: []int{8000}, Idle: mode, Timeout: time.Hour, Persistent: new(bool)})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, sb.Delete(context.WithoutCancel(ctx))) }()
	cmd := sb.Command(ctx, "python3", "-c", program)
	cmd.Detached = true
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	at, err := sb.Domain(8000)
	if err != nil {
		return nil, nil, err
	}
	for answered := false; !answered; {
		if _, err = get(ctx, at); err == nil {
			answered = true
		} else if err := rest(ctx); err != nil {
			return nil, nil, err
		}
	}
	for range n {
		for {
			now, err := c.GetSandbox(ctx, sb.Name(), client.GetOptions{})
			if err != nil {
				return nil, nil, err
			}
			if now.Session().IdleState == state {
				break
			}
			if err := rest(ctx); err != nil {
				return nil, nil, err
			}
		}
		for _, times := range []*meter.Times{&woken, &awake} {
			took, err := get(ctx, at)
			if err != nil {
				return nil, nil, err
			}
			*times = append(*times, took)
		}
	}
	return woken, awake, nil
}

// rest waits a moment.
func rest(ctx context.Context) error {
	select {
	case <-time.After(50 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// get makes a request on a connection of its own, and returns how long it took.
func get(ctx context.Context, at string) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return 0, err
	}
	req.Close = true
	began := time.Now()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", at, res.Status)
	}
	return time.Since(began), nil
}
