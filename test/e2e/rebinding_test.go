package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

// TestRebinding has the owner of allowed names change what they stand for, to
// what no sandbox may reach or this one may not.
func TestRebinding(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	policy := &client.NetworkPolicy{Rules: map[string][]skerry.NetworkRule{
		"*.rebind.test": {}, "*.rules.test": customPolicy.Rules["*.rules.test"],
	}, DenyCIDRs: []string{deniedIP + "/32"}}
	sb := w.create(client.CreateOptions{Name: "rebound", NetworkPolicy: policy})
	after := map[string][]string{}
	for i, target := range []string{"169.254.169.254", "198.51.100.1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", deniedIP, w.address(w.neighbour), w.address(sb), "=metadata.test", "=denied.test", "=host.test"} {
		after[fmt.Sprintf("n%d.rebind.test", i)] = []string{target}
		after[fmt.Sprintf("n%d.rules.test", i)] = []string{target}
	}
	for name := range after {
		w.lab.name(name, allowedIP)
	}
	for name := range after {
		if out := w.attack(sb, "http", allowedIP, name); !strings.Contains(out, "reached "+name) {
			t.Fatalf("before: %s: %s", name, out)
		}
	}
	w.quiet("before")
	for name, records := range after {
		w.lab.name(name, records...)
	}
	for name := range after {
		// What was answered is kept for seconds: until the world is asked again.
		w.waitFor("the proxy to ask again for "+name, func() bool {
			w.attack(sb, "http", allowedIP, name)
			return w.lab.asked(name) > 0
		})
		for _, a := range [][]string{{"http", allowedIP, name}, {"tls", allowedIP, name}, {"http", name, name}, {"tls", name, name}, {"tcp", name, "8080"}} {
			if out := w.attack(sb, a...); !strings.HasPrefix(out, "blocked ") {
				t.Errorf("%v stands for %v: %s", a, after[name], out)
			}
		}
		// The host's own address is told, as it is by any server, and of no use.
		_, out := w.shell(sb, "dig +short +time=2 +tries=1 "+name+" A")
		if out = strings.TrimSpace(out); out != "198.51.100.1" && strings.ContainsAny(out, "0123456789") {
			t.Errorf("%s stands for %v: it was told %s", name, after[name], out)
		}
		w.quiet(name)
	}
	// Both at once: the address that is allowed is the one that is taken.
	w.lab.name("both.rebind.test", "169.254.169.254", allowedIP)
	w.lab.name("alias.rebind.test", "=allowed.test")
	for _, name := range []string{"both.rebind.test", "alias.rebind.test"} {
		if out := w.attack(sb, "http", "169.254.1.1", name); !strings.HasPrefix(out, "blocked ") {
			t.Errorf("%s at a link-local address: %s", name, out)
		}
		if out := w.attack(sb, "http", evilIP, name); !strings.Contains(out, "reached "+name) {
			t.Errorf("%s: %s", name, out)
		}
	}
	w.quiet("both at once")
	// One that everything is open to asks the world itself, and still does not get there.
	for _, name := range []string{"metadata.test", "host.test", "n0.rebind.test"} {
		if out := w.attack(w.neighbour, "tcp", name, "80"); !strings.HasPrefix(out, "blocked ") {
			t.Errorf("allow-all: %s: %s", name, out)
		}
	}
	w.quiet("allow-all")
}
