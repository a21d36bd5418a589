package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/netutil"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/metrics"
	"github.com/skerry-dev/skerry/internal/store"
	"github.com/skerry-dev/skerry/internal/tracing/export"
)

// observeOptions are the flags for those who operate the server. What they open tells of
// all projects and has no tokens, so it has addresses of its own.
type observeOptions struct {
	metrics string
	pprof   string
	otlp    string
}

func (o *observeOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.metrics, "metrics-listen", "", "address at which to serve /metrics (Prometheus), /healthz and /readyz, without TLS and tokens, such as 127.0.0.1:7702")
	f.StringVar(&o.otlp, "otlp-endpoint", "", "URL of a collector of OpenTelemetry traces (OTLP over HTTP), such as http://127.0.0.1:4318 (environment: OTEL_EXPORTER_OTLP_ENDPOINT, and OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and others)")
	f.StringVar(&o.pprof, "pprof-listen", "", "loopback address at which to serve Go profiles of the server (/debug/pprof/), such as 127.0.0.1:7703")
}

// check refuses an address at which profiles may not be served: they show what is in
// the server's memory.
func (o *observeOptions) check() error {
	if _, err := export.Configure(o.otlp, os.Getenv); err != nil {
		return err
	}
	if o.pprof == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(o.pprof)
	if ip, perr := netip.ParseAddr(host); err != nil || host != "localhost" && (perr != nil || !ip.IsLoopback()) {
		return fmt.Errorf("--pprof-listen %q is not a loopback address, such as 127.0.0.1:7703", o.pprof)
	}
	return nil
}

// readyTimeout is how long what the server needs may take to answer before it counts as
// not ready.
const readyTimeout = 5 * time.Second

// ready are the checks of /readyz, by what they check.
type ready map[string]func(context.Context) error

// ServeHTTP implements http.Handler. It answers 503 if a check fails, with a line for
// each check.
func (r ready) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), readyTimeout)
	defer cancel()
	status, text := http.StatusOK, ""
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if err := r[name](ctx); err != nil {
			status = http.StatusServiceUnavailable
			text += name + ": " + reason(err) + "\n"
		} else {
			text += name + ": ok\n"
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // whoever asked has gone
}

// reason is what may be told of an error to whoever asks: no path, address or query.
func reason(err error) string {
	if e, ok := errors.AsType[*skerry.Error](err); ok {
		return e.Message
	}
	return "it does not answer"
}

// metricsHandler serves what operators' tools ask for.
func metricsHandler(m *metrics.Metrics, checks ready) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	mux.Handle("GET /readyz", checks)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	return mux
}

func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// maxObservers limits the connections of a listener without tokens; more wait.
const maxObservers = 64

// serveAt serves a handler at an address, "" for not at all, until the returned function
// is called. what names it in the log and in errors.
func serveAt(what, addr string, h http.Handler, log *slog.Logger) (stop func() error, err error) {
	if addr == "" {
		return func() error { return nil }, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", what, err)
	}
	log.Info("serving "+what, "address", ln.Addr().String()) // its port, if addr has port 0
	ln = netutil.LimitListener(ln, maxObservers)
	server := &http.Server{
		Handler: http.MaxBytesHandler(h, 64<<10), ReadTimeout: 10 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	return func() error {
		err := server.Close()
		if serr := <-done; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	}, nil
}

// addGauges adds the controller's counts to the metrics.
func addGauges(m *metrics.Metrics, control *controller.Controller, vcpus, memoryMB int) {
	m.Add(metrics.Gauge{
		Name: "skerry_sessions", Help: "Sessions that have not ended, by state.", Label: "state",
		Read: func() map[string]float64 {
			values := map[string]float64{}
			for state, n := range control.Counts().ByState {
				values[state] = float64(n)
			}
			return values
		},
	})
	m.Add(metrics.Gauge{Name: "skerry_vcpus_promised", Help: "Virtual CPUs of the sandboxes that have a session.", Read: metrics.Value(func() float64 { return float64(control.Counts().VCPUs) })})
	m.Add(metrics.Gauge{Name: "skerry_memory_promised_bytes", Help: "Memory of the sandboxes that have a session.", Read: metrics.Value(func() float64 { return float64(control.Counts().MemoryMB) * (1 << 20) })})
	m.Add(metrics.Gauge{Name: "skerry_vcpus_limit", Help: "Virtual CPUs that sandboxes may have together; 0 is no limit.", Read: metrics.Value(func() float64 { return float64(vcpus) })})
	m.Add(metrics.Gauge{Name: "skerry_memory_limit_bytes", Help: "Memory that sandboxes may have together; 0 is no limit.", Read: metrics.Value(func() float64 { return float64(memoryMB) * (1 << 20) })})
}

// ready are the checks of what the server needs: its database, its node, room on the disk,
// and its audit log if it does nothing without.
func (o *serveOptions) ready(db *store.Store, n *nodeParts, records *auditing) ready {
	checks := ready{
		"database": func(ctx context.Context) error { _, err := db.Images(ctx); return err },
		"node":     func(ctx context.Context) error { _, err := n.images.Resolve(ctx, ""); return err },
	}
	if n.room != nil {
		checks["disk"] = func(context.Context) error { return n.room() }
	}
	if o.audit.required {
		checks["audit"] = func(context.Context) error { return records.Ready() }
	}
	return checks
}
