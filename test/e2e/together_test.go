package e2e

import (
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// greedyScript starts eight processes that take 200 MiB each, and ends when each has
// them or has been killed.
const greedyScript = `
import os, signal, sys
ends = []
for i in range(8):
    r, w = os.pipe()
    if os.fork() == 0:
        kept = bytearray(200 << 20)
        for page in range(0, len(kept), 4096): kept[page] = 1
        os.write(w, b"d")
        signal.pause()
    os.close(w)
    ends.append(r)
lost = sum(os.read(r, 1) != b"d" for r in ends)
print(lost, "of 8 were killed")
sys.exit(137 if lost else 0)`

// thriftyScript is one process that is larger than each of these.
const thriftyScript = `
import time
kept = bytearray(700 << 20)
for page in range(0, len(kept), 4096): kept[page] = 1
open("has", "w")
while True:
    time.sleep(0.02)
    kept[0] += 1; kept[0] %= 100`

// TestMemoryTogether: when the memory of all sandboxes runs out, those that hold
// more than their share lose processes, and a neighbour that holds less loses none,
// though its process is the largest.
func TestMemoryTogether(t *testing.T) {
	s := newServer(t, "--sandbox-memory", "3")
	neighbour := s.create(client.CreateOptions{Name: "neighbour", VCPUs: 1})
	stays := neighbour.Command(t.Context(), "python3", "-c", thriftyScript)
	stays.Detached = true
	if err := stays.Start(); err != nil {
		t.Fatal(err)
	}
	s.waitFor("the neighbour to have its memory", func() bool {
		code, _ := s.shell(neighbour, "test -e has")
		return code == 0
	})
	var greedy []*client.Sandbox
	for _, name := range []string{"one", "two"} {
		greedy = append(greedy, s.create(client.CreateOptions{Name: name, VCPUs: 1}))
	}
	// The host's kernel may be quicker than the agents if the machine has much else to
	// do. Then processes are killed for their own sandbox's sake, and it is tried again.
	told := 0
	for round := 0; told == 0 && round < 4; round++ {
		outs := make(chan string, len(greedy))
		for _, sb := range greedy {
			go func() {
				out, err := sb.Command(t.Context(), "python3", "-c", greedyScript).CombinedOutput()
				if err != nil {
					out = append(out, err.Error()...)
				}
				outs <- string(out)
			}()
		}
		for range greedy {
			out := <-outs
			t.Logf("a greedy command: %s", out)
			told += strings.Count(out, "this one used more than its share")
		}
	}
	if told == 0 {
		t.Error("nobody was told that they lost a process because all sandboxes ran out of memory")
	}
	cmd, err := neighbour.FindCommand(t.Context(), stays.ID())
	if err != nil {
		t.Fatal(err)
	}
	if info := cmd.Info(); info.Finished() {
		t.Errorf("the neighbour's process has ended with %d", *info.ExitCode)
	}
	s.assertAlive(neighbour)
}
