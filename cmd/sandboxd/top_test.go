package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/controller"
	"github.com/skerry-dev/skerry/internal/nodeapi"
	"github.com/skerry-dev/skerry/internal/top"
)

// TestSamples asks a server for samples over its socket: before it has begun, many at
// once, and of a node that cannot be reached.
func TestSamples(t *testing.T) {
	dir := t.TempDir()
	s := newSampler()
	stop, err := serveSocket(dir, socketHandler(nil, nil, nil, nil, s, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	ask := func() (got top.Sample, err error) {
		err = ask(context.Background(), dir, http.MethodGet, "/top", nil, &got)
		return got, err
	}
	if _, err := ask(); err == nil || err.Error() != "the server is starting" {
		t.Errorf("before it has begun: %v", err)
	}
	var reads atomic.Int64
	run := skerry.Session{ID: "sbx_1", SandboxName: "one", Status: skerry.StatusRunning, VCPUs: 2, MemoryMB: 4096, Scope: skerry.Scope{ProjectID: "prj_1"}}
	paused := run
	idle := run
	idle.ID, idle.IdleState = "sbx_3", skerry.IdlePaused
	paused.ID, paused.PausedAt = "sbx_2", skerry.FromMillis(1)
	s.begin(func(context.Context) ([]controller.Metered, error) {
		reads.Add(1)
		return []controller.Metered{
			{Session: run, Commands: 3, Meter: &nodeapi.Meter{Usage: nodeapi.Usage{ActiveCPU: 5, IngressBytes: 6, EgressBytes: 7}, MemoryBytes: 8}},
			{Session: paused}, {Session: idle},
		}, nil
	}, machineSize{cpus: 4, memory: 1 << 30})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			got, err := ask()
			if err != nil || got.CPUs != 4 || got.MemoryBytes != 1<<30 || len(got.Sandboxes) != 3 {
				t.Errorf("sampled %+v, %v", got, err)
				return
			}
			one, two := got.Sandboxes[0], got.Sandboxes[1]
			if one.Age <= 0 || !one.Metered || one.CPU != 5 || one.ReceivedBytes != 6 || one.SentBytes != 7 || one.MemoryBytes != 8 || one.Commands != 3 ||
				one.State != "running" || one.Project != "prj_1" || one.MemoryLimitBytes != 4<<30 || two.State != "paused" || got.Sandboxes[2].State != "idle" || two.Metered {
				t.Errorf("sampled %+v", got.Sandboxes)
			}
		})
	}
	all.Wait()
	if n := reads.Load(); n < 1 || n > 25 {
		t.Errorf("the meters were read %d times for 50 who asked at once", n)
	}
	broken := newSampler()
	broken.begin(func(context.Context) ([]controller.Metered, error) {
		return nil, nodeapi.Unreachable(errors.New("dial /hush/path"))
	}, machineSize{})
	if _, err := broken.sample(t.Context(), struct{}{}); err == nil || !strings.Contains(err.Error(), "does not answer") || strings.Contains(err.Error(), "hush") {
		t.Errorf("of a node that cannot be reached: %v", err)
	}
}
