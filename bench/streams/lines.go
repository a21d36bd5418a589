package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skerry-dev/skerry/bench/meter"
	"github.com/skerry-dev/skerry/client"
)

// ticker is a program that prints the time, in microseconds, and waits without a
// process of its own. The machine and the sandbox have one clock.
func ticker(every time.Duration) []string {
	script := `exec 3<> <(:); while :; do echo "${EPOCHREALTIME/./} a line of output, as long as lines of logs usually are"; read -t ` +
		strconv.FormatFloat(every.Seconds(), 'f', 3, 64) + ` -u 3; done`
	return []string{"bash", "-c", script}
}

// latencies collects how old lines are when they arrive.
type latencies struct {
	mu    sync.Mutex
	times meter.Times
}

func (l *latencies) add(line string, now time.Time) error {
	stamp, _, _ := strings.Cut(line, " ")
	us, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("a line does not begin with its time: %q", line)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times = append(l.times, now.Sub(time.UnixMicro(us)))
	return nil
}

// lines follows many commands at once, of the sandboxes and then of the peer.
func (s *streams) lines(ctx context.Context) error {
	err := s.with(ctx, s.boxes, func(boxes []*client.Sandbox) error {
		var cmds []*client.Cmd
		for i := range s.follow {
			argv := ticker(s.every)
			cmd := boxes[i%len(boxes)].Command(ctx, argv[0], argv[1:]...)
			cmd.Detached = true
			if err := cmd.Start(); err != nil {
				return err
			}
			cmds = append(cmds, cmd)
		}
		var l *latencies
		r, err := s.watch(boxes[0].Session().ID, func() (err error) {
			l, err = together(ctx, s.window, len(cmds), func(ctx context.Context, i int, each func(string) error) error {
				var part string // of a line
				for log, err := range cmds[i].Logs(ctx) {
					if err != nil {
						return err
					}
					part += string(log.Data)
					for {
						line, rest, ok := strings.Cut(part, "\n")
						if !ok {
							break
						}
						part = rest
						if err := each(line); err != nil {
							return err
						}
					}
				}
				return errors.New("the output has ended")
			})
			return err
		})
		if err != nil {
			return err
		}
		n := max(len(l.times), 1)
		each := r.cpu.Divided(n)
		fmt.Printf("%-40s %v\n", fmt.Sprintf("latency of a line, %d streams", s.follow), l.times)
		fmt.Printf("  %.0f lines a second; CPU for a line: server %.2f ms, sandboxes %.2f ms, client %.2f ms\n", float64(n)/r.wall.Seconds(),
			each.Server.Seconds()*1e3, each.Sandboxes.Seconds()*1e3, each.Client.Seconds()*1e3)
		fmt.Printf("  %s (one of %d)\n", r.memory(), len(boxes))
		return s.printServer(ctx)
	})
	if err != nil {
		return err
	}
	return s.plainLines(ctx)
}

func (s *streams) printServer(ctx context.Context) error {
	server, err := s.meter.Server(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("  server: %v\n", server)
	return nil
}

// together has n followers call each for every line, for so long. The lines of the first
// seconds are old ones.
func together(ctx context.Context, t time.Duration, n int, follow func(ctx context.Context, i int, each func(string) error) error) (*latencies, error) {
	const warmup = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, warmup+t)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	l := &latencies{}
	counts := time.Now().Add(warmup)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			err := follow(ctx, i, func(line string) error {
				now := time.Now()
				if now.Before(counts) {
					return nil
				}
				return l.add(line, now)
			})
			if err != nil && ctx.Err() == nil {
				fail(err)
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return l, nil
}

// plainLines has a plain HTTP server run the same programs, and pass on what they print.
func (s *streams) plainLines(ctx context.Context) error {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := pass(r.Context(), w, ticker(s.every)); err != nil && r.Context().Err() == nil {
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	l, err := together(ctx, s.window, s.follow, func(ctx context.Context, _ int, each func(string) error) error {
		body, err := get(ctx, server.URL)
		if err != nil {
			return err
		}
		defer body.Close()
		for lines := bufio.NewScanner(body); lines.Scan(); {
			if err := each(lines.Text()); err != nil {
				return err
			}
		}
		return errors.New("the output has ended")
	})
	if err != nil {
		return err
	}
	fmt.Printf("%-40s %v\n", "  peer: no sandbox, net/http", l.times)
	return nil
}

// pass runs a program and passes on its output at once.
func pass(ctx context.Context, w http.ResponseWriter, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	flush := http.NewResponseController(w)
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				err = werr
			} else if werr := flush.Flush(); werr != nil {
				err = werr
			}
		}
		if err == io.EOF {
			return cmd.Wait()
		}
		if err != nil {
			return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
	}
}

func get(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp.Body, nil
}
