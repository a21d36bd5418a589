package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// files is how many the server has open.
func (w *world) files() int {
	w.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.pid()))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(list)
}

// TestCrowd has a sandbox open ten thousand connections at once, through the
// proxy and past it. It gets its share; the others notice nothing.
func TestCrowd(t *testing.T) {
	if !inLab(t) {
		return
	}
	const (
		crowd = 10_000
		share = 2048 // egress.Limits.ConnectionsPerSandbox
	)
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "crowd", NetworkPolicy: customPolicy})
	other := w.create(client.CreateOptions{Name: "other", NetworkPolicy: customPolicy})
	for _, way := range []struct {
		name, address, port string
		proxied             bool
	}{{"through the proxy", allowedIP, "443", true}, {"past it", directIP, "2222", false}} {
		before, most, served := w.files(), 0, 0
		attack := sb.Command(t.Context(), "python3", "-c", attackScript, "crowd", fmt.Sprint(crowd), way.address, way.port)
		attack.Sudo = true
		if err := attack.Start(); err != nil {
			t.Fatal(err)
		}
		var held, refused int
		w.waitFor("the crowd to have come", func() bool {
			most = max(most, w.files())
			for _, neighbour := range []*client.Sandbox{other, w.neighbour} {
				if code, out := w.shell(neighbour, "curl -sS -m 20 http://allowed.test/"); code != 0 {
					t.Errorf("%s: %s: %d %s", way.name, neighbour.Name(), code, out)
				}
				served++
			}
			_, out := w.shell(sb, "cat /tmp/crowd 2>/dev/null")
			n, _ := fmt.Sscan(out, &held, &refused)
			return n == 2
		})
		most = max(most, w.files())
		if code, out := w.shell(sb, "touch /tmp/release"); code != 0 {
			t.Fatal(out)
		}
		if err := attack.Wait(); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
		t.Logf("%s: %d held, %d refused; the server had %d files open, and %d before; %d requests of others", way.name, held, refused, most, before, served)
		if held+refused != crowd || held == 0 || served < 2 {
			t.Errorf("%s: %d held, %d refused", way.name, held, refused)
		}
		// Two files for a connection, and those of the others.
		if way.proxied && held > share || most-before > 2*share+256 {
			t.Errorf("%s: %d held with %d files", way.name, held, most-before)
		}
		w.waitFor("the files to be closed", func() bool { return w.files() <= before+16 })
		w.output(sb, "sudo", "rm", "-f", "/tmp/crowd", "/tmp/release")
		w.assertAlive(sb)
	}
}
