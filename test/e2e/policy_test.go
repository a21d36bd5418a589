package e2e

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// lines takes the output of a command.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPolicyDoesNotWaitForTheGuest has a guest in which what makes it trust the
// proxy never ends.
func TestPolicyDoesNotWaitForTheGuest(t *testing.T) {
	s := newServer(t)
	sb := s.create(client.CreateOptions{Name: "slow"})
	const watch = `
import os, time
print("watching", flush=True)
up = False
while True:
    now = any("hang.py" in open("/proc/%s/cmdline" % p).read() for p in os.listdir("/proc") if p.isdigit() and os.path.exists("/proc/%s/cmdline" % p))
    if now != up:
        up = now
        print("hangs" if now else "ended", flush=True)
    time.sleep(0.02)
`
	out := &lines{}
	cmd := sb.Command(t.Context(), "python3", "-c", watch)
	cmd.Stdout, cmd.Sudo = out, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	wait := func(text string) {
		t.Helper()
		for by := time.Now().Add(time.Minute); !strings.Contains(out.String(), text); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(by) {
				t.Fatalf("no %q in %q", text, out)
			}
		}
	}
	wait("watching")
	if code, out := s.shell(sb, `printf '#!/usr/bin/python3\nimport time\ntime.sleep(1000)\n' | sudo tee /hang.py >/dev/null && sudo chmod +x /hang.py && sudo ln -sf /hang.py /bin/sh`); code != 0 {
		t.Fatal(out)
	}
	for _, p := range []client.NetworkPolicy{
		{Rules: map[string][]skerry.NetworkRule{"a.test": {{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"x-key": "k"}}}}}}},
		{Rules: map[string][]skerry.NetworkRule{"b.test": {{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"x-key": "k"}}}}}}},
		{Mode: "deny-all"},
	} {
		if err := sb.SetNetworkPolicy(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	// All are enforced, and the guest is still at it.
	if seen := out.String(); strings.Contains(seen, "ended") {
		t.Errorf("the changes waited for the guest: %q", seen)
	}
	wait("hangs")
	if got := sb.Session().NetworkPolicy.Mode; got != skerry.NetworkDenyAll {
		t.Errorf("the session's policy is %s", got)
	}
}

// TestPolicyOfSilentGuest has root in a sandbox stop its guest agent for good, and a
// new server take the sandbox over. What it may reach is still changed at once.
func TestPolicyOfSilentGuest(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "silent", NetworkPolicy: &client.NetworkPolicy{Mode: "allow-all"}})
	cmd := sb.Command(t.Context(), "python3", "-c", `
import os, signal, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for turn in range(100000):
    try:
        s.sendto(b"x", ("`+evilIP+`", 9))
    except OSError:
        pass
    if turn == 50:
        os.kill(1, signal.SIGSTOP)
    time.sleep(0.01)
`)
	cmd.Sudo, cmd.Detached = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	arrives := func(note string) func() bool {
		return func() bool {
			packets, _, _ := w.lab.seen()
			return slices.Contains(packets, note)
		}
	}
	const sent = "17 198.51.100.1>" + evilIP + ":9"
	w.waitFor("the guest agent to stop", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return sb.Command(ctx, "true").Run() != nil
	})
	w.kill()
	w.start()
	w.waitFor("the sandbox's packets", arrives(sent))
	if err := w.get("silent").Update(t.Context(), client.UpdateOptions{NetworkPolicy: &client.NetworkPolicy{Mode: "deny-all"}}); err != nil {
		t.Fatal(err)
	}
	if status := w.get("silent").Info().Status; status != skerry.StatusRunning && status != skerry.StatusSnapshotting {
		t.Fatalf("the session is %s: the change has waited for its end", status)
	}
	// The lab sees this after all that the sandbox has sent before.
	c, err := net.Dial("udp4", allowedIP+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	w.waitFor("a packet of the host", arrives("17 198.51.100.1>"+allowedIP+":9"))
	w.waitFor("the session to be aborted", func() bool { return w.get("silent").Info().Status == skerry.StatusAborted })
	if packets, _, _ := w.lab.seen(); slices.Contains(packets, sent) {
		t.Error("the sandbox still reached the lab")
	}
}
