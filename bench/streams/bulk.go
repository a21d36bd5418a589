package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// printer is a program that prints so many bytes as fast as it can, in lines and
// writes of 64 KiB, and leaves the seconds that it took in a file.
const printer = `
import os, sys, time
block = (b"0123456789" * 7 + b"\n") * 923
left = int(sys.argv[1])
start = time.monotonic()
while left:
    left -= os.write(1, block[:left])
open(sys.argv[2], "w").write(str(time.monotonic() - start))
`

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// outputs measures the output of one command.
func (s *streams) outputs(ctx context.Context) error {
	size := s.output * 1e6
	peer, err := s.plainOutput(ctx, size)
	if err != nil {
		return err
	}
	return s.with(ctx, 1, func(boxes []*client.Sandbox) error {
		sb := boxes[0]
		if err := sb.WriteFile(ctx, "/tmp/printer.py", []byte(printer), 0o644); err != nil {
			return err
		}
		if err := s.alone(ctx, sb, min(size, 2e9)); err != nil {
			return err
		}
		var n counter
		r, err := s.watch(sb.Session().ID, func() error {
			cmd := sb.Command(ctx, "python3", "/tmp/printer.py", fmt.Sprint(size), "/tmp/took")
			cmd.Stdout = &n
			return cmd.Run()
		})
		if err == nil && int64(n) != size {
			err = fmt.Errorf("%d of %d bytes came", n, size)
		}
		if err != nil {
			return err
		}
		r.print(fmt.Sprintf("%d MB of output of one command", s.output), size, peer)
		return nil
	})
}

// alone measures what the program reaches in the sandbox, without the way out.
func (s *streams) alone(ctx context.Context, sb *client.Sandbox, size int64) error {
	for _, sink := range []struct{ name, shell string }{{"into /dev/null", ">/dev/null"}, {"into a pipe to cat", "| cat >/dev/null"}} {
		before, err := s.meter.Read()
		if err != nil {
			return err
		}
		if err := sb.Command(ctx, "sh", "-c", fmt.Sprintf("python3 /tmp/printer.py %d /tmp/took", size)+sink.shell).Run(); err != nil {
			return err
		}
		after, err := s.meter.Read()
		if err != nil {
			return err
		}
		took, err := sb.ReadFile(ctx, "/tmp/took")
		if err != nil {
			return err
		}
		seconds, err := strconv.ParseFloat(string(took), 64)
		if err != nil {
			return err
		}
		gb := float64(size) / 1e9
		fmt.Printf("%-40s %7.0f MB/s; CPU per GB: sandbox %.2f s\n", "  the program inside, "+sink.name, gb*1e3/seconds, after.Minus(before).Sandboxes.Seconds()/gb)
	}
	return nil
}

// plainOutput has a plain HTTP server run the same program.
func (s *streams) plainOutput(ctx context.Context, size int64) (time.Duration, error) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := pass(r.Context(), w, []string{"python3", "-c", printer, fmt.Sprint(size), os.DevNull}); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	start := time.Now()
	body, err := get(ctx, server.URL)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	n, err := io.Copy(io.Discard, body)
	if err == nil && n != size {
		err = fmt.Errorf("%d of %d bytes came from the peer", n, size)
	}
	took := time.Since(start)
	fmt.Printf("%-40s %7.0f MB/s\n", "  peer: no sandbox, net/http", rate(size, took))
	return took, err
}

// files measures a file of random bytes, and one of text, up and down.
func (s *streams) files(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "skerry-streams-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, kind := range []string{"random", "text"} {
		file := filepath.Join(dir, kind)
		if err := fill(file, kind, s.file*1e6); err != nil {
			return err
		}
		if err := s.fileOf(ctx, kind, file); err != nil {
			return err
		}
	}
	return nil
}

func fill(file, kind string, size int64) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var source io.Reader = rand.NewChaCha8([32]byte{})
	if kind == "text" {
		source = &text{random: rand.New(rand.NewPCG(1, 2))}
	}
	_, err = io.CopyN(f, source, size)
	return err
}

// text is text that compresses about as well as a source tree.
type text struct {
	random *rand.Rand
	left   []byte
}

func (t *text) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(t.left) == 0 {
			t.left = fmt.Appendf(nil, "%x: the quick brown fox, number %d, jumps over the lazy dog\n", t.random.Uint64(), t.random.Uint32())
		}
		m := copy(p[n:], t.left)
		n, t.left = n+m, t.left[m:]
	}
	return n, nil
}

func (s *streams) fileOf(ctx context.Context, kind, file string) error {
	size := s.file * 1e6
	up, down, err := plainFile(ctx, file, size)
	if err != nil {
		return err
	}
	fmt.Printf("%-40s %7.0f MB/s up, %.0f MB/s down\n", "  peer: net/http, "+kind, rate(size, up), rate(size, down))
	return s.with(ctx, 1, func(boxes []*client.Sandbox) error {
		sb := boxes[0]
		back := file + ".back"
		remote := "/tmp/file"
		for _, step := range []struct {
			name string
			peer time.Duration
			f    func() error
		}{
			{"CopyTo", up, func() error { _, err := sb.CopyTo(ctx, file, remote); return err }},
			{"CopyFrom", down, func() error { _, err := sb.CopyFrom(ctx, remote, back); return err }},
			{"sandbox cp, up", up, s.cp(ctx, file, sb.Name()+":"+remote)},
			{"sandbox cp, down", down, s.cp(ctx, sb.Name()+":"+remote, back)},
		} {
			if s.tool == "" && strings.HasPrefix(step.name, "sandbox") {
				continue
			}
			r, err := s.watch(sb.Session().ID, step.f)
			if err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			r.print(fmt.Sprintf("%d MB, %s, %s", s.file, kind, step.name), size, step.peer)
		}
		if out, err := exec.CommandContext(ctx, "cmp", file, back).CombinedOutput(); err != nil {
			return fmt.Errorf("the file came back changed: %w: %s", err, out)
		}
		return os.Remove(back)
	})
}

func (s *streams) cp(ctx context.Context, from, to string) func() error {
	return func() error {
		if out, err := exec.CommandContext(ctx, s.tool, "cp", from, to).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// plainFile has a plain HTTP server keep a file.
func plainFile(ctx context.Context, file string, size int64) (up, down time.Duration, err error) {
	kept := file + ".kept"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			http.ServeFile(w, r, kept)
			return
		}
		if err := write(kept, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, server.URL, f)
	if err != nil {
		return 0, 0, err
	}
	req.ContentLength = size
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	if err := resp.Body.Close(); err != nil {
		return 0, 0, err
	}
	up = time.Since(start)
	start = time.Now()
	body, err := get(ctx, server.URL)
	if err != nil {
		return 0, 0, err
	}
	defer body.Close()
	if err := write(file+".down", body); err != nil {
		return 0, 0, err
	}
	down = time.Since(start)
	return up, down, errors.Join(os.Remove(kept), os.Remove(file+".down"))
}

func write(file string, from io.Reader) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, from)
	return err
}
