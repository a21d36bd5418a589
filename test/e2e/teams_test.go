package e2e

import (
	"encoding/json"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// computes keeps two CPUs busy until a time.
const computes = `
import multiprocessing, sys, time
def compute():
    while time.time() < float(sys.argv[1]):
        pass
all = [multiprocessing.Process(target=compute) for _ in range(2)]
for p in all: p.start()
for p in all: p.join()
`

// TestTeamsShareTheCPU has two teams compute, one in many sandboxes and the other in one. The
// kernel would give the one a sixth of what they get together.
func TestTeamsShareTheCPU(t *testing.T) {
	s := newServer(t)
	for _, args := range [][]string{{"team", "create", "small"}, {"project", "create", "small", "--team", "small"}} {
		if out, ok := s.says(args...); !ok {
			t.Fatal(out)
		}
	}
	token, ok := s.says("token", "create", "small", "--team", "small", "--project", "small")
	if !ok {
		t.Fatal(token)
	}
	small, err := client.New(client.Options{URL: s.config().URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	one, err := small.CreateSandbox(t.Context(), client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const many = 5
	boxes := []*client.Sandbox{one}
	for range many {
		boxes = append(boxes, s.create(client.CreateOptions{}))
	}
	defer func() {
		for _, sb := range boxes {
			if err := sb.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	end := time.Now().Add(24 * time.Second)
	var wg sync.WaitGroup
	for _, sb := range boxes {
		wg.Go(func() {
			until := strconv.FormatFloat(float64(end.UnixMilli())/1000, 'f', 3, 64)
			if err := sb.Command(t.Context(), "python3", "-c", computes, until).Run(); err != nil {
				t.Error(err)
			}
		})
	}
	// The first seconds are for the node to see what happens.
	s.waitFor("a while", func() bool { return time.Until(end) < 14*time.Second })
	used, all := map[string]float64{}, 0.0
	for time.Until(end) > 3*time.Second {
		said, ok := s.says("top", "--json")
		if !ok {
			t.Fatal(said)
		}
		var top struct {
			Sandboxes []struct {
				Name string  `json:"name"`
				CPU  float64 `json:"cpuPercent"`
			} `json:"sandboxes"`
		}
		if err := json.Unmarshal([]byte(said), &top); err != nil || len(top.Sandboxes) != len(boxes) {
			t.Fatalf("%v: %s", err, said)
		}
		for _, sb := range top.Sandboxes {
			used[sb.Name] += sb.CPU
			all += sb.CPU
		}
	}
	wg.Wait()
	share := used[one.Name()] / all
	t.Logf("the team with one of %d sandboxes got %.1f %% of the CPU time", len(boxes), 100*share)
	// What it gets varies much from second to second.
	if share < 0.28 || share > 0.8 {
		t.Errorf("a team that computes in one of %d sandboxes got %.1f %% of the CPU time", len(boxes), 100*share)
	}
}
