package e2e

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// counts counts as far as it can until a time, with two processes, and prints how far it came
// in the last part of it.
const counts = `
import multiprocessing, sys, time
def count(out):
    n, begin, end = 0, float(sys.argv[1]), float(sys.argv[2])
    while time.time() < begin:
        pass
    while time.time() < end:
        n += 1
    out.put(n)
out = multiprocessing.Queue()
all = [multiprocessing.Process(target=count, args=(out,)) for _ in range(2)]
for p in all: p.start()
print(sum(out.get() for _ in all))
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
	for _, sb := range boxes {
		if err := sb.WriteFile(t.Context(), "counts.py", []byte(counts), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The first seconds are for the node to see what happens.
	at := func(d time.Duration) string {
		return strconv.FormatFloat(float64(time.Now().Add(d).UnixMilli())/1000, 'f', 3, 64)
	}
	begin, end := at(10*time.Second), at(20*time.Second)
	counted := make([]float64, len(boxes))
	var wg sync.WaitGroup
	for n, sb := range boxes {
		wg.Go(func() {
			said, err := sb.Command(t.Context(), "python3", "counts.py", begin, end).Output()
			if err == nil {
				counted[n], err = strconv.ParseFloat(strings.TrimSpace(string(said)), 64)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all := 0.0
	for _, n := range counted {
		all += n
	}
	share := counted[0] / all
	t.Logf("the team with one of %d sandboxes did %.1f %% of the work", len(boxes), 100*share)
	if share < 0.35 || share > 0.65 {
		t.Errorf("a team that computes in one of %d sandboxes did %.1f %% of the work", len(boxes), 100*share)
	}
}
