package e2e

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry/client"
)

// TestCrashAtAnyPoint kills the server in the middle of whatever it does, many
// times. Each server that follows must find the sandboxes that run whole, and
// nothing of those that do not.
func TestCrashAtAnyPoint(t *testing.T) {
	const rounds, clients = 12, 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newServer(t)
	for round := range rounds {
		// Networks that are prepared and not in use yet are crashed with, but
		// not in the rounds that look for what is one too many.
		s.flags = nil
		if round%2 == 0 {
			s.flags = []string{"--ready-networks", "0"}
		}
		churn := newChurn(s, round, clients, random)
		// A random moment of a sandbox's life, which takes some 200 ms here.
		time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
		s.kill()
		churn.end()
		s.start()
		s.settle()
		spare := 0
		if s.flags == nil {
			spare = 5
		}
		s.assertOwned(spare)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	// What was left of the names can be used, and new ones too.
	for i := range clients {
		sb, err := s.GetSandbox(t.Context(), churnName(i), client.GetOptions{Resume: true})
		if client.IsNotFound(err) {
			sb, err = s.CreateSandbox(t.Context(), client.CreateOptions{Name: churnName(i)})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.assertAlive(sb)
	}
}

func churnName(i int) string { return "churn-" + strconv.Itoa(i) }

// churn is clients that make, use, stop, resume and delete sandboxes.
type churn struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func newChurn(s *server, round, clients int, random *rand.Rand) *churn {
	ctx, cancel := context.WithCancel(s.t.Context())
	c := &churn{cancel: cancel}
	for i := range clients {
		r := rand.New(rand.NewPCG(random.Uint64(), uint64(round)))
		c.done.Go(func() {
			for ctx.Err() == nil {
				act(ctx, s.Client, churnName(i), r)
			}
		})
	}
	return c
}

func (c *churn) end() {
	c.cancel()
	c.done.Wait()
}

// act does one thing to a sandbox. Its errors are those of a server that is
// being killed, or of a name that is taken or free.
func act(ctx context.Context, c *client.Client, name string, random *rand.Rand) {
	sb, err := c.GetSandbox(ctx, name, client.GetOptions{Resume: random.IntN(2) == 0})
	if client.IsNotFound(err) {
		sb, err = c.CreateSandbox(ctx, client.CreateOptions{Name: name, VCPUs: 1})
	}
	if err != nil {
		return
	}
	switch random.IntN(5) {
	case 0:
		_ = sb.Delete(ctx)
	case 1:
		_, _ = sb.Stop(ctx)
	case 2:
		_ = sb.WriteFile(ctx, "a", []byte("a"), 0o644)
	default:
		_ = sb.Command(ctx, "sh", "-c", "echo a; sleep 0.1; echo b").Run()
	}
}
