package acme

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/acme/acmetest"
	"github.com/skerry-dev/skerry/internal/ingress"
)

// noSandboxes has none: handshakes are all that is looked at.
type noSandboxes struct{}

func (noSandboxes) Ready(string) string { return "" }

func (noSandboxes) Reach(context.Context, string, bool) (string, error) {
	return "", &skerry.Error{Code: skerry.CodeNotFound}
}

func (noSandboxes) Dial(context.Context, string, int, netip.Addr) (net.Conn, error) {
	return nil, &skerry.Error{Code: skerry.CodeNotFound}
}

// TestIngress proves a name at the ingress' own listener, and has nothing of
// ours run on after the end.
func TestIngress(t *testing.T) {
	ln, port := listen(t)
	ca := acmetest.Start(t, acmetest.Options{TLSPort: port})
	c := open(t, Config{Dir: t.TempDir(), CA: ca.URL, Roots: ca.APIRoots(t), Listener: ln.Addr()})
	in, err := ingress.New(ingress.Config{Log: slog.New(slog.DiscardHandler), Domain: c.cfg.Domain, Listener: ln, TLS: c.TLS()})
	if err != nil {
		t.Fatal(err)
	}
	in.Start(noSandboxes{})
	c.Start(func(name string) bool { return name == "aaaa."+c.cfg.Domain })
	await(t, ln, "aaaa."+c.cfg.Domain, ca.Roots, anyOf)
	c.Close()
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "acme.(*Certificates)") {
			t.Errorf("it runs on:\n%s", stack)
		}
	}
}
