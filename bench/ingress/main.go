// Command ingress measures requests per second through the ingress beside
// nginx as the reverse proxy: same machine, same backend, same load, in turns.
//
// The backend is a small server on the host, which is the hardest case: with
// one in a sandbox, that would be what takes the time. Each proxy is a process
// of its own with as many threads as there are processors, and keeps its
// connections to the backend. It needs nginx on PATH (Debian: nginx-light).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/ingress"
)

func main() {
	role := flag.String("role", "", "internal")
	backend := flag.String("backend", "", "internal")
	rounds := flag.Int("rounds", 3, "how often each is measured")
	each := flag.Duration("each", 3*time.Second, "how long one measurement takes")
	clients := flag.Int("clients", 64, "connections that ask at once")
	profile := flag.String("cpuprofile", "", "file for a CPU profile of the ingress, from its start to its end")
	flag.Parse()
	var err error
	switch *role {
	case "backend":
		err = serveBackend()
	case "ingress":
		err = serveIngress(*backend, *profile)
	default:
		err = compare(*rounds, *each, *clients, *profile)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const answerSize = 1024

// serveBackend answers everything with a kilobyte.
func serveBackend() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	body := []byte(strings.Repeat("x", answerSize))
	go func() {
		untilParentEnds()
		os.Exit(0)
	}()
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
}

// untilParentEnds waits until standard input ends, which the parent holds.
func untilParentEnds() { _, _ = io.Copy(io.Discard, os.Stdin) }

type direct string

func (direct) Ready(string) string { return "sbx_1" }

func (direct) Reach(context.Context, string, bool) (string, error) { return "sbx_1", nil }

func (d direct) Dial(ctx context.Context, _ string, _ int, _ netip.Addr) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", string(d))
}

func serveIngress(backend, profile string) error {
	gate, err := ingress.New(ingress.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ports := []skerry.PublishedPort{{Port: 3000, Subdomain: "bench"}}
	if err := gate.Publish("bench", ports); err != nil {
		return err
	}
	gate.Start(direct(backend))
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Println(strings.TrimPrefix(gate.URL(ports[0]), "http://"))
	untilParentEnds()
	return nil
}

// child starts this program in a role and returns the address it serves at.
func child(args ...string) (addr string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { in.Close(); _ = cmd.Wait() }
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, err
	}
	return strings.TrimSpace(line), stop, nil
}

const nginxConf = `worker_processes %d;
daemon off;
pid %s/pid;
error_log %s/error.log;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
  keepalive_requests 1000000000;
  upstream backend { server %[4]s; keepalive 64; keepalive_requests 1000000000; }
  server {
    listen %[5]s;
    location / {
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_buffering off;
    }
  }
}
`

func startNginx(backend string) (addr string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "skerry-bench-nginx-")
	if err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = ln.Addr().String()
	ln.Close()
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, runtime.NumCPU(), dir, dir, backend, addr)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	cmd := exec.Command("nginx", "-c", conf, "-p", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		os.RemoveAll(dir)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return addr, stop, nil
		}
	}
	stop()
	return "", nil, errors.New("nginx does not listen")
}

func compare(rounds int, each time.Duration, clients int, profile string) error {
	backend, stop, err := child("-role", "backend")
	if err != nil {
		return err
	}
	defer stop()
	ours, stopOurs, err := child("-role", "ingress", "-backend", backend, "-cpuprofile", profile)
	if err != nil {
		return err
	}
	defer stopOurs()
	theirs, stopTheirs, err := startNginx(backend)
	if err != nil {
		return err
	}
	defer stopTheirs()
	names, addrs := []string{"no proxy", "nginx", "ingress"}, []string{backend, theirs, ours}
	rates := make([][]float64, len(addrs))
	for range rounds {
		for i, addr := range addrs {
			rate, err := load(addr, each, clients)
			if err != nil {
				return fmt.Errorf("%s: %w", names[i], err)
			}
			rates[i] = append(rates[i], rate)
		}
	}
	fmt.Printf("%d clients, answers of %d bytes, %d processors, median of %d\n", clients, answerSize, runtime.NumCPU(), rounds)
	for i, name := range names {
		slices.Sort(rates[i])
		median := rates[i][len(rates[i])/2]
		fmt.Printf("%-10s %8.0f requests/s", name, median)
		if name == "ingress" {
			fmt.Printf("  %.0f %% of nginx", 100*median/rates[1][len(rates[1])/2])
		}
		fmt.Println()
	}
	return nil
}

// load asks over and over on each connection, and returns the answers per
// second.
func load(addr string, each time.Duration, clients int) (float64, error) {
	request := []byte("GET /index.html HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	var answers atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, clients)
	begin := time.Now()
	end := begin.Add(each)
	for n := range clients {
		group.Go(func() { errs[n] = ask(addr, request, end, &answers) })
	}
	group.Wait()
	return float64(answers.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

func ask(addr string, request []byte, end time.Time, answers *atomic.Int64) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for time.Now().Before(end) {
		if _, err := c.Write(request); err != nil {
			return err
		}
		if err := skim(r); err != nil {
			return err
		}
		answers.Add(1)
	}
	return nil
}

// skim reads an answer as cheaply as it can be read: the load must not take
// the processors from what is measured.
func skim(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !strings.HasPrefix(string(line[:min(12, len(line))]), "HTTP/1.1 200") {
			return fmt.Errorf("answered %q", line)
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > 16 && strings.EqualFold(string(line[:15]), "Content-Length:") {
			if _, err := fmt.Sscanf(string(line[15:]), "%d", &length); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without a length")
	}
	_, err := r.Discard(length)
	return err
}
